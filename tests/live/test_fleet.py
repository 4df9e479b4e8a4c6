"""Many hosts in one real store: exact, nothing backwards, and no harm if it is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import Store
from obskit_gunicorn._store.directory import SlotDirectory
from tests.support import apps, stores
from tests.support.fleet import (
    CONFIG,
    COUNTER,
    FLEET,
    Fleet,
    FleetWatch,
    Proxy,
    shows_fleet,
    value,
)
from tests.support.process import get, interpreters, parse_metrics, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.process import GunicornProcess
    from tests.support.stores import StoreServer

pytestmark = pytest.mark.live


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    """Return a store."""
    yield from stores.running(tmp_path / "store")


@pytest.fixture
def fleet(server: StoreServer) -> Iterator[Fleet]:
    """Return servers that come together in it; none yet."""
    with Fleet(server.url) as fleet:
        yield fleet


def settle(fleet: Fleet, watch: FleetWatch | None = None) -> None:
    """Send no more requests, and have everything published and scraped."""
    fleet.rest()
    fleet.publish_all()
    if watch is not None:
        watch.once()


def _wait_for_total(fleet: Fleet, least: int) -> None:
    wait_until(lambda: fleet.total() >= least, f"{least} requests are counted")


def test_rolling_deployment(fleet: Fleet) -> None:
    """Hosts come and go: every request is counted once, no total falls, gauges end with a host."""
    for _ in range(2):
        fleet.start()
    with FleetWatch(fleet) as watch:
        for _ in range(3):
            new = fleet.start()
            fleet.load(new).wait_for(20)
            fleet.stop(fleet.alive[0])
        settle(fleet, watch)
    metrics = fleet.scrape()
    assert value(metrics) == fleet.truth() == watch.increase
    assert value(metrics, "app_duration_seconds_count") == fleet.truth()
    assert value(metrics, "app_size_bytes_sum") == 3 * fleet.truth()
    assert watch.drops == []
    assert watch.scrapes > 10
    assert value(metrics, "obskit_gunicorn_fleet_hosts", state="alive") == 2
    own = [server.scrape() for server in fleet.alive]
    assert value(metrics, "app_livesum") == sum(value(each, "app_livesum") for each in own)
    hosts = {dict(labels)["host"] for name, labels in metrics if name == "gunicorn_workers"}
    assert hosts == {"web-4", "web-5"}
    of_all = [dict(labels) for name, labels in metrics if name == "app_all"]
    assert {labels["host"] for labels in of_all} == hosts
    assert all(labels["pid"].startswith("slot") for labels in of_all)
    assert not any("host" in dict(labels) for server in own for _, labels in server)


def test_host_that_was_folded_returns(server: StoreServer) -> None:
    """A host that is cut off until others have added it up goes on where it was."""
    with Proxy(server.port) as proxy, Fleet(server.url) as fleet:
        fleet.start()
        away = fleet.start(url=proxy.url)
        fleet.load(away).wait_for(20)
        folder = FleetSource(Store(server.url, "default"), forget_seconds=1.0)
        seen = len(fleet.alive)
        with FleetWatch(fleet) as watch:
            wait_until(lambda: fleet.total() > 0, "both are counted")
            fleet.alive.remove(away)
            proxy.cut()
            wait_until(lambda: len(folder.read().hosts) < seen, "the one that is away is folded")
            fleet.load(away).wait_for(20)
            assert get(away.metrics_port, FLEET).status == 503
            assert get(away.metrics_port, "/metrics").status == 200
            proxy.mend()
            wait_until(lambda: get(away.metrics_port, FLEET).status == 200, "it is back")
            fleet.alive.append(away)
            settle(fleet, watch)
        assert fleet.total() == fleet.truth() == watch.increase
        assert watch.drops == []
        away.wait_for_log("works again")
        log = away.log()
        assert log.count("publishing failed") == 1, log
        assert log.count("works again") == 1


def test_exporters_are_killed(fleet: Fleet) -> None:
    """An exporter that is killed comes back, and publishes on."""
    first, _ = fleet.start(), fleet.start()
    with FleetWatch(fleet) as watch:
        for _ in range(4):
            fleet.load(first).wait_for(10)
            (pid,) = first.exporter_pids()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: first.exporter_pids() - {pid}, "another one")  # type: ignore[misc]
            wait_until(lambda: _answers(first), "it answers")
        settle(fleet, watch)
    assert fleet.total() == fleet.truth() == watch.increase
    assert watch.drops == []


def _answers(server: GunicornProcess) -> bool:
    return shows_fleet(server.metrics_port)


def test_two_publish_one_directory(fleet: Fleet) -> None:
    """During an upgrade two exporters publish the same counts, which count once."""
    server, other = fleet.start(), fleet.start()
    with FleetWatch(fleet) as watch:
        fleet.load(server).wait_for(10)
        new = server.start_upgrade()
        wait_until(lambda: len(server.exporter_pids()) == 2, "there are two exporters")
        fleet.load(server).wait_for(20)
        conflicts = "obskit_gunicorn_fleet_conflicts_total"
        wait_until(
            lambda: any(n == conflicts and v for (n, _), v in fleet.scrape(other).items()),
            "both publish",
        )
        server.send_signal(signal.SIGQUIT)
        wait_until(lambda: _is_alone(server, new), "the old one has ended")
        fleet.load(server).wait_for(10)
        settle(fleet, watch)
    metrics = fleet.scrape()
    assert value(metrics) == fleet.truth() == watch.increase
    assert value(metrics, "obskit_gunicorn_fleet_hosts", state="alive") == 2
    assert watch.drops == []


def _is_alone(server: GunicornProcess, arbiter: int) -> bool:
    try:
        return server.arbiter_pid == arbiter
    except FileNotFoundError:  # the new one writes its own in a moment
        return False


def test_reload(fleet: Fleet) -> None:
    """A SIGHUP that brings another exporter changes no count."""
    server = fleet.start()
    with FleetWatch(fleet) as watch:
        fleet.load(server).wait_for(10)
        before = server.exporter_pids()
        config = (server.root / "gunicorn.conf.py").read_text()
        (server.root / "gunicorn.conf.py").write_text(config + '    metrics_path = "/other"\n')
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: not server.exporter_pids() & before, "another exporter serves")
        fleet.load(server).wait_for(10)
        settle(fleet, watch)
    assert fleet.total() == fleet.truth() == watch.increase
    assert watch.drops == []


@pytest.mark.parametrize("keeps", [True, False], ids=["aof", "blank"])
def test_store_is_killed(tmp_path: Path, keeps: bool) -> None:
    """With its log, a killed store costs nothing; without, counting begins anew, cleanly."""
    options = ("--appendonly", "yes", "--appendfsync", "always") if keeps else ()
    store = stores.StoreServer(tmp_path / "store", *options).start()
    try:
        with Fleet(store.url) as fleet:
            fleet.start()
            fleet.start()
            fleet.stop(fleet.start())
            with FleetWatch(fleet) as watch:
                for _ in range(2):
                    fleet.load(fleet.alive[0]).wait_for(30)
                    with fleet.load(fleet.alive[0]).paused(), fleet.load(fleet.alive[1]).paused():
                        fleet.publish_all()
                        watch.once()
                        store.stop(signal.SIGKILL)
                        wait_until(lambda: not _answers(fleet.alive[0]), "the fleet's page is gone")
                        assert get(fleet.alive[0].metrics_port, "/metrics").status == 200
                        store.start()
                    wait_until(lambda: _answers(fleet.alive[0]), "it is back")
                settle(fleet, watch)
            assert watch.increase == fleet.truth()
            if keeps:
                assert fleet.total() == fleet.truth()
                assert watch.drops == []
            else:
                assert len(watch.drops) == 2
    finally:
        store.stop(signal.SIGKILL)


def test_hosts_are_killed_with_their_volumes(fleet: Fleet) -> None:
    """What is lost is what was counted since the last publication, and no more."""
    fleet.start(load=False)
    lost = 0
    with FleetWatch(fleet) as watch:
        for _ in range(2):
            others = fleet.total()
            victim = fleet.start()
            fleet.load(victim).wait_for(20)
            fleet.alive.remove(victim)
            before = victim.tally()
            _wait_for_total(fleet, int(others) + before)
            fleet.alive.append(victim)
            counted = fleet.kill(victim)
            lost += counted - before
        settle(fleet, watch)
    assert fleet.truth() - lost <= fleet.total() <= fleet.truth()
    assert watch.drops == []


def test_volume_that_stays(server: StoreServer) -> None:
    """What a killed server has counted last is published by the next one, before it is wiped."""
    with Fleet(server.url, interval=60.0) as fleet:
        for _ in range(2):
            killed = fleet.start()
            fleet.load(killed).wait_for(30)
            published = fleet.total()
            fleet.load(killed).wait_for(30)
            counted = fleet.kill(killed, volume_stays=True)
            assert published < counted
            next_ = fleet.start(again=killed, load=False)
            _wait_for_total(fleet, counted)
            assert fleet.total() == counted
            metrics = next_.metrics_directory
            assert not list(metrics.glob("unpublished-*"))
            assert value(next_.scrape()) == 0
            fleet.stop(next_)
            fleet.ended[str(next_.root)] = counted
            server.client().flushall()


def _has_begun(parent: Path) -> bool:
    records = parent.rglob("slots.generation")
    return any("started" in SlotDirectory(str(path.parent)).generation() for path in records)


@pytest.mark.parametrize("what", ["directory", "content", "place", "record"])
def test_cleared_directory(fleet: Fleet, tmp_path: Path, what: str) -> None:
    """A directory that is cleared, or made again elsewhere, counts once, and never as less."""
    session = tmp_path / "run" / "session"
    session.mkdir(parents=True, mode=0o700)
    environment = {"RUNTIME_DIRECTORY": f"{session}:{session.parent}"}
    server = fleet.start(shared=False, environment=environment)
    other = fleet.start()
    with FleetWatch(fleet) as watch:
        for _ in range(2):
            fleet.load(server).wait_for(30)
            fleet.publish_all()
            (first,) = session.parent.rglob("obskit-gunicorn-*")
            for path in first.glob("slots.*" if what == "record" else "*"):
                path.unlink(missing_ok=True)
            if what in ("directory", "place"):
                shutil.rmtree(first, ignore_errors=True)  # unless a process was faster
            if what == "place" and first.parent == session:
                session.rmdir()
            wait_until(lambda: _has_begun(session.parent), "it is made again")
            wait_until(lambda: _answers(server), "it is published")
            fleet.load(server).wait_for(30)
        settle(fleet, watch)
        wait_until(lambda: fleet.total(other) == fleet.truth(), "all is published")
    assert watch.increase == fleet.truth()
    assert watch.drops == []
    assert value(fleet.scrape(), "obskit_gunicorn_fleet_hosts", state="alive") == 2


def test_totals_that_are_kept(fleet: Fleet) -> None:
    """With metrics_keep a host that was folded goes on with its totals, and counts them once."""
    config = CONFIG + "    metrics_keep = True\n"
    other = fleet.start(load=False)
    server = fleet.start(config)
    fleet.load(server).wait_for(20)
    folder = FleetSource(Store(fleet.url, "default"), grace_seconds=0.0)
    for _ in range(2):
        fleet.stop(server)
        for _ in range(2):  # seen first, then folded
            folder.read()
        assert fleet.total(other) == server.tally()
        server = fleet.start(config, again=server)
        fleet.load(server).wait_for(20)
    settle(fleet)
    assert fleet.total() == server.tally()


def test_store_hangs(server: StoreServer) -> None:
    """Requests and the host's own page notice nothing of a store that does not answer."""
    with Fleet(server.url) as fleet:
        host = fleet.start()
        wait_until(lambda: _answers(host), "the fleet is shown")
        server.send(signal.SIGSTOP)
        wait_until(lambda: get(host.metrics_port, FLEET).status == 503, "the fleet is not shown")
        own = value(host.scrape())
        fleet.load(host).wait_for(50)
        metrics = host.scrape()
        assert value(metrics) >= own + 50
        wait_until(lambda: value(host.scrape(), "obskit_gunicorn_fleet_store_up") == 0, "down")
        assert get(host.metrics_port, "/-/ready").status == 200
        server.send(signal.SIGCONT)
        wait_until(lambda: value(host.scrape(), "obskit_gunicorn_fleet_store_up") == 1, "it is up")
        settle(fleet)
        assert fleet.total() == fleet.truth()
        host.wait_for_log("works again")
        log = host.log()
        assert log.count("no answer within 1 s") == 1, log
        server.send(signal.SIGSTOP)
        assert host.stop() == 0  # within half a minute
        assert "what was counted last is lost" in host.log()
        server.send(signal.SIGCONT)


APP = (
    apps.WSGI
    + """
from obskit_gunicorn.multiprocess import make_wsgi_app
import sys

SHOWN = make_wsgi_app(fleet=True)
inner = application


def application(environ, start_response):
    if environ["PATH_INFO"] == "/fleet":
        assert "redis" not in sys.modules and "valkey" not in sys.modules
        return SHOWN(environ, start_response)
    return inner(environ, start_response)
"""
)

ASGI_APP = (
    apps.ASGI
    + """
from obskit_gunicorn.multiprocess import make_asgi_app

SHOWN = make_asgi_app(fleet=True)
inner = application


async def application(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/fleet":
        await SHOWN(scope, receive, send)
    else:
        await inner(scope, receive, send)
"""
)

WORKERS = {
    "sync": APP,
    "gthread": APP,
    "gevent": APP,
    "asgi": ASGI_APP,
    "uvicorn_worker.UvicornWorker": ASGI_APP,
}


@pytest.mark.parametrize("worker", WORKERS)
def test_application_shows_the_fleet(fleet: Fleet, worker: str) -> None:
    """Where only one URL is reached, the application shows all hosts, by way of the exporter."""
    config = CONFIG.replace('"gthread"', repr(worker))
    host, other = fleet.start(config, app=WORKERS[worker]), fleet.start()
    fleet.load(host).wait_for(10)
    settle(fleet)
    response = host.get("/fleet")
    assert response.status == 200, response
    assert value(parse_metrics(response.body)) == fleet.truth()
    assert fleet.truth() > host.tally()
    (pid,) = host.exporter_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.get("/fleet").status == 200, "another exporter shows it")
    proxy_status = get(other.metrics_port, "/metrics").status
    assert proxy_status == 200


FUNCTIONS = """
from obskit_gunicorn.hooks import (
    default_on_starting, redis_when_ready, default_worker_int, default_on_exit, default_post_fork
)
workers = 2
metrics_redis_interval = 0.5
on_starting = default_on_starting
when_ready = redis_when_ready
worker_int = default_worker_int
on_exit = default_on_exit
post_fork = default_post_fork
"""


def test_hook_of_another_exporter(fleet: Fleet) -> None:
    """A file of functions works as well; where no store is named, a line says so."""
    host = fleet.start(FUNCTIONS, environment={"OBSKIT_METRICS_REDIS_INTERVAL": ""})
    alone = fleet.start(FUNCTIONS, environment={"OBSKIT_METRICS_REDIS": ""})
    fleet.alive.remove(alone)
    fleet.load(host).wait_for(10)
    settle(fleet)
    assert fleet.total() == host.tally()
    line = "redis_when_ready alone brings no hosts together"
    assert line not in host.log()
    assert alone.log().count(line) == 1
    assert get(alone.metrics_port, FLEET).status == 404


def test_older_gunicorns(fleet: Fleet) -> None:
    """Hosts with all releases of Gunicorn come together."""
    for index in range(len(interpreters())):
        fleet.load(fleet.start(index=index)).wait_for(5)
    settle(fleet)
    assert fleet.total() == fleet.truth()


def test_command(fleet: Fleet, tmp_path: Path) -> None:
    """The command shows hosts and begins anew; `serve --redis` needs no directory."""
    host = fleet.start()
    fleet.load(host).wait_for(10)
    settle(fleet)
    assert fleet.total() == host.tally()

    def run(*arguments: str) -> str:
        command = [host.interpreter.path, "-m", "obskit_gunicorn", "fleet", *arguments]
        result = subprocess.run(
            [*command, "--redis", fleet.url], capture_output=True, text=True, check=True
        )
        return result.stdout

    shown = json.loads(run("--format", "json"))
    assert [each["host"] for each in shown["hosts"]] == ["web-1"]
    assert shown["hosts"][0]["state"] == "alive"
    assert shown["bytes"] > 1000
    assert "web-1" in run()
    assert "has begun" in run("reset")
    wait_until(lambda: value(fleet.scrape(), "app_duration_seconds_count") == 0, "it begins anew")
    assert fleet.total() == 0


def test_names_in_order(fleet: Fleet) -> None:
    """Every sample has its host, and nothing occurs twice."""
    fleet.start()
    fleet.start()
    settle(fleet)
    text = get(fleet.alive[0].metrics_port, FLEET).body
    names = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(names) == len(set(names))
    assert COUNTER in names
