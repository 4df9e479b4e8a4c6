"""Every name of prometheus_client that is not part of its public interface.

They are used here and nowhere else, and each has a fallback for releases that no longer have it.
:func:`install` checks them once, when sharing begins. Tested with 0.20 to 0.26.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import warnings
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

import prometheus_client
from prometheus_client import (
    REGISTRY,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Summary,
    exposition,
    values,
)
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Exemplar

from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from prometheus_client.registry import Collector, CollectorRegistry

_PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_UNADOPTED = "metrics created before sharing begins are not shared"
_SLOWER = "counting a request costs more"
_UNCLOSED = "close_all_multiprocess_files() leaves our files open"
_CALLBACKS = "gauges with set_function are not recognised"
_ONE_PROCESS = "remove(), clear() and metrics_max_series act on one process"
_WITHOUT = {
    "Counter.labels": _ONE_PROCESS,
    "Counter._metric_init": _UNADOPTED,
    "Counter._value": _SLOWER,
    "Histogram._buckets": _SLOWER,
    "Histogram._sum": _SLOWER,
    "CollectorRegistry._collector_to_names": "replace_registry() does nothing, and nothing says "
    "which metrics cannot be shown",
    "Gauge._child_samples": _CALLBACKS,
    "Gauge._labelnames": _CALLBACKS,
    "Gauge._metrics": _CALLBACKS,
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
        self.parent = parent_of_new_child()


@functools.cache
def problem() -> Problem | None:
    """Return why this release of prometheus_client cannot be used; ``None`` if it can.

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
        return None
    values.ValueClass = getattr(values, "MutexValue", before)  # no later release needs it
    from importlib import metadata  # heavy

    try:
        version = f" {metadata.version('prometheus-client')}"
    except metadata.PackageNotFoundError:
        version = ""
    text = f"prometheus-client{version} is too old"
    return Problem(text, "pip install 'prometheus-client>=0.20'")


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
        gauge = Gauge("probe", "", ["label"], registry=None)
        child = gauge.labels("")
        child.set_function(float)
        labelled = Counter("probe", "", ["label"], registry=None)
        found = getattr(labelled.labels(""), "_value", None)
    finally:
        values.ValueClass = value_class
    cleanups = getattr(values, "_multi_process_cleanups", None)
    if cleanups is not None and close not in cleanups:
        cleanups.append(close)
    has_closing = hasattr(values, "close_all_multiprocess_files")  # from 0.26 on
    has_all = {
        "Counter.labels": getattr(found, "parent", None) is labelled
        and isinstance(children_of(labelled), dict)
        and parent_of(labelled) == Parent("counter", "probe", ("label",)),
        "Counter._metric_init": hasattr(counter, "_metric_init"),
        "Counter._value": isinstance(getattr(counter, "_value", None), _Probe),
        "Histogram._buckets": bool(getattr(histogram, "_buckets", None)),
        "Histogram._sum": isinstance(getattr(histogram, "_sum", None), _Probe),
        "CollectorRegistry._collector_to_names": hasattr(REGISTRY, "_collector_to_names"),
        "Gauge._child_samples": "_child_samples" in vars(child),
        "Gauge._labelnames": hasattr(gauge, "_labelnames"),
        "Gauge._metrics": hasattr(gauge, "_metrics"),
        "exposition.choose_encoder": hasattr(exposition, "choose_encoder"),
        "values._multi_process_cleanups": cleanups is not None or not has_closing,
        "values.close_all_multiprocess_files": has_closing or cleanups is None,
        "MultiProcessCollector._path": "_path" in MultiProcessCollector.__init__.__code__.co_names,
    }
    return [f"{name} ({_WITHOUT[name]})" for name, is_there in has_all.items() if not is_there]


def installed() -> type:
    """Return the value class in which metrics that are created now store their numbers."""
    found: type = values.ValueClass
    return found


def is_their_class(kind: type) -> bool:
    """Return whether a class is any of prometheus_client's own value classes."""
    return kind.__module__ == values.__name__ and hasattr(kind, "get_exemplar")


def is_their_value(found: object) -> bool:
    """Return whether an object is an instance of any of prometheus_client's own value classes."""
    return is_their_class(type(found))


def is_their_metric(found: object) -> bool:
    """Return whether an object is a metric, or a child of a metric with labels."""
    # Not isinstance(), which would make lazy objects of the application evaluate themselves.
    return issubclass(type(found), (Counter, Gauge, Histogram, Summary, Info, Enum))


def collectors_of(registry: CollectorRegistry) -> list[Collector] | None:
    """Return what is registered with a registry, or ``None`` if it does not say."""
    registered = getattr(registry, "_collector_to_names", None)
    if registered is None:
        return None
    with getattr(registry, "_lock", contextlib.nullcontext()):
        return list(registered)


def callback_labels(metric: object) -> list[dict[str, str]]:
    """Return the labels of each series of a gauge whose value is that of a function.

    ``set_function`` gives the series its method that returns the samples.
    """
    if "_child_samples" in vars(metric):
        return [{}]
    names = getattr(metric, "_labelnames", ())
    children = dict(getattr(metric, "_metrics", {}))
    return [
        dict(zip(names, labels, strict=True))
        for labels, child in children.items()
        if "_child_samples" in vars(child)
    ]


class Told(NamedTuple):
    """What an Info or Enum, or one of its children, says now."""

    type: str
    """``info`` or ``stateset``."""

    name: str
    help: str
    labels: dict[str, str]
    content: dict[str, str]
    """Of an Info its names and values; of an Enum each of its states with ``1`` or ``0``."""


def told_by(metric: Any) -> Told | None:
    """Return what an Info or Enum says; ``None`` if it has children that do, or does not tell."""
    try:
        if metric._labelnames and not metric._labelvalues:
            return None
        labels = dict(zip(metric._labelnames, metric._labelvalues, strict=True))
        said, content = metric._value, dict[str, str]()
        if isinstance(metric, Enum):
            for number, state in enumerate(metric._states):
                content.setdefault(state, "1" if number == said else "0")
        else:
            content = {str(name): str(said[name]) for name in sorted(said)}
        return Told(metric._type, metric._name, metric._documentation, labels, content)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def is_told(told: Told) -> bool:
    """Return whether something else is said than by one that was only made."""
    content = told.content
    return bool(content) if told.type == "info" else next(iter(content.values())) != "1"


def is_state_metric(found: object) -> bool:
    """Return whether an object is an Info or Enum, or a child of one with labels."""
    return issubclass(type(found), (Info, Enum))


def notice_states(
    made: Callable[[Any], object],
    told: Callable[[Any], object],
    removed: Callable[[Any, float, dict[str, str]], object],
    is_shown: Callable[[Any, dict[str, str]], bool],
) -> None:
    """Notice from now on when an Info or Enum is made, when it is told something, or removed.

    There is no value class for them, as there is for numbers: what they say is in the object. So
    those of their methods that say something are replaced by methods that call these functions
    afterwards. May be called again; then nothing changes.

    Args:
        made: Called with one that was made, or with a child.
        told: Called with one whose ``info()`` or ``state()`` has returned.
        removed: Called with one of whose children some were removed, with the time before that,
            Unix seconds, and with labels that all these children have.
        is_shown: Asked, with its labels, whether any process has a child that is removed and that
            this one does not have; otherwise older releases raise a KeyError.
    """
    if hasattr(Info.info, "obskit_noticed"):
        return

    def call_after(kind: Any, name: str, after: Callable[..., object]) -> None:
        method = getattr(kind, name)

        @functools.wraps(method)
        def noticed(self: Any, *args: Any, **keywords: Any) -> Any:
            began = time.time()
            try:
                result = method(self, *args, **keywords)
            except KeyError:
                if name != "remove" or not is_shown(self, _named(self, args)):
                    raise
                result = None
            after(self, began, *args, **keywords)
            return result

        noticed.obskit_noticed = True  # type: ignore[attr-defined]
        setattr(kind, name, noticed)

    def after_remove(metric: Any, began: float, *values: Any) -> None:
        removed(metric, began, _named(metric, values))

    def after_remove_by_labels(metric: Any, began: float, labels: dict[str, Any]) -> None:
        if labels:
            removed(metric, began, {name: str(value) for name, value in labels.items()})

    def after_clear(metric: Any, began: float) -> None:
        if metric._labelnames:
            removed(metric, began, {})

    for kind, tell in ((Info, "info"), (Enum, "state")):
        call_after(kind, "__init__", lambda metric, *_, **__: made(metric))
        call_after(kind, tell, lambda metric, *_, **__: told(metric))
        call_after(kind, "remove", after_remove)
        call_after(kind, "clear", after_clear)
        if hasattr(kind, "remove_by_labels"):
            call_after(kind, "remove_by_labels", after_remove_by_labels)


def _named(metric: Any, values: Sequence[Any]) -> dict[str, str]:
    """Return label values with their names."""
    return dict(zip(metric._labelnames, map(str, values), strict=False))


_LABELS = getattr(Counter.labels, "__code__", None)
"""The code that makes children. A child does not know its parent, but is made while this runs."""

_MOST_FRAMES = 16


def parent_of_new_child() -> Any:
    """Return the metric whose ``labels()`` makes a child right now, if that has called this.

    Its lock is held then.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        if frame.f_code is _LABELS:
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


class Parent(NamedTuple):
    """What a metric with labels says about itself."""

    kind: str
    """Its type."""

    name: str
    """Its name; a counter's without ``_total``."""

    labels: tuple[str, ...]
    """The names of its labels."""


def parent_of(metric: Any) -> Parent | None:
    """Return what a metric with labels says about itself; ``None`` if it does not."""
    try:
        return Parent(metric._type, metric._name, tuple(metric._labelnames))
    except (AttributeError, TypeError):
        return None


def lock_of(metric: Any) -> AbstractContextManager[Any]:
    """Return the lock that guards the children of a metric."""
    found: AbstractContextManager[Any] = getattr(metric, "_lock", contextlib.nullcontext())
    return found


def children_of(metric: Any) -> Any:
    """Return the dictionary in which a metric keeps its children; ``None`` if it has none.

    By their label values. Who changes it holds the metric's lock.
    """
    return getattr(metric, "_metrics", None)


def values_in(child: object) -> list[Any]:
    """Return what might be the values of a child of a metric: its attributes, and in lists."""
    found: list[Any] = []
    for attribute in vars(child).values():
        found += attribute if isinstance(attribute, list) else [attribute]
    return found


def allow_removal() -> None:
    """Do without the warning that label sets cannot be removed in multiprocess mode."""
    warnings.filterwarnings(
        "ignore",
        r"(Removal of|Clearing) labels has not been implemented in\s+multi-process",
        UserWarning,
        r"prometheus_client\.metrics",
    )


def make_values_anew(metric: Any) -> bool:
    """Make a metric create its values again, at 0; return whether this is possible."""
    make = getattr(metric, "_metric_init", None)
    if make is not None:
        make()
    return make is not None


def file_of(value: Any) -> str | None:
    """Return the path of the file of one of prometheus_client's own values; empty if unknown.

    ``None`` if it has no file.
    """
    if not getattr(value, "_multiprocess", True):
        return None
    value.get()  # after a fork it opens another file when it is next used
    file = getattr(getattr(value, "_file", None), "_f", None)
    return "" if file is None else str(file.name)


def kept_values(kind: type) -> list[Any]:
    """Return the list in which one of their value classes keeps all its values, to be changed."""
    found = _enclosed(kind, "values")
    return found if isinstance(found, list) else []


def close_files(kind: type) -> None:
    """Close the files of one of their value classes that has no values any more."""
    files = _enclosed(kind, "files")
    if isinstance(files, dict):
        for file in files.values():
            file.close()
        files.clear()


def _enclosed(kind: type, name: str) -> object:
    """Return what the methods of a value class share: variables of the function that made it."""
    for method in vars(kind).values():
        names = getattr(getattr(method, "__code__", None), "co_freevars", ())
        if name in names:
            return method.__closure__[names.index(name)].cell_contents
    return None


def adder(metric: Any) -> Callable[[float], None]:
    """Return a function that adds to a counter or gauge, without the checks of ``inc``."""
    try:
        add: Callable[[float], None] = metric._value.inc
    except AttributeError:
        add = metric.inc
    return add


def value_of(metric: Any) -> Any:
    """Return the value of a counter or gauge; ``None`` if it is not known where that is."""
    return getattr(metric, "_value", None)


def values_of(histogram: Any) -> tuple[Any, list[Any]]:
    """Return the sum and the buckets of a histogram; ``None`` and nothing if they are not known."""
    buckets = getattr(histogram, "_buckets", None)
    return getattr(histogram, "_sum", None), list(buckets or ())


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


def exemplar_adder(metric: Any, bounds: Sequence[float]) -> Callable[[float, dict[str, str]], None]:
    """Return a function that gives the bucket of a number an exemplar with these labels.

    It does nothing if it is not known where the histogram's buckets are.

    Args:
        metric: The histogram.
        bounds: The upper bounds of its buckets, except infinity.
    """
    _sum, buckets = values_of(metric)

    def add(number: float, labels: dict[str, str]) -> None:
        if buckets:
            exemplar = Exemplar(labels, number, time.time())
            buckets[bisect_left(bounds, number)].set_exemplar(exemplar)

    return add


def collector_path(collector: object) -> str | None:
    """Return the directory of one of prometheus_client's collectors, if known."""
    return getattr(collector, "_path", None)


def set_collector_path(collector: Any, path: str) -> None:
    """Make one of prometheus_client's collectors read another directory."""
    collector._path = path


def is_collector(found: object) -> bool:
    """Return whether an object is a collector of a multiprocess directory, theirs or ours."""
    kind = type(found)
    return issubclass(kind, MultiProcessCollector) or (
        kind.__name__ == MultiProcessCollector.__name__ and hasattr(kind, "merge")
    )


def choose_encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """Return the encoder and the content type for a well-formed ``Accept`` header."""
    with contextlib.suppress(AttributeError):
        return exposition.choose_encoder(accept)
    return prometheus_client.generate_latest, _PLAIN_TEXT


def escapes_names() -> bool:
    """Return whether names beyond the old character set are quoted or escaped: from 0.22 on."""
    return is_metric_name("a.b")


@functools.lru_cache(maxsize=1024)
def is_metric_name(name: str) -> bool:
    """Return whether this release accepts the name of a metric."""
    try:
        Metric(name, "", "untyped")
    except ValueError:
        return False
    return True
