"""The ASGI application that counts the requests of another one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._gunicorn.asgi import CountedApplication, is_asgi3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from obskit_gunicorn._gunicorn.telemetry import Seen

Messages = list[dict[str, Any]]


class Counts:
    """Stands for the metrics: notes what is counted, and when."""

    def __init__(self, seen: Seen | None = None) -> None:
        self.seen = seen
        self.in_progress = 0
        self.ended: list[tuple[str, int]] = []
        self.exemplars: list[dict[str, str] | None] = []

    def arrived(self) -> float:
        """Note a request."""
        self.in_progress += 1
        return 1.0

    def answered(self, method: str, code: int, started: float, request: Any) -> None:
        """Note its end."""
        assert started == 1.0
        if self.seen is not None:
            self.exemplars.append(self.seen.trace_of(request))
        self.in_progress -= 1
        self.ended.append((method, code))


def run(
    application: Callable[..., Awaitable[None]],
    scope: dict[str, Any],
    received: Messages | None = None,
) -> tuple[Counts, Messages]:
    """Call an application through the wrapper; return what was counted and sent."""
    counts, sent = Counts(), []
    incoming = list(received or [{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        return incoming.pop(0) if len(incoming) > 1 else incoming[0]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    try:
        asyncio.run(counted(scope, receive, send))
    finally:
        run.last = counts  # type: ignore[attr-defined]
    return counts, sent


HTTP = {"type": "http", "method": "GET", "path": "/"}
START = {"type": "http.response.start", "status": 201, "headers": []}


def body(text: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    """Return a message with a part of a response."""
    return {"type": "http.response.body", "body": text, "more_body": more}


def test_a_response() -> None:
    """A request is counted once, with its code, and every message passes through as it is."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope is HTTP
        assert await receive() == {"type": "http.request", "body": b""}
        await send(START)
        await send(body(b"whole"))

    counts, sent = run(application, HTTP)
    assert sent == [START, body(b"whole")]
    assert sent[0] is START
    assert (counts.ended, counts.in_progress) == ([("GET", 201)], 0)


def test_streaming_ends_with_its_last_byte() -> None:
    """A request is in progress until the last part is sent, and not while more work goes on."""
    seen: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        counts: Counts = application_counts[0]
        await send(START)
        for _ in range(3):
            await send(body(b"part", more=True))
            seen.append(counts.in_progress)
        await send(body())
        seen.append(counts.in_progress)  # background work

    application_counts = [Counts()]
    counted: Any = CountedApplication(application, application_counts[0])  # type: ignore[arg-type]

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request"}

    asyncio.run(counted(HTTP, nothing, nothing))
    assert seen == [1, 1, 1, 0]
    assert application_counts[0].ended == [("GET", 201)]


@pytest.mark.parametrize(("begun", "code"), [(False, 500), (True, 201)])
def test_an_exception_passes_through(begun: bool, code: int) -> None:
    """What the application raises is raised, and counted as 500 unless a response had begun."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send(START)
            await send(body(b"part", more=True))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(application, HTTP)
    counts: Counts = run.last  # type: ignore[attr-defined]
    assert (counts.ended, counts.in_progress) == ([("GET", code)], 0)


def test_a_client_that_leaves() -> None:
    """A client that has gone before there was a response has a code of its own."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    received: Messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]
    counts, sent = run(application, HTTP, received)
    assert (counts.ended, sent) == ([("GET", 499)], [])


def test_a_cancelled_request() -> None:
    """A request that the server cancels is counted and does not stay in progress."""
    counts = Counts()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        pass

    async def main() -> None:
        counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
        task = asyncio.create_task(counted(HTTP, send, send))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (counts.ended, counts.in_progress) == ([("GET", 201)], 0)


@pytest.mark.parametrize(("alive", "code"), [(True, 499), (False, 500)])
def test_a_request_that_is_cancelled_before_its_response(alive: bool, code: int) -> None:
    """While the worker serves it is the client that has gone; later the server is at fault."""
    counts = Counts()

    class Worker:
        pass

    worker: Any = Worker()
    worker.alive = True

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        counted: Any = CountedApplication(application, counts, worker)  # type: ignore[arg-type]
        task = asyncio.create_task(counted(HTTP, None, None))
        await asyncio.sleep(0)
        worker.alive = alive
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (counts.ended, counts.in_progress) == ([("GET", code)], 0)


@pytest.mark.parametrize("message", [START, body(b"text", more=True)])
def test_a_client_that_sending_finds_gone(message: dict[str, Any]) -> None:
    """A response that cannot be begun, because nobody is there, is no error of the server's."""
    counts = Counts()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"text", more=True))

    async def send(sent: dict[str, Any]) -> None:
        if sent == message:
            raise BrokenPipeError

    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    with pytest.raises(BrokenPipeError):
        asyncio.run(counted(HTTP, None, send))
    assert counts.ended == [("GET", 499 if message is START else 201)]


def test_messages_out_of_order() -> None:
    """A body without a beginning is an error, and only the first beginning is sent."""

    async def no_start(scope: Any, receive: Any, send: Any) -> None:
        await send(body(b"text"))

    async def two_starts(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({**START, "status": 404})
        await send(body(b"text"))

    assert run(no_start, HTTP)[0].ended == [("GET", 500)]
    assert run(two_starts, HTTP)[0].ended == [("GET", 201)]


def test_a_copy() -> None:
    """The application may be copied."""
    counted: Any = CountedApplication(body, Counts())  # type: ignore[arg-type]
    assert copy.copy(counted)._application is body


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_scopes_are_left_alone(kind: str) -> None:
    """Lifespan and websockets get the server's own receive and send, and are not counted."""
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> dict[str, Any]:
        return {}

    async def send(message: Any) -> None:
        pass

    counts, scope = Counts(), {"type": kind}
    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    asyncio.run(counted(scope, receive, send))
    assert seen[0] is scope
    assert seen[1:] == [receive, send]
    assert counts.ended == []


def test_attributes_are_the_applications() -> None:
    """Whoever looks at the worker's application finds what it knows."""

    class Application:
        state = "its own"

    counted: Any = CountedApplication(Application(), Counts())  # type: ignore[arg-type]
    assert counted.state == "its own"
    with pytest.raises(AttributeError):
        _ = counted.nothing


def test_which_applications_are_asgi3() -> None:
    """Coroutine functions and objects that are called as such, as Uvicorn finds out."""

    async def function(scope: Any, receive: Any, send: Any) -> None: ...

    class Object:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    class Old:
        def __init__(self, scope: Any) -> None: ...

        async def __call__(self, receive: Any, send: Any) -> None: ...

    assert is_asgi3(function)
    assert is_asgi3(Object())
    assert is_asgi3(Object().__call__)
    assert not is_asgi3(Old)
    assert not is_asgi3(lambda scope: None)


class Sockets:
    """Stands for the metrics of websockets: notes what is counted, in order."""

    def __init__(self) -> None:
        self.noted: list[object] = []

    def accepted(self) -> None:
        """Note one."""
        self.noted.append("accepted")

    def not_accepted(self, *, has_left: bool) -> None:
        """Note one."""
        self.noted.append("abandoned" if has_left else "refused")

    def closed(self, code: object) -> None:
        """Note its end."""
        self.noted.append(code)


ACCEPT, CONNECT = {"type": "websocket.accept"}, {"type": "websocket.connect"}
LEFT = {"type": "websocket.disconnect", "code": 1001}


def converse(
    *steps: Any, incoming: Messages, worker: Any = None, failing: str = ""
) -> list[object]:
    """Serve a websocket; return what was counted.

    Args:
        steps: What the application does: ``receive``, an exception to raise, or a message to send.
        incoming: What the server says.
        worker: The worker.
        failing: The type of messages for which the server raises, because nobody reads them.
    """
    sockets, waiting = Sockets(), list(incoming)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for step in steps:
            if step == "receive":
                await receive()
            elif isinstance(step, dict):
                await send(step)
            else:
                raise step

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == failing:
            raise BrokenPipeError

    arguments: Any = application, None, worker, sockets
    counted: Any = CountedApplication(*arguments)

    async def serve() -> None:
        await counted({"type": "websocket"}, receive, send)

    with contextlib.suppress(ZeroDivisionError, OSError, asyncio.CancelledError):
        asyncio.run(serve())
    return sockets.noted


CLOSE: dict[str, Any] = {"type": "websocket.close"}
DENIAL: Messages = [
    {"type": "websocket.http.response.start", "status": 401},
    {"type": "websocket.http.response.body", "body": b""},
]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["receive", ACCEPT, "receive"], ["accepted", 1001]),
        (["receive", ACCEPT, "receive", "receive"], ["accepted", 1001]),
        (["receive", ACCEPT, CLOSE], ["accepted", 1000]),
        (["receive", ACCEPT, {**CLOSE, "code": 4000}], ["accepted", 4000]),
        (["receive", ACCEPT, {**CLOSE, "code": 4000}, "receive"], ["accepted", 4000]),
        (["receive", ACCEPT, {**CLOSE, "code": None}, ZeroDivisionError()], ["accepted", 1000]),
        (["receive", ACCEPT], ["accepted", 1011]),
        (["receive", ACCEPT, ZeroDivisionError()], ["accepted", 1011]),
        (["receive", CLOSE], ["refused"]),
        (["receive", CLOSE, "receive"], ["refused"]),
        (["receive", *DENIAL], ["refused"]),
        (["receive"], ["refused"]),
        ([], ["refused"]),
        (["receive", ZeroDivisionError()], ["refused"]),
        (["receive", "receive"], ["abandoned"]),
        (["receive", "receive", ZeroDivisionError()], ["abandoned"]),
    ],
)
def test_a_websocket(steps: list[Any], expected: list[object]) -> None:
    """It is accepted or not, and what was accepted ends once, with one code."""
    assert converse(*steps, incoming=[CONNECT, LEFT, LEFT]) == expected


def test_a_websocket_that_is_closed_while_something_receives() -> None:
    """What the server says of its own close does not count in its place."""
    sockets, is_told = Sockets(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await asyncio.gather(send({**CLOSE, "code": 4000}), receive())

    async def receive() -> dict[str, Any]:
        is_told.set()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":  # Gunicorn waits for the client's answer
            await is_told.wait()
            await asyncio.sleep(0)

    arguments: Any = application, None, None, sockets
    counted: Any = CountedApplication(*arguments)
    asyncio.run(counted({"type": "websocket"}, receive, send))
    assert sockets.noted == ["accepted", 4000]


def test_a_websocket_whose_client_is_gone() -> None:
    """What the server cannot send shows it, too, before and after the handshake."""
    text = {"type": "websocket.send", "text": "x"}
    steps = ["receive", ACCEPT, text]
    assert converse(*steps, incoming=[CONNECT], failing="websocket.send") == ["accepted", 1006]
    assert converse(*steps, incoming=[CONNECT], failing="websocket.accept") == ["abandoned"]
    no_code = {"type": "websocket.disconnect"}
    assert converse("receive", ACCEPT, "receive", incoming=[CONNECT, no_code]) == ["accepted", 1005]


@pytest.mark.parametrize(("alive", "code"), [(True, 1006), (False, 1012)])
def test_a_websocket_that_is_cancelled(alive: bool, code: int) -> None:
    """While the worker serves its client has left; otherwise the worker ends."""
    steps = ["receive", ACCEPT, asyncio.CancelledError()]
    found = converse(*steps, incoming=[CONNECT], worker=SimpleNamespace(alive=alive))
    assert found == ["accepted", code]
