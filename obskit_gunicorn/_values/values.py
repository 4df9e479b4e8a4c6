"""The value class, in which prometheus_client's metrics store their numbers.

A value is bound to a cell of a file when it is next used. So after a fork the child does no work
for series that it never uses. If there is no lease or the volume is full, the value stays in memory
and moves into the file as soon as possible: ``inc`` never raises because of us. The file is correct
at any moment, for scrapes and if the process is killed, and nothing must be done when a process
ends.

``get``, ``set`` and ``Counter.reset`` act on the contribution of this process.

Installed as ``prometheus_client.values.ValueClass``, which prometheus_client supports. Safe with
threads and forks.

Under a call of a metric another one may run in the same thread: a finalizer (``__del__``) or a
callback of the garbage collector, which may come whenever an object is made, or a signal handler.
If the lock is held, what it counts waits until that is released (``_later``).

Without a lock
--------------
While all values are in files, ``inc``, ``set`` and ``get`` need no lock. CPython with a GIL gives
another thread a turn, and runs signal handlers, only at a call, at a jump backwards and, up to
3.10, at a conditional jump that is taken. So a straight line of attributes of objects with slots,
items of memoryviews and sums of floats runs as a whole. What that asks of the code:

- From the check to the last store all is *one physical line*, because a tracer runs at each new
  one; and it is where the check falls through, because up to 3.10 the other way is a jump.
- The amount is made a float before the cell is looked at, and ``own`` and ``base`` are floats: of
  the class itself, for numbers of other classes may run code of their own.
- Whoever changes a cell that others may use has that line too, with the lock or without: nothing
  may run between what is read and what is stored.
- Whoever closes the files closes this way first (``_settled``), before he reads any ``own``; and a
  file puts something else in the place of its memory before that is unmapped.

Where threads run beside each other, and on other implementations, the lock is always taken. A
tracer that is called at each opcode or branch is the one thing that can still come between.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import math
import mmap
import os
import sys
import time
from _thread import RLock  # gevent's is none that a signal handler or finalizer may come under
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log, taken
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.admissions import OTHER, Admissions, digest_of
from obskit_gunicorn._store.baselines import Baselines
from obskit_gunicorn._store.cardinality import widest_label
from obskit_gunicorn._store.directory import LOCK_WAIT_SECONDS, explain
from obskit_gunicorn._store.exemplars import SUFFIX as EXEMPLARS
from obskit_gunicorn._store.fileformat import LabelSet, encode_key, metric_of, metric_start
from obskit_gunicorn._store.membership import NotYetError, membership
from obskit_gunicorn._store.writer import MetricFile, MetricFileInUseError
from obskit_gunicorn._values import children
from obskit_gunicorn._values.budget import Budget
from obskit_gunicorn._values.cells import CELLS, NOWHERE, Cell, Key, Store, cell_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.samples import Exemplar

    from obskit_gunicorn._prometheus import Parent
    from obskit_gunicorn._store.exemplars import ExemplarFile
    from obskit_gunicorn._values.children import Children, LabelValues, Removal

IS_ATOMIC = sys.implementation.name == "cpython" and "t" not in sys.abiflags
"""Whether a line of code runs as a whole, as above; no where CPython was built without the GIL."""

_RETRY_SECONDS = 1.0
"""How long values stay in memory before the next attempt to open a file."""

_MADV_WIPEONFORK = 18  # <asm-generic/mman-common.h>; the mmap module has no name for it

_lock = RLock()
"""Re-entrant only to tell that this thread holds it already."""

_is_nested: Callable[[], bool] = _lock._is_owned  # type: ignore[attr-defined]
"""Returns whether this thread holds the lock: the call has come under another one."""

_store: Store | None = None
"""The files of this process, once it has a lease."""

_settled: Store | None = None
"""The same while no value of this process is in memory, else ``None``.

A value that needs no lock only compares its store with this one. While there are values in memory,
every call takes the lock, and tries to move them into the files.
"""

_closed: Store | None = None
"""The files before they were closed, if they were."""

_memory: dict[Key, Cell] = {}
"""The cells without a file."""

beside: list[Callable[[Store], object]] = []
"""What other modules keep beside the values: called with the files of this process, under the lock,
whenever it looks after its place. Must not raise, log, or use a value."""

_is_wanted = False
"""Whether :func:`use_store` was called while there were no files."""

_elsewhere = 0
"""How many values of other classes no scrape sees."""

_baselines: Baselines | None = None
"""What was removed, as far as this process has read it."""

_budget: Budget | None = None
"""What this process and its forks may have; ``None`` for anything."""

_admissions: Admissions | None = None
"""The label sets that have a place in the budget, as far as this process has read them."""

_said_of_removal: set[int | None] = set()
"""Why label sets could not be removed for all processes, as it was logged."""

_retry_at = _look_at = _exemplars_at = 0.0
_said: set[int | None] = set()
_said_of_exemplars: set[object] = set()
_notices: list[tuple[int, str]] = []
"""Lines to log after the lock is released."""

_later: list[Callable[[], object]] = []
"""Calls that came under the lock, in the thread that holds it; made after it is released."""


def _page() -> memoryview:
    """Return a page whose first byte is 0 in a child that C code has forked, and 1 here."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # If the kernel does not support it (before Linux 4.14, other systems), such a child is not
    # noticed; nor does prometheus_client notice it.
    with contextlib.suppress(OSError):
        page.madvise(_MADV_WIPEONFORK)
    page[0] = 1
    return memoryview(page)


_here = _page()


class Value:
    """A float in the slot's file; prometheus_client creates one for every sample that it stores.

    Any thread of any process may use it. Values with the same key share their number in a process.
    """

    _multiprocess: ClassVar[bool] = True

    __slots__ = ("_cell", "_key")

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **kwargs: Any,
    ) -> None:
        """Create the value, at 0, and its entry in the file; prometheus_client gives the arguments.

        Never raises because of the file; see the module.
        """
        prefix = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        if prefix in CELLS:
            self.__class__ = _CombinedValue
        siblings: Children | None = None
        is_bucket = name[-7:] == "_bucket" and typ == "histogram"
        if labelvalues and not is_bucket:  # once for each child is enough
            parent = _prometheus.parent_of_new_child()
            if parent is not None:
                siblings = children.watch(parent, _source)
        if _budget is not None and labelvalues:
            mine = tuple(labelvalues[:-1] if is_bucket else labelvalues)
            names = siblings.names if siblings is not None else tuple
            if mine and not has_place(metric_name, labelnames, mine, names):
                labelvalues = (OTHER,) * len(mine) + tuple(labelvalues[len(mine) :])
                if siblings is not None:
                    siblings.divert(mine)
                if prefix not in CELLS:
                    self.__class__ = _DivertedValue
        self._key = (prefix, encode_key(metric_name, name, labelnames, labelvalues, help_text))
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            self._cell = cell_for(self._key)  # it is bound when it is used
            return
        with _lock:
            self._cell = _bind(self._key)
        _say()

    def inc(self, amount: float) -> None:
        """Add to the number; the metric checks that the amount is allowed."""
        amount = 0.0 + amount
        if amount.__class__ is not float:
            amount = float(amount)
        cell = self._cell
        # fmt: off
        if cell.store is _settled and _here[0]: file = cell.file; cell.own = own = cell.own + amount; file.cells[cell.index] = file.column[cell.number] = cell.base + own; return  # type: ignore[operator]  # noqa: E501, E701, E702
        # fmt: on
        self._inc_with_lock(amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set what this process has contributed.

        Args:
            value: The number.
            timestamp: Unix seconds, for the ``mostrecent`` modes.
        """
        if value.__class__ is not float:  # as Counter.reset() gives it, and no gauge does
            self._set_with_lock(value)
            return
        cell = self._cell
        # fmt: off
        if cell.store is _settled and _here[0]: file = cell.file; cell.own = value; file.cells[cell.index] = file.column[cell.number] = cell.base + value; return  # type: ignore[operator]  # noqa: E501, E701, E702
        # fmt: on
        self._set_with_lock(value)

    def get(self) -> float:
        """Return what this process has contributed; 0 in a child that has not used it yet."""
        cell = self._cell
        # fmt: off
        if cell.store is _settled and _here[0]: return cell.own  # noqa: E701
        # fmt: on
        return self._get_with_lock()

    def _inc_with_lock(self, amount: float) -> None:
        amount = 0.0 + amount
        if amount.__class__ is not float:
            amount = float(amount)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self._inc_with_lock, amount))
            return
        with _lock:
            cell = self._bound()
            # fmt: off
            file = cell.file; cell.own = own = cell.own + amount; file.cells[cell.index] = file.column[cell.number] = cell.base + own  # type: ignore[operator]  # noqa: E501, E702
            # fmt: on
        _say()

    def _set_with_lock(self, value: float, timestamp: float | None = None) -> None:
        if value.__class__ is not float:
            value = float(value)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self._set_with_lock, value, timestamp))
            return
        with _lock:
            cell = self._bound()
            # fmt: off
            file = cell.file; cell.own = value; file.cells[cell.index] = file.column[cell.number] = cell.base + value  # type: ignore[operator]  # noqa: E501, E702
            # fmt: on
            if _store is not None and self._key[0] == "counter":
                _store.note_reset(self._key, cell)
        _say()

    def _get_with_lock(self) -> float:
        if not _here[0]:
            forks.start_over()
        with _lock:
            found = self._cell if self._cell.store is _settled else _find(self._key)
            own = 0.0 if found is None else found.own
        _say()
        return own

    def _bound(self) -> Cell:
        """Return the cell, bound if it is not; the caller holds the lock."""
        if self._cell.store is not _settled:
            self._cell = _bind(self._key)
        return self._cell

    def set_exemplar(self, exemplar: Exemplar) -> None:
        """Keep an exemplar beside the slot's file, in place of the one before.

        Never raises because of it. One that cannot be exposed is left out, and so is one that
        cannot be stored now: one line in the log says so.
        """
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self.set_exemplar, exemplar))
            return
        with _lock:
            if self._cell.store is not _settled:
                self._bound()
            file = _store.exemplars if _store is not None else None
            if file is None:
                file = _open_exemplars()
            if file is not None:
                labels, value, timestamp = exemplar
                if timestamp.__class__ is not float:
                    timestamp = time.time() if timestamp is None else float(timestamp)
                if not file.put(self._key, labels, float(value), timestamp):
                    _note_unfit(self._key)
        if _notices:
            _say()

    def get_exemplar(self) -> None:
        """Return ``None``, like prometheus_client in multiprocess mode: scrapes read the file."""

    @classmethod
    def close_all_files(cls) -> None:
        """Close this process's files; a value opens its file again when it is next used."""
        close_files()


class _CombinedValue(Value):
    """A value of a gauge whose mode does not sum."""

    __slots__ = ()

    def inc(self, amount: float) -> None:
        """Add to what this process has contributed."""
        amount = float(0.0 + amount)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self.inc, amount))
            return
        with _lock:
            cell = self._bound()
            cell.own += amount
            cell.timestamp = 0.0
            cell.write()
        _say()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set what this process has contributed; see :meth:`Value.set`."""
        value = float(value)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self.set, value, timestamp))
            return
        with _lock:
            cell = self._bound()
            cell.own, cell.timestamp = value, timestamp or 0.0
            cell.write()
        _say()


class _DivertedValue(Value):
    """A value without a place in the budget: it is a part of one that many share.

    Its cell is in no file; ``own`` is the part of this value, and ``store`` the life of the whole
    that it is a part of.
    """

    __slots__ = ()

    def inc(self, amount: float) -> None:
        """Add to the whole, and to this part."""
        amount = float(0.0 + amount)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self.inc, amount))
            return
        with _lock:
            cell, part = self._whole()
            # fmt: off
            file = cell.file; cell.own = own = cell.own + amount; file.cells[cell.index] = file.column[cell.number] = cell.base + own; part.own += amount  # type: ignore[operator]  # noqa: E501, E702
            # fmt: on
        _say()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set this part of a counter, or the whole of a gauge: it shows what was set last."""
        value = float(value)
        if not _here[0]:
            forks.start_over()
        if _is_nested():
            _later.append(partial(self.set, value, timestamp))
            return
        with _lock:
            cell, part = self._whole()
            is_gauge = self._key[0].startswith("gauge")
            if is_gauge:  # it takes the place of all that there is, so nobody has a part of that
                cell.life = part.store = object()
            # fmt: off
            file = cell.file; cell.own = own = value if is_gauge else cell.own + (value - part.own); file.cells[cell.index] = file.column[cell.number] = cell.base + own; part.own = value  # type: ignore[operator]  # noqa: E501, E702
            # fmt: on
            if _store is not None and self._key[0] == "counter":
                _store.note_reset(self._key, cell)
        _say()

    def get(self) -> float:
        """Return this part."""
        if not _here[0]:
            forks.start_over()
        with _lock:
            found, part = _find(self._key), self._cell
            is_current = found is not None and found.life is not None and part.store is found.life
            own = part.own if is_current else 0.0
        _say()
        return own

    def _whole(self) -> tuple[Cell, Cell]:
        """Return the cell that is shared, and this part of it; the caller holds the lock."""
        store = _settled
        cell = None if store is None else store.cells.get(self._key)
        if cell is None:
            cell = _bind(self._key)
        if cell.life is None:
            cell.life = object()
        if self._cell.store is not cell.life:  # it has no part yet, or the whole has begun anew
            self._cell = Cell()
            self._cell.store = cell.life
        return cell, self._cell

    def _bound(self) -> Cell:
        """Return the cell that is shared; the caller holds the lock."""
        return self._whole()[0]

    def _give_back(self) -> None:
        """Take this part out of the whole; the caller holds the lock."""
        cell, part = self._whole()
        # fmt: off
        file = cell.file; cell.own = own = cell.own - part.own; file.cells[cell.index] = file.column[cell.number] = cell.base + own; part.own = 0.0  # type: ignore[operator]  # noqa: E501, E702
        # fmt: on


class _Removed(Value):
    """A value of a removed child that somebody has kept: it counts into nothing."""

    __slots__ = ()

    def get(self) -> float:
        """Return what was counted since it was removed."""
        return self._cell.own

    def set_exemplar(self, exemplar: Exemplar) -> None:
        """Keep none: nobody would see it."""

    def _get_with_lock(self) -> float:
        return self._cell.own

    def _bound(self) -> Cell:
        return self._cell


class _RemovedCombined(_CombinedValue):
    """The same of a gauge whose mode does not sum."""

    __slots__ = ()

    get, _get_with_lock, _bound = _Removed.get, _Removed._get_with_lock, _Removed._bound
    set_exemplar = _Removed.set_exemplar


def end_of_work(
    total: Any, seconds: Any, buckets: Sequence[Any], bounds: Sequence[float], level: Any
) -> Callable[[float], None] | None:
    """Return a function that notes the end of a piece of work in four values at once.

    Args:
        total: Gets one.
        seconds: Gets the number that the function is called with: how long it took.
        buckets: One of them gets one, that of the number.
        bounds: Their upper bounds, without the last, which is infinity.
        level: Loses one.

    Returns:
        The function; ``None`` if they are values of other classes, if a bucket is missing, or if
        the lock is always taken.
    """
    if len(buckets) <= bisect_left(bounds, math.inf):
        return None
    if not IS_ATOMIC or {type(value) for value in (total, seconds, *buckets, level)} != {Value}:
        return None

    def end(number: float) -> None:
        bucket = buckets[bisect_left(bounds, number)]
        one, two, three, four = total._cell, seconds._cell, bucket._cell, level._cell
        # fmt: off
        if one.store is _settled and two.store is _settled and three.store is _settled and four.store is _settled and _here[0]: file = one.file; one.own = own = one.own + 1.0; file.cells[one.index] = file.column[one.number] = one.base + own; file = two.file; two.own = own = two.own + number; file.cells[two.index] = file.column[two.number] = two.base + own; file = three.file; three.own = own = three.own + 1.0; file.cells[three.index] = file.column[three.number] = three.base + own; file = four.file; four.own = own = four.own - 1.0; file.cells[four.index] = file.column[four.number] = four.base + own; return  # noqa: E501, E701, E702
        # fmt: on
        total.inc(1.0)
        seconds.inc(number)
        bucket.inc(1.0)
        level.inc(-1.0)

    return end


def lock_always() -> None:
    """Take the lock at each call, where a line of code does not run as a whole."""
    methods = {
        "inc": Value._inc_with_lock,
        "set": Value._set_with_lock,
        "get": Value._get_with_lock,
    }
    for name, method in methods.items():
        setattr(Value, name, method)


if not IS_ATOMIC:
    lock_always()


def install() -> list[str]:
    """Make prometheus_client use this value class for all metrics that are created from now on.

    May be called again. Values stay in memory until there is a directory.

    Returns:
        The names that this release of prometheus_client does not have; see
        :func:`obskit_gunicorn._prometheus.install`.
    """
    return _prometheus.install(Value, close_files)


def is_installed() -> bool:
    """Return whether prometheus_client uses this value class."""
    return _prometheus.installed() is Value


def limit(allowed: Budget) -> None:
    """Set what this process and its forks may have; what they have already stays."""
    global _budget  # noqa: PLW0603
    with _lock:
        if _admissions is not None and allowed != (_budget or Budget()):
            _admissions.budget_has_changed()
        _budget = allowed or None
    _say()


def share(*, now: bool = False) -> None:
    """Move values from memory into the directory of this process.

    Args:
        now: Take the lease even if there is nothing to share yet.
    """
    global _retry_at  # noqa: PLW0603
    with _lock, forks.guard():
        _retry_at = 0.0
        if now or _is_wanted:
            _open_store()
        _move_in()
        _settle()
        _keep_beside()
    _say()


def use_store(use: Callable[[Store | None], object]) -> None:
    """Call a function with the files of this process, or ``None`` if there are none now.

    Args:
        use: Is called under the lock; must not raise, log, or use a value.
    """
    global _is_wanted  # noqa: PLW0603
    if not _here[0]:
        forks.start_over()
    if _is_nested():
        _later.append(partial(use_store, use))
        return
    with _lock, forks.guard():
        store = _store
        if store is None and time.monotonic() >= _retry_at:
            store = _open_store()
            _settle()
        _is_wanted = store is None
        use(store)
    _say()


def note_later(level: int, line: str) -> None:
    """Log a line when the lock is released; for functions that are called under it."""
    _notices.append((level, line))


def keep_place() -> None:
    """Take a lease if there is none, and another one if this one or its files were removed.

    Looks at most once a second, so it may be called again and again.
    """
    global _look_at  # noqa: PLW0603
    now = time.monotonic()
    if now < _look_at:
        return
    _look_at = now + _RETRY_SECONDS
    with _lock, forks.guard():
        has_moved = False
        if _store is not None:
            _store.keep_beside()
        if _store is not None and not _store.is_in_place():
            # If there is no other place yet, readers that have the files open see them.
            with contextlib.suppress(NotYetError, OSError):
                lease = membership.move(_detach)
                has_moved = True
                line = f"obskit: files of this process were removed; it goes on in {lease.slot}"
                _notices.append((logging.INFO, line))
        is_due = membership.lease is None or _memory or _is_wanted
        if has_moved or (now >= _retry_at and is_due):
            _open_store()
            _move_in()
            _settle()
        _keep_beside()
    _say()


def withdraw(*, take_along: bool = False) -> None:
    """Close this process's files, before it changes its lease or its directory.

    Counts stay in the files if readers can find them there.

    Args:
        take_along: Keep the counts in memory instead, because the files may be wiped.
    """
    with _lock:
        _detach(take_along=take_along)
    _say()


def close_files() -> None:
    """Close this process's files; a value opens its file again when it is next used."""
    global _closed  # noqa: PLW0603
    with _lock:
        store = _store
        _release()
        if store is not None:
            _closed = store
    _say()


def not_shared() -> int:
    """Return how many values of this process no reader can see, in memory or elsewhere."""
    return len(_memory) + _elsewhere


def note_elsewhere(count: int) -> None:
    """Note how many values of other classes no reader can see."""
    global _elsewhere  # noqa: PLW0603
    with _lock:
        _elsewhere = count
        _settle()
    _say()


def has_place(
    metric: str,
    names: Sequence[str],
    labels: tuple[str, ...],
    siblings: Callable[[], Iterable[LabelValues]],
) -> bool:
    """Return whether a label set has a place in the budget, or gets one now. Never raises.

    Args:
        metric: The metric.
        names: The names of its labels.
        labels: Their values.
        siblings: Returns the values of other label sets, to tell which label makes them.
    """
    global _admissions  # noqa: PLW0603
    budget = _budget
    if budget is None:
        return True
    digest = digest_of(names, labels)
    found = _admissions
    if found is not None and found.knows(metric, digest):
        return True
    if all(label == OTHER for label in labels):
        return True
    most = budget.of(metric)
    if found is not None and found.is_full(metric, most):
        return False
    if most is None and budget.size is None:
        return True
    if not _here[0]:
        forks.start_over()
    if _is_nested():
        return False  # to make a place now might be in the way of one that is being made
    with _lock, forks.guard():
        directory = membership.find_directory()
        path = "" if directory is None else directory.path
        if _admissions is None or _admissions.directory != path:
            _admissions = Admissions(path, _admissions)
        is_admitted, is_first = _admissions.admit(metric, digest, most, budget.size)
        if is_first:
            known = [*siblings(), labels]
            label, _ = widest_label(zip(names, each, strict=False) for each in known)
            why = (
                f"the metric files have {budget.size} bytes (metrics_max_bytes)"
                if most is None or _admissions.count(metric) < most
                else f"it has {most} label sets (metrics_max_series)"
            )
            _notices.append(
                (
                    logging.WARNING,
                    f"obskit: {metric} has used up its budget: {why}, and its label {label!r} "
                    f"makes more; they are counted as {OTHER}. Give the label fewer values, or "
                    "raise the budget",
                )
            )
    _say()
    return is_admitted


def watch(metric: Any) -> None:
    """Notice from now on when children of a metric are removed, if it has labels."""
    if _prometheus.children_of(metric) is not None:
        with _prometheus.lock_of(metric):
            children.watch(metric, _source)


def _hear(removal: Removal) -> bool:
    """Remove label sets; return whether any process had them. Never raises."""
    if not _here[0]:
        forks.start_over()
    if _is_nested():
        _later.append(partial(_hear, removal))
        return True
    with _lock, forks.guard():
        had_any = _remove(removal)
        _settle()
    _say()
    return had_any


def _elsewhere_too(about: Parent) -> Iterable[tuple[str, ...]]:
    """Return the label values that a metric has in any process. Never raises."""
    found: Iterable[LabelSet] = ()
    with _lock, forks.guard():
        baselines = _removals()
        if baselines is not None:
            with contextlib.suppress(OSError):
                found = baselines.label_sets(about.kind, about.name)
    _say()
    known = [json.loads(series.labels) for series in found]
    return [
        tuple(map(labels.__getitem__, about.labels))
        for labels in known
        if labels.keys() == set(about.labels)
    ]


_source = children.Source(_hear, _elsewhere_too)


# Below: the caller holds _lock. Nothing may log or yield to another greenlet.


def _keep_beside() -> None:
    global _is_wanted  # noqa: PLW0603
    if _store is not None:
        _is_wanted = False
        for keep in beside:
            keep(_store)


def _removals() -> Baselines | None:
    """Return the list of what was removed in this process's directory."""
    global _baselines  # noqa: PLW0603
    directory = membership.find_directory()
    if directory is None:
        return None
    if _baselines is None or _baselines.directory != directory.path:
        _baselines = Baselines(directory.path)
    return _baselines


def _remove(removal: Removal) -> bool:
    """Take what was counted for label sets out of what is shown; return whether there was any."""
    about, keys = removal.parent, set[Key]()
    wanted = None
    if removal.labels is not None:
        wanted = {LabelSet.named(about.name, about.labels, each) for each in removal.labels}
    for child in removal.children:
        for value in _prometheus.values_in(child):
            if isinstance(value, Value):
                prefix, name = value._key
                if wanted is None or LabelSet.of(name, prefix) in wanted:  # else it is diverted
                    keys.add(value._key)
                _orphan(value)
    store = _store or _closed
    if removal.labels is None:
        start = metric_start(about.name)
        known = {} if store is None else store.known()
        for prefix, name in [*known, *_memory]:
            if prefix.partition("_")[0] == about.kind and name.startswith(start):
                keys.add((prefix, name))
    for key in keys:
        _memory.pop(key, None)
    # First: whoever counts now comes after what is noted.
    dropped = [] if store is None else store.drop(keys)
    baselines = _removals()
    if baselines is None:
        return bool(keys)
    try:
        had_any = baselines.remove(about.kind, about.name, wanted)
    except OSError as error:
        for cell in dropped:
            if type(cell) is Cell:
                cell.own = 0.0
                cell.write()
        if error.errno not in _said_of_removal:
            _said_of_removal.add(error.errno)
            problem = explain(error, baselines.directory)
            line = f"obskit: what is removed of {about.name} is gone in this process only"
            _notices.append((logging.ERROR, f"{line}: {problem}"))
        return bool(keys)
    _said_of_removal.clear()
    return had_any or bool(removal.children)


def _orphan(value: Value) -> None:
    """Let a value count into nothing, for whoever has kept its child."""
    if isinstance(value, _DivertedValue):
        value._give_back()
    value._cell = type(value._cell)()
    value.__class__ = _RemovedCombined if isinstance(value, _CombinedValue) else _Removed


def _find(key: Key) -> Cell | None:
    cell = _store.cells.get(key) if _store is not None else None
    return _memory.get(key) if cell is None else cell


def _bind(key: Key) -> Cell:
    """Return the key's cell in this process, in the slot's file if possible."""
    store = _settled
    if store is not None and key[0] in store.files:
        try:
            return store.cells.get(key) or store.add(key, None)
        except OSError:
            pass  # below it is tried again
    with forks.guard():
        if time.monotonic() >= _retry_at:
            _move_in()
            if _find(key) is None:
                _add(key)
        cell = _find(key)
        if cell is None:
            cell = _memory[key] = cell_for(key)
        _settle()
        return cell


def _move_in() -> None:
    """Move values from memory into the files, as far as possible."""
    if not _memory:
        return
    for key in list(_memory):
        if not _add(key):
            return
    if _said:
        _said.clear()
        _notices.append((logging.WARNING, "obskit: metrics of this process are shared again"))


def _add(key: Key) -> bool:
    """Create a key's cell in the file; move to another slot if this one is lost."""
    for _attempt in range(2):
        store = _open_store()
        if store is None:
            return False
        try:
            cell = store.add(key, _memory.get(key))
        except MetricFileInUseError as error:
            # Give up the whole slot. Values that readers can no longer find move to the next slot.
            _note(
                error,
                f"obskit: {error.filename} was removed, replaced or taken by another process; "
                f"{store.lease.slot} is given up for another slot",
            )
            _detach()
            membership.release()
        except OSError as error:
            _fail(error)
            return False
        else:
            _memory.pop(key, None)
            _tell_of_salvage(cell)
            return True
    return False


def _tell_of_salvage(cell: Cell) -> None:
    """Note once that a cell's file was damaged."""
    file = cell.file
    if isinstance(file, MetricFile) and file.salvaged:
        line = (
            f"obskit: {file.path} was damaged ({file.salvaged}); kept as "
            f"{os.path.basename(file.path)}.damaged, the readable part still counts"
        )
        _notices.append((logging.ERROR, line))
        file.salvaged = None


def _open_store() -> Store | None:
    global _store  # noqa: PLW0603
    if _store is None and membership.find_directory() is not None:
        try:
            # If somebody never releases the lock, wait for it only once.
            wait = 0.0 if errno.ETIMEDOUT in _said else LOCK_WAIT_SECONDS
            lease = membership.acquire(wait_seconds=wait)
            is_same = _closed is not None and _closed.lease is lease
            removals = _removals() or Baselines(os.path.dirname(lease.metric_file_path("")))
            _store = Store(lease, removals, _closed.known() if _closed and is_same else None)
        except NotYetError:
            pass
        except OSError as error:
            _fail(error)
    return _store


def _open_exemplars() -> ExemplarFile | None:
    """Open the slot's file of exemplars, if there can be one now."""
    global _exemplars_at  # noqa: PLW0603
    store = _store
    if store is None or time.monotonic() < _exemplars_at:
        return None
    path = store.lease.path_beside(EXEMPLARS)
    try:
        file = store.open_exemplars()
    except OSError as error:
        _exemplars_at = time.monotonic() + _RETRY_SECONDS
        if error.errno not in _said_of_exemplars:
            _said_of_exemplars.add(error.errno)
            problem = explain(error, path)
            _notices.append((logging.ERROR, f"obskit: exemplars are not shown for now: {problem}"))
        return None
    if file.replaced is not None:
        _notices.append((logging.ERROR, f"obskit: {path} was damaged ({file.replaced}); made anew"))
    return file


def _note_unfit(key: Key) -> None:
    """Note once that an exemplar of a metric cannot be exposed."""
    metric = metric_of(key[1])
    if metric not in _said_of_exemplars:
        _said_of_exemplars.add(metric)
        _notices.append(
            (
                logging.WARNING,
                f"obskit: an exemplar of {metric} is left out: its labels must be text without "
                "NUL, and their names made of letters, digits and underscores",
            )
        )


def _settle() -> None:
    """Let values do without the lock if none is in memory."""
    global _settled  # noqa: PLW0603
    _settled = None if _memory else _store
    lease = membership.lease
    if lease is not None and lease.record["values_not_shared"] != not_shared():
        lease.note(values_not_shared=not_shared())


def _detach(*, take_along: bool = False) -> None:
    global _settled  # noqa: PLW0603
    _settled = None  # first: whoever counts now waits for the lock
    if _store is not None:
        _memory.update(_store.carry_over(take_along=take_along))
        _release()


def _release() -> None:
    global _store, _settled  # noqa: PLW0603
    _settled = None
    store, _store = _store, None
    if store is not None:
        for cell in store.cells.values():
            cell.store = NOWHERE
        store.release()


def _fail(error: OSError) -> None:
    global _retry_at  # noqa: PLW0603
    _retry_at = time.monotonic() + _RETRY_SECONDS
    path = membership.directory.path if membership.directory is not None else ""
    problem = explain(error, path)
    _note(error, f"obskit: metrics of this process stay in its memory for now: {problem}")


def _note(error: OSError, line: str) -> None:
    if error.errno not in _said:
        _said.add(error.errno)
        _notices.append((logging.ERROR, line))


def _say() -> None:
    """Make the calls that waited, and log what was noted. The caller holds no lock."""
    while _later and not _is_nested():
        try:
            call = _later.pop(0)
        except IndexError:  # another thread was faster
            break
        call()
    if _notices:  # hardly ever, and this is asked at each store
        for level, line in taken(_notices):
            log.log(level, line)


def _start_over() -> None:
    """Start over in a forked child. The cost does not depend on the number of values."""
    global _lock, _is_nested, _store, _settled, _closed, _memory, _is_wanted  # noqa: PLW0603
    global _retry_at, _exemplars_at
    store, _store, _settled, _closed = _store, None, None, None
    _lock, _retry_at, _exemplars_at = RLock(), 0.0, 0.0
    _is_nested = _lock._is_owned  # type: ignore[attr-defined]
    if not membership.is_configuring:  # as it is in a child that daemonizes
        _memory, _is_wanted = {}, False
    _later.clear()
    _here[0] = 1
    if store is not None:
        store.release()


def _last_try() -> None:
    """Move values from memory into the files before the process ends."""
    if _memory or _is_wanted:
        share()


forks.in_child("values", _start_over)
atexit.register(_last_try)
