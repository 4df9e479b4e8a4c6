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
    from tests.support.process import GunicornProcess

__all__ = ["check_counts", "slot_of", "total_as_others_read_it"]


def check_counts(server: GunicornProcess, load: Load, watch: Watch | None = None) -> None:
    """Compare the counters with the tally and with what clients know; look at files and scrapes."""
    metrics = server.metrics()
    total = metrics["app_requests_total", frozenset()]
    assert total == server.tally()
    assert load.answered <= total <= load.answered + len(load.unknown), load.unknown
    assert metrics["app_duration_seconds_count", frozenset()] == total
    assert metrics["app_duration_seconds_bucket", frozenset({("le", "+Inf")})] == total
    assert metrics["app_size_bytes_count", frozenset()] == total
    assert metrics["app_size_bytes_sum", frozenset()] == 3 * total
    assert metrics["app_sum", frozenset()] == total
    assert metrics["app_max", frozenset()] == 7
    assert metrics["obskit_gunicorn_values_not_shared", frozenset()] == 0
    if watch is None:
        return
    assert not watch.wrong
    assert watch.scrapes > 5
    for kind, names in metric_files(server.metrics_directory).items():
        assert len(names) <= 2 * watch.most_processes, (kind, names)


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
