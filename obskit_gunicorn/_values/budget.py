"""How many label sets the metrics of a directory may have, and how large its files may be.

A label set for which there is no place is *diverted*: it is counted under
:data:`~obskit_gunicorn._store.admissions.OTHER`, which all its labels have as their value. The
bound of a bucket stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SERIES_VARIABLE = "OBSKIT_METRICS_MAX_SERIES"
SIZE_VARIABLE = "OBSKIT_METRICS_MAX_BYTES"

ALL = "*"
"""In a mapping, all metrics that are not named."""


class Budget(NamedTuple):
    """What is allowed."""

    series: Mapping[str, int] = {}
    """How many label sets, by metric; :data:`ALL` for all others."""

    size: int | None = None
    """From which size of the metric files on nothing more is admitted, in bytes."""

    def __bool__(self) -> bool:
        """Return whether anything is limited."""
        return bool(self.series) or self.size is not None

    def of(self, metric: str) -> int | None:
        """Return how many label sets a metric may have; ``None`` for any number."""
        found = self.series.get(metric)
        if found is None:  # named with the _total that parse() takes away; a gauge's name has it
            found = self.series.get(metric.removesuffix("_total"))
        return self.series.get(ALL) if found is None else found


def budget_of(environment: Mapping[str, str]) -> Budget:
    """Return what the environment allows, for a process that Gunicorn did not start.

    Raises:
        ValueError: It is not clear.
    """
    text = environment.get(SIZE_VARIABLE, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{SIZE_VARIABLE} is {text!r}, which is not a number of bytes")
    try:
        return Budget(parse(environment.get(SERIES_VARIABLE)), int(text) if text else None)
    except ValueError as error:
        raise ValueError(f"{SERIES_VARIABLE} is wrong: {error}") from None


def parse(value: object) -> dict[str, int]:
    """Return a budget for label sets as a mapping.

    Args:
        value: A number, a mapping of metrics to numbers, a text such as
            ``100,http_requests=1000``, or ``None``. Counters may be named with their ``_total``.

    Raises:
        ValueError: It is none of these, or a number is not positive.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        parts = [part.strip().rpartition("=") for part in value.split(",") if part.strip()]
        pairs = [(name.strip() or ALL, number.strip()) for name, _, number in parts]
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a metric is named twice")
        value = {name: int(number) for name, number in pairs}
    elif not isinstance(value, Mapping):
        value = {ALL: value}
    found: dict[str, int] = {}
    for name, number in value.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"{name!r} is not the name of a metric")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{number!r} is not a positive number")
        found[name.removesuffix("_total")] = number
    return found
