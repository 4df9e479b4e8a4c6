"""The exemplars of a directory: of each sample the newest one of any slot, ended holders included.

A directory without exemplars costs a look at the names of its files. Otherwise a scrape costs one
look at each file of exemplars, and what has changed is looked for among the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn._scrape.beside import FilesBeside
from obskit_gunicorn._store.exemplars import SUFFIX, ExemplarReader, digest_of, newest_of
from obskit_gunicorn._store.fileformat import key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from obskit_gunicorn._store.baselines import Baselines
    from obskit_gunicorn._store.exemplars import Exemplar
    from obskit_gunicorn._store.fileformat import Damage

KINDS = ("counter", "histogram")
"""The metric types whose samples may have exemplars."""


class Sample(NamedTuple):
    """Whose exemplar it is."""

    prefix: str
    """The metric type."""

    key: bytes
    """The key, as it stands in metric files."""


class Exemplars:
    """Reads the exemplars of a directory, scrape after scrape. Not thread-safe.

    Attributes:
        found: The newest exemplar of each sample that is known; another object if one has changed.
    """

    def __init__(self) -> None:
        """Know no exemplar yet."""
        self.found: Mapping[Sample, Exemplar] = {}
        self._files = FilesBeside(SUFFIX, ExemplarReader)
        self._newest: Mapping[bytes, Exemplar] = {}
        self._samples: dict[bytes, Sample] = {}
        self._hashed: dict[str, Sequence[bytes]] = {}
        self._is_matched = True
        self._removals: Baselines | None = None
        self._version = 0

    def __bool__(self) -> bool:
        """Return whether there are any, or were at the last scrape."""
        return bool(self._newest or self.found)

    def refresh(
        self,
        directory: str,
        names: Iterable[str],
        skip: Callable[[str, Damage], object],
        removals: Baselines | None = None,
    ) -> None:
        """Read what has changed.

        Args:
            directory: The directory.
            names: The files in it.
            skip: Called with the name of a file that cannot be read, and why.
            removals: Which label sets were removed, if any; their older exemplars are gone.
        """
        if self._files.refresh(directory, names, skip):
            self._newest = newest_of(reader.found for reader in self._files)
            self._is_matched = False
        version = 0 if removals is None else removals.version
        if version != self._version:
            self._removals, self._version, self._is_matched = removals, version, False

    def match(self, keys: Mapping[str, Sequence[bytes]]) -> None:
        """Look for the samples of the exemplars, and set :attr:`found`.

        Args:
            keys: The keys that there are, by metric type; never changed, only replaced.
        """
        if not self._newest:
            if self.found:
                self.found, self._samples, self._hashed = {}, {}, {}
            return
        is_new = not self._is_matched
        if not self._newest.keys() <= self._samples.keys():
            for kind in KINDS:
                is_new = self._hash(kind, keys.get(kind, ())) or is_new
        if is_new:
            samples = self._samples
            pairs = ((samples.get(digest), each) for digest, each in self._newest.items())
            self.found = {
                sample: each
                for sample, each in pairs
                if sample is not None and not self._is_removed(sample, each)
            }
            self._is_matched = True

    def _is_removed(self, sample: Sample, exemplar: Exemplar) -> bool:
        if not self._removals:
            return False
        removed = self._removals.removed_at(sample.prefix, key_text(sample.key))
        return removed is not None and exemplar.timestamp <= removed

    def _hash(self, prefix: str, keys: Sequence[bytes]) -> bool:
        """Take the digests of keys that are new; return whether there are any."""
        before = self._hashed.get(prefix, ())
        if keys is before:
            return False
        size = len(before)
        if keys[:size] != before:
            kept = self._samples.items()
            self._samples = {digest: each for digest, each in kept if each.prefix != prefix}
            size = 0
        for key in keys[size:]:
            self._samples.setdefault(digest_of(prefix, key_text(key)), Sample(prefix, key))
        self._hashed[prefix] = keys
        return True
