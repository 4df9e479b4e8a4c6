"""The formats of the exposition: text 0.0.4, OpenMetrics, and whatever a scraper negotiates.

The text before each value is rendered once for each family and format. prometheus_client's encoder
defines each format; names that it writes unchanged are rendered here.

There is a fixed number of formats. A client's header selects one of them, and is not kept.
"""

from __future__ import annotations

import math
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prometheus_client import samples
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from obskit_gunicorn import _prometheus
from obskit_gunicorn._store.exemplars import Exemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted."""

Names = frozenset[str]
"""Names of the samples to show."""

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
    """Its content type, which no other format has; never text from a client."""

    encode: Callable[[Any], bytes]
    """prometheus_client's encoder; takes anything with a method ``collect()``."""

    @property
    def has_exemplars(self) -> bool:
        """Whether lines may end in exemplars."""
        return self.name.startswith("application/openmetrics-text")

    def render(self, metrics: Iterable[Metric]) -> bytes:
        """Return the text of families, without the mark of the end of the exposition."""
        return self.encode(Families(lambda: metrics)).removesuffix(b"# EOF\n")


_VERSIONS = {
    "text/plain": ("0.0.4", "1.0.0"),
    "application/openmetrics-text": ("0.0.1", "1.0.0", "2.0.0"),
}
"""The versions that clients ask for, by media type; at the index of their major version."""

_VERSION = re.compile(r"([0-9]{1,9})(\.[0-9]+)*")
_ESCAPINGS = ("underscores", "allow-utf-8", "dots", "values")


def negotiated(accept: str) -> Format:
    """Return the format that an ``Accept`` header asks for, or the nearest known version of it."""
    for accepted in accept.split(","):
        format_ = _format(_known(accepted))
        if format_.name != TEXT.name:
            return format_
    return TEXT


def _known(accepted: str) -> str:
    """Return the known form of header that is nearest to what a client accepts."""
    media_type, *rest = accepted.split(";")
    media_type = media_type.strip()
    if media_type not in _VERSIONS:
        return ""
    pairs = [each.strip().split("=", 1) for each in rest if "=" in each]
    parameters = dict(reversed(pairs))  # the first one counts
    asked = parameters.get("version")
    if not asked:
        return media_type
    version = _VERSION.fullmatch(asked)
    if version is None:
        return ""
    versions = _VERSIONS[media_type]
    nearest = versions[min(int(version[1]), len(versions) - 1)]
    escaping = parameters.get("escaping")
    escaping = escaping if escaping in _ESCAPINGS else _ESCAPINGS[0]
    return f"{media_type};version={nearest};escaping={escaping}"


@cache  # called only with results of _known()
def _format(accept: str) -> Format:
    """Return the format that prometheus_client chooses; several headers may select the same one."""
    encoder, content_type = _prometheus.choose_encoder(accept)
    return Format(content_type, encoder)


TEXT = _format("")
"""The text format 0.0.4."""


def exemplar_text(exemplar: Exemplar, format_: Format) -> str:
    """Return what follows a value in a format that has exemplars, as prometheus_client writes it.

    Args:
        exemplar: The exemplar; its names need neither quotes nor escapes.
        format_: The format.
    """
    if not _writes_exemplars_so(format_):
        return _their_exemplar_text(exemplar, format_)
    return _our_exemplar_text(exemplar)


def their_exemplar(exemplar: Exemplar) -> samples.Exemplar:
    """Return an exemplar as prometheus_client has it in a sample."""
    return samples.Exemplar(dict(exemplar.labels), exemplar.value, exemplar.timestamp)


def _our_exemplar_text(exemplar: Exemplar) -> str:
    labels = ",".join([f'{name}="{_escaped(value)}"' for name, value in exemplar.labels])
    return f" # {{{labels}}} {go_float(exemplar.value)} {exemplar.timestamp}"


def _their_exemplar_text(exemplar: Exemplar, format_: Format) -> str:
    metric = Metric("a", "", "counter")
    metric.add_sample("a_total", {}, 0.0, exemplar=their_exemplar(exemplar))
    line = format_.render([metric]).decode().split("\n")[-2]
    return line.removeprefix("a_total 0.0")


@cache  # there is a fixed number of formats
def _writes_exemplars_so(format_: Format) -> bool:
    """Return whether prometheus_client writes exemplars in a format as is done here."""
    labels = (("a", 'b\\"\n'), ("c", "\u2603"))
    probe = Exemplar(labels, 1e6, 0.25)
    return _their_exemplar_text(probe, format_) == _our_exemplar_text(probe)


class Lines(NamedTuple):
    """The text of a family in a format, without its values."""

    head: str
    """The text before the samples: help and type, beginning with a line break."""

    prefixes: list[str]
    """The text before each value, beginning with a line break."""

    are_plain: bool
    """Whether the names are plain, so that most formats have the same prefixes."""


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
    return text if number < _LARGEST_PLAIN else _with_exponent(text)


def _with_exponent(text: str) -> str:
    """Return a large number as Go writes it, from how Python does."""
    point = text.find(".")
    if point <= 6:  # Python writes it with an exponent too
        return text
    digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
    return f"{digits}e+{point - 1:02d}"


def written(values: Sequence[float]) -> list[str]:
    """Return each value as it is written in the exposition."""
    texts = list(map(repr, values))
    others = [at for at, value in enumerate(values) if not -math.inf < value < _LARGEST_PLAIN]
    for at in others:  # NaN too
        value = values[at]
        is_finite = 0 < value < math.inf
        texts[at] = _with_exponent(texts[at]) if is_finite else go_float(value)
    return texts


_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLAIN_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SEPARATE = ("_created", "_gsum", "_gcount")
"""Suffixes of samples that prometheus_client writes as a family of their own."""


def lines_of(family: RenderedFamily, format_: Format, as_text: Lines | None = None) -> Lines:
    """Return a family's lines in a format.

    Args:
        family: The family.
        format_: The format.
        as_text: Its lines in the text format; formats with the same lines share them.

    Raises:
        ValueError: prometheus_client does not write one line for each sample of the family.
    """
    head = "\n" + format_.render([family.metric()]).decode()[:-1]
    try:
        if as_text is None:
            return Lines(head, _plain_line_prefixes(family), are_plain=True)
        if as_text.are_plain:
            # Some formats change plain names, too. Check the sample with the most labels.
            at, (name, labels) = max(
                enumerate(family.samples), key=lambda numbered: len(numbered[1][1])
            )
            one = family.metric()
            one.samples = [Sample(name, dict(labels), 0.0)]
            if _their_line_prefixes(one, head, format_) == [as_text.prefixes[at]]:
                return as_text._replace(head=head)
    except ValueError:
        pass
    zeros = family.metric([0.0] * len(family.samples))
    return Lines(head, _their_line_prefixes(zeros, head, format_), are_plain=False)


def _plain_line_prefixes(family: RenderedFamily) -> list[str]:
    """Return the text before each value if every release writes all names unchanged.

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


def are_plain_labels(names: Iterable[str]) -> bool:
    """Return whether names of labels need neither quotes nor escapes in any format."""
    return all(map(_PLAIN_LABEL.fullmatch, names))


def _plain_label(name: str, value: str) -> str:
    """Return a label as it is written in a line.

    Raises:
        ValueError: Its name is not plain.
    """
    if not _PLAIN_LABEL.fullmatch(name):
        raise ValueError(f"the label name {name!r} needs quotes or escapes")
    return f'{name}="{_escaped(value)}"'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


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
