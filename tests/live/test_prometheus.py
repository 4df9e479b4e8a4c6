"""A real Prometheus scrapes exporters while everything about their servers is replaced."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
import urllib.parse
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support import apps
from tests.support.client import Load
from tests.support.exporters import server, wait_until_scraped
from tests.support.missing import find_program
from tests.support.process import (
    HOST,
    GunicornProcess,
    Interpreter,
    Metrics,
    free_port,
    get,
    interpreters,
    wait_until,
)
from tests.support.releases import has_class

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UVICORN = "uvicorn_worker.UvicornWorker"
TOTAL = "app_requests_total"


class Prometheus:
    """A Prometheus that scrapes targets every other second."""

    def __init__(self, directory: Path, targets: list[str], *, features: str = "") -> None:
        """Write its configuration.

        Args:
            directory: Where to put it and its data.
            targets: What to scrape, as ``host:port``.
            features: Features that it has only if they are asked for.
        """
        self._features = [f"--enable-feature={features}"] if features else []
        self._port = free_port()
        self._directory = directory
        (directory / "prometheus.yml").write_text(
            "global: {scrape_interval: 2s, scrape_timeout: 2s}\n"
            "scrape_configs: [{job_name: exporters, static_configs: "
            f"[{{targets: {json.dumps(targets)}}}]}}]\n"
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it."""
        command = [
            find_program("prometheus", "prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={HOST}:{self._port}",
            "--log.level=warn",
            *self._features,
        ]
        with (self._directory / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)

    def samples(self, query: str) -> dict[str, list[tuple[float, float]]]:
        """Return what a query finds, by target: times and values."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            answer = get(self._port, path)
        except (OSError, http.client.HTTPException):
            return {}  # it is starting
        if answer.status == 503:
            return {}
        assert answer.status == 200, answer
        return {
            found["metric"]["instance"]: [
                (float(at), float(value)) for at, value in found.get("values", [found.get("value")])
            ]
            for found in json.loads(answer.body)["data"]["result"]
        }

    def exemplars(self, query: str) -> list[dict[str, str]]:
        """Return the labels of the exemplars that it has kept of a metric."""
        asked = {"query": query, "start": time.time() - 600, "end": time.time() + 60}
        try:
            answer = get(self._port, "/api/v1/query_exemplars?" + urllib.parse.urlencode(asked))
        except (OSError, http.client.HTTPException):
            return []  # it is starting
        found = json.loads(answer.body)["data"] if answer.status == 200 else []
        return [each["labels"] for series in found for each in series["exemplars"]]

    def last(self, query: str) -> dict[str, float]:
        """Return the newest value that a query finds, by target."""
        return {instance: values[-1][1] for instance, values in self.samples(query).items()}


def combinations(*, everything: bool) -> list[tuple[Interpreter, str, str]]:
    """Return what to scrape: interpreter, worker class, application.

    The newest Gunicorn with each of three worker classes, and the oldest one with the first of
    them, or with all that it has.
    """
    found = []
    for interpreter in dict.fromkeys((interpreters()[0], interpreters()[-1])):
        found.append((interpreter, "sync", apps.WSGI))
        if everything or interpreter == interpreters()[-1]:
            found.append((interpreter, UVICORN, apps.ASGI))
            if has_class(interpreter, "asgi"):
                found.append((interpreter, "asgi", apps.ASGI))
    return found


def replace(running: GunicornProcess, loads: list[Load]) -> int:
    """Replace the arbiter by SIGUSR2, and return the one that is to be ended."""
    old = running.arbiter_pid
    running.send_signal(signal.SIGUSR2)
    new = wait_until(running.upgraded_arbiter_pid, "there is a new arbiter")
    wait_until(lambda: running.exporter_pids(new), "it has an exporter")
    wait_until(lambda: len(running.worker_pids(new)) >= 2, "it has workers")
    for load in loads:
        load.wait_for(20)
    return old


@pytest.mark.parametrize(
    "everything",
    [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.load)],
)
def test_prometheus_sees_every_request_and_no_gap(tmp_path: Path, everything: bool) -> None:
    """Through recycling, SIGHUP, SIGUSR2 and SIGTERM no scrape fails and no request is missing."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                server(interpreter, f"worker_class = {kind!r}\nmax_requests = 60", app=app)
            )
            for interpreter, kind, app in combinations(everything=everything)
        ]
        targets = [f"{HOST}:{running.metrics_port}" for running in servers]
        for running in servers:
            wait_until_scraped(running)
            assert running.get("/").status == 200
        prometheus = Prometheus(tmp_path, targets)
        stack.enter_context(prometheus.running())
        first = wait_until(
            lambda: len(found := prometheus.last(TOTAL)) == len(targets) and found,
            "each has been scraped",
        )
        assert first == dict.fromkeys(targets, 1)

        loads = [
            stack.enter_context(Load(running.port, threads=1, pause=0.02)) for running in servers
        ]
        for load in loads:
            load.wait_for(70)
        for running in servers:
            running.send_signal(signal.SIGHUP)
        for load in loads:
            load.wait_for(50)
        old = [replace(running, loads) for running in servers]
        for running, pid in zip(servers, old, strict=True):
            running.send_signal(signal.SIGTERM, pid)
        for load in loads:
            load.wait_for(50)
        for load in loads:
            load.stop()
        expected = {
            target: running.tally() for target, running in zip(targets, servers, strict=True)
        }
        for running, load in zip(servers, loads, strict=True):
            answered = load.answered + 1
            assert answered <= running.tally() <= answered + len(load.unknown)
        wait_until(
            lambda: prometheus.last(TOTAL) == expected, "the last request is seen", seconds=20
        )
        assert prometheus.last(f"resets({TOTAL}[10m])") == dict.fromkeys(targets, 0)
        history = prometheus.samples(f"{TOTAL}[10m]")
        for target in targets:
            values = [value for _, value in history[target]]
            assert values[-1] - values[0] == expected[target] - 1
            assert values == sorted(values)

        wait_until(
            lambda: all(running.arbiter_pid not in old for running in servers), "the old ones end"
        )
        end = time.time()
        for running in servers:
            running.send_signal(signal.SIGTERM)
        wait_until(
            lambda: prometheus.last("up") == dict.fromkeys(targets, 0), "they have gone", seconds=30
        )
        for target, ups in prometheus.samples("up[10m]").items():
            before = [value for at, value in ups if at < end]
            assert set(before) == {1}, (target, ups)
            assert len(before) >= 5
        for running in servers:
            running.wait_until_gone()


def value_of(metrics: Metrics, name: str) -> float:
    """Return the sum of the samples with a name."""
    return sum(value for (found, _labels), value in metrics.items() if found == name)


MANY = """
from prometheus_client import Counter, Histogram

MANY = Counter("app_many", "Many.", ["n"])
SECONDS = Histogram("app_seconds", "Seconds.", ["n"])
for number in range(1500):
    MANY.labels(f"{number}").inc(0)


def application(environ, start_response):
    number = environ["QUERY_STRING"] or "0"
    MANY.labels(number).inc()
    SECONDS.labels(number).observe(0.2)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


def test_prometheus_reads_what_is_compressed_in_units(tmp_path: Path) -> None:
    """A large exposition, of which some changes and some is used again from scrape to scrape."""
    with server(interpreters()[-1], "worker_class = 'sync'", app=MANY) as running:
        wait_until_scraped(running)
        target = f"{HOST}:{running.metrics_port}"
        prometheus = Prometheus(tmp_path, [target])
        with prometheus.running():
            counted = int(value_of(running.scrape(), "app_seconds_count"))
            for count in range(1, 8):
                for number in (0, 700, 1499):
                    assert running.get(f"/?{number}").status == 200
                    counted += 1
                wait_until(
                    lambda counted=counted: (  # type: ignore[misc]
                        prometheus.last("sum by (instance) (app_many_total)") == {target: counted}
                    ),
                    f"{counted} are seen",
                )
                assert prometheus.last("count by (instance) (app_many_total)") == {target: 1500}
                found = prometheus.last('app_many_total{n="700"}')
                assert found == {target: count}
                total = prometheus.last("sum by (instance) (app_seconds_count)")
                assert total == {target: counted}
