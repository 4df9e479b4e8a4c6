"""Files that were removed while processes write them: read on, so that no count is lost.

Whoever clears a directory that is in use does not stop anybody from writing: a process goes on with
the files that it has open until it makes its next series. Then it takes what it has counted along,
sets it to 0 in the removed file, and lets go of that. So what is removed and what is in place are
simply added up. What a process leaves in a removed file when it ends is added up here.

A wipe is told from that by its generation: the arbiter that makes a cleared directory again goes on
with the same one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._scrape import families
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.fileformat import MetricFileName, is_slot
from obskit_gunicorn._store.kept import KeptFiles, is_over
from obskit_gunicorn._store.leases import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from obskit_gunicorn._scrape.families import Values
    from obskit_gunicorn._store.locks import LockedFile
    from obskit_gunicorn._store.reader import MetricFileReader

Records = dict[str, dict[str, Any] | None]

_SUM = b'_sum", {'
"""In the key of a sum, which may fall: observations may be negative."""


class _Removed(NamedTuple):
    name: MetricFileName
    reader: MetricFileReader
    file: LockedFile


class RemovedFiles:
    """What one collector keeps open, and what it goes on reading.

    Not thread-safe, but :meth:`records` may run beside the other methods.

    Attributes:
        is_lost: Whether the directory, or what tells its generation, was taken away from a living
            arbiter, when last asked.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.is_lost = False
        self._kept, self._kept_columns, self._kept_leases = KeptFiles(), KeptFiles(), KeptFiles()
        self._files: list[_Removed] = []
        self._leases: list[tuple[str, LockedFile]] = []
        self._sums: dict[str, MetricFileReader] = {}
        self._before: dict[str, tuple[Sequence[bytes], Sequence[float]]] = {}
        self._generation: object = None
        self._lacks_record = False

    def __bool__(self) -> bool:
        """Return whether there is anything that only this process can read."""
        return bool(self._files or self._sums)

    def look(
        self,
        directory: str,
        found: Mapping[str, int],
        columns: Mapping[str, int],
        readers: dict[str, MetricFileReader],
    ) -> None:
        """Find out what was removed since the last scrape.

        Args:
            directory: The directory.
            found: The metric files that are in it now, each with its inode.
            columns: The columns that are in it, in the same way.
            readers: What has read the files of the last scrape, by name; those of removed files are
                taken out.
        """
        for name, file in self._kept.look(directory, found):
            reader, parsed = readers.pop(name, None), MetricFileName.parse(name)
            if reader is not None and parsed is not None and is_slot(parsed.holder):
                self._files.append(_Removed(parsed, reader, file))
            else:
                file.close()
        for _name, file in self._kept_columns.look(directory, columns):
            file.close()
        generation = SlotDirectory(directory).generation().get("started")
        self._lacks_record = generation is None and self._generation is not None
        if generation not in (None, self._generation):
            if self._generation is not None:
                self._forget()
            self._generation = generation

    def kept(self, name: str) -> LockedFile | None:
        """Return the open file of a name, if it is kept open."""
        return self._kept.get(name)

    def kept_column(self, name: str) -> LockedFile | None:
        """Return the open column of a name, if it is kept open."""
        return self._kept_columns.get(name)

    def refresh(self, shown: Callable[[MetricFileReader], Values]) -> None:
        """Read the removed files, after those that are in place.

        What moves in between is counted in neither then, see :meth:`not_lower`, but never in both.

        Args:
            shown: Returns what is shown of a file.
        """
        for removed in self._files[:]:
            is_last = is_over(removed.file)
            removed.reader.refresh(kept=removed.file)
            if is_last:
                self._files.remove(removed)
                removed.file.release()
                if not removed.name.belongs_to_one_holder:
                    prefix = removed.name.prefix
                    before = self._sums.get(prefix)
                    last = shown(removed.reader)
                    both = [last] if before is None else [before, last]
                    self._sums[prefix] = families.fold(prefix, both)

    def members(self) -> Iterator[tuple[str, str, MetricFileReader]]:
        """Yield prefix, holder and reader of everything that is to be added up besides."""
        for name, reader, _file in self._files:
            yield name.prefix, f"{name.holder}-removed", reader
        for prefix, reader in self._sums.items():
            yield prefix, "removed", reader

    def readers(self) -> Iterator[MetricFileReader]:
        """Yield the readers of all removed files."""
        yield from (removed.reader for removed in self._files)

    def allow_falling(self) -> None:
        """Let counters be lower than before once: label sets were removed."""
        self._before = {}

    def not_lower(
        self, prefix: str, keys: Sequence[bytes], totals: Sequence[float]
    ) -> Sequence[float]:
        """Return totals in which no counter is lower than at the last scrape.

        A process that has left removed files may not have found its new place yet; until then its
        counts are where nobody can read them.
        """
        if self and not prefix.startswith("gauge"):
            before = dict(zip(*self._before.get(prefix, ((), ())), strict=True))
            if any(
                now < before.get(key, now)
                for key, now in zip(keys, totals, strict=True)
                if _SUM not in key
            ):
                totals = [
                    max(now, before.get(key, now)) for key, now in zip(keys, totals, strict=True)
                ]
        self._before[prefix] = keys, totals
        return totals

    def records(self, directory: str, wait_seconds: float) -> Records:
        """Return the records of all leases: those in a directory, and removed ones that are held.

        Raises:
            OSError: The directory cannot be read, and nobody holds a removed lease.
        """
        problem, records, names = None, Records(), dict[str, int]()
        try:
            records = SlotDirectory(directory).records(wait_seconds=wait_seconds)
            names = {f"{slot}.lease": 0 for slot in records}
        except OSError as error:
            problem = error
        for name, file in self._kept_leases.look(directory, names):
            self._leases.append((name.removesuffix(".lease"), file))
        held: list[dict[str, Any]] = []
        for slot, file in self._leases[:]:
            if is_over(file):
                self._leases.remove((slot, file))
                file.release()
                continue
            label = f"{slot}-removed"
            while label in records:
                label += "-again"
            records[label] = record = read_json(file.descriptor) or {"state": ""}
            held.append(record)
        is_missing = isinstance(problem, FileNotFoundError) and not os.path.isdir(directory)
        is_removed = any(record.get("role") == "arbiter" for record in held)
        self.is_lost = is_missing or is_removed or self._lacks_record
        if problem is not None and not held:
            raise problem
        return records

    def _forget(self) -> None:
        """Forget what was removed: it belongs to an earlier generation."""
        for removed in self._files:
            removed.file.close()
        self._files, self._sums, self._before = [], {}, {}
