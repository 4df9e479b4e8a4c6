"""The formats of the exposition: text 0.0.4, OpenMetrics, and whatever a scraper negotiates.

The text before each value is rendered once for each family and format. prometheus_client's encoder
defines each format; names that it writes unchanged are rendered here.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from obskit_gunicorn import _prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric

Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted."""

_LARGEST_PLAIN = 1e6
"""From here on, Go and prometheus_client write numbers differently than Python."""


class Families(Collector):
    """A collector that calls a function; prometheus_client's encoders need a collector."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        """Set the function."""
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families()


class Format(NamedTuple):
    """A format of the exposition."""

    name: str
    """A name that no other format has."""

    encode: Callable[[Any], bytes]
    """prometheus_client's encoder; takes anything with a method ``collect()``."""

    def render(self, metrics: Iterable[Metric]) -> bytes:
        """Return the text of families, without the mark of the end of the exposition."""
        return self.encode(Families(lambda: metrics)).removesuffix(b"# EOF\n")


TEXT = Format("text 0.0.4", generate_latest)


def negotiated(accept: str) -> tuple[Format, str]:
    """Return the format that an ``Accept`` header asks for, and its content type."""
    encoder, content_type = _prometheus.choose_encoder(accept)
    # The content type names format, version and escaping.
    return Format(content_type, encoder), content_type


class RenderedFamily(Protocol):
    """What a format needs to know about a family."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def samples(self) -> Sequence[tuple[str, Labels]]:
        """Name and labels of each sample, in the order of the exposition."""

    def metric(self, values: Iterable[float] = ()) -> Metric:
        """Return a fresh family with these values, or with no samples."""


def go_float(number: float) -> str:
    """Return a number as Go writes it, and so prometheus_client."""
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    if math.isnan(number):
        return "NaN"
    text = repr(float(number))
    point = text.find(".")
    if number < _LARGEST_PLAIN or point <= 6:
        return text
    digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
    return f"{digits}e+{point - 1:02d}"


def written(values: Sequence[float]) -> list[str]:
    """Return each value as it is written in the exposition."""
    texts = list(map(repr, values))
    for at, value in enumerate(values):
        if not -math.inf < value < _LARGEST_PLAIN:  # NaN too
            texts[at] = go_float(value)
    return texts


_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLAIN_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SEPARATE = ("_created", "_gsum", "_gcount")
"""Suffixes of samples that prometheus_client writes as a family of their own."""


def line_prefixes(family: RenderedFamily, format_: Format) -> list[str]:
    """Return the text before each value, beginning with the line break.

    Raises:
        ValueError: prometheus_client does not write one line for each sample of the family.
    """
    head = "\n" + format_.render([family.metric()]).decode()[:-1]
    try:
        prefixes = _plain_line_prefixes(family)
        if format_ is not TEXT:
            # Some formats change plain names, too. Check the sample with the most labels.
            at, (name, labels) = max(
                enumerate(family.samples), key=lambda numbered: len(numbered[1][1])
            )
            one = family.metric()
            one.samples = [Sample(name, dict(labels), 0.0)]
            if _their_line_prefixes(one, head, format_) != [prefixes[at]]:
                raise ValueError(f"{format_.name} writes the names of {family.name} differently")
    except ValueError:
        zeros = family.metric([0.0] * len(family.samples))
        prefixes = _their_line_prefixes(zeros, head, format_)
    prefixes[0] = head + prefixes[0]
    return prefixes


def _plain_line_prefixes(family: RenderedFamily) -> list[str]:
    """Return the same if every format and release writes all names unchanged.

    Raises:
        ValueError: Some names are not plain, or some samples are written separately.
    """
    label = lru_cache(maxsize=None)(_plain_label)
    names = {name for name, _labels in family.samples}
    separate = {family.name + suffix for suffix in _SEPARATE}
    if names & separate or not all(map(_PLAIN_NAME.fullmatch, (family.name, *names))):
        raise ValueError(f"{family.name} needs more than plain names and one line for each sample")
    prefixes = []
    for name, pairs in family.samples:
        braced = "{" + ",".join([label(*pair) for pair in pairs]) + "}" if pairs else ""
        prefixes.append(f"\n{name}{braced} ")
    return prefixes


def _plain_label(name: str, value: str) -> str:
    """Return a label as it is written in a line.

    Raises:
        ValueError: Its name is not plain.
    """
    if not _PLAIN_LABEL.fullmatch(name):
        raise ValueError(f"the label name {name!r} needs quotes or escapes")
    value = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{value}"'


def _their_line_prefixes(metric: Metric, head: str, format_: Format) -> list[str]:
    """Return the same, rendered by prometheus_client with 0 for every value.

    Raises:
        ValueError: The text does not have one line for each sample.
    """
    text = "\n" + format_.render([metric]).decode()
    lines = text.removeprefix(head).split("\n")[1:-1]
    if len(lines) != len(metric.samples) or not all(line.endswith(" 0.0") for line in lines):
        raise ValueError(f"{metric.name} is not rendered as one line for each sample")
    return ["\n" + line[:-3] for line in lines]
