"""What is the same for all workers, and so must not be added up: a queue, and what is deployed.

The exporter imports this module, and calls ``collect`` at each scrape. It imports nothing that is
large, for the exporter's memory is not shared with the workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Info
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

QUEUE = Path("queue")

build = Info("shop_build", "What is deployed.", registry=None)
build.info({"commit": "abc123"})


class Queue:
    """How many orders wait; counted at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """Count the files of the queue."""
        waiting = len(list(QUEUE.glob("*.order")))
        yield GaugeMetricFamily("shop_queue_length", "Orders that wait.", waiting)
