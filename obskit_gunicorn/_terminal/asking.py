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
from obskit_gunicorn._fleet.secret import authorisation

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._exporter.status import Status

_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 16 << 20
_SECRETS = "OBSKIT_TOP"
_HINT = (
    f"set {_SECRETS}_TOKEN, or {_SECRETS}_USER and {_SECRETS}_PASSWORD; or each with _FILE, to the "
    "name of a file that holds it"
)
_HINTS = {
    401: f"it wants to know who asks: {_HINT}",
    404: "metrics_page is off, or this is no exporter",
    429: "it checks other passwords just now",
}


class NoStatusError(Exception):
    """There is no status to be had; the text says why."""


def ask(source: str) -> Callable[[], Status]:
    """Return what reads the status each time that it is called.

    It raises :class:`NoStatusError`.

    Args:
        source: The URL of an exporter, or of a page of it, or a multiprocess directory.

    Raises:
        NoStatusError: The URL is none.
    """
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise NoStatusError(f"{source} is no URL: {error}") from None
    if parts.scheme in ("http", "https"):
        if "@" in parts.netloc:
            return _refuse
        url = f"{parts.scheme}://{parts.netloc}{STATUS_PATH}"
        return lambda: _checked(_fetch(url), url)
    reader = StatusReader(lambda: source)

    def read() -> Status:
        if not os.path.isdir(source):
            raise NoStatusError(f"{source} is not there any more")
        return reader.read()

    return read


def _refuse() -> Status:
    raise NoStatusError(
        "the URL has a user or a password in it, which everybody on this machine could read: "
        f"{_HINT}"
    )


def _fetch(url: str) -> Any:
    request = urllib.request.Request(url)
    try:
        header, _ = authorisation(_SECRETS)
    except ValueError as error:
        raise NoStatusError(str(error)) from None
    if header:
        # It is for this address only, and not for one that a redirect leads to.
        request.add_unredirected_header("Authorization", header)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            hint = f": {_HINTS[error.code]}" if error.code in _HINTS else ""
            raise NoStatusError(f"{url} answers {error.code}{hint}") from None
    except ValueError:
        raise NoStatusError(f"{url} does not answer with a status") from None
    except (OSError, http.client.HTTPException) as error:
        raise NoStatusError(f"{url}: {getattr(error, 'reason', None) or error}") from None


def _checked(answer: Any, url: str) -> Status:
    if not isinstance(answer, dict) or answer.get("version") != STATUS_VERSION:
        raise NoStatusError(f"{url} answers in a format that this release does not know")
    return answer
