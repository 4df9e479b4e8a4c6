"""Applications that show the metrics of all hosts, by way of this host's exporter.

Workers use them; they have no connection to the store, and need none of its clients.
"""

from __future__ import annotations

import http.client
import os
import socket
from typing import TYPE_CHECKING

from obskit_gunicorn._scrape.apps import (
    Response,
    asgi_application,
    complete,
    wsgi_application,
)
from obskit_gunicorn._store.directory import SOCKET_NAME
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_LONGEST_SECONDS = 10.0
"""How long to wait for the exporter; as long as Prometheus waits for an answer."""

_PASSED_ON = ("Content-Type", "Content-Encoding", "Allow")
_PLAIN = ("Content-Type", "text/plain; charset=utf-8")


class _Connection(http.client.HTTPConnection):
    """A connection to the exporter's socket in a multiprocess directory."""

    def __init__(self, directory: str) -> None:
        super().__init__("localhost", timeout=_LONGEST_SECONDS)
        self._directory = directory

    def connect(self) -> None:
        """Connect.

        Raises:
            OSError: Nobody listens there.
        """
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.path.join(self._directory, SOCKET_NAME))


def make_wsgi() -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers requests for the metrics of all hosts."""
    return wsgi_application(_ask)


def _ask(method: str, accept: str, accept_encoding: str, query: str) -> Response:
    """Return the exporter's response, or one that says why there is none."""
    directory = membership.directory
    path = directory.path if directory is not None else os.environ.get(DIRECTORY_VARIABLE)
    if not path:
        return _unavailable(method, "this process shares its metrics with nobody")
    connection = _Connection(path)
    headers = {"Accept": accept, "Accept-Encoding": accept_encoding or "identity"}
    try:
        connection.request(method, f"/?{query}" if query else "/", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    except FileNotFoundError:
        return _unavailable(
            method, "no exporter shows the metrics of many hosts here: set metrics_redis"
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _unavailable(method, f"the exporter does not answer: {error}")
    finally:
        connection.close()
    kept = [(name, value) for name in _PASSED_ON if (value := answer.getheader(name)) is not None]
    if method == "HEAD":
        length = answer.getheader("Content-Length")
        return f"{answer.status} {answer.reason}", [*kept, ("Content-Length", length or "0")], b""
    return complete(method, f"{answer.status} {answer.reason}", kept, body)


def _unavailable(method: str, problem: str) -> Response:
    return complete(method, "503 Service Unavailable", [_PLAIN], f"# {problem}\n".encode())


def make_asgi() -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that does the same; it waits on a thread of the event loop's."""

    async def respond(method: str, accept: str, accept_encoding: str, query: str) -> Response:
        import asyncio

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, _ask, method, accept, accept_encoding, query)

    return asgi_application(respond)
