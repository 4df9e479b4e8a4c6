"""Where ``top`` gets a status from: an exporter's ``/-/status``, or a directory that it reads."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obskit_gunicorn._exporter.protocol import STATUS_PATH
from obskit_gunicorn._exporter.status import STATUS_VERSION, StatusReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._exporter.status import Status

_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 16 << 20


class NoStatusError(Exception):
    """There is no status to be had; the text says why."""


def ask(source: str) -> Callable[[], Status]:
    """Return what reads the status each time that it is called.

    It raises :class:`NoStatusError`.

    Args:
        source: The URL of an exporter, or of a page of it, or a multiprocess directory.
    """
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        url = f"{parts.scheme}://{parts.netloc}{STATUS_PATH}"
        return lambda: _checked(_fetch(url), url)
    reader = StatusReader(lambda: source)

    def read() -> Status:
        if not os.path.isdir(source):
            raise NoStatusError(f"{source} is not there any more")
        return reader.read()

    return read


def _fetch(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            hint = ": metrics_page is off, or this is no exporter" if error.code == 404 else ""
            raise NoStatusError(f"{url} answers {error.code}{hint}") from None
    except ValueError:
        raise NoStatusError(f"{url} does not answer with a status") from None
    except (OSError, http.client.HTTPException) as error:
        raise NoStatusError(f"{url}: {getattr(error, 'reason', None) or error}") from None


def _checked(answer: Any, url: str) -> Status:
    if not isinstance(answer, dict) or answer.get("version") != STATUS_VERSION:
        raise NoStatusError(f"{url} answers in a format that this release does not know")
    return answer
