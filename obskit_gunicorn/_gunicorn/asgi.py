"""An ASGI application that counts the requests and the websockets of another one.

Under ASGI workers Gunicorn calls its request hooks late or never, so the application is wrapped
there. Other scopes, such as ``lifespan``, and all messages pass through unchanged.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.telemetry import CLIENT_CLOSED

if TYPE_CHECKING:
    from obskit_gunicorn._gunicorn.telemetry import Requests, Websockets

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_NORMAL, _NO_CODE, _ABNORMAL, _ERROR, _RESTART = 1000, 1005, 1006, 1011, 1012
"""Codes with which websockets are closed."""


class CountedApplication:
    """Counts the requests of an ASGI application, each when the last byte of its answer is sent.

    Runs in workers, on the event loop. If the application raises before its response has begun,
    the request is counted as 500; the exception propagates. If a request is cancelled while the
    worker serves, its client has disconnected: Gunicorn cancels it a few seconds later.

    A websocket is counted when it is accepted or not, and when it is closed.
    """

    def __init__(
        self,
        application: Any,
        requests: Requests,
        worker: Any = None,
        websockets: Websockets | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            application: The ASGI application.
            requests: Where to count.
            worker: The worker that calls it; its ``alive`` says whether it serves.
            websockets: Where to count websockets; ``None`` to let them pass.
        """
        self._application = application
        self._requests = requests
        self._worker = worker
        self._websockets = websockets

    def __getattr__(self, name: str) -> Any:
        # Attributes of the worker's application stay visible. A copy that is being made does not
        # have `_application` yet.
        if name == "_application":
            raise AttributeError(name)
        return getattr(self._application, name)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self._websockets is not None:
                await self._serve_websocket(self._websockets, scope, receive, send)
            else:
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
                requests.answered(method, code or 500, started, scope)

        try:
            await self._application(scope, received, sent)
        except asyncio.CancelledError:
            has_left = has_left or getattr(self._worker, "alive", True)
            raise
        finally:
            if not is_counted:
                code = code or (CLIENT_CLOSED if has_left else 500)
                requests.answered(method, code, started, scope)

    async def _serve_websocket(
        self,
        websockets: Websockets,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve one websocket.

        One that the application leaves without a word, by an exception or by its return, counts as
        an error of the application, whatever its server then sends.
        """
        closing: object = None
        was_accepted = is_open = is_refused = has_left = False

        def end(code: object) -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                websockets.closed(code)

        async def received() -> Message:
            nonlocal has_left
            message = await receive()
            if message["type"] == "websocket.disconnect":
                has_left = True
                # Servers also say this after the application has closed.
                end(message.get("code") or _NO_CODE if closing is None else closing)
            return message

        async def sent(message: Message) -> None:
            nonlocal was_accepted, is_open, is_refused, has_left, closing
            kind = message["type"]
            if kind == "websocket.close":
                closing = message.get("code") or _NORMAL  # the server may wait for the client's
            is_refused = is_refused or not (was_accepted or kind == "websocket.accept")
            try:
                await send(message)
            except OSError:
                has_left = True
                raise
            if kind == "websocket.accept":
                was_accepted = is_open = True
                websockets.accepted()
            elif kind == "websocket.close":
                end(closing)

        left_by = _ERROR
        try:
            await self._application(scope, received, sent)
        except asyncio.CancelledError:
            left_by = _ABNORMAL if getattr(self._worker, "alive", True) else _RESTART
            raise
        finally:
            if not was_accepted:
                websockets.not_accepted(has_left=has_left and not is_refused)
            end(_ABNORMAL if has_left else left_by)


def is_asgi3(application: Any) -> bool:
    """Return whether an application is an ASGI 3 one, by the test that servers use."""
    if inspect.isclass(application):
        return hasattr(application, "__await__")
    if inspect.isfunction(application) or inspect.ismethod(application):
        return inspect.iscoroutinefunction(application)
    return inspect.iscoroutinefunction(getattr(application, "__call__", None))  # noqa: B004
