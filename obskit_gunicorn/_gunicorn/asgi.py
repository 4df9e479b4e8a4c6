"""An ASGI application that counts the requests of another one.

Under ASGI workers Gunicorn calls its request hooks late or never, so the application is wrapped
there. Other scopes (``lifespan``, ``websocket``) and all messages pass through unchanged.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import traces
from obskit_gunicorn._gunicorn.telemetry import CLIENT_CLOSED

if TYPE_CHECKING:
    from obskit_gunicorn._gunicorn.telemetry import Requests

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class CountedApplication:
    """Counts the requests of an ASGI application, each when the last byte of its answer is sent.

    Runs in workers, on the event loop. If the application raises before its response has begun,
    the request is counted as 500; the exception propagates. If a request is cancelled while the
    worker serves, its client has disconnected: Gunicorn cancels it a few seconds later.
    """

    def __init__(self, application: Any, requests: Requests, worker: Any = None) -> None:
        """Wrap an application.

        Args:
            application: The ASGI application.
            requests: Where to count.
            worker: The worker that calls it; its ``alive`` says whether it serves.
        """
        self._application = application
        self._requests = requests
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        # Attributes of the worker's application stay visible. A copy that is being made does not
        # have `_application` yet.
        if name == "_application":
            raise AttributeError(name)
        return getattr(self._application, name)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        requests, method = self._requests, scope["method"]
        started = requests.arrived()
        code = 0
        is_counted = has_left = False

        async def received() -> Message:
            nonlocal has_left
            message = await receive()
            if message["type"] == "http.disconnect":
                has_left = True
            return message

        async def sent(message: Message) -> None:
            nonlocal code, is_counted, has_left
            try:
                await send(message)
            except OSError:
                has_left = True
                raise
            kind = message["type"]
            if kind == "http.response.start":
                code = code or message["status"]
            elif not is_counted and (
                (kind == "http.response.body" and not message.get("more_body"))
                or kind == "http.response.pathsend"
            ):
                is_counted = True
                # The instrumentation's span is current here, and has ended when it returns.
                exemplar = traces.of_context() if requests.has_exemplars else None
                requests.answered(method, code or 500, started, exemplar)

        try:
            await self._application(scope, received, sent)
        except asyncio.CancelledError:
            has_left = has_left or getattr(self._worker, "alive", True)
            raise
        finally:
            if not is_counted:
                requests.answered(method, code or (CLIENT_CLOSED if has_left else 500), started)


def is_asgi3(application: Any) -> bool:
    """Return whether an application is an ASGI 3 one, by the test that servers use."""
    if inspect.isclass(application):
        return hasattr(application, "__await__")
    if inspect.isfunction(application) or inspect.ismethod(application):
        return inspect.iscoroutinefunction(application)
    return inspect.iscoroutinefunction(getattr(application, "__call__", None))  # noqa: B004
