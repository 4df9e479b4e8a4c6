"""Collectors of the user's that run in the exporter: ``metrics_collectors``.

They are guests: whatever they do, it costs their own families and nothing else.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Guest", "Guests"]

LONGEST_SECONDS = 2.0

log = logging.getLogger("obskit_gunicorn")


class Guest:
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
        self._running: threading.Thread | None = None
        self._families: list[Metric] | None = None
        self._lock = threading.Lock()

    def families(self) -> list[Metric]:
        """Return its families; none if it fails or is not done in time. Never raises."""
        with self._lock:
            thread = self._running
            if thread is None or not thread.is_alive():
                self._families = None
                thread = threading.Thread(target=self._run, daemon=True)
                self._running = thread
                thread.start()
        thread.join(LONGEST_SECONDS)
        if thread.is_alive():
            self._fail("timeout", f"it took longer than {LONGEST_SECONDS:g} s")
            return []
        return self._families or []

    def _run(self) -> None:
        try:
            if self._collector is None:
                self._collector = _import(self.name)
            families = list(self._collector.collect())
            # What cannot be rendered must not fail the scrape later.
            generate_latest(_Families(families))
        except BaseException as error:  # SystemExit too: it is not this process's to end
            self._fail("error", f"it raised {type(error).__name__}: {error}", error)
        else:
            self._families = families

    def _fail(self, reason: str, text: str, error: BaseException | None = None) -> None:
        self.failures[reason] += 1
        if reason not in self._reported:
            self._reported.add(reason)
            log.error(
                "metrics_collectors: %s is left out of scrapes while it fails: %s",
                self.name,
                text,
                exc_info=error,
            )


class Guests(Collector):
    """All of them, as one collector that never fails."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the collectors by their import strings; nothing is imported."""
        self.guests = [Guest(name) for name in names]

    def collect(self) -> Iterable[Metric]:
        """Return the families of all that can be had, and how often each could not."""
        if not self.guests:
            return
        yield from chain.from_iterable(self._all_families())
        failures = CounterMetricFamily(
            "obskit_gunicorn_collector_failures",
            "Scrapes that a collector of metrics_collectors was left out of.",
            labels=["collector", "reason"],
        )
        for guest in self.guests:
            for reason in ("error", "timeout"):
                failures.add_metric([guest.name, reason], guest.failures[reason])
        yield failures

    def _all_families(self) -> list[list[Metric]]:
        """Ask all of them at once, so that one scrape waits for the slowest and not for each."""
        found: list[list[Metric]] = [[] for _ in self.guests]

        def ask(number: int) -> None:
            found[number] = self.guests[number].families()

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, len(self.guests))]
        for thread in threads:
            thread.start()
        ask(0)
        for thread in threads:
            thread.join()
        return found


class _Families(Collector):
    """A list of families, as a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _import(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found() if isinstance(found, type) else found
