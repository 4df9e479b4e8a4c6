"""prometheus_client's default registry, made to answer for all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from obskit_gunicorn import _prometheus
from obskit_gunicorn._scrape.collector import directory_collector
from obskit_gunicorn._scrape.formats import Families
from obskit_gunicorn._scrape.registry import exposed_once
from obskit_gunicorn._scrape.source import restricted
from obskit_gunicorn._scrape.witness import (
    OF_ONE_PROCESS,
    SHARED,
    is_replaced,
    name_of,
    replaced,
)
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.registry import Collector

_OURS = ("gunicorn_", "obskit_gunicorn_")

_reported: set[str] = set()


def replace_registry() -> None:
    """Make prometheus_client's default registry answer for all workers.

    For an application that serves it with prometheus_client's own ``generate_latest``,
    ``make_wsgi_app`` or ``make_asgi_app``: without this call such a page shows the metrics of the
    worker that happens to answer. Call it once, anywhere: in ``gunicorn.conf.py``, where the
    arbiter runs it and workers inherit it, or in the application. It sets the methods ``collect``
    and ``restricted_registry`` of the object ``REGISTRY``, so it also affects earlier imports.
    Calling it again changes nothing, and it cannot be undone.

    Then the registry shows what all processes of the server share; and what files cannot hold (a
    gauge with ``set_function``, collectors of your own), as the process that answers has it.
    ``process_*`` and ``python_gc_*`` are left out, because they describe only that process. A
    ``MultiProcessCollector`` that is registered too is skipped. Gunicorn's own metrics are shown by
    the exporter only. Outside of a server nothing changes.

    Do not call it if workers push the registry to a gateway: each would push the totals of all.
    ``REGISTRY.get_sample_value`` returns totals too.
    """
    if is_replaced():
        return
    replaced.append(REGISTRY.collect)
    theirs = REGISTRY.restricted_registry

    def restricted_registry(names: Iterable[str]) -> Any:
        if not _is_server():
            return theirs(names)
        wanted = frozenset(names)
        return Families(lambda: restricted(REGISTRY.collect(), wanted))

    REGISTRY.collect = _collect  # type: ignore[method-assign]
    REGISTRY.restricted_registry = restricted_registry  # type: ignore[method-assign]


def _is_server() -> bool:
    return membership.has_ever_begun and membership.directory is not None


def _collect() -> Iterator[Metric]:
    """Yield the families of the default registry, with the values of all workers."""
    (theirs,) = replaced
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
        if isinstance(collector, OF_ONE_PROCESS):
            continue
        if _prometheus.is_collector(collector):
            if _prometheus.collector_path(collector) == path:
                continue
        elif isinstance(collector, SHARED):
            family = shared.pop(name_of(collector), None)
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
