"""Collectors of the user's that run in the exporter: ``metrics_collectors``.

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
"""How long a collector may take, its import included."""

_MOST_TEXT = 300
_METRIC_NAME = re.compile("[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")


class _Run:
    """One call of a collector's, on a thread of its own."""

    def __init__(self, collector: UserCollector) -> None:
        """Prepare the thread."""
        self.families: list[Metric] = []
        self._thread = threading.Thread(target=collector.run, args=(self,), daemon=True)
        self._deadline = time.monotonic() + LONGEST_SECONDS

    def start(self) -> None:
        """Start the thread; raises if there are too many."""
        self._thread.start()

    def is_over(self) -> bool:
        """Return whether it has ended."""
        return not self._thread.is_alive()

    def wait(self) -> bool:
        """Wait until it ends or its time is over; return whether it has ended."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        return self.is_over()


class UserCollector:
    """One collector, imported and run on threads that nobody waits for longer than they may take.

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

    def families(self) -> list[Metric]:
        """Return its families; none if it fails or is not done in time. Never raises.

        Scrapes that overlap share one call. A hung collector delays one scrape only; it
        is not called again meanwhile.
        """
        with self._lock:
            call = self._last
            if call is None or call.is_over():
                call = _Run(self)
                try:
                    call.start()
                except RuntimeError as error:  # no more threads
                    self._fail("error", "it could not be run", error)
                    return []
                self._last = call
        if call.wait():
            return call.families
        with self._lock:
            self._fail("timeout", f"it took longer than {LONGEST_SECONDS:g} s")
        return []

    def run(self, call: _Run) -> None:
        """Run the collector; on a thread of its own."""
        try:
            if self._collector is None:
                self._collector = _import(self.name)
            families = list(self._collector.collect())
        except BaseException as error:  # SystemExit too: it is not this process's to end
            with self._lock:
                self._fail("error", "it raised", error)
            return
        failures = []
        for family in families:
            try:
                call.families.append(_checked(family))
            except BaseException as error:  # whatever it is, it may raise anything
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
    """All of them, as one collector that never fails."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the collectors by their import strings; nothing is imported."""
        self._collectors = [UserCollector(name) for name in names]

    def collect(self) -> Iterable[Metric]:
        """Return the families of all that can be had, and how often each could not."""
        if not self._collectors:
            return
        found = self._all_families()
        failures = CounterMetricFamily(
            "obskit_gunicorn_collector_failures",
            "Scrapes that a collector of metrics_collectors was left out of.",
            labels=["collector", "reason"],
        )
        for collector in self._collectors:
            for reason in ("error", "timeout"):
                failures.add_metric([collector.name, reason], collector.failures[reason])
        yield failures  # first, for of two families of one name the second is left out
        for families in found:
            yield from families

    def _all_families(self) -> list[list[Metric]]:
        """Ask all of them at once, so that one scrape waits for the slowest and not for each."""
        found: list[list[Metric]] = [[] for _ in self._collectors]

        def ask(number: int) -> None:
            found[number] = self._collectors[number].families()

        threads = []
        for number in range(1, len(self._collectors)):
            thread = threading.Thread(target=ask, args=(number,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads
                ask(number)
            else:
                threads.append(thread)
        ask(0)
        for thread in threads:
            thread.join()
        return found


class _NotACollectorError(TypeError):
    """What is named is not a collector; a traceback would say nothing more."""


def _import(name: str) -> Any:
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
        Exception: There is none.
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
    """Refuse a name that would cost Prometheus the whole exposition."""
    is_escaped = name and name.isprintable() and _prometheus.escapes_names()
    if not allowed.fullmatch(name) and not is_escaped:
        raise ValueError(f"{name!r} is not a name for a metric or a label")


def _shown(thing: object) -> str:
    """Return something of a user's as text for the log, where its own may fail or be long."""
    try:
        text = str(thing if isinstance(thing, BaseException) else getattr(thing, "name", thing))
    except BaseException:
        return f"an object of {type(thing).__qualname__}"
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
