"""The user's collectors, which run in the exporter: ``metrics_collectors``.

A failing user collector loses only its own families.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.formats import Families

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_SECONDS = 2.0
"""How long a collector may take, including its import."""

_MOST_TEXT = 300
_METRIC_NAME = re.compile("[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")


class _Run(threading.Thread):
    """One call of a collector, on its own thread."""

    def __init__(self, collector: UserCollector) -> None:
        """Prepare the thread; nothing runs."""
        super().__init__(target=collector.run, args=(self,), daemon=True)
        self.families: list[Metric] = []
        self.deadline = time.monotonic() + LONGEST_SECONDS


class UserCollector:
    """One collector; its code runs on a thread of its own, and nobody waits for that too long.

    Thread-safe.
    """

    def __init__(self, name: str) -> None:
        """Name the collector; nothing is imported.

        Args:
            name: Its import string, ``package.module:name``.
        """
        self.name = name
        self.failures: Counter[str] = Counter()
        self._collector: Any = None
        self._reported: set[str] = set()
        self._last: _Run | None = None
        self._lock = threading.Lock()

    def start(self) -> _Run | None:
        """Start to collect, or join a call that is under way; ``None`` if no thread can be started.

        Scrapes that overlap share one call.
        """
        with self._lock:
            if self._last is None or not self._last.is_alive():
                run = _Run(self)
                try:
                    run.start()
                except RuntimeError as error:  # no more threads
                    self._fail("error", "it could not be run", error)
                    return None
                self._last = run
            return self._last

    def families(self, run: _Run | None) -> list[Metric]:
        """Return the families of a run; none if it fails or is not done in time. Never raises.

        A hung collector delays one scrape only; it is not called again in the meantime.
        """
        if run is None:
            return []
        run.join(max(0.0, run.deadline - time.monotonic()))
        if not run.is_alive():
            return run.families
        with self._lock:
            self._fail("timeout", f"it took longer than {LONGEST_SECONDS:g} s")
        return []

    def run(self, call: _Run) -> None:
        """Run the collector; on the thread of the run."""
        try:
            if self._collector is None:
                self._collector = import_collector(self.name)
            families = list(self._collector.collect())
        except BaseException as error:  # SystemExit too: it must not end this process
            with self._lock:
                self._fail("error", "it raised", error)
            return
        failures = []
        for family in families:
            try:
                call.families.append(_checked(family))
            except BaseException as error:  # an unknown object may raise anything
                failures.append((family, error))
        if failures:
            with self._lock:
                family, reason = failures[0]
                self._fail("error", f"its {_shown(family)} cannot be exposed", reason)

    def _fail(self, reason: str, text: str, error: BaseException | None = None) -> None:
        """Count a failure, and log the first of its kind; the caller holds the lock."""
        self.failures[reason] += 1
        if reason in self._reported:
            return
        self._reported.add(reason)
        if error is not None:
            text = f"{text}: {type(error).__name__}: {_shown(error)}"
        log.error(
            "metrics_collectors: %s is left out of scrapes while it fails: %s",
            self.name,
            text,
            exc_info=None if isinstance(error, _NotACollectorError) else error,
        )


class UserCollectors(Collector):
    """All of the user's collectors, as one collector that never fails."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the collectors by their import strings; nothing is imported."""
        self._collectors = [UserCollector(name) for name in names]

    def collect(self) -> Iterable[Metric]:
        """Return the families of all that work, and how often each one failed."""
        if not self._collectors:
            return
        # All of them run at once, so a scrape waits for the slowest one and not for each in turn.
        runs = [collector.start() for collector in self._collectors]
        found = [each.families(run) for each, run in zip(self._collectors, runs, strict=True)]
        failures = CounterMetricFamily(
            "obskit_gunicorn_collector_failures",
            "Scrapes that a collector of metrics_collectors was left out of.",
            labels=["collector", "reason"],
        )
        for collector in self._collectors:
            for reason in ("error", "timeout"):
                failures.add_metric([collector.name, reason], collector.failures[reason])
        yield failures  # first: of two families with one name, the second is left out
        for families in found:
            yield from families


class _NotACollectorError(TypeError):
    """The name is not that of a collector; a traceback would say nothing more."""


def import_collector(name: str) -> Any:
    """Return the collector that an import string names; whatever its module raises comes out."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    collector = found() if isinstance(found, type) else found
    if not callable(getattr(collector, "collect", None)):
        raise _NotACollectorError(
            f"{_shown(found)} has no method collect() that returns metrics; name an object or a "
            "class that has one, such as a prometheus_client metric, registry or collector"
        )
    return collector


def _checked(family: Any) -> Metric:
    """Return a copy of a family that every encoder can render, at any time.

    Raises:
        Exception: Some encoder cannot render it.
    """
    copy = Metric(family.name, family.documentation, family.type, family.unit)
    _check_name(copy.name, _METRIC_NAME)
    for sample in family.samples:
        _check_name(sample.name, _METRIC_NAME)
        for label in sample.labels:
            _check_name(label, _LABEL_NAME)
        value = None if sample.value is None else float(sample.value)
        copy.samples.append(sample._replace(labels=dict(sample.labels), value=value))
    for encode in (generate_latest, generate_openmetrics):
        encode(Families(lambda: [copy]))
    return copy


def _check_name(name: str, allowed: re.Pattern[str]) -> None:
    """Refuse a name that would make Prometheus reject the whole exposition."""
    is_escaped = name and name.isprintable() and _prometheus.escapes_names()
    if not allowed.fullmatch(name) and not is_escaped:
        raise ValueError(f"{name!r} is not a name for a metric or a label")


def _shown(thing: object) -> str:
    """Return a user's object as text for the log; its own text may fail, or be long."""
    try:
        text = str(thing if isinstance(thing, BaseException) else getattr(thing, "name", thing))
    except BaseException:
        return f"an object of {type(thing).__qualname__}"
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
