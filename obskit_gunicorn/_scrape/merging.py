"""Adding up what several files hold: of one directory, or of many hosts.

The keys are parsed, and the families laid out, only when keys are added or removed. Otherwise the
values of each file are matched to the keys with one call, added with ``math.fsum``, and put into
their families.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn._scrape import families
from obskit_gunicorn._scrape.source import Part, Snapshot
from obskit_gunicorn._store.cardinality import MANY_SERIES
from obskit_gunicorn._store.fileformat import Damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.families import Family, Keys, Series, Unmerged, Values
    from obskit_gunicorn._scrape.formats import Labels


class Member(NamedTuple):
    """A file that takes part in a scrape."""

    holder: Labels
    """The labels that tell it from other files, where gauges of mode ``all`` show them."""

    file: Values


class Group:
    """The files with one prefix, and the sums of their values by key."""

    def __init__(self) -> None:
        self.files: list[Member] = []
        self.keys: list[bytes] = []
        self._picks: dict[Keys, Callable[[Sequence[float]], tuple[float, ...]] | None] = {}

    def arrange(self, files: list[Member]) -> bool:
        """Set the files of this scrape, with their holders; return whether the keys changed."""
        layouts = dict.fromkeys(file.layout for _holder, file in files)
        self.files = files
        if layouts.keys() == self._picks.keys():
            return False
        before = self.keys
        keys = dict.fromkeys(chain.from_iterable(layout.keys for layout in layouts))
        # Drop the keys that no file has any more. The others keep their order, so that families
        # without new keys can be reused.
        self.keys = list(dict.fromkeys(chain((key for key in before if key in keys), keys)))
        known = self._picks if self.keys == before else {}
        self._picks = {
            layout: known[layout] if layout in known else self._pick(layout) for layout in layouts
        }
        return self.keys != before

    def totals(self) -> Sequence[float]:
        """Return the sum of every key over all files, in the order of :attr:`keys`."""
        # Like prometheus_client, add to 0.0: this turns -0.0 into 0.0.
        if len(self.files) == 1:
            return [value + 0.0 for value in self._columns()[0]]
        try:
            return [value + 0.0 for value in map(math.fsum, zip(*self._columns(), strict=True))]
        except (ValueError, OverflowError):  # infinities of both signs, or too large
            return [families.sum_row(row) for row in zip(*self._columns(), strict=True)]

    def _columns(self) -> list[Iterable[float]]:
        """Return each file's values, in the order of :attr:`keys`."""
        columns: list[Iterable[float]] = []
        for _holder, file in self.files:
            pick = self._picks[file.layout]
            columns.append(file.values() if pick is None else pick((*file.values(), 0.0)))
        return columns

    def _pick(self, layout: Keys) -> Callable[[Sequence[float]], tuple[float, ...]] | None:
        """Return a function that puts values of a file into the order of :attr:`keys`.

        It takes the values with a 0 after them. ``None`` if they have this order already.
        """
        if list(layout.keys) == self.keys:
            return None
        at = {key: number for number, key in enumerate(layout.keys)}
        missing = len(layout.keys)
        if len(at) == missing:
            return families.getter([at.get(key, missing) for key in self.keys])

        def added(values: Sequence[float]) -> tuple[float, ...]:
            # A key occurs twice; no writer does this. Both count, as with prometheus_client.
            totals = dict.fromkeys(self.keys, 0.0)
            for key, value in zip(layout.keys, values, strict=False):
                totals[key] += value
            return tuple(totals.values())

        return added


class Merger:
    """Adds up files, scrape after scrape, and remembers what does not change. Not thread-safe."""

    def __init__(
        self,
        skip: Callable[[str, Damage], object],
        notice_large: Callable[[str, list[tuple[int, Series]]], object] = lambda *_: None,
    ) -> None:
        """Remember nothing yet.

        Args:
            skip: Called with the name of a metric whose samples cannot be merged, and why.
            notice_large: Called with the name and the series of each metric that has very many,
                whenever the families are laid out.
        """
        self._skip = skip
        self._notice_large = notice_large
        self._groups: dict[str, Group] = {}
        self._series: dict[bytes, Series | None] = {}
        self._families: list[Family] = []
        self._other_names: set[str] = set()
        self._others_at: dict[tuple[str, Keys], list[tuple[int, Series]]] = {}
        self.strange: set[bytes] = set()
        """The keys that are not those of metrics."""

    def merge(
        self,
        members: dict[str, list[Member]],
        adjust: Callable[[str, Sequence[bytes], Sequence[float]], Sequence[float]] | None = None,
        *,
        with_parts: bool = False,
    ) -> Snapshot:
        """Add up files.

        Args:
            members: The files, by prefix.
            adjust: Is given a prefix, its keys and their sums; returns the sums to use.
            with_parts: Put into the result what :attr:`Snapshot.parts` needs.
        """
        changed = set(members) != set(self._groups)
        self._groups = {prefix: self._groups.get(prefix) or Group() for prefix in members}
        for prefix, files in members.items():
            changed = self._groups[prefix].arrange(files) or changed
        if changed:
            self._plan()
        adding = {family.prefix for family in self._families}
        if with_parts:
            adding |= families.ADDING & set(members)
        totals = {prefix: self._groups[prefix].totals() for prefix in adding}
        if adjust is not None:
            for prefix, before in totals.items():
                totals[prefix] = adjust(prefix, self._groups[prefix].keys, before)
        parts = list(self._parts(totals)) if with_parts else []
        return Snapshot(self._families, totals, self._other_metrics(), parts)

    def _parts(self, totals: dict[str, Sequence[float]]) -> Iterator[Part]:
        for prefix, group in self._groups.items():
            if prefix in totals:
                yield Part(prefix, "", group.keys, totals[prefix])
            else:
                for holder, file in group.files:
                    yield Part(prefix, holder[-1][1], file.layout.keys, tuple(file.pairs()))

    def _plan(self) -> None:
        """Lay out the families again, because keys were added or removed."""
        series_before, self._series = self._series, {}
        metrics: dict[str, dict[str, list[tuple[int, Series]]]] = {}
        for prefix, group in self._groups.items():
            for number, key in enumerate(group.keys):
                series = (
                    series_before[key] if key in series_before else families.parse_key(key, prefix)
                )
                self._series[key] = series
                if series is not None:
                    by_prefix = metrics.setdefault(series.metric, {})
                    by_prefix.setdefault(prefix, []).append((number, series))
        families_before = {family.name: family for family in self._families}
        self._families, self._other_names, self._others_at = [], set(), {}
        for name, by_prefix in metrics.items():
            (prefix, members), *others = by_prefix.items()
            if len(members) >= MANY_SERIES:
                self._notice_large(name, members)
            before = families_before.get(name)
            family = None if others else families.make_family(prefix, members, before)
            if family is None:
                self._other_names.add(name)
            else:
                self._families.append(family)
        self.strange = {key for key, series in self._series.items() if series is None}

    def _other_metrics(self) -> list[Metric]:
        """Return the metrics that are not simply summed, merged sample by sample."""
        if not self._other_names:
            return []
        metrics: dict[str, Unmerged] = {}
        for prefix, group in self._groups.items():
            for holder, reader in group.files:
                series = self._others_of(prefix, reader.layout)
                families.add_unmerged(metrics, prefix, holder, reader, series)
        merged: list[Metric] = []
        for name, metric in metrics.items():
            try:
                merged.append(families.merge(metric))
            except Exception as error:
                self._skip(name, Damage("foreign", f"its samples cannot be merged: {error}"))
        return merged

    def _others_of(self, prefix: str, layout: Keys) -> list[tuple[int, Series]]:
        if (prefix, layout) not in self._others_at:
            keys = ((at, self._series.get(key)) for at, key in enumerate(layout.keys))
            self._others_at[prefix, layout] = [
                (at, series) for at, series in keys if series and series.metric in self._other_names
            ]
        return self._others_at[prefix, layout]
