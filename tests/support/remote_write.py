"""A remote-write endpoint that shows what it gets, decoded without any code of the package."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

import cramjam

from tests.support.process import HOST, free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

__all__ = ["STALE", "Answer", "Point", "Receiver", "Request", "decode", "receiver"]

STALE = 0x7FF0000000000002
"""The bits of the value that ends a series."""


class Point(NamedTuple):
    """A sample of a series, with its value as 64 bits."""

    labels: tuple[tuple[str, str], ...]
    time_ms: int
    bits: int

    @property
    def value(self) -> float:
        """The value."""
        return float(struct.unpack("<d", struct.pack("<Q", self.bits))[0])

    @property
    def name(self) -> str:
        """The name of the metric."""
        return dict(self.labels)["__name__"]

    @property
    def is_stale(self) -> bool:
        """Whether it ends its series."""
        return self.bits == STALE


@dataclasses.dataclass
class Request:
    """A request that has arrived.

    Attributes:
        path: Its path and query.
        headers: Its headers, with names in lower case.
        points: Its samples.
        metadata: Type, name, help text and unit of each family.
        raw: Its body as it came.
    """

    path: str
    headers: dict[str, str]
    points: list[Point]
    metadata: list[tuple[int, str, str, str]]
    raw: bytes


class Answer(NamedTuple):
    """What is answered."""

    status: int = 204
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message of protocol buffers."""
    at = 0

    def varint() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            size = {1: 8, 2: None, 5: 4}[tag & 7]
            if size is None:
                size = varint()
            assert at + size <= len(data)
            yield tag >> 3, data[at : at + size]
            at += size


def _texts(data: int | bytes) -> dict[int, str]:
    assert isinstance(data, bytes)
    return {key: item.decode() for key, item in _fields(data) if isinstance(item, bytes)}


def decode(body: bytes) -> tuple[list[Point], list[tuple[int, str, str, str]]]:
    """Return the samples and the metadata of a ``WriteRequest``."""
    points, metadata = [], []
    for number, message in _fields(body):
        assert isinstance(message, bytes)
        if number == 3:
            kind = next(value for key, value in _fields(message) if key == 1)
            assert isinstance(kind, int)
            texts = {
                key: item.decode() for key, item in _fields(message) if isinstance(item, bytes)
            }
            metadata.append((kind, texts[2], texts.get(4, ""), texts.get(5, "")))
            continue
        assert number == 1
        labels = []
        samples = []
        for key, item in _fields(message):
            if key == 1:
                label = _texts(item)
                labels.append((label[1], label.get(2, "")))
            else:
                assert key == 2
                assert isinstance(item, bytes)
                sample = dict(_fields(item))
                raw, at = sample[1], sample[2]
                assert isinstance(raw, bytes)
                assert isinstance(at, int)
                samples.append((at, struct.unpack("<Q", raw)[0]))
        points += [Point(tuple(labels), at, bits) for at, bits in samples]
    return points, metadata


class Receiver:
    """A remote-write endpoint.

    Attributes:
        url: Where it is.
        requests: What it has got, the oldest first.
        answer: Returns what it answers to a request; ``None`` to hang up.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        """Listen.

        Args:
            context: To speak TLS.
        """
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer | None] = lambda _: Answer()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                points, metadata = decode(bytes(cramjam.snappy.decompress_raw(body)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                request = Request(self.path, headers, points, metadata, body)
                outer.requests.append(request)
                answer = outer.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                data = answer.body.encode()
                if answer.status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, free_port()), Handler)
        self.server.daemon_threads = False
        self.port = self.server.server_address[1]
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://{HOST}:{self.port}/api/v1/write"

    @property
    def points(self) -> list[Point]:
        """All samples that have arrived."""
        return [point for request in self.requests for point in request.points]

    def history(self, name: str) -> list[tuple[int, float | str]]:
        """Return times and values of a metric; ``"stale"`` for what ends a series."""
        return [
            (point.time_ms, "stale" if point.is_stale else point.value)
            for point in self.points
            if point.name == name
        ]

    def values(self, name: str) -> list[float | str]:
        """Return the values of a metric, in the order in which they came."""
        return [value for _, value in self.history(name)]


@contextlib.contextmanager
def receiver(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a :class:`Receiver`."""
    running = Receiver(context)
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        thread.join()
        running.server.server_close()
