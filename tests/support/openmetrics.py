"""Exemplars in an exposition: what a scrape in OpenMetrics shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.openmetrics.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client.core import Metric

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
"""The header ``Accept`` that asks for it."""


def families(text: str) -> dict[str, Metric]:
    """Return the families of an exposition, by name; fails if it is not valid."""
    found = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return {family.name: family for family in found}


def is_whole(text: str) -> bool:
    """Return whether an exposition is valid; fails if what is wrong with it does not pass.

    A histogram that is being made lacks its last bucket for a moment, as with prometheus_client.
    """
    try:
        families(text)
    except ValueError as error:
        if "+Inf bucket missing" not in str(error):
            raise
        return False
    return True


def exemplars(text: str) -> dict[str, dict[str, str]]:
    """Return the labels of each exemplar of an exposition, by the sample as it is written."""
    families(text)
    found = {}
    for line in text.splitlines():
        sample, mark, rest = line.partition(" # {")
        if mark and not line.startswith("#"):
            (family,) = families(f"# TYPE a counter\na_total 1 # {{{rest}\n# EOF\n").values()
            exemplar = family.samples[0].exemplar
            assert exemplar is not None
            found[sample.rpartition(" ")[0]] = exemplar.labels
    return found
