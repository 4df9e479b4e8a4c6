"""Which label makes a metric large."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MANY_SERIES = 10_000
"""From here on the series of one metric are more than anybody reads."""


def widest_label(series: Iterable[Iterable[tuple[str, str]]]) -> tuple[str, int]:
    """Return the label with the most different values among the series of a metric.

    Args:
        series: Label names and values of each series.

    Returns:
        The label and how many values it has; ``("", 0)`` where there are no labels. The bound
        ``le`` of a histogram's buckets is not counted.
    """
    values: dict[str, set[str]] = {}
    for labels in series:
        for name, value in labels:
            if name != "le":
                values.setdefault(name, set()).add(value)
    return max(((name, len(found)) for name, found in values.items()), key=_count, default=("", 0))


def _count(label: tuple[str, int]) -> int:
    return label[1]
