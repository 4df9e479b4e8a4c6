"""What all hosts have counted, added up.

Counters, histograms and summaries are summed over all hosts that ever were, gauges over those that
are alive. What a host says about itself has its name as label ``host``.
"""

from __future__ import annotations

import json
import math
import threading
import time
from array import array
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from obskit_gunicorn._fleet.packing import (
    COUNTING,
    PackedPart,
    PackingError,
    pack,
    pack_ids,
    unpack,
    unpack_ids,
    unpack_json,
)
from obskit_gunicorn._fleet.store import TOMB_SECONDS, HostRecord, Store, StoreError
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.families import ADDING, sum_row
from obskit_gunicorn._scrape.merging import Member, Merger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from obskit_gunicorn._scrape.source import Snapshot

ALIVE_INTERVALS = 3
"""A host that has not published for so many of its intervals is not alive."""

FORGET_SECONDS = 3600.0
"""How long a host may be silent until it is folded. By the clock of who folds it: after an outage
every time in the store is old."""

GRACE_SECONDS = 5.0
"""How long a host that has ended is kept as it is: another process may publish it."""

_ENDED_TOMB_SECONDS = 600.0
_FOLD_AT_ONCE = 50


class _Keys:
    """The keys of parts that have the same."""

    __slots__ = ("keys",)

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self.keys = keys

    def goes_on(self, before: object) -> bool:
        """Return whether these are the keys from before, and more behind them."""
        return isinstance(before, _Keys) and self.keys[: len(before.keys)] == before.keys


class _Column:
    """Values of one host, or values and timestamps."""

    __slots__ = ("layout", "numbers", "stamped")

    def __init__(self, layout: _Keys, numbers: array[float], *, has_timestamps: bool) -> None:
        self.layout = layout
        self.numbers = b"" if has_timestamps else numbers.tobytes()
        self.stamped = numbers.tobytes() if has_timestamps else b""

    def pairs(self) -> Iterable[float]:
        if self.stamped:
            return memoryview(self.stamped).cast("d")
        values = memoryview(self.numbers).cast("d")
        return chain.from_iterable(zip(values, repeat(0.0), strict=False))


class _Part(NamedTuple):
    prefix: str
    holder: str
    packed: PackedPart
    column: _Column


class Host(NamedTuple):
    """An incarnation, see :mod:`obskit_gunicorn._fleet.scripts`, as the store has it.

    Attributes:
        incarnation: Its identity.
        sequence: Its number of publications.
        changed: The publication at which its counts last changed.
        published: When it was last published, by the store's clock.
        ended: Whether that was the last time.
        facts: What it says about itself.
        parts: What it has counted.
        figures: Its figures, as families of JSON.
        size: How many bytes it has in the store.
        is_readable: Whether what it has published could be read.
    """

    incarnation: str
    sequence: int
    changed: int
    published: float
    ended: bool
    facts: dict[str, Any]
    parts: list[_Part]
    figures: list[Any]
    size: int
    is_readable: bool

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.facts.get("host", "?"))

    def is_alive(self, now: float) -> bool:
        """Return whether it publishes still; by the store's clock."""
        try:
            interval = float(self.facts["interval"])
        except (KeyError, TypeError, ValueError):
            return False
        return not self.ended and now - self.published <= ALIVE_INTERVALS * interval


class FleetReading:
    """One reading of the store.

    Attributes:
        snapshot: The sums.
        hosts: The incarnations that were not folded.
        now: When, by the store's clock.
        begun: When the epoch began, by the same.
    """

    def __init__(self, snapshot: Snapshot, hosts: list[Host], now: float, begun: float) -> None:
        self.snapshot, self.hosts, self.now, self.begun = snapshot, hosts, now, begun

    def gauges(self) -> Iterator[Metric]:
        """Yield gauges about the fleet."""
        states = GaugeMetricFamily(
            "obskit_gunicorn_fleet_hosts",
            "Hosts by state: alive, silent (not published for three intervals), or ended and not "
            "yet folded.",
            labels=["state"],
        )
        counts = {"alive": 0, "silent": 0, "ended": 0}
        age = GaugeMetricFamily(
            "obskit_gunicorn_fleet_published_age_seconds",
            "How long ago each host that has not ended has published.",
            labels=["host"],
        )
        ages: dict[str, float] = {}
        for host in self.hosts:
            counts[state_of(host, self.now)] += 1
            if not host.ended:
                seconds = max(0.0, self.now - host.published)
                ages[host.name] = min(seconds, ages.get(host.name, seconds))
        for state, count in counts.items():
            states.add_metric([state], count)
        for name, seconds in ages.items():
            age.add_metric([name], seconds)
        yield states
        yield age
        yield GaugeMetricFamily(
            "obskit_gunicorn_fleet_unreadable_hosts",
            "Hosts whose publication cannot be read, so that they are left out.",
            value=sum(not host.is_readable for host in self.hosts),
        )
        if self.begun:
            yield GaugeMetricFamily(
                "obskit_gunicorn_fleet_epoch_start_time_seconds",
                "When counting began in the store, in Unix time: at first, at a reset, and when "
                "the store had lost something.",
                value=self.begun,
            )
        yield GaugeMetricFamily(
            "obskit_gunicorn_fleet_store_up", "Whether the store could be used.", value=1
        )

    def others(self) -> Iterator[Metric]:
        """Yield what each host that is alive says about itself."""
        merged: dict[str, Metric] = {}
        for host in _newest_by_name(host for host in self.hosts if host.is_alive(self.now)):
            try:
                for name, type_, help_text, unit, samples in host.figures:
                    family = merged.setdefault(name, Metric(name, help_text, type_, unit))
                    if family.type == type_:
                        family.samples += [
                            Sample(sample, with_host(host.name, labels), float(value))
                            for sample, labels, value in samples
                        ]
            except (TypeError, ValueError, AttributeError):  # another release's, or damaged
                continue
        yield from merged.values()


def state_of(host: Host, now: float) -> str:
    """Return ``alive``, ``silent`` or ``ended``."""
    if host.ended:
        return "ended"
    return "alive" if host.is_alive(now) else "silent"


def with_host(name: str, labels: dict[str, str]) -> dict[str, str]:
    """Return labels with that of a host; one that is there is renamed, as Prometheus does it."""
    if "host" in labels:
        labels = {"exported_host" if each == "host" else each: labels[each] for each in labels}
    return {**labels, "host": name}


def _newest_by_name(hosts: Iterable[Host]) -> Iterable[Host]:
    """Return one host for each name: a server that was killed may have been started again."""
    found: dict[str, Host] = {}
    for host in sorted(hosts, key=lambda host: (str(host.facts.get("started")), host.incarnation)):
        found[host.name] = host
    return found.values()


class FleetSource:
    """Reads the store at each scrape, and remembers what does not change. Thread-safe."""

    def __init__(
        self,
        store: Store,
        *,
        forget_seconds: float = FORGET_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        folds: bool = True,
    ) -> None:
        """Name the store; nothing is read.

        Args:
            store: The store.
            forget_seconds: How long a host may be silent until it is folded.
            grace_seconds: How long a host that has ended is not folded.
            clock: This process's clock.
            folds: Put hosts that have ended to the retired sums.
        """
        self._store = store
        self._forget_seconds, self._grace_seconds = forget_seconds, grace_seconds
        self._clock, self._folds = clock, folds
        self._lock = threading.Lock()
        self._merger = Merger(self._skip)
        self._reported: set[str] = set()
        self._forget("")
        self._seen: dict[str, tuple[int, float]] = {}

    def _forget(self, epoch: str) -> None:
        """Know nothing but which epoch it is."""
        self._epoch, self._rev = epoch, -1
        self._keys: list[tuple[str, bytes]] = []
        self._retired: list[_Part] = []
        self._hosts: dict[str, Host] = {}
        self._layouts: dict[bytes, _Keys] = {}

    def read(self) -> FleetReading:
        """Read the store, and fold what has ended.

        Raises:
            StoreError: The store cannot be used.
        """
        with self._lock:
            now, begun = self._fetch()
            members: dict[str, list[Member]] = {}
            for part in self._retired:
                members.setdefault(part.prefix, []).append(Member((), part.column))
            for host in self._hosts.values():
                is_alive = host.is_alive(now)
                for part in host.parts:
                    if is_alive or part.prefix in COUNTING:
                        holder = (("host", host.name), ("pid", part.holder))
                        members.setdefault(part.prefix, []).append(Member(holder, part.column))
            snapshot = self._merger.merge(members)
            reading = FleetReading(snapshot, list(self._hosts.values()), now, begun)
            if self._folds:
                self._fold()
            return reading

    def _fetch(self) -> tuple[float, float]:
        """Fetch what has changed; return now and the beginning of the epoch, by the store."""
        known = chain.from_iterable(
            (host.incarnation, host.sequence, host.changed) for host in self._hosts.values()
        )
        fetched = self._store.fetch(self._epoch, len(self._keys), self._rev, list(known))
        if fetched.epoch != self._epoch:
            self._forget(fetched.epoch)
        before, rev_before = self._hosts, self._rev
        for key in fetched.keys:
            prefix, _, rest = key.partition(b"\0")
            self._keys.append((prefix.decode(errors="replace"), rest))
        records = {record.incarnation: record for record in fetched.hosts}
        if self._has_lost(records, before, fetched.rev, rev_before):
            log.warning(
                "%s has lost something that this process had read: the fleet counts on from 0, as "
                "after a restart",
                self._store.where,
            )
            self._forget(self._store.reset(self._epoch))
            return self._fetch()
        if fetched.rev != self._rev:
            self._retired = self._read_retired(fetched.retired)
            self._rev = fetched.rev
        self._hosts = {
            name: self._host(record, before.get(name)) for name, record in records.items()
        }
        used = {part.packed.ids for host in self._hosts.values() for part in host.parts}
        used.update(part.packed.ids for part in self._retired)
        self._layouts = {ids: layout for ids, layout in self._layouts.items() if ids in used}
        return fetched.now, fetched.begun

    @staticmethod
    def _has_lost(
        records: dict[str, HostRecord], before: dict[str, Host], rev: int, rev_before: int
    ) -> bool:
        """Return whether the store knows less than it did."""
        if rev < rev_before:
            return True
        for name, host in before.items():
            record = records.get(name)
            if record is None:
                if rev == rev_before:  # nothing was folded
                    return True
            elif int(record.head.partition(" ")[0]) < host.sequence:
                return True
        return False

    def _read_retired(self, packed: bytes) -> list[_Part]:
        try:
            return self._parts(packed) if packed else []
        except PackingError as error:
            raise StoreError(
                f"{self._store.where}: the sums of hosts that have ended are damaged ({error}); "
                "obskit-gunicorn fleet reset begins anew"
            ) from None

    def _host(self, record: HostRecord, before: Host | None) -> Host:
        try:
            sequence, changed, published, ended, facts_text = record.head.split(" ", 4)
            facts: Any = json.loads(facts_text)
            parts = before.parts if before is not None else []
            figures: Any = before.figures if before is not None else []
            size = before.size if before is not None else 0
            if record.data:
                parts = self._parts(record.data)
                size = len(record.data)
            if record.figures:
                figures = unpack_json(record.figures)
            return Host(
                record.incarnation,
                int(sequence),
                int(changed),
                float(published),
                ended == "1",
                facts if isinstance(facts, dict) else {},
                parts,
                figures if isinstance(figures, list) else [],
                size,
                is_readable=True,
            )
        except (PackingError, ValueError) as error:
            self._say_once(
                record.incarnation,
                f"{self._store.where}: what host {record.head[:200]!r} has published is left out, "
                f"because it cannot be read: {error}",
            )
            sequence = record.head.partition(" ")[0]
            at = int(sequence) if sequence.isdigit() else 0
            facts = {"host": record.incarnation}
            return Host(record.incarnation, at, -1, 0.0, False, facts, [], [], 0, is_readable=False)

    def _parts(self, packed: bytes) -> list[_Part]:
        """Read parts.

        Raises:
            PackingError: They are damaged.
        """
        parts = []
        for part in unpack(packed):
            layout = self._layout(part.ids)
            wanted = len(layout.keys) * (1 if part.prefix in ADDING else 2)
            if len(part.numbers) != wanted:
                raise PackingError(f"it has {len(part.numbers)} numbers in place of {wanted}")
            has_timestamps = part.prefix not in ADDING
            column = _Column(layout, part.numbers, has_timestamps=has_timestamps)
            parts.append(_Part(part.prefix, part.holder, part, column))
        return parts

    def _layout(self, ids: bytes) -> _Keys:
        layout = self._layouts.get(ids)
        if layout is None:
            try:
                keys = tuple(self._keys[each][1] for each in unpack_ids(ids))
            except IndexError:
                raise PackingError("it has keys that the store does not know") from None
            layout = self._layouts[ids] = _Keys(keys)
        return layout

    def _fold(self) -> None:
        """Put hosts that have ended to the retired sums; others may do it at the same time."""
        gone: list[Host] = []
        now = self._clock()
        seen: dict[str, tuple[int, float]] = {}
        for host in self._hosts.values():
            sequence, since = self._seen.get(host.incarnation, (-1, now))
            if sequence != host.sequence:
                sequence, since = host.sequence, now
            seen[host.incarnation] = sequence, since
            patience = self._grace_seconds if host.ended else self._forget_seconds
            if host.is_readable and now - since > patience and len(gone) < _FOLD_AT_ONCE:
                gone.append(host)
        self._seen = seen
        if gone:
            retired = _summed([*self._retired, *(part for host in gone for part in host.parts)])
            self._store.fold(
                self._epoch,
                self._rev,
                pack(retired),
                [(host.incarnation, host.sequence, _tomb_seconds(host)) for host in gone],
            )

    def _skip(self, name: str, damage: object) -> None:
        self._say_once(name, f"{self._store.where}: {name} is left out: {damage}")

    def _say_once(self, what: str, line: str) -> None:
        if what not in self._reported:
            self._reported.add(what)
            log.warning("%s", line)


def _tomb_seconds(host: Host) -> float:
    is_over = host.ended and not host.facts.get("returns")
    return _ENDED_TOMB_SECONDS if is_over else TOMB_SECONDS


def _summed(parts: Iterable[_Part]) -> list[PackedPart]:
    """Return the sums of parts that count, each as a number and what its rounding has left out.

    So that a total that is rounded once more, together with other hosts', is what it was before
    folding: one that fell by a rounding would look like a restart.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for part in parts:
        if part.prefix in COUNTING:
            by_id = found.setdefault(part.prefix, {})
            for each, number in zip(unpack_ids(part.packed.ids), part.packed.numbers, strict=True):
                by_id.setdefault(each, []).append(number)
    result = []
    for prefix, by_id in found.items():
        ids = sorted(by_id)
        packed = pack_ids(ids)
        sums = [sum_row(by_id[each]) for each in ids]
        rests = [
            sum_row([*by_id[each], -total]) if math.isfinite(total) else 0.0
            for each, total in zip(ids, sums, strict=True)
        ]
        result.append(PackedPart(prefix, "", packed, array("d", sums)))
        if any(rests):
            result.append(PackedPart(prefix, "rest", packed, array("d", rests)))
    return result
