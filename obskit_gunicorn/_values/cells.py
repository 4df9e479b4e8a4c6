"""Cells: the numbers behind the values, each *base + own*, and the files that store them.

``base`` is what the slot's file contained when this process first used the key, ``own`` is what
this process has added. The file always contains both combined, so it shows what all holders of the
slot have counted together.

==============================================  ================================================
metric                                          the file holds
==============================================  ================================================
counter, histogram, summary, gauge ``sum``      base + own
gauge ``max``, ``min``                          the larger, the smaller
gauge ``mostrecent``                            the one with the newer timestamp
gauge ``all``, ``live*``                        own; the file of the previous holder is removed
                                                when the slot is taken
==============================================  ================================================

Not thread-safe: the caller holds a lock.
"""

from __future__ import annotations

import contextlib
import errno
import math
import operator
import os
import time
from typing import TYPE_CHECKING

from obskit_gunicorn._store import exemplars, forks, states
from obskit_gunicorn._store.baselines import HIDDEN, LIFTED, SHOWN, File
from obskit_gunicorn._store.fileformat import LabelSet
from obskit_gunicorn._store.writer import MetricFile, MetricFileInUseError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obskit_gunicorn._store.baselines import Baseline, Baselines
    from obskit_gunicorn._store.leases import Lease
    from obskit_gunicorn._store.writer import Cells


_LOOK_SECONDS = 100e-6
"""How long after a look whether readers still find a file it is not looked again.

A look costs several system calls: more than adding an entry. Whoever makes many series at once
looks now and then, everybody else each time.
"""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Key = tuple[str, bytes]
"""A metric type (for a gauge with its mode) and the key of a sample in its file."""


class _Memory:
    """What a cell without a file writes to."""

    def __init__(self) -> None:
        self.cells: Cells = {}
        self.column: Cells = {}

    def write_pair(self, index: int, value: float, timestamp: float) -> None:
        """Write nowhere."""


_MEMORY = _Memory()
NOWHERE = object()


class Cell:
    """The number behind all values of one key in this process; it is added to other holders'.

    Attributes:
        store: The store that has it; :data:`NOWHERE` if it has none, or none any more.
        file: What it writes to.
        index: Where, in the file's ``cells``.
        number: Where once more, in the file's ``column``.
        own: What this process has added.
        timestamp: When it was set, for the modes that ask.
        base: What others had added before; ``None`` if there was nothing. Never in a plain cell.
        base_timestamp: When they had.
        life: Stays the same as long as ``own`` goes on, also in another cell; ``None`` if nobody
            has asked.

    ``own`` and ``base`` are of the class ``float`` itself: adding two of them runs no other code.
    """

    __slots__ = (
        "base",
        "base_timestamp",
        "file",
        "index",
        "life",
        "number",
        "own",
        "store",
        "timestamp",
    )

    def __init__(self) -> None:
        self.store: object = NOWHERE
        self.file: MetricFile | _Memory = _MEMORY
        self.index = self.number = 0
        self.own = 0.0
        self.timestamp = 0.0
        self.base: float | None = 0.0
        self.base_timestamp = 0.0
        self.life: object = None

    def combined(self) -> tuple[float, float]:
        """Return the value and the timestamp to write to the file."""
        return (self.base or 0.0) + self.own, 0.0

    def write(self) -> None:
        """Write them, in one store to the file and one to its column."""
        value = self.combined()[0]
        self.file.cells[self.index] = self.file.column[self.number] = value


class MaxCell(Cell):
    """The largest value of any holder."""

    __slots__ = ()
    _beats = staticmethod(operator.gt)

    def combined(self) -> tuple[float, float]:
        base, own = self.base, self.own
        return (own if base is None or self._beats(own, base) or math.isnan(base) else base), 0.0


class MinCell(MaxCell):
    """The smallest value of any holder."""

    __slots__ = ()
    _beats = staticmethod(operator.lt)


class MostRecentCell(Cell):
    """The value that was set last by any holder."""

    __slots__ = ()

    def combined(self) -> tuple[float, float]:
        if self.base is None or self.timestamp > self.base_timestamp or not self.base_timestamp:
            return self.own, self.timestamp
        return self.base, self.base_timestamp

    def write(self) -> None:
        self.file.write_pair(self.index, *self.combined())


CELLS: dict[str, type[Cell]] = {
    "gauge_max": MaxCell,
    "gauge_livemax": MaxCell,
    "gauge_min": MinCell,
    "gauge_livemin": MinCell,
    "gauge_mostrecent": MostRecentCell,
    "gauge_livemostrecent": MostRecentCell,
}


def cell_for(key: Key) -> Cell:
    """Return a new cell for a key, in memory."""
    return CELLS.get(key[0], Cell)()


class Store:
    """The files of this process's slot. A new object after each fork and for each lease.

    Attributes:
        lease: The lease of the slot.
        files: The metric files, by prefix.
        cells: The cells in them.
        exemplars: The file of exemplars, once there was one to keep.
        states: The file of what Infos and Enums say, once one has said something.
    """

    def __init__(
        self, lease: Lease, baselines: Baselines, earlier: dict[Key, Cell] | None = None
    ) -> None:
        self.lease = lease
        self._baselines = baselines
        self._earlier = earlier or {}
        self.files: dict[str, MetricFile] = {}
        self.cells: dict[Key, Cell] = {}
        self._look_at: dict[str, float] = {}
        self.exemplars: exemplars.ExemplarFile | None = None
        self.states: states.StatesFile | None = None
        self._has_room_beside = True

    def add(self, key: Key, carried: Cell | None) -> Cell:
        """Give a key its cell in the slot's file.

        Args:
            key: The key, which has no cell in this store yet.
            carried: The cell it had in memory, whose contribution is added to the file.

        Raises:
            MetricFileInUseError: The slot is no longer ours alone: somebody removed or replaced its
                lease or one of its files.
            OSError: The file cannot be opened or created, or the volume is full.
        """
        prefix, name = key
        file = self.files.get(prefix) or self._open(prefix)
        if time.monotonic() >= self._look_at.get(prefix, 0.0):
            self._look(prefix, file)
        cell = cell_for(key)
        index = file.find(name)
        earlier = self._earlier.get(key)
        before = earlier or carried
        if before is not None:
            cell.own, cell.timestamp, cell.life = before.own, before.timestamp, before.life
        is_new = index is None
        removed: Baseline | None = None
        if index is None:
            cell.base = None
            index = self._append(file, name, *cell.combined())
        elif earlier is not None:
            # Closed and opened again under one lease: the file holds what this process has added.
            cell.base, cell.base_timestamp = earlier.base, earlier.base_timestamp
        else:
            found = file.read(index)
            removed = self._removed(file, key, found)
            if removed is None or not prefix.startswith("gauge"):
                cell.base, cell.base_timestamp = found
            else:
                cell.base = None
        if cell.base is None and type(cell) is Cell:
            cell.base = 0.0
        cell.store, cell.file, cell.index, cell.number = self, file, index, file.number(name)
        if not is_new:
            cell.write()
        if removed is not None:
            self._show(removed)
        self.cells[key] = cell
        if earlier is not None:
            del self._earlier[key]
        return cell

    def baseline(self, key: Key, file: MetricFile) -> Baseline | None:
        """Return what is left out of a file for the label set of a key.

        Raises:
            OSError: The list of what was removed cannot be read.
        """
        self._baselines.refresh(by_its_look=True)
        prefix, name = key
        if not self._baselines:
            return None
        found = self._baselines.of(File(os.path.basename(file.path), file.ident))
        series = LabelSet.of(name, prefix) if found else None
        return None if series is None else found.get(series)

    def _removed(self, file: MetricFile, key: Key, found: tuple[float, float]) -> Baseline | None:
        """Return the baseline of a label set that is hidden in a file, with these values."""
        try:
            known = self.baseline(key, file)
        except OSError:
            return None
        if known is None or known.state != HIDDEN:
            return None
        if key[0].startswith("gauge") and all(entry[1:] != found for entry in known.entries):
            return None  # it has changed since, and is shown
        return known

    def _show(self, removed: Baseline) -> None:
        """Show a label set again that was removed, at 0 where it adds up."""
        is_gauge = removed.file.name.startswith("gauge")
        state = LIFTED if is_gauge else SHOWN
        # If that cannot be noted, it is shown when it changes next.
        with contextlib.suppress(OSError):
            self._baselines.add(removed._replace(state=state))

    def note_reset(self, key: Key, cell: Cell) -> None:
        """Have a counter count from zero that was set back below its baseline."""
        if not isinstance(cell.file, MetricFile):
            return
        with contextlib.suppress(OSError):
            known = self.baseline(key, cell.file)
            value = cell.combined()[0]
            if known is None or all(entry.value <= value for entry in known.entries):
                return
            entries = tuple([entry._replace(value=value) for entry in known.entries])
            self._baselines.add(known._replace(state=SHOWN, entries=entries))

    def _open(self, prefix: str) -> MetricFile:
        path = self.lease.metric_file_path(prefix)
        with forks.guard():
            try:
                file = MetricFile(path, by_flock=self.lease.by_flock)
            except OSError as error:
                if not self._make_room(error):
                    raise
                file = MetricFile(path, by_flock=self.lease.by_flock)
        self.files[prefix] = file
        return file

    def _look(self, prefix: str, file: MetricFile) -> None:
        with forks.guard():
            if not (file.is_linked() and self.lease.is_in_place()):
                raise MetricFileInUseError(file.path)
        self._look_at[prefix] = time.monotonic() + _LOOK_SECONDS

    def _append(self, file: MetricFile, name: bytes, value: float, timestamp: float) -> int:
        try:
            return file.add(name, value, timestamp)
        except OSError as error:
            if not self._make_room(error):
                raise
        return file.add(name, value, timestamp)

    def _make_room(self, error: OSError) -> bool:
        """Give up the columns if an error says that there is no room; return whether there is some.

        Readers can do without them, values cannot do without their files.
        """
        if error.errno not in _NO_ROOM:
            return False
        had = [file.give_up_column() for file in self.files.values()]
        self._has_room_beside = False
        if self.exemplars is not None:
            self.exemplars.give_up()
            had.append(True)
        self.exemplars = None
        return any(had)

    def open_exemplars(self) -> exemplars.ExemplarFile:
        """Open the file in which exemplars are kept; it is in :attr:`exemplars` from then on.

        Raises:
            OSError: The file cannot be opened or created, or the volume is full; also once
                exemplars had to give way to metric files.
        """
        path = self.lease.path_beside(exemplars.SUFFIX)
        if not self._has_room_beside:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        with forks.guard():
            self.exemplars = exemplars.ExemplarFile(path, by_flock=self.lease.by_flock)
        return self.exemplars

    def open_states(self) -> states.StatesFile:
        """Open the file of what Infos and Enums say; it is in :attr:`states` from then on.

        Raises:
            OSError: The file cannot be opened or created, or the volume is full.
        """
        path = self.lease.path_beside(states.SUFFIX)
        with forks.guard():
            self.states = states.StatesFile(path, by_flock=self.lease.by_flock)
        return self.states

    def keep_beside(self) -> None:
        """Let go of files beside the metric files that were removed; they are made again."""
        if self.exemplars is not None and not self.exemplars.is_linked():
            self.exemplars.release()
            self.exemplars = None
        if self.states is not None and not self.states.is_linked():
            self.states.release()
            self.states = None

    def is_in_place(self) -> bool:
        """Return whether readers still find the lease and all files."""
        linked = all(file.is_linked() for file in self.files.values())
        return linked and self.lease.is_in_place()

    def known(self) -> dict[Key, Cell]:
        """Return all cells of this lease, those that were closed and not used since among them."""
        return {**self._earlier, **self.cells}

    def carry_over(self, *, take_along: bool) -> dict[Key, Cell]:
        """Return cells in memory for all contributions that move to another slot.

        These are the cells of removed files, which readers no longer find, and all gauges, because
        the next ``set`` replaces this one. Counters stay in their files, so that no scrape sees
        them go down.

        Args:
            take_along: Take counters along as well.
        """
        linked = {prefix: file.is_linked() for prefix, file in self.files.items()}
        carried = {}
        for key, cell in self.cells.items():
            if linked[key[0]] and not (take_along or key[0].startswith("gauge")):
                continue
            carried[key] = copy = type(cell)()
            copy.own, copy.timestamp, copy.life = cell.own, cell.timestamp, cell.life
            if type(cell) is Cell:
                cell.own = 0.0
                cell.write()
        return carried

    def drop(self, keys: Iterable[Key]) -> list[Cell]:
        """Forget the cells of keys, and return them; what they have added stays in their files."""
        dropped = []
        for key in keys:
            for cells in (self.cells, self._earlier):
                cell = cells.pop(key, None)
                if cell is not None:
                    cell.store = NOWHERE
                    dropped.append(cell)
        return dropped

    def release(self) -> None:
        """Unmap and close the files; in a forked child this does not affect the parent's."""
        for file in list(self.files.values()):
            file.release()
        for beside in (self.exemplars, self.states):
            if beside is not None:
                beside.release()
