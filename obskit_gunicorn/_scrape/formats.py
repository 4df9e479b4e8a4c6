"""The formats of the exposition: text 0.0.4, OpenMetrics, and whatever a scraper negotiates.

A family is rendered once per format: what stands before each value. prometheus_client's own encoder
is the judge of each format; where it writes names as they are, we do it ourselves.
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
"""From here on Go, and so prometheus_client, writes a number in another way than Python."""


class Families(Collector):
    """What a function returns, as a collector: the form that prometheus_client's encoders take."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        """Collect by calling a function."""
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families()


class Format(NamedTuple):
    """A format of the exposition."""

    name: str
    """What tells it from the others."""

    encode: Callable[[Any], bytes]
    """prometheus_client's encoder for it, of anything with a method ``collect()``."""

    def render(self, metrics: Iterable[Metric]) -> bytes:
        """Return families as they stand in the exposition, without the mark of its end."""
        return self.encode(Families(lambda: metrics)).removesuffix(b"# EOF\n")


TEXT = Format("text 0.0.4", generate_latest)


def negotiated(accept: str) -> tuple[Format, str]:
    """Return the format that a header ``Accept`` asks for, and its content type."""
    encoder, content_type = _prometheus.choose_encoder(accept)
    # The content type names format, version and escaping.
    return Format(content_type, encoder), content_type


class RenderedFamily(Protocol):
    """What a format needs to know of a family."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def samples(self) -> Sequence[tuple[str, Labels]]:
        """Name and labels of each sample, in the order of the exposition."""

    def metric(self, values: Iterable[float] = ()) -> Metric:
        """Return a fresh family with these values, or with no samples."""


def go_float(number: float) -> str:
    """Return a number as Go writes it."""
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
    """Return each value as it stands in the exposition."""
    texts = list(map(repr, values))
    for at, value in enumerate(values):
        if not -math.inf < value < _LARGEST_PLAIN:  # NaN too
            texts[at] = go_float(value)
    return texts


_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLAIN_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_PUT_APART = ("_created", "_gsum", "_gcount")


def line_prefixes(family: RenderedFamily, format_: Format) -> list[str]:
    """Return what stands before each value, the line break before it included.

    Raises:
        ValueError: prometheus_client does not render the family one line a sample.
    """
    head = "\n" + format_.render([family.metric()]).decode()[:-1]
    try:
        prefixes = _plain_line_prefixes(family)
        if format_ is not TEXT:
            # Some formats rewrite plain names, too. What has most labels tells.
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
    """Return the same for names that each format and release writes as they are.

    Raises:
        ValueError: There are others.
    """
    label = lru_cache(maxsize=None)(_plain_label)  # each is rendered once
    names = {name for name, _labels in family.samples}
    apart = {family.name + suffix for suffix in _PUT_APART}
    if names & apart or not all(map(_PLAIN_NAME.fullmatch, (family.name, *names))):
        raise ValueError(f"{family.name} needs more than the name and one line a sample")
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
    """Return the same, rendered by prometheus_client with a 0 in the place of every value.

    Raises:
        ValueError: The text is not one line a sample.
    """
    text = "\n" + format_.render([metric]).decode()
    lines = text.removeprefix(head).split("\n")[1:-1]
    if len(lines) != len(metric.samples) or not all(line.endswith(" 0.0") for line in lines):
        raise ValueError(f"{metric.name} is not rendered one line a sample")
    return ["\n" + line[:-3] for line in lines]
