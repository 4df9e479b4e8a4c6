"""Pods that live for seconds, and a real Prometheus: what they counted is there, all of it."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import stores
from tests.support.databases import Database
from tests.support.fleet import CONFIG, Fleet
from tests.support.process import wait_until
from tests.support.serving import ServeProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stores import StoreServer

pytestmark = pytest.mark.live

SCRAPES = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: fleet
    static_configs:
      - targets: ["127.0.0.1:PORT"]
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreServer]:
    """Return a store."""
    yield from stores.running(tmp_path / "store")


@pytest.mark.parametrize(
    ("pods", "at_once", "least", "most"),
    [
        (4, 4, 1.0, 3.0),
        pytest.param(30, 6, 4.0, 14.0, marks=[pytest.mark.load, pytest.mark.timeout(600)]),
    ],
)
def test_all_is_counted(
    store: StoreServer, tmp_path: Path, pods: int, at_once: int, least: float, most: float
) -> None:
    """Through the store, and by push: the last values are all that the pods have counted."""
    serve = ServeProcess("", "--redis", store.url)
    folder = tmp_path / "database"
    folder.mkdir()
    database = Database("prometheus", folder, scrapes=SCRAPES.replace("PORT", str(serve.port)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(database.running())
        stack.enter_context(serve)
        fleet = stack.enter_context(Fleet(store.url, interval=1.0))
        started = iter(range(pods))
        lock = threading.Lock()

        def live() -> None:
            while True:
                with lock:
                    if next(started, None) is None:
                        return
                    host = fleet.start(
                        CONFIG.replace("workers = 2", "workers = 1"),
                        environment={"OBSKIT_METRICS_PUSH": database.url},
                    )
                time.sleep(random.uniform(least, most))
                fleet.stop(host)

        threads = [threading.Thread(target=live) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        truth = fleet.truth()
        assert truth > 10 * pods
        wait_until(
            lambda: database.values('app_requests_total{job="fleet"}') == [truth],
            "the store's total is scraped",
        )
        series = 'app_requests_total{job="gunicorn"}'
        pushed = f"sum(max_over_time({series}[30m]) - min_over_time({series}[30m]))"
        assert database.values(pushed) == [truth]
        assert database.values(f"sum({series})") == []
        assert len(database.ask(f"count_over_time({series}[30m])")) == pods
