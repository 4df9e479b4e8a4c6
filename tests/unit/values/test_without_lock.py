"""Counting without a lock: that nothing comes between, and what happens if something does."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._store.writer import MetricFile
from obskit_gunicorn._values import values
from obskit_gunicorn._values.cells import Cell
from tests.support import straight_lines
from tests.support.counting import (
    DISTURBANCES,
    INVERTED,
    TWO_LINES,
    Outcome,
    count_beside,
    count_requests_beside,
    counted_in_files,
    differing_columns,
    steps_back,
)
from tests.support.forks import Nursery, RemoteProcess, join, metric, read, wait_until
from tests.support.interpreters import VERSIONS, run_with

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(values.__file__)
CHECKED = ("Value.inc", "Value.set", "end_of_work.end")
UNDER_LOCK = ("Value._inc_with_lock", "Value._set_with_lock")

TRACED = ("close", "withdraw", "give up")

is_atomic = pytest.mark.skipif(not values.IS_ATOMIC, reason="this interpreter takes the lock")


class TestStraightLines:
    """What the interpreter makes of the code."""

    @pytest.mark.parametrize("version", VERSIONS)
    def test_on_each_interpreter(self, version: str) -> None:
        """From the check to the last store there is no call, no other line, and no jump there."""
        program = straight_lines.__file__
        done = run_with(version, program, str(SOURCE), *CHECKED)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("name", CHECKED[:2])
    def test_on_this_interpreter(self, name: str) -> None:
        """The same, of the code that runs here."""
        code = getattr(values.Value, name.removeprefix("Value.")).__code__
        if values.IS_ATOMIC:
            assert straight_lines.problems(code) == []

    @pytest.mark.parametrize("name", UNDER_LOCK)
    def test_with_the_lock(self, name: str) -> None:
        """Whoever holds the lock stores in one go as well."""
        code = straight_lines.functions_of(SOURCE.read_text(encoding="utf-8"))[name]
        assert straight_lines.problems(code) == ["the check is not in the line of the stores"]

    @pytest.mark.parametrize("variant", [TWO_LINES, INVERTED], ids=["two lines", "inverted"])
    def test_others_are_found_out(self, variant: str) -> None:
        """Neither the form of a formatter passes, nor the stores behind a jump."""
        assert straight_lines.problems(straight_lines.functions_of(variant)["inc"])

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("if a.b is c: a.own = own = max(a.own, x); a.f[a.i] = own", "CALL"),
            ("if a.b is c: a.f[a.i] = sum([x for x in a.own])", "CALL"),
            ("while a.b is c: a.f[a.i] = x", "JUMP"),
            ("if a.b is c: a.f[a.i] = yield x", "YIELD_VALUE"),
            ("if a.b is c: a.f[a.i] = f'{x}'", "FORMAT"),
            ("a.f[a.i] = x", "the check"),
            ("if a.b is c: a.own = x", "stores nothing"),
        ],
    )
    def test_other_code_is_found_out(self, line: str, problem: str) -> None:
        """A call, a jump back or whatever else may run code does not pass."""
        code = straight_lines.functions_of(f"def f(a, c, x):\n    {line}\n")["f"]
        found = straight_lines.problems(code)
        # Of a loop only some releases have the jump within the line.
        assert any(problem in text for text in found) or "while" in line

    def test_attributes_run_no_code(self) -> None:
        """What the line reads and stores is in slots."""
        for kind, names in ((Cell, Cell.__slots__), (MetricFile, ("cells", "column"))):
            assert all(type(getattr(kind, name)) is MemberDescriptorType for name in names)


@is_atomic
class TestRaces:
    """Threads that count while their files are closed, replaced and removed."""

    @pytest.mark.parametrize(
        ("disturbance", "is_traced"),
        [*((name, False) for name in DISTURBANCES), *((name, True) for name in TRACED)],
    )
    def test_nothing_is_lost(
        self, nursery: Nursery, directory: str, disturbance: str, is_traced: bool
    ) -> None:
        """Everything is in the metric files, and in the columns, and nothing was raised."""
        outcome = race(nursery, directory, disturbance, 0.3, is_traced=is_traced)
        assert outcome.errors == []
        assert counted_in_files(directory) == outcome.counted
        assert differing_columns(directory) == []

    @pytest.mark.parametrize(
        ("disturbance", "is_traced"),
        [("close", False), ("withdraw", False), ("withdraw", True), ("remove", False)],
    )
    def test_no_request_is_lost(
        self, nursery: Nursery, directory: str, disturbance: str, is_traced: bool
    ) -> None:
        """What is noted at the end of a request is noted once in each of its four values."""
        outcome: Outcome = nursery.start().call(
            count_requests_beside, directory, disturbance, 0.3, is_traced=is_traced
        )
        assert outcome.errors == []
        found = read(directory)
        total = sum(value for name, value in found.items() if "requests_total" in name)
        assert total == outcome.counted
        in_buckets = 'gunicorn_request_duration_seconds_bucket{le="+Inf",method="GET"}'
        assert found[in_buckets] == outcome.counted
        assert found["gunicorn_requests_in_progress"] == 0
        assert differing_columns(directory) == []

    @pytest.mark.parametrize("disturbance", ["close", "withdraw", "grow", "give up"])
    def test_nothing_steps_back(self, nursery: Nursery, directory: str, disturbance: str) -> None:
        """Whoever watches a value, in the file or in its column, never sees less than before."""
        process = nursery.start()
        process.tell(count_beside, directory, disturbance, 0.8)
        path = os.path.join(directory, "counter_slot0.db")
        wait_until(lambda: os.path.exists(path) and os.path.getsize(path), "there is a file")
        wait_until(lambda: read(directory).get('c_total{index="11"}'), "it counts")
        reads, back, back_in_column = steps_back(path, 0.5)
        assert process.answer().errors == []
        assert reads > 1000
        assert (back, back_in_column) == (0, 0)

    def test_with_the_lock(self, nursery: Nursery, directory: str) -> None:
        """Where nothing is promised every call takes the lock, and loses as little."""
        outcome = race(nursery, directory, "withdraw", 0.3, variant="with the lock")
        assert outcome.errors == []
        assert counted_in_files(directory) == outcome.counted

    @pytest.mark.parametrize("way", ["withdraw", "close", "remove"])
    def test_closed_before_it_is_read(self, nursery: Nursery, directory: str, way: str) -> None:
        """Whoever moves or closes values first makes those who count wait for the lock."""
        process = nursery.start()
        process.call(join, directory)
        assert process.call(_settled_at_reading, way) == [False]

    def test_two_lines_lose(self, nursery: Nursery, directory: str) -> None:
        """The form of a formatter loses counts under a tracer, so this is where it would show."""
        process = nursery.start()
        wait_until(lambda: _lost_by_two_lines(process, directory) > 0, "two lines lose something")

    def test_a_jump_loses_on_3_10(self, tmp_path: Path) -> None:
        """Stores behind a jump lose counts on Python 3.10 while files are closed."""

        def lost() -> float:
            directory = tmp_path / str(len(os.listdir(tmp_path)))
            directory.mkdir()
            arguments = (str(directory), "withdraw", "2", "inverted")
            done = run_with("3.10", "-m", "tests.support.counting", *arguments)
            assert done.returncode == 0, done.stderr
            return float(json.loads(done.stdout)["lost"])

        wait_until(lost, "a jump loses something", 120)

    def test_the_same_without_a_jump_on_3_10(self, directory: str) -> None:
        """What there is loses nothing there."""
        done = run_with("3.10", "-m", "tests.support.counting", directory, "withdraw", "2")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["lost"] == 0

    def test_whoever_comes_too_late_raises_nothing(self, nursery: Nursery, directory: str) -> None:
        """A store into a file that was closed between, by whatever magic, goes nowhere."""
        process = nursery.start()
        process.call(join, directory)
        process.call(_store_after_closing)
        assert read(directory) == {"c_total": 1.0}


def race(
    nursery: Nursery, directory: str, disturbance: str, seconds: float, **options: Any
) -> Outcome:
    """Let threads of a process count while something is done to their files."""
    outcome: Outcome = nursery.start().call(
        count_beside, directory, disturbance, seconds, **options
    )
    return outcome


def _lost_by_two_lines(process: RemoteProcess, directory: str) -> float:
    before = counted_in_files(directory)
    child = process.fork()
    outcome = child.call(count_beside, directory, "nothing", 1.0, "two lines", is_traced=True)
    child.kill()
    return float(outcome.counted - (counted_in_files(directory) - before))


def _settled_at_reading(way: str) -> list[bool]:
    """Return whether values could count without the lock when what they had counted was read."""
    metric("counter", "c", {"index": "0"}).inc()
    seen = []

    class Watched(dict[Any, Any]):
        def items(self) -> Any:
            seen.append(values._settled is not None)
            return super().items()

        def values(self) -> Any:
            seen.append(values._settled is not None)
            return super().values()

    store = values._store
    assert store is not None
    store.cells = Watched(store.cells)
    DISTURBANCES[way](0)
    return sorted(set(seen))


def _store_after_closing() -> None:
    value = metric("counter", "c")._value
    value.inc(1)
    cell = value._cell
    file = cell.file
    values.close_files()
    file.cells[cell.index] = file.column[cell.number] = 5.0
    cell.file.cells[cell.index] = 6.0
    value.inc(0)


class _Celsius(float):
    """A number whose sums are of its own class, and that keeps three digits."""

    def __add__(self, other: float) -> _Celsius:
        return _Celsius(round(float(self) + other, 3))

    __radd__ = __add__


class _Single:
    """A number of single precision, as in numpy: it makes every sum one of single precision."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __float__(self) -> float:
        return self.number

    def __radd__(self, other: float) -> _Single:
        return _Single(float(f"{other + self.number:.7g}"))

    __add__ = __radd__

    def __lt__(self, other: float) -> bool:
        return self.number < other


class TestAmounts:
    """Numbers of other classes."""

    @pytest.mark.parametrize("kind", ["counter", "gauge_sum", "gauge_max"])
    @pytest.mark.parametrize(
        "amount",
        [True, 1, 0.1, Fraction(1, 2), _Celsius(0.5), _Single(1.0)],
        ids=lambda amount: type(amount).__name__,
    )
    def test_are_floats_in_the_file(
        self, nursery: Nursery, directory: str, kind: str, amount: Any
    ) -> None:
        """Whatever is added or set, what is added up are floats and nothing else."""
        process = nursery.start()
        process.call(join, directory)
        assert process.call(_add_and_set, kind, amount) == [float(amount)] * 2 + ["float"] * 4

    def test_do_not_stick(self, nursery: Nursery, directory: str) -> None:
        """A number of single precision does not make a counter stop at 2**24."""
        process = nursery.start()
        process.call(join, directory)
        process.call(_count_singles, 2.0**24, 10)
        assert read(directory) == {"c_total": 2.0**24 + 10}

    @pytest.mark.parametrize("amount", ["3", None, b"3", [1]])
    def test_what_is_no_number_changes_nothing(
        self, nursery: Nursery, directory: str, amount: Any
    ) -> None:
        """It raises what it has always raised, and the value can be used on."""
        process = nursery.start()
        process.call(join, directory)
        assert process.call(_add_wrong, amount) == 3.0
        assert read(directory) == {"g": 3.0}


def _add_and_set(kind: str, amount: Any) -> list[float | str]:
    value = metric(kind, "m")._value
    value.inc(amount)
    found: list[float | str] = [value.get()]
    kinds = [type(value._cell.own).__name__, type(value._cell.base or 0.0).__name__]
    value.set(amount)
    found.append(value.get())
    return [*found, *kinds, type(value._cell.own).__name__, type(value.get()).__name__]


def _count_singles(start: float, number: int) -> None:
    value = metric("counter", "c")._value
    value.inc(start)
    for _ in range(number):
        value.inc(_Single(1.0))


def _add_wrong(amount: Any) -> float:
    value = metric("gauge_sum", "g")._value
    value.inc(1)
    with pytest.raises(TypeError):
        value.inc(amount)
    value.inc(2)
    return float(value.get())


def test_the_choice(nursery: Nursery) -> None:
    """The lock is left out on CPython with a GIL alone, and that is chosen at import."""
    assert nursery.start().call(_choices) == [True, False, False]


def _choices() -> list[bool]:
    """Return what is chosen on CPython, on CPython without the GIL, and on PyPy."""
    import importlib

    found = []
    for name, flags in (("cpython", ""), ("cpython", "t"), ("pypy", "")):
        sys.implementation.name, sys.abiflags = name, flags
        found.append(importlib.reload(values).IS_ATOMIC)
        takes_lock: Callable[..., None] = values.Value._inc_with_lock
        assert (values.Value.inc is takes_lock) is not found[-1]
    return found
