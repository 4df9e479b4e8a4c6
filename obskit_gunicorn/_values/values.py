"""The value class: what prometheus_client's metrics store their numbers in.

A value is bound to a cell of a file when it is next used, so that nothing walks a preloaded
parent's ten thousand children after a fork. When there is no lease or no room to be had it goes on
in memory, and moves into the file as soon as there is: ``inc`` never raises because of us. A
process that is killed at any moment, or a scrape at any moment, finds the file right; there is
nothing to fold when a process ends.

``get``, ``set`` and so ``Counter.reset`` act on what this process has contributed.

Installed at prometheus_client's supported seam, ``prometheus_client.values.ValueClass``. Safe
beside threads and forks. Not for signal context: the lock is not re-entrant.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import mmap
import os
import time
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.directory import LOCK_WAIT_SECONDS, explain
from obskit_gunicorn._store.fileformat import encode_key
from obskit_gunicorn._store.membership import NotYetError, membership
from obskit_gunicorn._store.writer import MetricFile, MetricFileInUseError
from obskit_gunicorn._values.cells import CELLS, NOWHERE, Cell, Key, Store, cell_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RETRY_SECONDS = 1.0
"""How long values stay in memory before the next try for a file."""

_MADV_WIPEONFORK = 18  # <asm-generic/mman-common.h>; the mmap module has no name for it

_lock = Lock()
_store: Store | None = None
"""The files of this process, once it has a lease."""

_settled: Store | None = None
"""The same, while nothing of this process is left in memory.

The one thing that the fast path of a value compares with: while there is something to move into the
files, every call takes the slow path, which tries.
"""

_closed: Store | None = None
"""The files before they were closed, if they were."""

_memory: dict[Key, Cell] = {}
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
        """Make the value, at 0, and its entry in the file; the arguments are prometheus_client's.

        Never raises because of the file; see the module.
        """
        prefix = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        if prefix in CELLS:
            self.__class__ = _CombinedValue
        self._key = (prefix, encode_key(metric_name, name, labelnames, labelvalues, help_text))
        if not _here[0]:
            forks.start_over()
        with _lock:
            self._cell = _bind(self._key)
        _say()

    def inc(self, amount: float) -> None:
        """Add to the number; negative amounts are the metric's to refuse."""
        if not _here[0]:
            forks.start_over()
        with _lock:
            cell = self._cell
            if cell.store is _settled:
                cell.own = own = cell.own + amount
                cell.file.cells[cell.index] = cell.base + own  # type: ignore[operator]
                return
            cell = self._cell = _bind(self._key)
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
            forks.start_over()
        with _lock:
            cell = self._cell
            if cell.store is _settled:
                cell.own = value
                cell.file.cells[cell.index] = cell.base + value  # type: ignore[operator]
                return
            cell = self._cell = _bind(self._key)
            cell.own, cell.timestamp = value, timestamp or 0.0
            cell.write()
        _say()

    def get(self) -> float:
        """Return what this process has contributed; 0 in a child that has not used it yet."""
        if not _here[0]:
            forks.start_over()
        with _lock:
            cell = self._cell
            if cell.store is not _settled:
                found = _find(self._key)
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
    def _bound(self) -> Iterator[Cell]:
        if not _here[0]:
            forks.start_over()
        with _lock:
            if self._cell.store is not _settled:
                self._cell = _bind(self._key)
            yield self._cell
        _say()


def install() -> list[str]:
    """Make prometheus_client use this value class for every metric made from now on.

    May be called again. Values stay in memory until there is a directory to share them in.

    Returns:
        The names that this release of prometheus_client does not have; see
        :func:`obskit_gunicorn._prometheus.install`.
    """
    return _prometheus.install(Value, close_files)


def is_installed() -> bool:
    """Return whether prometheus_client uses this value class."""
    return _prometheus.is_installed(Value)


def share(*, now: bool = False) -> None:
    """Move what is in memory into the directory that this process now has.

    Args:
        now: Take the lease even if there is nothing to share yet.
    """
    global _retry_at  # noqa: PLW0603
    with _lock, forks.guard():
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
        _detach(take_along=take_along)


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


def _find(key: Key) -> Cell | None:
    cell = _store.cells.get(key) if _store is not None else None
    return _memory.get(key) if cell is None else cell


def _bind(key: Key) -> Cell:
    """Return the key's cell in this process, in the slot's file if at all possible."""
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
    """Move what is in memory into the files, as far as there is room."""
    if not _memory:
        return
    for key in list(_memory):
        if not _add(key):
            return
    if _said:
        _said.clear()
        _notices.append((logging.WARNING, "obskit: metrics of this process are shared again"))


def _add(key: Key) -> bool:
    """Give a key its cell in the file, moving to another slot if this one is lost."""
    for _attempt in range(2):
        store = _open_store()
        if store is None:
            return False
        try:
            cell = store.add(key, _memory.get(key))
        except MetricFileInUseError as error:
            # The rest of this slot is lost to us too: what nobody can read any longer goes on from
            # memory in the next slot.
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
    """Note that a cell's file was found damaged, once."""
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
            # A lock that somebody keeps for ever is waited for once, not at each try.
            wait = 0.0 if errno.ETIMEDOUT in _said else LOCK_WAIT_SECONDS
            lease = membership.acquire(wait_seconds=wait)
            is_same = _closed is not None and _closed.lease is lease
            _store = Store(lease, _closed.cells if _closed and is_same else None)
        except NotYetError:
            pass
        except OSError as error:
            _fail(error)
    return _store


def _settle() -> None:
    """Open the fast path, or close it while something is in memory."""
    global _settled  # noqa: PLW0603
    _settled = None if _memory else _store
    lease = membership.lease
    if lease is not None and lease.record["values_not_shared"] != len(_memory):
        lease.note(values_not_shared=len(_memory))


def _detach(*, take_along: bool = False) -> None:
    if _store is not None:
        _memory.update(_store.carry_over(take_along=take_along))
        _release()


def _release() -> None:
    global _store, _settled
    store, _store, _settled = _store, None, None
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
    """Log what the slow path had to say. The caller holds no lock."""
    while _notices:
        try:
            level, line = _notices.pop(0)
        except IndexError:  # another thread was faster
            return
        log.log(level, line)


def _start_over() -> None:
    """Start over in a forked child. Nothing here walks the values."""
    global _lock, _store, _settled, _closed, _memory, _retry_at  # noqa: PLW0603
    store, _store, _settled, _closed = _store, None, None, None
    _lock, _retry_at = Lock(), 0.0
    if not membership.is_configuring:  # as it is in a child that daemonizes
        _memory = {}
    _here[0] = 1
    if store is not None:
        store.release()


def _last_try() -> None:
    """Move what is in memory into the files before the process ends and it is lost."""
    if _memory:
        share()


forks.in_child("values", _start_over)
atexit.register(_last_try)
