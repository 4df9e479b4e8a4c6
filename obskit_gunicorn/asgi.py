"""An ASGI application that counts the requests of another one.

Gunicorn's request hooks are silent, or late, under ASGI workers. So there the application is
wrapped. Everything passes through untouched: other scopes (``lifespan``, ``websocket``) as they
are, and each message as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obskit_gunicorn.telemetry import Requests

__all__ = ["CountedApplication", "is_asgi3"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLIENT_CLOSED = 499
"""The code of a request whose client has gone before there was a response."""


class CountedApplication:
    """Counts the requests of an ASGI application, each when the last byte of its answer is sent.

    Runs in workers, on the event loop. What the application raises is counted as 500 if no response
    had begun, and goes on as it is.
    """

    def __init__(self, application: Any, requests: Requests) -> None:
        """Wrap an application.

        Args:
            application: What is called for each request.
            requests: Where to count.
        """
        self._application = application
        self._requests = requests

    def __getattr__(self, name: str) -> Any:
        # Whoever looks at the worker's application finds what it knows.
        return getattr(self._application, name)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        requests, method = self._requests, scope["method"]
        started = requests.begin()
        code = 0
        is_counted = has_left = False

        async def received() -> Message:
            nonlocal has_left
            message = await receive()
            if message["type"] == "http.disconnect":
                has_left = True
            return message

        async def sent(message: Message) -> None:
            nonlocal code, is_counted
            await send(message)
            kind = message["type"]
            if kind == "http.response.start":
                code = message["status"]
            elif not is_counted and (
                (kind == "http.response.body" and not message.get("more_body"))
                or kind == "http.response.pathsend"
            ):
                is_counted = True
                requests.end(method, code, started)

        try:
            await self._application(scope, received, sent)
        finally:
            if not is_counted:
                requests.end(method, code or (CLIENT_CLOSED if has_left else 500), started)


def is_asgi3(application: Any) -> bool:
    """Return whether an application is called once per connection, as servers find out."""
    if inspect.isclass(application):
        return hasattr(application, "__await__")
    if inspect.isfunction(application) or inspect.ismethod(application):
        return inspect.iscoroutinefunction(application)
    return inspect.iscoroutinefunction(getattr(application, "__call__", None))  # noqa: B004
