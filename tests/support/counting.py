"""Threads that count while something is done to their files; also a program.

As a program it runs with any interpreter that finds prometheus_client and this repository::

    python -m tests.support.counting DIRECTORY DISTURBANCE SECONDS [VARIANT]
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import json
import mmap
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._store.column import HEADER_BYTES, column_path, unpack_header
from tests.support import forks
from tests.support.columns import read_column, read_metric_file
from tests.support.forks import join, metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

THREADS = 4
SERIES = 12

TWO_LINES = """
def inc(self, amount):
    amount = 0.0 + amount
    cell = self._cell
    if cell.store is _settled and _here[0]:
        own = cell.own + amount
        cell.own = own
        file = cell.file
        file.cells[cell.index] = file.column[cell.number] = cell.base + own
        return
    self._inc_with_lock(amount)
"""
"""What a formatter would make of ``Value.inc``: a tracer runs between reading and storing."""

INVERTED = """
def inc(self, amount):
    amount = 0.0 + amount
    cell = self._cell
    if cell.store is not _settled or not _here[0]: self._inc_with_lock(amount)
    else: file = cell.file; cell.own = own = cell.own + amount; file.cells[cell.index] = file.column[cell.number] = cell.base + own
"""  # noqa: E501
"""The stores where a jump leads to, at which Python 3.10 gives way to other threads."""

VARIANTS = {"two lines": TWO_LINES, "inverted": INVERTED, "with the lock": ""}


@dataclasses.dataclass
class Outcome:
    """What happened to threads that counted."""

    counted: int
    errors: list[str]
    rounds: int


def _close(_round: int) -> None:
    from obskit_gunicorn._values import values

    values.close_files()


def _withdraw(_round: int) -> None:
    from obskit_gunicorn._values import values

    values.withdraw()
    values.share()


def _grow(number: int) -> None:
    metric("counter", "c", {"index": f"new {number}" + "x" * 300})


def _remove(number: int) -> None:
    for path in glob.glob(f"{glob.escape(os.environ['PROMETHEUS_MULTIPROC_DIR'])}/counter_*"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    _grow(number)


def _give_up_column(number: int) -> None:
    from obskit_gunicorn._values import values

    with values._lock:
        store = values._store
        for file in list(store.files.values()) if store is not None else ():
            file.give_up_column()
    if number % 2:
        values.close_files()


def _fork(_round: int) -> None:
    pid = forks.fork_call(metric("counter", "forked", {"index": "0"}).inc)
    assert forks.reap(pid) == 0


def _nothing(_round: int) -> None:
    """Leave the threads alone."""


DISTURBANCES: dict[str, Callable[[int], None]] = {
    "close": _close,
    "withdraw": _withdraw,
    "grow": _grow,
    "remove": _remove,
    "give up": _give_up_column,
    "fork": _fork,
    "nothing": _nothing,
}


def count_beside(
    directory: str, disturbance: str, seconds: float, variant: str = "", *, is_traced: bool = False
) -> Outcome:
    """Count in threads while something is done again and again; in a process of its own.

    Args:
        directory: The multiprocess directory.
        disturbance: What is done, one of :data:`DISTURBANCES`.
        seconds: How long.
        variant: Another ``Value.inc``, one of :data:`VARIANTS`; empty for what there is.
        is_traced: Whether a tracer is called at each line of the threads.
    """
    from obskit_gunicorn._values import values

    if variant == "with the lock":
        values.lock_always()
    elif variant:
        made: dict[str, Any] = {}
        exec(compile(VARIANTS[variant], "<variant>", "exec"), values.__dict__, made)
        setattr(values.Value, "inc", made["inc"])  # noqa: B010
    join(directory)
    counted = [metric("counter", "c", {"index": str(index)})._value for index in range(SERIES)]
    acts = [functools.partial(value.inc, 1) for value in counted]
    outcome = _act_beside(acts, disturbance, seconds, is_traced=is_traced)
    for value in counted:
        value.inc(0)  # so that all are in files again
    return outcome


def count_requests_beside(
    directory: str, disturbance: str, seconds: float, *, is_traced: bool = False
) -> Outcome:
    """Count requests as :func:`count_beside` counts."""
    from obskit_gunicorn._gunicorn.telemetry import Requests

    join(directory)
    requests = Requests((0.25, 0.5))
    codes = (200, 404)

    def serve(code: int) -> None:
        requests.arrived()
        requests.answered("GET", code, 0.0)

    acts = [functools.partial(serve, code) for code in codes]
    outcome = _act_beside(acts, disturbance, seconds, is_traced=is_traced)
    for code in codes:
        serve(code)
    return dataclasses.replace(outcome, counted=outcome.counted + len(codes))


def _act_beside(
    acts: Sequence[Callable[[], None]], disturbance: str, seconds: float, *, is_traced: bool
) -> Outcome:
    from obskit_gunicorn._values import values

    sys.setswitchinterval(1e-6)
    is_over = threading.Event()
    counted = [0] * THREADS
    errors: list[str] = []

    def trace(_frame: object, _event: str, _argument: object) -> Any:
        return trace

    def count(thread: int) -> None:
        if is_traced:
            sys.settrace(trace)
        number = 0
        while not is_over.is_set():
            for act in acts:
                try:
                    act()
                except BaseException as error:
                    errors.append(repr(error))
                number += 1
        sys.settrace(None)
        counted[thread] = number

    threads = [threading.Thread(target=count, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    rounds = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or rounds < 4:
        DISTURBANCES[disturbance](rounds)
        rounds += 1
        time.sleep(0.002)
    is_over.set()
    for thread in threads:
        thread.join()
    if disturbance == "give up":
        values.close_files()  # so that there is a column again
    values.share()
    return Outcome(sum(counted), errors[:10], rounds)


def counted_in_files(directory: str) -> float:
    """Return what metric files say that all have counted."""
    total = 0.0
    for path in glob.glob(f"{glob.escape(directory)}/counter_*.db"):
        keys, values = read_metric_file(path)
        total += sum(value for key, value in zip(keys, values, strict=True) if b"c_total" in key)
    return total


def differing_columns(directory: str) -> list[str]:
    """Return the metric files with another content than their columns, and fail without columns."""
    found, wrong = 0, []
    for path in glob.glob(f"{glob.escape(directory)}/*.db"):
        column = read_column(path)
        if column is not None:
            found += 1
            if column != read_metric_file(path)[1]:
                wrong.append(path)
    assert found, "there is no column to compare"
    return wrong


def steps_back(path: str, seconds: float) -> tuple[int, int, int]:
    """Watch the first value of a metric file, and of its column, from another process.

    Returns:
        How often it was read, and how often it was lower than before: in the file, in the column.
    """
    with open(path, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    keys, _values = read_metric_file(path)
    cells = mapped[: len(mapped) // 8 * 8].cast("d")
    index = (8 + len(keys[0])) // 8
    last = last_in_column = 0.0
    is_in_file = False
    reads = back = back_in_column = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        column, place = cells, index
        with contextlib.suppress(FileNotFoundError), open(column_path(path), "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            beside, first = mapped.cast("d"), HEADER_BYTES // 8
            # It may have been given up just now. And it may lack a store that is being made, which
            # the file has shown: then the file is asked, as the collector does.
            is_whole = not is_in_file or beside[first] >= last_in_column
            if unpack_header(mapped) is not None and is_whole:
                column, place = beside, first
        is_in_file = column is cells
        for _ in range(500):
            value, in_column = cells[index], column[place]
            back += value < last
            back_in_column += in_column < last_in_column
            last, last_in_column = value, in_column
            reads += 1
    return reads, back, back_in_column


def main() -> None:
    """Print what came out, as JSON."""
    directory, disturbance, seconds, *variant = sys.argv[1:]
    outcome = count_beside(directory, disturbance, float(seconds), *variant)
    lost = outcome.counted - counted_in_files(directory)
    wrong = differing_columns(directory)
    print(json.dumps({**dataclasses.asdict(outcome), "lost": lost, "differing": wrong}))


if __name__ == "__main__":
    main()
