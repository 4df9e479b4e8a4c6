"""prometheus_client's default registry in one of many workers: what it has, and who asks it.

Its metrics have the values of one process. Imported in each worker, so it imports nothing heavy.
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
from prometheus_client.registry import Collector

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import Once, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

SHARED = (Counter, Gauge, Histogram, Summary, Info, Enum)
"""The types of metrics that are shared in files."""

OF_ONE_PROCESS = (GCCollector, ProcessCollector)
"""What prometheus_client registers by itself, and means nothing without saying which process."""

_NOT_A_ROUTE = frozenset({"get_sample_value", "push_to_gateway", "pushadd_to_gateway"})
"""Functions of prometheus_client that collect a registry for something else than a scrape."""

replaced: list[Callable[[], Iterable[Metric]]] = []
"""The method of the registry before :func:`replace_registry` has replaced it, if it has."""

_asked = Once()


def is_replaced() -> bool:
    """Return whether the default registry answers for all workers."""
    return bool(replaced)


def unshared() -> dict[Collector, str]:
    """Return what the default registry has that files cannot hold, each with its name."""
    found: dict[Collector, str] = {}
    for collector in _prometheus.collectors_of(REGISTRY) or ():
        if isinstance(collector, SHARED):
            if _prometheus.callback_labels(collector):
                found[collector] = f"{name_of(collector)} (set_function; shown as 0)"
        elif not (
            isinstance(collector, (*OF_ONE_PROCESS, PlatformCollector, _Witness))
            or _prometheus.is_collector(collector)
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


def name_of(metric: Any) -> str:
    """Return the name of a metric's family, or of its type if it does not say."""
    return next((str(family.name) for family in metric.describe()), type(metric).__name__)
