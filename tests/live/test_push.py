"""A real Prometheus and a real VictoriaMetrics get what is pushed, and are asked about it."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from obskit_gunicorn._fleet.push import Push, PushError
from tests.support.databases import PASSWORD, USER, Database
from tests.support.process import HOST, wait_until
from tests.support.remote_write import Answer, Request, receiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.live


@pytest.fixture(params=["prometheus", "victoria-metrics"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """One that is not running yet."""
    return Database(request.param, tmp_path)


@pytest.fixture
def prometheus(tmp_path: Path) -> Database:
    """A Prometheus that is not running yet: it is the strict one of the two."""
    return Database("prometheus", tmp_path)


class Host:
    """A host with metrics, which are pushed."""

    def __init__(self, url: str) -> None:
        """Make the metrics.

        Args:
            url: The endpoint.
        """
        registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", ["path"], registry=registry)
        self.took = Histogram("took", "Took.", buckets=(1, 2), registry=registry)
        self.load = Gauge("load", "Load.", ["pid", "job"], registry=registry)
        self.push = Push(url, "web-1", registry.collect)


def test_a_host_that_lives_two_seconds(database: Database) -> None:
    """Every request is in increase(), from the first on, and the series end with the host."""
    with database.running():
        host = Host(database.url)
        host.requests.labels("/").inc(5)
        host.took.observe(1.5)
        host.load.labels("7", "mine").set(2.5)
        host.push.send()
        (found,) = wait_until(lambda: database.ask("load"), "it is found")
        assert found["metric"] == {
            "__name__": "load",
            "instance": "web-1",
            "job": "gunicorn",
            "exported_job": "mine",
            "pid": "7",
        }
        assert float(found["value"][1]) == 2.5
        time.sleep(1)
        host.requests.labels("/").inc(4)
        host.requests.labels("/new").inc(3)
        host.took.observe(0.5)
        host.push.send()
        time.sleep(1)
        host.requests.labels("/").inc()
        host.push.send(ended=True)

        database.wait_for_increase('requests_total{path="/"}', 10)
        database.wait_for_increase('requests_total{path="/new"}', 3)
        database.wait_for_increase("took_count", 2)
        database.wait_for_increase('took_bucket{le="1.0"}', 1)
        database.wait_for_increase('took_bucket{le="+Inf"}', 2)
        history = database.history('requests_total{path="/"}')
        assert [value for _, value in history] == [0, 5, 9, 10]
        assert round(1000 * (history[1][0] - history[0][0])) == 1
        assert [v for _, v in database.history('requests_total{path="/new"}')] == [0, 3, 3]
        # Without markers they would go on for five minutes.
        wait_until(lambda: not database.ask('{instance="web-1"}'), "all have ended")


def test_a_gauge_of_a_worker_that_has_ended(database: Database) -> None:
    """Its series ends at the next push; those of the others go on."""
    with database.running():
        host = Host(database.url)
        host.load.labels("7", "").set(1)
        host.load.labels("8", "").set(2)
        host.push.send()
        wait_until(lambda: database.values("load") == [1, 2], "both are there")
        host.load.remove("7", "")
        host.push.send()
        wait_until(lambda: database.values("load") == [2], "one has ended")


def test_an_endpoint_that_is_down_for_a_while(database: Database) -> None:
    """A push to it fails; the next one after it is back brings all that was counted."""
    host = Host(database.url)
    host.requests.labels("/").inc(5)
    with pytest.raises(PushError, match="Connection refused"):
        host.push.send()
    with database.running():
        host.requests.labels("/").inc()
        host.push.send()
    host.requests.labels("/").inc()
    with pytest.raises(PushError, match="Connection refused"):
        host.push.send()
    with database.running():
        host.requests.labels("/").inc()
        host.push.send()
        database.wait_for_increase("requests_total", 8)


@pytest.mark.parametrize("lost", ["zeros", "values"])
def test_an_answer_that_is_lost(database: Database, lost: str) -> None:
    """If what was stored is not known, the next push is accepted, and nothing counts twice."""

    def forward(request: Request) -> Answer | None:
        connection = http.client.HTTPConnection(HOST, database.port, timeout=10)
        connection.request("POST", "/api/v1/write", request.raw, request.headers)
        status = connection.getresponse().status
        connection.close()
        is_lost = len(proxy.requests) == {"zeros": 1, "values": 2}[lost]
        return None if is_lost else Answer(status)

    with database.running(), receiver() as proxy:
        proxy.answer = forward
        host = Host(proxy.url)
        host.requests.labels("/").inc(5)
        with pytest.raises(PushError):
            host.push.send()
        host.requests.labels("/").inc(2)
        host.push.send()
        host.requests.labels("/").inc()
        host.push.send()
        database.wait_for_increase("requests_total", 8)


def test_a_clock_that_steps_back(prometheus: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every push is accepted while the clock is behind, and nothing is lost."""
    with prometheus.running():
        host = Host(prometheus.url)
        now = time.time()
        for step in (0, -60, -59.9, 0.001, -1):
            monkeypatch.setattr(time, "time", lambda step=step: now + step)
            host.requests.labels("/").inc(2)
            host.push.send()
        host.push.send(ended=True)
        monkeypatch.undo()
        prometheus.wait_for_increase("requests_total", 10)


@pytest.mark.parametrize("is_new", [False, True])
def test_samples_that_are_refused(
    prometheus: Database, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """A new process whose clock is behind is refused, and is accepted when the clock is right."""
    with prometheus.running():
        first, second = Host(prometheus.url), Host(prometheus.url)
        first.requests.labels("/").inc(5)
        first.push.send(ended=True)
        second.requests.labels("/").inc(2)
        if is_new:  # of this series there is nothing newer
            second.requests.labels("/new").inc(3)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 60)
        with pytest.raises(PushError, match=r"answers 400 \(out of order.* look at the clock"):
            second.push.send()
        monkeypatch.undo()
        second.push.send()
        while second.push.held_back:
            second.push.send()
        prometheus.wait_for_increase('requests_total{path="/"}', 7)
        if is_new:
            prometheus.wait_for_increase('requests_total{path="/new"}', 3)


@pytest.mark.parametrize("kind", ["prometheus", "victoria-metrics"])
def test_a_password(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right one nothing is accepted; a file is read again at the next push."""
    database = Database(kind, tmp_path, asks_password=True)
    password = tmp_path / "password"
    with database.running():
        host = Host(database.url)
        host.requests.labels("/").inc(5)
        with pytest.raises(PushError, match=r"answers 401.*: set OBSKIT_METRICS_PUSH_TOKEN"):
            host.push.send()
        monkeypatch.setenv("OBSKIT_METRICS_PUSH_USER", USER)
        monkeypatch.setenv("OBSKIT_METRICS_PUSH_PASSWORD_FILE", str(password))
        password.write_text("open barley\n")
        with pytest.raises(PushError, match="answers 401") as caught:
            host.push.send()
        assert "barley" not in str(caught.value)
        password.write_text(f"{PASSWORD}\n")
        host.push.send()
        database.wait_for_increase("requests_total", 5)
