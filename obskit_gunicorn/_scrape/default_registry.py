"""prometheus_client's default registry in one of many workers.

Its metrics have the values of one process. :func:`replace_registry` makes it answer for all of
them; :func:`watch` says that it does not, once somebody asks it.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    REGISTRY,
    Counter,
    Enum,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    Summary,
)
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.registry import Collector

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import Once, log
from obskit_gunicorn._scrape.collector import MultiProcessCollector, directory_collector
from obskit_gunicorn._scrape.formats import Families
from obskit_gunicorn._scrape.registry import exposed_once
from obskit_gunicorn._scrape.source import restricted
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SHARED = (Counter, Gauge, Histogram, Summary)
"""The types of metrics whose values are in files."""

_OF_ONE_PROCESS = (GCCollector, ProcessCollector)
"""What prometheus_client registers by itself, and means nothing without saying which process."""

_OURS = ("gunicorn_", "obskit_gunicorn_")

_NOT_A_ROUTE = frozenset({"get_sample_value", "push_to_gateway", "pushadd_to_gateway"})
"""Functions of prometheus_client that collect a registry for something else than a scrape."""

_replaced: list[Callable[[], Iterable[Metric]]] = []
"""The method of the registry before it was replaced, if it was."""

_reported: set[str] = set()
_asked = Once()


def replace_registry() -> None:
    """Make prometheus_client's default registry answer for all workers.

    For an application that serves it with prometheus_client's own ``generate_latest``,
    ``make_wsgi_app`` or ``make_asgi_app``: without this call such a page shows the metrics of the
    worker that happens to answer. Call it once, anywhere: in ``gunicorn.conf.py``, where the
    arbiter runs it and workers inherit it, or in the application. It sets the methods ``collect``
    and ``restricted_registry`` of the object ``REGISTRY``, so it also affects earlier imports.
    Calling it again changes nothing, and it cannot be undone.

    Then the registry shows what all processes of the server share; and what files cannot hold (an
    Info, an Enum, a gauge with ``set_function``, collectors of your own), as the process that
    answers has it. ``process_*`` and ``python_gc_*`` are left out, because they describe only that
    process. A ``MultiProcessCollector`` that is registered too is skipped. Gunicorn's own metrics
    are shown by the exporter only. Outside of a server nothing changes.

    Do not call it if workers push the registry to a gateway: each would push the totals of all.
    ``REGISTRY.get_sample_value`` returns totals too.
    """
    if is_replaced():
        return
    _replaced.append(REGISTRY.collect)
    theirs = REGISTRY.restricted_registry

    def restricted_registry(names: Iterable[str]) -> Any:
        if not _is_server():
            return theirs(names)
        wanted = frozenset(names)
        return Families(lambda: restricted(REGISTRY.collect(), wanted))

    REGISTRY.collect = _collect  # type: ignore[method-assign]
    REGISTRY.restricted_registry = restricted_registry  # type: ignore[method-assign]


def is_replaced() -> bool:
    """Return whether the default registry answers for all workers."""
    return bool(_replaced)


def unshared() -> dict[Collector, str]:
    """Return what the default registry has that files cannot hold, each with its name."""
    found: dict[Collector, str] = {}
    for collector in _prometheus.collectors_of(REGISTRY) or ():
        if isinstance(collector, (Info, Enum)):
            found[collector] = f"{_name_of(collector)} ({type(collector).__name__})"
        elif isinstance(collector, _SHARED):
            if _prometheus.callback_labels(collector):
                found[collector] = f"{_name_of(collector)} (set_function; shown as 0)"
        elif not isinstance(
            collector,
            (*_OF_ONE_PROCESS, PlatformCollector, TheirCollector, MultiProcessCollector, _Witness),
        ):
            found[collector] = f"{type(collector).__module__}.{type(collector).__qualname__}"
    return found


def watch() -> None:
    """Log it, once for all workers, when somebody scrapes the default registry of this process."""
    if not is_replaced():
        REGISTRY.register(_Witness())


class _Witness(Collector):
    """A collector without metrics, which notices that it is asked."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering it collects nothing."""
        return []

    def collect(self) -> list[Metric]:
        """Log who asks, unless that was logged before."""
        asking = _asking()
        if asking is not None and not is_replaced() and _asked.first():
            log.warning(
                "obskit: %s shows the metrics of one worker only: the default registry of "
                "prometheus_client knows no others. Call obskit_gunicorn.replace_registry() in "
                "gunicorn.conf.py, or use generate_latest, make_wsgi_app or make_asgi_app of "
                "obskit_gunicorn.multiprocess",
                asking,
            )
        return []


def _asking() -> str | None:
    """Return which line of which file collects the registry, or ``None`` if that is no scrape."""
    for frame, line in traceback.walk_stack(sys._getframe(2)):
        module = str(frame.f_globals.get("__name__"))
        if not module.startswith("prometheus_client."):
            return f"{frame.f_code.co_filename}:{line}"
        if frame.f_code.co_name in _NOT_A_ROUTE:
            return None
    return None


def _is_server() -> bool:
    return membership.has_ever_begun and membership.directory is not None


def _collect() -> Iterator[Metric]:
    """Yield the families of the default registry, with the values of all workers."""
    (theirs,) = _replaced
    collectors = _prometheus.collectors_of(REGISTRY)
    directory = membership.directory
    if not membership.has_ever_begun or directory is None or collectors is None:
        yield from theirs()
        return
    try:
        snapshot = directory_collector(directory.path).collect()
    except OSError:
        yield from theirs()
        return
    shared = {family.name: family for family in snapshot.metrics()}
    yield from exposed_once(_families(collectors, shared, directory.path), set(), _reported)


def _families(
    collectors: list[Collector], shared: dict[str, Metric], path: str
) -> Iterator[Metric]:
    """Yield every family of the registry, those that are shared first.

    Args:
        collectors: What is registered in this process.
        shared: The families in the directory, by name.
        path: The directory.
    """
    labels = REGISTRY.get_target_info()
    if labels:
        target = Metric("target", "Target metadata", "info")
        target.add_sample("target_info", labels, 1)
        yield target
    rest: list[Collector] = []
    for collector in collectors:
        if isinstance(collector, _OF_ONE_PROCESS):
            continue
        if isinstance(collector, (TheirCollector, MultiProcessCollector)):
            if _prometheus.collector_path(collector) == path:
                continue
        elif isinstance(collector, _SHARED):
            family = shared.pop(_name_of(collector), None)
            if family is not None:
                yield _with_callbacks(family, collector)
                continue
        rest.append(collector)
    # Other workers may have registered more than this one.
    yield from (family for name, family in shared.items() if not name.startswith(_OURS))
    for collector in rest:
        yield from collector.collect()


def _with_callbacks(family: Metric, metric: Collector) -> Metric:
    """Return a shared family with what functions of this process return in place of the zeros."""
    callbacks = [_without_pid(labels) for labels in _prometheus.callback_labels(metric)]
    if callbacks:
        here = [sample for found in metric.collect() for sample in found.samples]
        family.samples = [
            *(each for each in family.samples if _without_pid(each.labels) not in callbacks),
            *(each for each in here if _without_pid(each.labels) in callbacks),
        ]
    return family


def _without_pid(labels: dict[str, str]) -> dict[str, str]:
    """Return labels without the one that tells processes apart."""
    return {name: value for name, value in labels.items() if name != "pid"}


def _name_of(metric: Any) -> str:
    return next((str(family.name) for family in metric.describe()), type(metric).__name__)
