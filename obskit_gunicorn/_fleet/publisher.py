"""Publishing what one host has counted: its sums, never its increments.

What is published replaces what was published before, and only if the store knows exactly what this
publisher believes that it knows. Otherwise somebody else has published the same directory, or
others have folded it, or the store has lost something; then the publisher asks, and goes on from
what it is told. So a publication that is repeated, lost, or made by two processes at once counts
once.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._fleet.packing import (
    COUNTING,
    PackedPart,
    PackingError,
    pack,
    pack_ids,
    pack_json,
    unpack,
    unpack_ids,
)
from obskit_gunicorn._fleet.store import TOMB_SECONDS, Entry, Store, StoreError
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape import families
from obskit_gunicorn._store import baselines, note
from obskit_gunicorn._store.fileformat import LabelSet, key_text
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.source import Part

LONGEST_SECONDS = 4.0
"""How long a publication may take; one that has more to say goes on at the next."""

_MOST_TRIES = 20
_ROUNDING = 1e-9
_SUM = b'_sum", {'
"""In the key of a sum, which may fall without being removed."""


class Reading(NamedTuple):
    """What a host has counted, read at once."""

    directory: str
    generation: str
    """Which generation of the directory it is; unique."""

    parts: Sequence[Part]
    figures: Iterable[Metric]
    """What is said about the host itself."""


class Facts(NamedTuple):
    """What others need to know about a host."""

    host: str
    interval: float
    """How often it publishes, in seconds."""

    returns: bool
    """Whether its directory may be published again when it has ended."""

    version: str = __version__
    started: float = 0.0
    """When the directory's generation was first published, by the host's clock."""


class _Packed(NamedTuple):
    keys: Sequence[bytes]
    ids: bytes
    pick: Callable[[Sequence[float]], Iterable[float]] | None
    """Puts numbers into the order of the ids; ``None`` if they have it."""

    base: array[float] | None
    """What is not to be counted, in the order of the ids; ``None`` if nothing."""


class Publisher:
    """Publishes what ``read`` returns. Thread-safe: one publication at a time.

    Attributes:
        conflicts: How often the store did not know what was believed.
        published: When something was last published, by :func:`time.monotonic`; ``None`` if never.
    """

    def __init__(
        self,
        store: Store,
        read: Callable[[], Reading],
        *,
        host: str,
        interval: float,
        returns: bool,
    ) -> None:
        """Name what is published; nothing is.

        Args:
            store: Where to.
            read: Reads what the host has counted.
            host: Its name.
            interval: How often it publishes, in seconds.
            returns: Whether its directory may be published again when it has ended.
        """
        self.conflicts = 0
        self.published: float | None = None
        self._store, self._read = store, read
        self._facts = Facts(host, interval, returns, started=time.time())
        self._lock = threading.Lock()
        self._generation = ""
        self._note: note.Note | None = None
        self._has_complained = False
        self._number = self._sequence = 0
        self._has_entered = False
        self._epoch = ""
        self._ids: dict[tuple[str, bytes], int] = {}
        self._packed: dict[tuple[str, str], _Packed] = {}
        self._base: dict[int, float] = {}
        self._is_base_due = False
        self._not_counted: Sequence[Part] | None = None
        self._sent: list[PackedPart] | None = None
        self._acknowledged: Sequence[Part] | None = None

    def publish(self, *, ended: bool = False) -> None:
        """Publish what the host has counted.

        Args:
            ended: It is the last time: nobody counts any more.

        Raises:
            UnavailableError: The store cannot be used, or is too slow.
            OSError: The directory cannot be read.
        """
        deadline = time.monotonic() + LONGEST_SECONDS
        if not self._lock.acquire(timeout=LONGEST_SECONDS):
            raise StoreError(f"{self._store.where}: it is too slow")
        try:
            for _ in range(_MOST_TRIES):
                if self._try(ended, deadline):
                    self.published = time.monotonic()
                    return
                if time.monotonic() > deadline:
                    break
            raise StoreError(f"{self._store.where}: it is too slow, or others change it too fast")
        finally:
            self._lock.release()

    def _try(self, ended: bool, deadline: float) -> bool:
        """Publish once; return whether the store knew what was believed."""
        reading = self._read()
        self._follow(reading)
        if not self._has_entered:
            # Then read again: another publisher of this directory, whose sequence is known only
            # now, may have read it later than this one, and its counts must not be set back.
            self._enter(reading, deadline)
            return False
        if not self._number_keys(reading.parts, deadline):
            return False
        self._lower_base(reading)
        parts = self._pack(reading.parts)
        data = b"" if parts == self._sent else pack(parts)
        self._has_entered = False  # until it is known that it is as believed
        is_as_believed = self._store.publish(
            self._epoch,
            self._incarnation,
            self._sequence + 1,
            ended=ended,
            facts=json.dumps(self._facts._asdict()),
            data=data,
            base=self._packed_base() if self._is_base_due else b"",
            figures=pack_json(list(map(_plain, reading.figures))),
        )
        if not is_as_believed:
            self.conflicts += 1
            return False
        self._has_entered = True
        self._is_base_due = False
        self._sequence += 1
        self._sent, self._acknowledged = parts, reading.parts
        self._write_note(reading, ended=ended)
        return True

    @property
    def _incarnation(self) -> str:
        return f"{self._generation}~{self._number}" if self._number else self._generation

    def _follow(self, reading: Reading) -> None:
        """Begin again if the directory has a new generation, in which all counts began at 0."""
        if reading.generation == self._generation:
            return
        self._generation = reading.generation
        self._acknowledged, self._not_counted = None, None
        self._start_over(epoch="")
        found = note.read(reading.directory)
        self._note = found if found and found.generation == reading.generation else None
        self._number = 0 if self._note is None else self._note.number
        self._write_note(reading, ended=False)

    def _start_over(self, epoch: str) -> None:
        """Forget what was believed about an incarnation."""
        if epoch != self._epoch:
            self._epoch, self._ids = epoch, {}
        self._has_entered = False
        self._sequence = 0
        self._sent = None
        self._packed, self._base, self._is_base_due = {}, {}, False

    def _enter(self, reading: Reading, deadline: float) -> None:
        """Find out what the store knows, and go on from there as far as that is possible now."""
        entry = self._store.enter(self._incarnation)
        if entry.epoch != self._epoch:
            if self._epoch:
                log.warning(
                    "%s has begun anew, by command or because it was emptied: the fleet counts on "
                    "from 0, as after a restart",
                    self._store.where,
                )
            self._not_counted = self._counted_before(entry, reading)
            self._start_over(entry.epoch)
        if not self._number_keys([*reading.parts, *(self._not_counted or ())], deadline):
            return
        if entry.folded_at is not None:
            # Away for so long that others have put it to the retired sums, all that they knew.
            folded = self._decoded(entry.folded_data, entry.folded_base)
            self._number += 1
            self._start_over(entry.epoch)
            self._not_counted = None
            self._base, self._is_base_due = folded, True
            return  # perhaps another publisher of the same directory was faster
        if entry.sequence < self._sequence:
            self._go_on_without(entry)
            return
        if entry.sequence:
            base = self._decoded(b"", entry.base)
            if base != self._base:
                self._base, self._packed = base, {}
            self._is_base_due = False
            self._sequence = entry.sequence
            self._sent = None
        elif self._not_counted is not None:
            self._base = {
                self._ids[part.prefix, key]: number
                for part in self._not_counted
                if part.prefix in COUNTING
                for key, number in zip(part.keys, part.numbers, strict=True)
            }
            self._is_base_due, self._packed = True, {}
        self._not_counted = None
        self._has_entered = True

    def _counted_before(self, entry: Entry, reading: Reading) -> Sequence[Part] | None:
        """Return what is not to be counted in an epoch that is new for this publisher."""
        if self._acknowledged is not None:
            return self._acknowledged
        if self._note is not None and self._note.epoch:
            # Another process has published it. In this epoch, then the store knows it, or had
            # folded it so long ago that it has forgotten it.
            is_known = entry.sequence or entry.folded_at is not None
            if self._note.epoch != entry.epoch or not is_known:
                return reading.parts
        return None

    def _go_on_without(self, entry: Entry) -> None:
        """Go on where the store does not know any more what it has acknowledged."""
        away = time.monotonic() - (self.published or 0.0)
        if away > TOMB_SECONDS / 2 and not entry.sequence:
            # It may have forgotten this host, without having lost anything.
            self._start_over(entry.epoch)
            self._not_counted = self._acknowledged
            return
        log.warning(
            "%s has lost something (it knew publication %d of this host, and now %d): the fleet "
            "counts on from 0, as after a restart",
            self._store.where,
            self._sequence,
            entry.sequence,
        )
        self._store.reset(self._epoch)

    def _number_keys(self, parts: Sequence[Part], deadline: float) -> bool:
        """Have the store number all keys; return whether that was possible in this epoch."""
        missing = dict.fromkeys(
            (part.prefix, key)
            for part in parts
            if (known := self._packed.get((part.prefix, part.holder))) is None
            or known.keys is not part.keys
            for key in part.keys
            if (part.prefix, key) not in self._ids
        )
        if not missing:
            return True
        encoded = [b"\0".join((prefix.encode(), key)) for prefix, key in missing]
        pairs = [(blake2b(each, digest_size=12).digest(), each) for each in encoded]
        epoch, numbers = self._store.numbers_of(pairs, deadline=deadline)
        if epoch != self._epoch:
            self._has_entered = False
            return False
        self._ids.update(zip(missing, numbers, strict=False))
        if len(numbers) < len(missing):
            raise StoreError(f"{self._store.where}: it is too slow for {len(missing)} new series")
        return True

    def _pack(self, parts: Sequence[Part]) -> list[PackedPart]:
        """Return what is to be sent."""
        result = []
        packed: dict[tuple[str, str], _Packed] = {}
        for part in parts:
            where = part.prefix, part.holder
            known = self._packed.get(where)
            if known is None or (known.keys is not part.keys and known.keys != part.keys):
                known = self._packed_keys(part)
            packed[where] = known
            numbers = array("d", part.numbers if known.pick is None else known.pick(part.numbers))
            if known.base is not None:
                numbers = array("d", map(_above, numbers, known.base))
            result.append(PackedPart(part.prefix, part.holder, known.ids, numbers))
        self._packed = packed
        return result

    def _lower_base(self, reading: Reading) -> None:
        """Count label sets from zero that were removed and have counted again.

        What they had counted before, which was not to be counted, is in their numbers no more.
        """
        if not self._base or not os.path.exists(os.path.join(reading.directory, baselines.NAME)):
            return
        fallen: set[tuple[str, LabelSet | None]] = set()
        counting = [part for part in reading.parts if part.prefix in COUNTING]
        for part in counting:
            for key, number in zip(part.keys, part.numbers, strict=True):
                base = self._base.get(self._ids[part.prefix, key], 0.0)
                if number < base and _above(number, base) < 0 and _SUM not in key:
                    fallen.add((part.prefix, LabelSet.of(key_text(key), part.prefix)))
        if not fallen:
            return
        for part in counting:
            for key in part.keys:
                if (part.prefix, LabelSet.of(key_text(key), part.prefix)) in fallen:
                    self._base.pop(self._ids[part.prefix, key], None)
        self._is_base_due, self._packed = True, {}

    def _packed_keys(self, part: Part) -> _Packed:
        """Return what does not change while the keys of a part do not.

        In the order of their numbers, so that hosts with the same keys have the same bytes.
        """
        ids = [self._ids[part.prefix, key] for key in part.keys]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        ordered = [ids[at] for at in order]
        pick = None
        if ids != ordered:
            if part.prefix in families.ADDING:
                pick = families.getter(order)
            else:
                pick = families.getter([*chain.from_iterable((2 * at, 2 * at + 1) for at in order)])
        base = None
        if self._base and part.prefix in COUNTING:
            base = array("d", (self._base.get(each, 0.0) for each in ordered))
        return _Packed(part.keys, pack_ids(ordered), pick, base)

    def _packed_base(self) -> bytes:
        """Return the base as it is stored."""
        ids = sorted(self._base)
        numbers = array("d", map(self._base.__getitem__, ids))
        return pack([PackedPart("", "", pack_ids(ids), numbers)])

    def _decoded(self, data: bytes, base: bytes) -> dict[int, float]:
        """Return, by the number of their key, what was published and what was not to be counted."""
        found: dict[int, float] = {}
        try:
            for packed in (base, data):
                for part in unpack(packed) if packed else ():
                    if part.prefix in COUNTING or not part.prefix:
                        for each, number in zip(unpack_ids(part.ids), part.numbers, strict=True):
                            found[each] = found.get(each, 0.0) + number
        except (PackingError, ValueError) as error:
            raise StoreError(
                f"{self._store.where}: what it has of this host is damaged ({error}); "
                "obskit-gunicorn fleet reset begins anew"
            ) from None
        return found

    def _write_note(self, reading: Reading, *, ended: bool) -> None:
        epoch = self._epoch or (self._note.epoch if self._note else "")
        new = note.Note(reading.generation, self._number, epoch, ended)
        path = os.path.join(reading.directory, note.NAME)
        if new == self._note and os.path.exists(path):
            return
        self._note = new
        try:
            note.write(reading.directory, new)
        except OSError as error:
            if not self._has_complained:
                log.warning(
                    "%s cannot be written (%s): if this exporter and the store are lost at once, "
                    "counts are published twice, and a killed server's last ones are not published",
                    path,
                    error.strerror,
                )
            self._has_complained = True


def _above(number: float, base: float) -> float:
    """Return what is counted above a base; what is below it by rounding only is nothing."""
    above = number - base
    return above if above >= 0 or above < -_ROUNDING * abs(base) else 0.0


def _plain(metric: Metric) -> list[Any]:
    """Return a family as JSON can be."""
    samples = [[sample.name, dict(sample.labels), sample.value] for sample in metric.samples]
    return [metric.name, metric.type, metric.documentation, metric.unit, samples]
