"""Every name of prometheus_client that is not part of its public interface.

They are used here and nowhere else, and each has a fallback for releases that no longer have it.
:func:`install` checks them once, when sharing begins. Tested with 0.20 to 0.26.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import prometheus_client
from prometheus_client import Counter, Enum, Gauge, Histogram, Info, Summary, exposition, values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_UNADOPTED = "metrics created before sharing begins are not shared"
_SLOWER = "counting a request costs more"
_UNCLOSED = "close_all_multiprocess_files() leaves our files open"
_WITHOUT = {
    "Counter._metric_init": _UNADOPTED,
    "Counter._value": _SLOWER,
    "Histogram._buckets": _SLOWER,
    "Histogram._sum": _SLOWER,
    "exposition.choose_encoder": "only the text format 0.0.4 is served",
    "values._multi_process_cleanups": _UNCLOSED,
    "values.close_all_multiprocess_files": _UNCLOSED,
    "MultiProcessCollector._path": "replace_collector() reads PROMETHEUS_MULTIPROC_DIR only",
}
"""What is lost if a name is missing."""


class _Probe:
    """A value that stores nothing, for metrics that are created only to be inspected."""

    _multiprocess = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Accept all arguments."""
        self.arguments = args


@cache
def problem() -> str:
    """Return why this release of prometheus_client cannot be used, and what to do; empty if it can.

    Before 0.16 it does not tell its values the help text of their metric, which is part of their
    key in the file. What works is used, though releases before 0.20 are not tested. With one that
    cannot be used, metrics that are made from now on stay in the memory of their process: its own
    files would need a directory that nobody prepares or reads.
    """
    before, values.ValueClass = values.ValueClass, _Probe
    try:
        value = getattr(Counter("probe", "", registry=None), "_value", None)
    finally:
        values.ValueClass = before
    if not isinstance(value, _Probe) or len(value.arguments) > 5:
        return ""
    values.ValueClass = getattr(values, "MutexValue", before)  # no later release needs it
    from importlib import metadata  # heavy

    try:
        version = f" {metadata.version('prometheus-client')}"
    except metadata.PackageNotFoundError:
        version = ""
    return f"prometheus-client{version} is too old; pip install 'prometheus-client>=0.20'"


def install(value_class: type, close: Callable[[], None]) -> list[str]:
    """Make all metrics that are created from now on store their numbers in a value class.

    Sets ``prometheus_client.values.ValueClass``, which prometheus_client documents.

    Args:
        value_class: The value class.
        close: Closes its files, for ``close_all_multiprocess_files()``.

    Returns:
        The names that this release of prometheus_client does not have, each with what is lost.
    """
    values.ValueClass = _Probe
    try:
        counter = Counter("probe", "", registry=None)
        histogram = Histogram("probe", "", registry=None)
    finally:
        values.ValueClass = value_class
    cleanups = getattr(values, "_multi_process_cleanups", None)
    if cleanups is not None and close not in cleanups:
        cleanups.append(close)
    has_closing = hasattr(values, "close_all_multiprocess_files")  # from 0.21 on
    has_all = {
        "Counter._metric_init": hasattr(counter, "_metric_init"),
        "Counter._value": isinstance(getattr(counter, "_value", None), _Probe),
        "Histogram._buckets": bool(getattr(histogram, "_buckets", None)),
        "Histogram._sum": isinstance(getattr(histogram, "_sum", None), _Probe),
        "exposition.choose_encoder": hasattr(exposition, "choose_encoder"),
        "values._multi_process_cleanups": cleanups is not None or not has_closing,
        "values.close_all_multiprocess_files": has_closing or cleanups is None,
        "MultiProcessCollector._path": "_path" in MultiProcessCollector.__init__.__code__.co_names,
    }
    return [f"{name} ({_WITHOUT[name]})" for name, is_there in has_all.items() if not is_there]


def is_installed(value_class: type) -> bool:
    """Return whether metrics that are created now store their numbers in this value class."""
    return values.ValueClass is value_class


def is_their_value(found: object) -> bool:
    """Return whether an object is an instance of any of prometheus_client's own value classes."""
    kind = type(found)
    return kind.__module__ == values.__name__ and hasattr(kind, "get_exemplar")


def is_their_metric(found: object) -> bool:
    """Return whether an object is a metric, or a child of a metric with labels."""
    return isinstance(found, (Counter, Gauge, Histogram, Summary, Info, Enum))


def make_values_anew(metric: Any) -> bool:
    """Make a metric create its values again, at 0; return whether this is possible."""
    make = getattr(metric, "_metric_init", None)
    if make is not None:
        make()
    return make is not None


def close_their_files() -> None:
    """Close the metric files of prometheus_client's own values in this process."""
    getattr(values, "close_all_multiprocess_files", lambda: None)()


def adder(metric: Any) -> Callable[[float], None]:
    """Return a function that adds to a counter or gauge, without the checks of ``inc``."""
    try:
        add: Callable[[float], None] = metric._value.inc
    except AttributeError:
        add = metric.inc
    return add


def observer(metric: Any, bounds: Sequence[float]) -> Callable[[float], None]:
    """Return a function that adds an observation to a histogram, without the checks of ``observe``.

    Args:
        metric: The histogram.
        bounds: The upper bounds of its buckets, except infinity.
    """
    try:
        add, buckets = metric._sum.inc, [bucket.inc for bucket in metric._buckets]
    except AttributeError:
        observe: Callable[[float], None] = metric.observe
        return observe

    def add_to_bucket(number: float) -> None:
        add(number)
        buckets[bisect_left(bounds, number)](1)

    return add_to_bucket


def collector_path(collector: MultiProcessCollector) -> str | None:
    """Return the directory of one of prometheus_client's collectors, if known."""
    return getattr(collector, "_path", None)


def choose_encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """Return the encoder and the content type for a well-formed ``Accept`` header."""
    with contextlib.suppress(AttributeError):
        return exposition.choose_encoder(accept)
    return prometheus_client.generate_latest, _PLAIN_TEXT


def escapes_names() -> bool:
    """Return whether names beyond the old character set are quoted or escaped: from 0.22 on."""
    return is_metric_name("a.b")


@lru_cache(maxsize=1024)
def is_metric_name(name: str) -> bool:
    """Return whether this release accepts the name of a metric."""
    try:
        Metric(name, "", "untyped")
    except ValueError:
        return False
    return True
