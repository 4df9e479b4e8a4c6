"""Label sets of real workers: a budget for them, and removing them."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import LIFESPAN
from tests.support.process import GunicornProcess, wait_until
from tests.support.releases import has_class

if TYPE_CHECKING:
    from tests.support.process import Interpreter

UVICORN = "uvicorn_worker.UvicornWorker"
CLASSES = ("sync", "gthread", "gevent", "asgi", UVICORN)
WORKERS, PATHS, BUDGET = 4, 3000, 100

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 4
    worker_class = {worker_class!r}
    threads = 2 if worker_class == "gthread" else 1
    preload_app = {preload}
    metrics_max_series = {{"*": 1000, "hits_total": 100}}
"""

COUNTED = """
from prometheus_client import Counter, Histogram

HITS = Counter("hits", "By path.", ["path"])
SHOP = Counter("shop", "By shop.", ["shop"])
TIME = Histogram("time", "By shop.", ["shop"], buckets=(1, 2))


def act(path, query):
    if path == "/hits":
        first, _, end = query.partition("-")
        for number in range(int(first), int(end)):
            HITS.labels(f"/{number}").inc()
    elif path == "/shop":
        SHOP.labels(query).inc()
        TIME.labels(query).observe(1.5)
    elif path == "/remove":
        for metric in (SHOP, TIME):
            try:
                metric.remove(query)
            except KeyError:  # older releases of prometheus_client: nobody has it
                pass
    elif path == "/clear":
        SHOP.clear()
        TIME.clear()
"""

WSGI = (
    COUNTED
    + """

def application(environ, start_response):
    act(environ["PATH_INFO"], environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
)

ASGI = (
    COUNTED
    + LIFESPAN
    + """    act(scope["path"], scope["query_string"].decode())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
)


def _server(interpreter: Interpreter, worker_class: str) -> GunicornProcess:
    if not has_class(interpreter, worker_class):
        pytest.skip(f"there is no {worker_class} here")
    return GunicornProcess(
        interpreter,
        CONFIG.format(worker_class=worker_class, preload=worker_class in ("sync", "asgi")),
        ASGI if worker_class in ("asgi", UVICORN) else WSGI,
        exporter=True,
    )


def _kill_a_worker(server: GunicornProcess) -> None:
    """Kill a worker, between two requests, and wait for the one in its place."""
    before = server.wait_for_workers(WORKERS)
    server.kill_a_worker()
    wait_until(
        lambda: len(server.worker_pids()) == WORKERS and server.worker_pids() != before,
        "another worker has taken its place",
    )


def _reload(server: GunicornProcess) -> None:
    before = server.wait_for_workers(WORKERS)
    server.send_signal(signal.SIGHUP)
    server.wait_for_workers(WORKERS, without=before)


def _upgrade(server: GunicornProcess) -> None:
    """Replace the arbiter."""
    old = server.arbiter_pid
    server.send_signal(signal.SIGUSR2)
    new = wait_until(server.upgraded_arbiter_pid, "there is a new arbiter")
    wait_until(lambda: len(server.worker_pids(new)) == WORKERS, "it has its workers")
    server.send_signal(signal.SIGTERM, old)
    wait_until(lambda: old not in {p.pid for p in server.processes()}, "the old one has ended")
    wait_until(lambda: server.pid_path.exists() and server.arbiter_pid == new, "it has taken over")
    server.wait_for_workers(WORKERS)


CHANGES = (_kill_a_worker, _reload, _kill_a_worker, _upgrade)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_label_sets(newest: Interpreter, worker_class: str) -> None:
    """The promises about a budget and about removal, through kills, reloads and upgrades.

    Four workers, 3,000 paths, a budget of 100: 101 label sets, and every count. What is removed is
    gone when the answer is there, and stays so; what comes then is counted.
    """
    rng = random.Random(worker_class)
    sent = 0
    with _server(newest, worker_class) as server:
        for change in CHANGES:
            starts = list(range(0, PATHS, 250))
            rng.shuffle(starts)
            for start in starts[:6]:
                _ask(server, f"/hits?{start}-{start + 250}")
            _ask(server, *["/shop?a"] * 12, *["/shop?b"] * 3)
            assert _shops(server)["a"] == 12
            _ask(server, "/remove?a")
            assert "a" not in _shops(server)
            _ask(server, *["/shop?a"] * 8)
            change(server)
            assert _shops(server)["a"] == 8
            _ask(server, "/remove?a")
            assert "a" not in _shops(server)
            for start in starts[6:]:
                _ask(server, f"/hits?{start}-{start + 250}")
            sent += PATHS
        assert _shops(server) == {"b": 3 * len(CHANGES)}
        # Also in a worker that has counted nothing yet.
        _reload(server)
        _ask(server, "/clear")
        assert _shops(server) == {}
        _ask(server, *["/shop?b"] * 4)
        assert _shops(server) == {"b": 4}
        _check_budget(server, sent)
        assert "UserWarning" not in server.log()


def _ask(server: GunicornProcess, *pages: str) -> None:
    for page in pages:
        assert server.page(page).status == 200


def _shops(server: GunicornProcess) -> dict[str, float]:
    """Return what the counter shows of each shop; the histogram must show the same."""
    found = server.scrape()
    counters = {
        dict(labels)["shop"]: value
        for (name, labels), value in found.items()
        if name == "shop_total"
    }
    for name, factor in (("time_count", 1), ("time_sum", 1.5)):
        assert {
            dict(labels)["shop"]: value / factor
            for (sample, labels), value in found.items()
            if sample == name
        } == counters
    return counters


def _check_budget(server: GunicornProcess, sent: int) -> None:
    found = server.scrape()
    hits = {labels: value for (name, labels), value in found.items() if name == "hits_total"}
    assert len(hits) == BUDGET + 1
    assert sum(hits.values()) == sent
    assert hits[frozenset({("path", "__other__")})] == sent * (PATHS - BUDGET) / PATHS
    over = "obskit_gunicorn_series_over_budget"
    assert found[over, frozenset({("metric", "hits")})] == 1
    lines = [line for line in server.log().splitlines() if "used up its budget" in line]
    assert len(lines) == 1, lines
    assert "hits has used up its budget" in lines[0]
    assert "its label 'path'" in lines[0]
