"""What must hold of a server's counts after whatever has happened to it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import MultiProcessCollector

from tests.support.process import metric_files, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prometheus_client import Metric

    from tests.support.client import Load, Watch
    from tests.support.process import GunicornProcess, Metrics

__all__ = [
    "check_counts",
    "requests_in",
    "slot_of",
    "total_as_others_read_it",
    "wait_until_load_is_counted",
    "wrong_counts",
]


def check_counts(server: GunicornProcess, load: Load, watch: Watch | None = None) -> None:
    """Compare the counters with the tally and with what clients know; look at files and scrapes."""
    assert not wrong_counts(server.metrics(), server.tally(), load)
    if watch is None:
        return
    assert not watch.wrong
    assert watch.scrapes > 5
    for kind, names in metric_files(server.metrics_directory).items():
        assert len(names) <= 2 * watch.most_processes, (kind, names)


def requests_in(metrics: Metrics) -> float:
    """Return how many requests an exposition says were answered."""
    return sum(number for (name, _), number in metrics.items() if name == "gunicorn_requests_total")


def wait_until_load_is_counted(server: GunicornProcess, load: Load, workers: set[int]) -> None:
    """Wait for what is counted later: a request after its answer, a boot once it serves.

    Args:
        server: The server, one of whose pages shows its metrics.
        load: Who has sent the requests; others may have sent some too.
        workers: All workers there were.
    """

    def counted() -> bool:
        metrics = server.metrics()
        boots = metrics["gunicorn_worker_boots_total", frozenset()]
        assert boots <= len(workers)
        return boots == len(workers) and requests_in(metrics) >= load.answered

    wait_until(counted, "requests and boots are counted")


def wrong_counts(metrics: Metrics, tally: int, load: Load) -> list[str]:
    """Return which samples are not what they must be, in words.

    Args:
        metrics: A scrape of one of the applications of ``tests.support.apps``.
        tally: How many requests the application has counted, by its own bookkeeping.
        load: Who has sent them.
    """
    expected = {
        ("app_requests_total", ""): tally,
        ("app_duration_seconds_count", ""): tally,
        ("app_duration_seconds_bucket", "+Inf"): tally,
        ("app_duration_seconds_sum", ""): tally / 16,
        ("app_size_bytes_count", ""): tally,
        ("app_size_bytes_sum", ""): 3 * tally,
        ("app_sum", ""): tally,
        ("app_max", ""): 7,
        ("obskit_gunicorn_values_not_shared", ""): 0,
    }
    wrong = []
    for (name, bound), value in expected.items():
        found = metrics.get((name, frozenset({("le", bound)} if bound else ())))
        if found != value:
            wrong.append(f"{name} is {found}, not {value}")
    if not load.answered <= tally <= load.answered + len(load.unknown):
        wrong.append(
            f"{tally} requests were counted; {load.answered} were answered, and of these it is not"
            f" known: {load.unknown}"
        )
    return wrong


def total_as_others_read_it(directory: Path) -> float:
    """Return the counter of a directory as prometheus_client's own collector reads it."""
    files = [str(path) for path in directory.glob("*.db")]
    families: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "app_requests_total"
    )


def slot_of(directory: Path, pid: int) -> str:
    """Return the slot whose record names a process."""

    def found() -> str:
        for name in os.listdir(directory):
            if name.endswith(".lease"):
                text = (directory / name).read_text()
                if text and json.loads(text)["pid"] == pid:
                    return name.removesuffix(".lease")
        return ""

    return wait_until(found, f"process {pid} has a slot")
