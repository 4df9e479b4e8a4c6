"""The WSGI application that counts the requests of another one."""

from __future__ import annotations

import contextlib
import copy
import errno
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._gunicorn.wsgi import CountedApplication
from tests.unit.gunicorn.test_asgi import Counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def serve(application: Any, **environ: str) -> Counts:
    """Serve one request as servers do, and return what was counted."""
    counts = Counts()
    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    body: Any = None
    with contextlib.suppress(ZeroDivisionError):
        try:
            body = counted({"REQUEST_METHOD": "GET", **environ}, lambda *args: print)
            list(body)
        finally:
            if hasattr(body, "close"):
                body.close()
                body.close()  # counts nothing more
    return counts


def test_a_request_is_counted_when_its_answer_is_closed() -> None:
    """Until the server closes the answer the request is in progress."""
    counts = Counts()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b"a", b"b"]

    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    body = counted({"REQUEST_METHOD": "PUT"}, lambda *args: None)
    assert (len(body), b"".join(body), b"".join(body)) == (2, b"ab", b"ab")
    assert (counts.in_progress, counts.ended) == (1, [])
    body.close()
    assert (counts.in_progress, counts.ended) == (0, [("PUT", 404)])


def test_the_body_is_closed() -> None:
    """What the application wants to do at the end is done, and its error is not lost."""
    sent: list[bytes] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"

        def close(self) -> None:
            sent.append(b"closed")
            raise ZeroDivisionError

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])("written")
        return Body()

    counts = Counts()
    counted: Any = CountedApplication(application, counts)  # type: ignore[arg-type]
    body = counted({"REQUEST_METHOD": "GET"}, lambda *args: print)
    assert not hasattr(body, "__len__")
    sent += body
    with pytest.raises(ZeroDivisionError):
        body.close()
    assert sent == [b"a", b"closed"]
    assert counts.ended == [("GET", 200)]


def answers(status: str = "", *body: bytes, error: Exception | None = None) -> Any:
    """Return an application that answers so, then raises."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if status:
            start_response(status, [])
        if not body and error is not None:
            raise error
        return parts() if error is not None else list(body)

    def parts() -> Iterator[bytes]:
        yield from body
        assert error is not None
        raise error

    return application


@pytest.mark.parametrize(
    ("application", "code"),
    [
        (answers("204 No Content"), 204),
        (answers("200 OK", b"a"), 200),
        (answers("200 OK", b"", error=ZeroDivisionError()), 500),
        (answers("200 OK", b"a", error=ZeroDivisionError()), 200),
        (answers("200 OK", error=ZeroDivisionError()), 500),
        (answers(error=ZeroDivisionError()), 500),
        (answers(), 500),
        (answers("teapot", b"a"), 500),
    ],
)
def test_codes(application: Any, code: int) -> None:
    """The code is the one that the client gets: 500 if nothing was sent before an error."""
    counts = serve(application)
    assert (counts.in_progress, counts.ended) == (0, [("GET", code)])


def test_a_client_that_leaves() -> None:
    """A client that is gone gets no error: what it would have got is counted."""
    counts = Counts()
    counted: Any = CountedApplication(answers("201 Created", b""), counts)  # type: ignore[arg-type]
    body = counted({"REQUEST_METHOD": "GET"}, lambda *args: print)
    try:
        raise BrokenPipeError(errno.EPIPE, "the client has left")
    except BrokenPipeError:
        body.close()
    assert counts.ended == [("GET", 201)]


def test_websockets_pass_through() -> None:
    """A websocket is no request with a status; the application's own answer is returned."""
    counts = serve(answers("101 Switching", b"a"), HTTP_UPGRADE="WebSocket")
    assert (counts.in_progress, counts.ended) == (0, [])


def test_attributes_of_the_application_stay_visible() -> None:
    """Servers that look for attributes of the application find them, on a copy too."""

    class Application:
        app_protocol = "chat"

        def __call__(self, *args: Any) -> list[bytes]:
            return []

    counted = CountedApplication(Application(), Counts())  # type: ignore[arg-type]
    assert copy.copy(counted).app_protocol == "chat"
    assert not hasattr(counted, "other")
