"""A WSGI application that counts the requests of another one.

For workers whose server is not Gunicorn's and calls no request hooks. Websockets pass through
uncounted, as under ASGI: they are not requests with a status.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.telemetry import code_of

if TYPE_CHECKING:
    from obskit_gunicorn._gunicorn.telemetry import Requests


class CountedApplication:
    """Counts the requests of a WSGI application, each when the server closes its answer."""

    def __init__(self, application: Callable[..., Iterable[bytes]], requests: Requests) -> None:
        """Wrap an application.

        Args:
            application: The WSGI application.
            requests: Where to count.
        """
        self._application = application
        self._requests = requests

    def __getattr__(self, name: str) -> Any:
        # Servers look for attributes of their own. A copy that is being made does not have
        # `_application` yet.
        if name == "_application":
            raise AttributeError(name)
        return getattr(self._application, name)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
            return self._application(environ, start_response)
        answer = _Answer(environ, start_response, self._requests)
        try:
            body = self._application(environ, answer.start_response)
        except BaseException:
            answer.end()
            raise
        # From the length of a body a server may conclude the length of the whole answer.
        return (_SizedBody if hasattr(body, "__len__") else _Body)(body, answer)


class _Answer:
    """The answer to one request."""

    has_begun = False
    """Whether the application has given a part of the body."""

    def __init__(
        self, environ: dict[str, Any], start_response: Callable[..., Any], requests: Requests
    ) -> None:
        self._environ, self._method = environ, environ.get("REQUEST_METHOD")
        self._start_response = start_response
        self._requests = requests
        self._started = requests.arrived()
        self._code: int | None = None
        self._is_counted = False

    def start_response(self, status: str, *args: Any) -> Callable[[bytes], object]:
        """Pass on what the application says, and note the status."""
        write = self._start_response(status, *args)
        code = status[:3]
        self._code = int(code) if code.isdigit() else None

        def noted(data: bytes) -> object:
            self.has_begun = True
            return write(data)

        return noted

    def end(self) -> None:
        """Count the request, once; runs while an exception is in flight if the answer failed."""
        if not self._is_counted:
            self._is_counted = True
            code = self._code
            if code is None or not self.has_begun:
                code = code_of(sys.exc_info()[1], code)
            self._requests.answered(self._method, code, self._started, self._environ)


class _Body:
    """The body of an answer, as the server iterates over it and closes it."""

    def __init__(self, body: Iterable[bytes], answer: _Answer) -> None:
        self._body = body
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        for data in self._body:
            self._answer.has_begun = self._answer.has_begun or bool(data)
            yield data

    def close(self) -> None:
        """End the answer; servers call this whatever has happened."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._answer.end()


class _SizedBody(_Body):
    """A body that knows how many parts it has."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
