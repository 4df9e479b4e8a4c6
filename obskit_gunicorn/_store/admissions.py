"""Which label sets of a directory have numbers of their own, where there is a budget for them.

Who comes first is admitted; the list of all processes is ``series.admitted``, see
:mod:`obskit_gunicorn._store.journal`. A metric that is full stays full as long as the generation
lasts, or until the budget is raised: then nobody takes the lock or reads the list for it any more.
So removing a label set frees no place; if it is used again, it has its own.

What is in the directory already when a metric first asks for a place came before: processes may
have had no budget until then, and ``metrics_keep`` may have kept what earlier ones have counted.

The content of a record is one of::

    a  16 bytes, a digest of the label values, and the metric: they are admitted
    o  the metric: label sets of it were diverted
    u  the metric: since then one was admitted, because the budget was raised
"""

from __future__ import annotations

import errno
import json
import os
from hashlib import blake2b
from typing import TYPE_CHECKING

from obskit_gunicorn._store.baselines import contents, label_sets_in
from obskit_gunicorn._store.column import metric_file_path
from obskit_gunicorn._store.fileformat import MetricFileName, is_slot
from obskit_gunicorn._store.journal import Journal
from obskit_gunicorn._store.states import shown_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAME = "series.admitted"

OTHER = "__other__"
"""The value of all labels of what has no place."""

_DIGEST_BYTES = 16


def digest_of(names: Iterable[str], values: Iterable[str]) -> bytes:
    """Return what tells a label set of a metric from its others, by names and values of labels."""
    text = repr(tuple([value for _name, value in sorted(zip(names, values, strict=False))])).encode(
        errors="surrogatepass"
    )
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()


class Admissions:
    """The list of a directory, as far as it was read. Not thread-safe, but :meth:`knows`.

    Attributes:
        directory: The directory.
        over: The metrics of which label sets were diverted.
    """

    def __init__(self, directory: str, before: Admissions | None = None) -> None:
        """Set the directory; reads nothing.

        Args:
            directory: The directory; empty if there is none, then all is this process's own.
            before: That of another directory; what it has admitted comes first in this one.
        """
        self.directory = directory
        self.over: set[str] = set()
        self._journal = Journal(directory, NAME)
        self._admitted: dict[str, set[bytes]] = {}
        self._is_out_of_bytes = False
        if before is not None:
            self._admitted = {metric: set(known) for metric, known in before._admitted.items()}
        self._unlisted = self._all()

    def knows(self, metric: str, digest: bytes) -> bool:
        """Return whether a label set is known to be admitted; touches no file."""
        return digest in self._admitted.get(metric, ())

    def count(self, metric: str) -> int:
        """Return how many label sets of a metric are known to be admitted; touches no file."""
        return len(self._admitted.get(metric, ()))

    def is_full(self, metric: str, most: int | None) -> bool:
        """Return whether nothing more is admitted, and everybody knows it; touches no file."""
        is_used_up = most is not None and self.count(metric) >= most
        return metric in self.over and (is_used_up or self._is_out_of_bytes)

    def budget_has_changed(self) -> None:
        """Find out anew whether the directory has room."""
        self._is_out_of_bytes = False

    def refresh(self) -> None:
        """Read what is new.

        Raises:
            OSError: The list is there and cannot be read.
        """
        is_anew, records = self._journal.read()
        if is_anew:  # it was removed: those that this process knows come first in the new one
            self.over, self._unlisted, self._is_out_of_bytes = set(), self._all(), False
        for record in records:
            kind, rest = record[:1], record[1:]
            if kind == b"a":
                metric = rest[_DIGEST_BYTES:].decode(errors="replace")
                self._admitted.setdefault(metric, set()).add(rest[:_DIGEST_BYTES])
                self._unlisted.discard((metric, rest[:_DIGEST_BYTES]))
            elif kind == b"o":
                self.over.add(rest.decode(errors="replace"))
            elif kind == b"u":
                self.over.discard(rest.decode(errors="replace"))

    def admit(
        self, metric: str, digest: bytes, most: int | None, most_bytes: int | None
    ) -> tuple[bool, bool]:
        """Admit a label set, if there is a place.

        Where the list cannot be written, the places are this process's own.

        Args:
            metric: Its metric.
            digest: See :func:`digest_of`.
            most: How many label sets the metric may have; ``None`` for any number.
            most_bytes: From which size of its metric files on the directory admits nothing more.

        Returns:
            Whether it is admitted; and if not, whether it is the first of its metric.
        """
        is_first = metric not in self.over
        try:
            if not self.directory:
                raise FileNotFoundError(errno.ENOENT, "there is no multiprocess directory")
            with self._journal.locked():
                self.refresh()
                is_first = metric not in self.over
                if is_first and not self.count(metric):
                    self._admit_older(metric, most)
                is_known = is_admitted = self.knows(metric, digest)
                if not is_known and self._has_place(metric, most, most_bytes):
                    self._take_in(metric, digest)
                    is_admitted = True
                records = [_admission(*each) for each in self._unlisted]
                if is_first and not is_admitted:
                    records.append(b"o" + metric.encode(errors="replace"))
                elif not is_first and is_admitted and not is_known:
                    records.append(b"u" + metric.encode(errors="replace"))
                    self.over.discard(metric)
                if records:
                    self._journal.append(records)
                    self._unlisted.clear()
                if is_admitted:
                    return True, False
        except OSError:
            if self.knows(metric, digest) or self._has_place(metric, most, None):
                self._take_in(metric, digest)
                return True, False
        self.over.add(metric)
        return False, is_first

    def _has_place(self, metric: str, most: int | None, most_bytes: int | None) -> bool:
        if most is not None and self.count(metric) >= most:
            return False
        if most_bytes is not None and not self._is_out_of_bytes:
            self._is_out_of_bytes = _size(self.directory) >= most_bytes
        return not self._is_out_of_bytes

    def _admit_older(self, metric: str, most: int | None) -> None:
        """Admit what the directory has of a metric of which nobody has asked for a place yet.

        Raises:
            OSError: The directory cannot be read.
        """
        for labels in _label_sets(self.directory, metric):
            if most is not None and self.count(metric) >= most:
                break
            if labels and set(labels.values()) != {OTHER}:
                self._take_in(metric, digest_of(labels, labels.values()))

    def _take_in(self, metric: str, digest: bytes) -> None:
        known = self._admitted.setdefault(metric, set())
        if digest not in known:
            known.add(digest)
            self._unlisted.add((metric, digest))

    def _all(self) -> set[tuple[str, bytes]]:
        return {(metric, each) for metric, known in self._admitted.items() for each in known}


def _admission(metric: str, digest: bytes) -> bytes:
    return b"a" + digest + metric.encode(errors="replace")


def _label_sets(directory: str, metric: str) -> Iterator[dict[str, str]]:
    """Yield the label sets that slots have of a metric, be it of numbers, or an Info or Enum.

    Raises:
        OSError: The directory cannot be read.
    """
    for kind in ("counter", "gauge", "histogram", "summary"):
        for file, prefix, data in contents(directory, kind):
            parsed = MetricFileName.parse(file.name)
            if parsed is not None and is_slot(parsed.holder):
                before = None
                for series in label_sets_in(data, prefix, metric):
                    if series != before:
                        yield json.loads(series.labels)
                    before = series
    for state in shown_in(directory):
        if state.name == metric:
            yield dict(state.labels)


def _size(directory: str) -> int:
    """Return the size of the metric files of a directory and their columns.

    Raises:
        OSError: It cannot be read.
    """
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if MetricFileName.parse(metric_file_path(entry.name) or entry.name):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
    return total
