"""WSGI without a server."""

from __future__ import annotations

import wsgiref.util
from typing import Any

__all__ = ["environ_of"]


def environ_of(path: str, **more: str) -> dict[str, Any]:
    """Return the environ of a GET request, as servers make it."""
    environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", **more}
    wsgiref.util.setup_testing_defaults(environ)
    return environ
