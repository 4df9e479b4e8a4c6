"""Response bodies: shared by all who ask the same, made one at a time, and not kept."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._scrape import bodies
from obskit_gunicorn._scrape.bodies import Bodies, BusyError, Form
from obskit_gunicorn._scrape.formats import TEXT, negotiated
from tests.support.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._scrape.blocks import Block
    from obskit_gunicorn._scrape.formats import Format, Names

PLAIN = Form(TEXT, None, is_packed=False)
NAMED = Form(TEXT, frozenset({"a"}), is_packed=False)
OTHER = Form(negotiated("application/openmetrics-text"), None, is_packed=False)


class Readings:
    """What is read: each body says at which reading it was made.

    Attributes:
        count: How many readings there were.
        made: What was rendered.
        gate: Whether rendering may go on.
    """

    def __init__(self) -> None:
        """Nothing is read."""
        self.count = 0
        self.made: list[tuple[int, Format, Names | None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Semaphore(0)
        self._busy = threading.Lock()

    def read(self) -> Reading:
        """Read."""
        self.count += 1
        return Reading(self, self.count)

    def render(self, number: int, format_: Format, names: Names | None) -> bytes:
        """Render, which nobody else may do in the meantime."""
        assert self._busy.acquire(blocking=False)
        try:
            self.began.release()
            assert self.gate.wait(30)
            self.made.append((number, format_, names))
            return f"{number}".encode()
        finally:
            self._busy.release()


class Reading:
    """One reading."""

    def __init__(self, readings: Readings, number: int) -> None:
        """Number it."""
        self._readings, self._number = readings, number

    def rendered(self, format_: Format, names: Names | None) -> bytes:
        """Return a body."""
        return self._readings.render(self._number, format_, names)

    def blocks(self, format_: Format, names: Names | None) -> tuple[list[Block], bytes]:
        """Return the same."""
        return [], self.rendered(format_, names)


@pytest.fixture(name="readings")
def _readings() -> Readings:
    return Readings()


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def _is_empty(made: Bodies) -> bool:
    rounds = (made._maker._now, made._maker._next)
    return all(not (r.bodies or r.waiting or r.exposition) for r in rounds)


def test_shared(readings: Readings, threads: ThreadPoolExecutor) -> None:
    """All who ask while a body is being made share the next reading, and one body a form."""
    made = Bodies(readings.read)
    readings.gate.clear()
    first = threads.submit(made.get, PLAIN)
    assert readings.began.acquire(timeout=30)
    later = [threads.submit(made.get, form) for form in (PLAIN, NAMED, OTHER) for _ in range(20)]
    wait_until(lambda: made._maker._next.waiting.total() == 60, "they wait")
    readings.gate.set()
    assert first.result(10) == b"1"
    assert {future.result(10) for future in later} == {b"2"}
    assert readings.count == 2
    assert len(readings.made) == 4
    for of_one_form in (later[:20], later[20:40], later[40:]):
        assert len({id(future.result()) for future in of_one_form}) == 1
    assert _is_empty(made)


def test_fresh(readings: Readings) -> None:
    """Who asks after an answer gets a new reading, whatever was asked before."""
    made = Bodies(readings.read)
    forms = (PLAIN, PLAIN, NAMED, OTHER, PLAIN)
    assert [made.get(form) for form in forms] == [b"1", b"2", b"3", b"4", b"5"]
    assert _is_empty(made)


def test_packed(readings: Readings) -> None:
    """What is compressed is the same body, and another form."""
    import gzip

    assert gzip.decompress(Bodies(readings.read).get(PLAIN._replace(is_packed=True))) == b"1"


def test_failure(readings: Readings, threads: ThreadPoolExecutor) -> None:
    """A failure is raised where it was asked for; what comes after it is served."""
    fails = [True, True]

    def read() -> Reading:
        if fails:
            fails.pop()
            raise OSError("once")
        return readings.read()

    made = Bodies(read)
    results = [threads.submit(made.get, PLAIN) for _ in range(20)]
    raised = [future.exception(10) for future in results]
    assert len([error for error in raised if error]) == 2
    assert made.get(PLAIN)
    assert _is_empty(made)


def test_busy(
    readings: Readings, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited too long for his turn is told so; nothing of him stays."""
    monkeypatch.setattr(bodies, "LONGEST_SECONDS", 0.2)
    made = Bodies(readings.read)
    readings.gate.clear()
    first = threads.submit(made.get, PLAIN)
    assert readings.began.acquire(timeout=30)
    for body in (PLAIN, NAMED):
        with pytest.raises(BusyError):
            made.get(body)
    readings.gate.set()
    assert first.result(10) == b"1"
    assert _is_empty(made)
    assert made.get(NAMED) == b"2"


def test_many(readings: Readings, threads: ThreadPoolExecutor) -> None:
    """Many clients with many forms all get theirs, none older than its request."""
    made = Bodies(readings.read)

    def ask(client: int) -> None:
        for number in range(50):
            before = readings.count
            form = PLAIN._replace(names=frozenset({str(client % 7), str(number % 3)}))
            assert int(made.get(form)) > before

    for future in [threads.submit(ask, client) for client in range(30)]:
        future.result(60)
    assert readings.count <= 1500
    assert _is_empty(made)


def test_forked(readings: Readings, threads: ThreadPoolExecutor) -> None:
    """A child that is forked while a body is made can make its own."""
    made = Bodies(readings.read)
    readings.gate.clear()
    future = threads.submit(made.get, PLAIN)
    assert readings.began.acquire(timeout=30)
    fresh = Readings()
    made._read = fresh.read
    child = os.fork()
    if child == 0:
        os._exit(0 if made.get(PLAIN) == b"1" else 1)
    assert os.waitpid(child, 0)[1] == 0
    readings.gate.set()
    assert future.result(10) == b"1"
