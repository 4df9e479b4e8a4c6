"""The value class: what prometheus_client's metrics store their numbers in.

A value is *base + own*: ``base`` is what the slot's file held when this process first touched the
key, ``own`` is what this process has added. The file always holds the two combined, so it always
says what all holders of the slot together have counted, and a process that is killed at any
moment, or a scrape at any moment, finds it right. There is nothing to fold when a process ends.

==============================================  ================================================
metric                                          the file holds
==============================================  ================================================
counter, histogram, summary, gauge ``sum``      base + own
gauge ``max``, ``min``                          the extreme of both
gauge ``mostrecent``                            the one with the newer timestamp
gauge ``all``, ``live*``                        own; the last holder's file is removed when the
                                                slot is taken
==============================================  ================================================

``get``, ``set`` and so ``Counter.reset`` act on ``own``.

A value is bound to a cell of a file when it is next used, so that nothing walks a preloaded
parent's ten thousand children after a fork. When there is no lease or no room to be had it goes on
in memory, and moves into the file as soon as there is: ``inc`` never raises because of us.

Installed at prometheus_client's supported seam, ``prometheus_client.values.ValueClass``. Safe
beside threads and forks. Not for signal context: the lock is not re-entrant.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import math
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any, ClassVar

from prometheus_client import values as prometheus_values
from prometheus_client.mmap_dict import mmap_key

from obskit_gunicorn import slots
from obskit_gunicorn.mmapfile import MetricFile, MetricFileInUseError

__all__ = ["Value", "close_files", "install", "is_installed", "not_shared", "share", "withdraw"]

_RETRY_SECONDS = 1.0
"""How long values stay in memory before the next try for a file."""

_MADV_WIPEONFORK = 18  # <asm-generic/mman-common.h>; the mmap module has no name for it

_Place = tuple[str, bytes]
"""A metric type (for a gauge with its mode) and a key."""


class _Memory:
    """Where a cell without a file writes to."""

    def __init__(self) -> None:
        self.cells = [0.0]

    def write_pair(self, index: int, value: float, timestamp: float) -> None:
        self.cells[index] = value


_MEMORY = _Memory()
_NOWHERE = object()


class _Cell:
    """The number behind every value of one key in this process. Adds up."""

    __slots__ = ("base", "base_timestamp", "file", "index", "own", "store", "timestamp")

    def __init__(self) -> None:
        self.store: object = _NOWHERE
        self.file: MetricFile | _Memory = _MEMORY
        self.index = 0
        self.own = 0.0
        self.timestamp = 0.0
        self.base: float | None = 0.0
        self.base_timestamp = 0.0

    def combined(self) -> tuple[float, float]:
        """Return the value and the timestamp that the file shall hold."""
        return (self.base or 0.0) + self.own, 0.0

    def write(self) -> None:
        """Write them, in one store."""
        self.file.cells[self.index] = self.combined()[0]


class _MaxCell(_Cell):
    """The largest value of any holder."""

    __slots__ = ()

    def combined(self) -> tuple[float, float]:
        base, own = self.base, self.own
        return (own if base is None or own > base or math.isnan(base) else base), 0.0


class _MinCell(_Cell):
    """The smallest value of any holder."""

    __slots__ = ()

    def combined(self) -> tuple[float, float]:
        base, own = self.base, self.own
        return (own if base is None or own < base or math.isnan(base) else base), 0.0


class _MostRecentCell(_Cell):
    """The value that was set last by any holder."""

    __slots__ = ()

    def combined(self) -> tuple[float, float]:
        if self.base is None or self.timestamp > self.base_timestamp or not self.base_timestamp:
            return self.own, self.timestamp
        return self.base, self.base_timestamp

    def write(self) -> None:
        self.file.write_pair(self.index, *self.combined())


_CELLS: dict[str, type[_Cell]] = {
    "gauge_max": _MaxCell,
    "gauge_livemax": _MaxCell,
    "gauge_min": _MinCell,
    "gauge_livemin": _MinCell,
    "gauge_mostrecent": _MostRecentCell,
    "gauge_livemostrecent": _MostRecentCell,
}


class _Store:
    """The files of this process's slot. A new object after each fork and for each lease."""

    def __init__(self, lease: slots.Lease, earlier: dict[_Place, _Cell] | None = None) -> None:
        self.lease = lease
        self._earlier = earlier or {}
        self.files: dict[str, MetricFile] = {}
        self.cells: dict[_Place, _Cell] = {}

    def add(self, place: _Place, carried: _Cell | None) -> _Cell:
        """Give a key its cell in the slot's file.

        Args:
            place: The key, which has no cell in this store yet.
            carried: The cell it had in memory, whose own part goes on.

        Raises:
            MetricFileInUseError: The slot is not ours alone any more: somebody removed or
                replaced its lease or one of its files.
            OSError: There is no file or no room to be had.
        """
        prefix, key = place
        file = self.files.get(prefix)
        if file is None:
            file = MetricFile(self.lease.metric_file_path(prefix))
            self.files[prefix] = file
            if file.salvaged:
                line = (
                    f"obskit: {file.path} was damaged ({file.salvaged}); kept as "
                    f"{os.path.basename(file.path)}.damaged, what could be read of it counts on"
                )
                _notices.append((logging.ERROR, line))
        if not (file.is_linked() and self.lease.is_in_place()):
            raise MetricFileInUseError(file.path)
        cell = _CELLS.get(prefix, _Cell)()
        if carried is not None:
            cell.own, cell.timestamp = carried.own, carried.timestamp
        index = file.find(key)
        earlier = self._earlier.pop(place, None)
        if earlier is not None:
            cell.own, cell.timestamp = earlier.own, earlier.timestamp
        if index is None:
            cell.base = None
            index = file.add(key, *cell.combined())
        elif earlier is not None:
            # Closed and opened again under one lease: the file holds what this process has added.
            cell.base, cell.base_timestamp = earlier.base, earlier.base_timestamp
        else:
            cell.base, cell.base_timestamp = file.read(index)
        if cell.base is None and type(cell) is _Cell:
            cell.base = 0.0
        cell.store, cell.file, cell.index = self, file, index
        cell.write()
        self.cells[place] = cell
        return cell

    def leave(self, *, take_along: bool) -> dict[_Place, _Cell]:
        """Return, as cells in memory, those whose own part goes on elsewhere.

        That is what no reader can find any more, because its file was removed, and every gauge:
        what is set next takes the place of what was set here. Counters stay where they stand, so
        that no scrape sees them go down.

        Args:
            take_along: Take counters along as well.
        """
        linked = {prefix: file.is_linked() for prefix, file in self.files.items()}
        carried = {}
        for place, cell in self.cells.items():
            if linked[place[0]] and not (take_along or place[0].startswith("gauge")):
                continue
            carried[place] = copy = type(cell)()
            copy.own, copy.timestamp = cell.own, cell.timestamp
            if type(cell) is _Cell:
                cell.own = 0.0
                cell.write()
        return carried

    def release(self) -> None:
        """Unmap and close the files. In a forked child the parent's own are left alone."""
        for file in list(self.files.values()):
            file.release()


_lock = Lock()
_store: _Store | None = None
"""The files of this process, once it has a lease."""

_settled: _Store | None = None
"""The same, while nothing of this process is left in memory.

The one thing that the fast path of a value compares with: while there is something to move into the
files, every call takes the slow path, which tries.
"""

_closed: _Store | None = None
"""The files before they were closed, if they were."""

_memory: dict[_Place, _Cell] = {}
"""The cells that have no file."""

_retry_at = 0.0
_said: set[int | None] = set()
_notices: list[tuple[int, str]] = []
"""What is to be logged when the lock is released."""


def _page() -> memoryview:
    """Return a page whose first byte is 1 here and 0 in a child forked behind Python's back."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Where the kernel cannot do it (before Linux 4.14, or another system), such a child stays
    # unnoticed, as it does with prometheus_client's own cached pid.
    with contextlib.suppress(OSError):
        page.madvise(_MADV_WIPEONFORK)
    page[0] = 1
    return memoryview(page)


_here = _page()


class Value:
    """A float in the slot's file; prometheus_client makes one for every sample it stores.

    Any thread of any process may use it. Values of one key in one process share their number.
    """

    _multiprocess: ClassVar[bool] = True

    __slots__ = ("_cell", "_place")

    def __new__(
        cls,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **kwargs: Any,
    ) -> Value:
        """Choose the class: most values add up, some gauges combine in another way."""
        adds_up = typ != "gauge" or f"gauge_{multiprocess_mode}" not in _CELLS
        return object.__new__(cls if adds_up else _CombinedValue)

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
        """Make the value, at 0, and its entry in the file; the arguments are prometheus_client's.

        Never raises because of the file; see the module.
        """
        prefix = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        self._place: _Place = (prefix, key.encode())
        if not _here[0]:
            _forked_unseen()
        with _lock:
            self._cell = _bind(self._place)
        _say()

    def inc(self, amount: float) -> None:
        """Add to the number; negative amounts are the metric's to refuse."""
        if not _here[0]:
            _forked_unseen()
        with _lock:
            cell = self._cell
            if cell.store is _settled:
                cell.own = own = cell.own + amount
                cell.file.cells[cell.index] = cell.base + own  # type: ignore[operator]
                return
            cell = self._cell = _bind(self._place)
            cell.own += amount
            cell.write()
        _say()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set what this process has contributed.

        Args:
            value: The number.
            timestamp: Unix seconds, for the ``mostrecent`` modes.
        """
        if not _here[0]:
            _forked_unseen()
        with _lock:
            cell = self._cell
            if cell.store is _settled:
                cell.own = value
                cell.file.cells[cell.index] = cell.base + value  # type: ignore[operator]
                return
            cell = self._cell = _bind(self._place)
            cell.own, cell.timestamp = value, timestamp or 0.0
            cell.write()
        _say()

    def get(self) -> float:
        """Return what this process has contributed; 0 in a child that has not used it yet."""
        if not _here[0]:
            _forked_unseen()
        with _lock:
            cell = self._cell
            if cell.store is not _settled:
                found = _find(self._place)
                return 0.0 if found is None else found.own
            return cell.own

    def set_exemplar(self, exemplar: object) -> None:
        """Do nothing, as prometheus_client in multiprocess mode: the format holds no exemplars."""

    def get_exemplar(self) -> None:
        """Return ``None``, as prometheus_client in multiprocess mode."""

    @classmethod
    def close_all_files(cls) -> None:
        """Close this process's files; its values bind again when they are next used."""
        close_files()


class _CombinedValue(Value):
    """A value of a gauge mode that does not add up."""

    __slots__ = ()

    def inc(self, amount: float) -> None:
        """Add to what this process has contributed."""
        with self._bound() as cell:
            cell.own += amount
            cell.timestamp = 0.0
            cell.write()

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set what this process has contributed; see :meth:`Value.set`."""
        with self._bound() as cell:
            cell.own, cell.timestamp = value, timestamp or 0.0
            cell.write()

    @contextlib.contextmanager
    def _bound(self) -> Iterator[_Cell]:
        if not _here[0]:
            _forked_unseen()
        with _lock:
            if self._cell.store is not _settled:
                self._cell = _bind(self._place)
            yield self._cell
        _say()


def install() -> None:
    """Make prometheus_client use this value class for every metric made from now on.

    May be called again. Values stay in memory until there is a directory to share them in.
    """
    prometheus_values.ValueClass = Value
    cleanups = getattr(prometheus_values, "_multi_process_cleanups", None)
    if cleanups is not None and close_files not in cleanups:
        cleanups.append(close_files)


def is_installed() -> bool:
    """Return whether prometheus_client uses this value class."""
    return prometheus_values.ValueClass is Value


def share(*, now: bool = False) -> None:
    """Move what is in memory into the directory that this process now has.

    Args:
        now: Take the lease even if there is nothing to share yet.
    """
    global _retry_at  # noqa: PLW0603
    with _lock, slots.fork_guard():
        _retry_at = 0.0
        if now:
            _open_store()
        _move_in()
        _settle()
    _say()


def withdraw(*, take_along: bool = False) -> None:
    """Let go of this process's files, before it changes its lease or its directory.

    What has been counted stays in them, as far as readers can find it there.

    Args:
        take_along: Take it along instead, because the files are about to be wiped.
    """
    with _lock:
        _leave(take_along=take_along)


def close_files() -> None:
    """Close this process's files; a value opens its own again when it is next used."""
    global _closed  # noqa: PLW0603
    with _lock:
        if _store is not None:
            _closed = _store
            _release()


def not_shared() -> int:
    """Return how many values of this process live in memory, where no reader can see them."""
    return len(_memory)


# Below: the caller holds _lock. Nothing may log, and nothing may give way to another greenlet.


def _find(place: _Place) -> _Cell | None:
    cell = _store.cells.get(place) if _store is not None else None
    return _memory.get(place) if cell is None else cell


def _bind(place: _Place) -> _Cell:
    """Return the key's cell in this process, in the slot's file if at all possible."""
    with slots.fork_guard():
        if time.monotonic() >= _retry_at:
            _move_in()
            if _find(place) is None:
                _add(place)
        cell = _find(place)
        if cell is None:
            cell = _memory[place] = _CELLS.get(place[0], _Cell)()
        _settle()
        return cell


def _move_in() -> None:
    """Move what is in memory into the files, as far as there is room."""
    if not _memory:
        return
    for place in list(_memory):
        if not _add(place):
            return
    if _said:
        _said.clear()
        _notices.append((logging.WARNING, "obskit: metrics of this process are shared again"))


def _add(place: _Place) -> bool:
    """Give a key its cell in the file, moving to another slot if this one is lost."""
    for _attempt in range(2):
        store = _open_store()
        if store is None:
            return False
        try:
            store.add(place, _memory.get(place))
        except MetricFileInUseError as error:
            # Also the rest of this slot is with us no more: what nobody can read any longer goes
            # on from memory in the next slot.
            _note(
                error,
                f"obskit: {error.filename} was removed, replaced or taken by another process; "
                f"{store.lease.slot} is given up for another slot",
            )
            _leave()
            slots.process.release()
        except OSError as error:
            _fail(error)
            return False
        else:
            _memory.pop(place, None)
            return True
    return False


def _open_store() -> _Store | None:
    global _store  # noqa: PLW0603
    if _store is None:
        slots.process.join_pending()
    if _store is None and slots.process.directory is not None:
        try:
            # A lock that somebody keeps for ever is waited for once, not at each try.
            wait = 0.0 if errno.ETIMEDOUT in _said else slots.LOCK_WAIT_SECONDS
            lease = slots.process.acquire(wait_seconds=wait)
            is_same = _closed is not None and _closed.lease is lease
            _store = _Store(lease, _closed.cells if is_same and _closed is not None else None)
        except slots.NotYetError:
            pass
        except OSError as error:
            _fail(error)
    return _store


def _settle() -> None:
    """Open the fast path, or close it while something is in memory."""
    global _settled  # noqa: PLW0603
    _settled = None if _memory else _store
    lease = slots.process.lease
    if lease is not None and lease.record["values_not_shared"] != len(_memory):
        lease.note(values_not_shared=len(_memory))


def _leave(*, take_along: bool = False) -> None:
    if _store is not None:
        _memory.update(_store.leave(take_along=take_along))
        _release()


def _release() -> None:
    global _store, _settled
    store, _store, _settled = _store, None, None
    if store is not None:
        for cell in store.cells.values():
            cell.store = _NOWHERE
        store.release()


def _fail(error: OSError) -> None:
    global _retry_at  # noqa: PLW0603
    _retry_at = time.monotonic() + _RETRY_SECONDS
    directory = slots.process.directory
    path = directory.path if directory is not None else ""
    _note(
        error,
        "obskit: metrics of this process stay in its memory for now: " + slots.explain(error, path),
    )


def _note(error: OSError, line: str) -> None:
    if error.errno not in _said:
        _said.add(error.errno)
        _notices.append((logging.ERROR, line))


def _say() -> None:
    """Log what the slow path had to say. The caller holds no lock."""
    while _notices:
        try:
            level, line = _notices.pop(0)
        except IndexError:  # another thread was faster
            return
        slots.process.log.log(level, line)


def _forked() -> None:
    """Start over in a forked child. Nothing here walks the values."""
    global _lock, _store, _settled, _closed, _memory, _retry_at  # noqa: PLW0603
    store, _store, _settled, _closed = _store, None, None, None
    _lock, _retry_at = Lock(), 0.0
    if not slots.process.is_configuring:  # as it is in a child that daemonizes
        _memory = {}
    _here[0] = 1
    if store is not None:
        store.release()


def _forked_unseen() -> None:
    """Start over in a child that C code has forked, past Python's handlers."""
    slots.forked()
    _forked()


def _last_try() -> None:
    """Move what is in memory into the files before the process ends and it is lost."""
    if _memory:
        share()


os.register_at_fork(after_in_child=_forked)
atexit.register(_last_try)
