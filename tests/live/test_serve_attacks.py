"""Clients that are slow, silent, many or mad: they cost the others nothing, and leave nothing."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import resource
import selectors
import socket
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._store.fileformat import pack_entry
from tests.support.client import Repeating
from tests.support.forks import Nursery, join
from tests.support.process import HOST, wait_until
from tests.support.serving import WAITS, ServeProcess, reset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_THREADS = 64 + 4
LARGE = 3_000
"""How many series a body has that a slow client's socket does not hold."""


@pytest.fixture(name="large", scope="module")
def _large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose exposition has megabytes."""
    path = tmp_path_factory.mktemp("metrics")
    with Nursery() as nursery:
        nursery.load(sys.modules[__name__])
        process = nursery.start()
        process.call(join, str(path))
        process.call(_count_many, LARGE)
        yield path
        nursery.forget_all()


def _count_many(series: int) -> None:
    from prometheus_client import Counter

    counter = Counter("large", "A metric with many series.", ["label"])
    for number in range(series):
        counter.labels(f"{number}-{'x' * 1000}").inc()


@pytest.fixture(name="served")
def _served(tmp_path: Path) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path) as served:
        served.get()
        yield served


@pytest.fixture(name="many_descriptors")
def _many_descriptors() -> Iterator[int]:
    """Let this process have as many descriptors as it may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Scrapes(Repeating):
    """A thread that scrapes again and again as Prometheus does; a context manager.

    Attributes:
        count: How many were answered.
        failures: What became of the others.
    """

    def __init__(self, served: ServeProcess, path: str = "/metrics") -> None:
        """Prepare the thread."""
        self.count = 0
        self.failures: list[str] = []
        self.most_threads = 0
        self.most_descriptors = 0
        self._served = served
        self._path = path
        super().__init__(0.05)

    def wait_for(self, count: int) -> None:
        """Wait until so many more were answered."""
        goal = self.count + count
        wait_until(lambda: self.count >= goal or self.failures, f"{count} more scrapes")

    def once(self) -> None:
        """Scrape."""
        try:
            assert self._served.get(self._path).status == 200
            self.count += 1
        except Exception as error:
            self.failures.append(repr(error))
        self.most_threads = max(self.most_threads, self._served.threads())
        self.most_descriptors = max(self.most_descriptors, self._served.descriptors())


def check(scrapes: Scrapes) -> None:
    """Check that nobody was kept from scraping, and that what it uses is bounded."""
    assert scrapes.failures == []
    assert scrapes.count > 0
    assert scrapes.most_threads <= MOST_THREADS
    assert scrapes.most_descriptors <= MOST_THREADS + 16


# ------------------------------------------------------------------------------------------------
# Slow and silent ones


def test_silent_connections(served: ServeProcess) -> None:
    """Connections that send nothing, or half a request, are cut off in seconds; all are."""
    before = served.descriptors()
    with contextlib.ExitStack() as stack, Scrapes(served) as scrapes:
        clients = [stack.enter_context(served.connect()) for _ in range(200)]
        for number, client in enumerate(clients):
            with contextlib.suppress(OSError):
                client.sendall((b"", b"G", b"GET /metrics HTTP/1.1\r\nHost: x")[number % 3])
        for client in clients:  # each waits for 20 s
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        check(scrapes)
    served.wait_until_idle(descriptors=before)


def test_one_byte_at_a_time(served: ServeProcess) -> None:
    """A request that trickles in, never pausing for long, has seconds and no more."""
    with contextlib.ExitStack() as stack, Scrapes(served) as scrapes:
        clients = {stack.enter_context(served.connect()) for _ in range(MOST_THREADS + 20)}
        for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 70:
            for client in list(clients):
                try:
                    client.send(bytes([byte]))
                except OSError:
                    clients.discard(client)
            if not clients:
                break
            time.sleep(0.25)
        assert not clients
        check(scrapes)
    served.wait_until_idle()


def test_slow_readers(large: Path) -> None:
    """Clients that ask for a large body and do not read it keep nobody else from his."""
    with ServeProcess(large) as served:
        body = served.get().body
        assert len(body) > 2_500_000
        before, memory = served.descriptors(), served.resident_kilobytes()
        with contextlib.ExitStack() as stack, Scrapes(served) as scrapes:
            for _ in range(MOST_THREADS + 30):
                client = stack.enter_context(served.connect(receive_bytes=2048))
                with contextlib.suppress(OSError):
                    client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: served.threads() > MOST_THREADS // 2, "they keep it busy")
            scrapes.wait_for(5)
            assert scrapes.failures == []
            assert scrapes.most_threads <= MOST_THREADS
            assert served.get("/-/healthy").status == 200
        served.wait_until_idle(descriptors=before)
        assert served.get().status == 200
        assert served.resident_kilobytes() < memory + 100_000


def test_patient_reader(large: Path) -> None:
    """A client that reads slowly, but does read, gets its body whole while nobody is in need."""
    with ServeProcess(large) as served, served.connect(receive_bytes=1 << 16) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = bytearray()
        deadline = time.monotonic() + 20
        while chunk := client.recv(1 << 16):
            answer += chunk
            assert time.monotonic() < deadline
            time.sleep(0.02)
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        assert len(body) > 2_500_000


@pytest.mark.parametrize("when", ["connected", "asking", "asked", "reading"])
def test_resets(large: Path, when: str) -> None:
    """Clients that go away in the middle are no event: nothing stays, nothing is logged."""
    with ServeProcess(large) as served:
        served.get()
        before = served.descriptors()
        for number in range(40):
            client = served.connect(receive_bytes=4096)
            if when == "asking":
                client.sendall(b"GET /metrics HT")
            elif when != "connected":
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            if when == "reading":
                client.recv(100)
            if number % 2:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
            reset(client)
        assert served.get("/-/healthy").status == 200
        served.wait_until_idle(descriptors=before)
        assert served.log().count("\n") == 1


# ------------------------------------------------------------------------------------------------
# Many


def connect_many(count: int, port: int, data: bytes = b"") -> Iterator[socket.socket]:
    """Connect again and again without waiting, and send something on each that gets through."""
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        error = client.connect_ex((HOST, port))
        assert error in (0, errno.EINPROGRESS, errno.EADDRNOTAVAIL, errno.EAGAIN), os.strerror(
            error
        )
        if data:
            with contextlib.suppress(OSError):
                client.send(data)
        yield client


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pytest.param(b"GET / HTTP/1.1\r\n", marks=pytest.mark.load),
        pytest.param(b"GET /-/healthy HTTP/1.0\r\n\r\n", marks=pytest.mark.load),
    ],
)
def test_ten_thousand_connections(served: ServeProcess, data: bytes, many_descriptors: int) -> None:
    """While ten thousand connections come in as fast as they can, scrapes are answered."""
    before, memory = served.descriptors(), served.resident_kilobytes()
    at_once = min(4000, many_descriptors - 500)
    with Scrapes(served) as scrapes:
        for _ in range(0, 10_000, at_once):
            clients = list(connect_many(min(at_once, 10_000), served.port, data))
            scrapes.wait_for(1)
            for client in clients:
                client.close()
        scrapes.wait_for(3)
        check(scrapes)
    served.wait_until_idle(descriptors=before)
    assert served.resident_kilobytes() < memory + 30_000


def test_connections_that_come_back(served: ServeProcess) -> None:
    """Nor does it matter that each connection which is cut off is made anew at once."""
    stopped = threading.Event()

    def attack() -> None:
        with selectors.DefaultSelector() as waiting:
            for client in connect_many(200, served.port):
                waiting.register(client, selectors.EVENT_READ)
            while not stopped.is_set():
                for key, _ in waiting.select(0.05):
                    old = key.fileobj
                    assert isinstance(old, socket.socket)
                    waiting.unregister(old)
                    old.close()
                    (client,) = connect_many(1, served.port)
                    waiting.register(client, selectors.EVENT_READ)
            for key in list(waiting.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()

    thread = threading.Thread(target=attack, daemon=True)
    thread.start()
    try:
        with Scrapes(served) as scrapes, Scrapes(served, "/-/healthy") as probes:
            scrapes.wait_for(10)
            probes.wait_for(10)
    finally:
        stopped.set()
        thread.join(10)
    check(scrapes)
    check(probes)
    served.wait_until_idle()


def test_no_descriptors(tmp_path: Path) -> None:
    """Without descriptors for all connections it makes room, does not spin, and does not end."""
    with ServeProcess(tmp_path, descriptors=24) as served:
        served.get()
        before = served.descriptors()
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(served.connect())
            started, used = time.monotonic(), served.cpu_seconds()
            assert served.get("/-/healthy").status == 200
            while time.monotonic() - started < 2:
                assert served.process.poll() is None
                time.sleep(0.1)
            assert served.cpu_seconds() - used < 0.5
        served.wait_until_idle(descriptors=before)
        assert served.get().status == 200


# ------------------------------------------------------------------------------------------------
# Those who ask for much, each in another way

WAYS = {
    "plain": ("/metrics", {}),
    "names": ("/metrics?name[]=big_total&name[]=x{0}", {}),
    "versions": ("/metrics", {"Accept": "application/openmetrics-text;version=1.{0}.0"}),
    "escaping": ("/metrics", {"Accept": "text/plain;version=1.0.0;escaping=dots;x={0}"}),
    "gzip": ("/metrics?x={0}", {"Accept-Encoding": "gzip"}),
    "HEAD": ("/metrics?name[]=y{0}", {}),
    "pages": ("/{0}", {}),
}
"""How to ask, by name: the path and the headers of a request, in which 0 is its number."""


@pytest.fixture(name="many_series", scope="module")
def _many_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 10,000 series."""
    path = tmp_path_factory.mktemp("metrics")
    keys = (["big", "big_total", {"user_path": f"/{at}"}, "Big."] for at in range(10_000))
    body = b"".join(pack_entry(json.dumps(key).encode(), 1.0, 0.0) for key in keys)
    header = (8 + len(body)).to_bytes(4, "little") + b"\0\0\0\0"
    (path / "counter_slot0.db").write_bytes(header + body)
    return path


class Asking(Repeating):
    """A thread that asks again and again, each time in another way; a context manager.

    Attributes:
        answers: How often each status was the answer; 0 if there was none.
    """

    def __init__(self, served: ServeProcess, first: int, *ways: str) -> None:
        """Prepare the thread; the number of its first request is given."""
        self.answers: Counter[int] = Counter()
        self._served, self._number, self._ways = served, first, ways
        super().__init__(0.0)

    def once(self) -> None:
        """Ask."""
        self._number += 1
        way = self._ways[self._number % len(self._ways)]
        path, headers = WAYS[way]
        method = "HEAD" if way == "HEAD" else "GET"
        headers = {name: text.format(self._number) for name, text in headers.items()}
        status = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            page = self._served.get(
                path.format(self._number), method=method, headers=headers, timeout=30
            )
            status = page.status
        self.answers[status] += 1


@pytest.mark.parametrize("way", ["plain", "names", "versions", "escaping"])
def test_heavy_ways_to_ask(many_series: Path, way: str) -> None:
    """Many clients who ask for much cost little memory, and starve no probe."""
    with ServeProcess(many_series) as served:
        for path, headers in WAYS.values():
            served.get(path, headers=headers)
        memory = served.resident_kilobytes()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Asking(served, 1000 * at, way)) for at in range(64)]
            wait_until(lambda: served.threads() > MOST_THREADS // 2, "they keep it busy")
            most = 0
            until = time.monotonic() + 1
            while time.monotonic() < until:
                for path, status in (("/-/healthy", 200), ("/-/ready", 503), ("/", 200)):
                    assert served.get(path).status == status
                most = max(most, served.resident_kilobytes())
                time.sleep(0.1)
            for client in clients:  # all at once: one by one, those that are left would go on
                client.halt()
        assert most < memory + 50_000
        answers = sum((client.answers for client in clients), Counter())
        assert answers[200] > 64
        assert answers.keys() <= {0, 200, 503}
        assert served.get().status == 200
        served.wait_until_idle()


def test_waiting_scrapes_leave_room(tmp_path: Path) -> None:
    """While all scrapes that there may be wait, probes are answered, and more scrapes get a 503."""
    arguments = ("--collectors", "waits:Waits")
    with ServeProcess(tmp_path, *arguments, files={"waits.py": WAITS}) as served:
        assert served.get().status == 200
        with contextlib.ExitStack() as stack:
            for _ in range(48):
                client = stack.enter_context(served.connect())
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: served.threads() > 48, "they wait")
            page = served.get()
            assert (page.status, page.text) == (
                503,
                "# too many scrapes at once; ask again later\n",
            )
            for path, status in (("/-/healthy", 200), ("/-/ready", 503), ("/", 200)):
                assert served.get(path).status == status
            assert served.threads() > 48  # they wait still
            (served.root / "end").touch()
        wait_until(lambda: served.get().status == 200, "scrapes are answered again")
        served.wait_until_idle(threads=3)


@pytest.mark.load
@pytest.mark.timeout(2400)
def test_memory_stays_flat(many_series: Path) -> None:
    """A hundred thousand requests of every form leave nothing behind."""
    with ServeProcess(many_series) as served:

        def ask(count: int, first: int) -> Counter[int]:
            with contextlib.ExitStack() as stack:
                numbers = range(first, first + 80_000_000, 10_000_000)
                clients = [stack.enter_context(Asking(served, at, *WAYS)) for at in numbers]
                enough = lambda: sum(c.answers.total() for c in clients) >= count  # noqa: E731
                wait_until(enough, f"{count} requests", seconds=1800)
            return sum((client.answers for client in clients), Counter())

        ask(2000, 0)
        memory = served.resident_kilobytes()
        answers = ask(100_000, 500_000)
        print(answers, memory, served.resident_kilobytes())
        assert answers.keys() <= {200, 404}
        assert served.resident_kilobytes() < memory + 8_000


# ------------------------------------------------------------------------------------------------
# Mad ones


def _random(size: int) -> bytes:
    return random.Random(size).randbytes(size)


GARBAGE = {
    "nothing": b"\r\n\r\n",
    "random": _random(3000),
    "random and long": _random(300_000),
    "random lines": _random(3000).replace(b"\xff", b"\r\n"),
    "NUL bytes": b"\0" * 70_000,
    "NUL in the path": b"GET /met\0rics HTTP/1.1\r\n\r\n",
    "NUL in a header": b"GET /nowhere HTTP/1.1\r\nX\0: \0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _random(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP/x": b"GET / HTTP/x.y\r\n\r\n",
    "HTTP/²": "GET / HTTP/².²\r\n\r\n".encode("latin-1"),
    "no HTTP": b"GET / FTP/1.0\r\n\r\n",
    "one word": b"GET\r\n\r\n",
    "four words": b"GET / / HTTP/1.1\r\n\r\n",
    "long line": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "long line without end": b"a" * 200_000,
    "long method": b"A" * 60_000 + b" / HTTP/1.1\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "1,000 headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "headers of 6 MB": b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 60_000 + b"\r\n") * 99 + b"\r\n",
    "no colon": b"GET /nowhere HTTP/1.1\r\nnonsense\r\n\r\n",
    "only colons": b"GET /nowhere HTTP/1.1\r\n:::\r\n: x\r\n\r\n",
    "folded": b"GET /nowhere HTTP/1.1\r\n Folded: x\r\n\r\n",
    "odd length": b"POST / HTTP/1.1\r\nContent-Length: -7\r\n\r\nabc",
    "huge length": b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "smuggled": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "upgrade": b"GET /nowhere HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "expect": b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n\r\n",
    "odd escapes": b"GET /%zz%%%e4%00%0d%0a HTTP/1.1\r\n\r\n",
    "not ASCII": "GET /öäü€ HTTP/1.1\r\nHost: ü\r\n\r\n".encode(),
    "up": b"GET /../../../../etc/passwd HTTP/1.1\r\n\r\n",
    "header in the path": b"GET /a%0d%0aX:%20y HTTP/1.1\r\n\r\n",
    "odd URI": b"GET http://[:::/metric HTTP/1.1\r\n\r\n",
}


@pytest.fixture(name="target", scope="module")
def _target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path_factory.mktemp("metrics")) as served:
        served.get()
        yield served


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage(target: ServeProcess, name: str) -> None:
    """What is no request, or none for anything here, is answered in HTTP or not at all."""
    with target.connect() as client:
        with contextlib.suppress(OSError):
            client.sendall(GARBAGE[name])
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(1 << 16):
                answer += chunk
    if answer:
        head, separator, body = answer.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        assert separator
        assert status.startswith(b"HTTP/1.0 ")
        known = {b"server", b"date", b"content-type", b"content-length", b"cache-control", b"allow"}
        known |= {b"content-security-policy", b"x-content-type-options", b"referrer-policy"}
        assert {line.partition(b":")[0].lower() for line in headers} <= known | {b"connection"}
        (length,) = [line for line in headers if line.lower().startswith(b"content-length: ")]
        assert int(length.partition(b":")[2]) == len(body)
        assert b"root:" not in body
        assert int(status.split()[1]) >= 400 or name in ("asterisk",)
    assert target.get().status == 200
    assert target.log().count("\n") == 1


def test_much_garbage(target: ServeProcess) -> None:
    """Random bytes, and requests with random damage, leave no thread, memory or line behind."""
    random_numbers = random.Random(7)
    request = (
        b"GET /metrics?name[]=x HTTP/1.1\r\nHost: x\r\nAccept: text/plain;version=1.0.0\r\n\r\n"
    )
    memory = target.resident_kilobytes()

    def send(data: bytes) -> None:
        with target.connect() as client, contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass

    for _ in range(400):
        damaged = bytearray(request)
        for _ in range(random_numbers.randrange(1, 6)):
            damaged[random_numbers.randrange(len(damaged))] = random_numbers.randrange(256)
        send(bytes(damaged))
    for _ in range(20):
        send(GARBAGE["headers of 6 MB"])
    target.wait_until_idle(descriptors=8)
    assert target.get().status == 200
    assert target.resident_kilobytes() < memory + 30_000
    assert target.log().count("\n") == 1


def test_large_requests_at_once(target: ServeProcess) -> None:
    """Many large requests at once cost no more memory than their limit allows."""
    memory = target.resident_kilobytes()
    most = memory
    line = b"X: " + b"y" * 60_000 + b"\r\n"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(target.connect()) for _ in range(60)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(10):
            for client in clients:
                client.settimeout(0.01)
                with contextlib.suppress(OSError):
                    client.sendall(line)
            most = max(most, target.resident_kilobytes())
        assert most < memory + 40_000
        assert target.get().status == 200
