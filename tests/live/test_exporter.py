"""The exporter's life: it serves beside the workers, outlives their trouble, and ends with them."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.support import apps
from tests.support.client import Load, Watch
from tests.support.exporters import descriptors, server, wait_until_scraped
from tests.support.process import HOST, Interpreter, free_port, get, wait_until
from tests.support.releases import has_class

UVICORN = "uvicorn_worker.UvicornWorker"
APPLICATIONS = {
    "sync": apps.WSGI,
    "gthread": apps.WSGI,
    "gevent": apps.WSGI,
    "asgi": apps.ASGI,
    UVICORN: apps.ASGI,
}


@pytest.fixture(name="worker_class", params=APPLICATIONS)
def _worker_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.releases_differ
def test_serves(interpreter: Interpreter, worker_class: str) -> None:
    """With every worker class, what all workers have counted is at the exporter's address."""
    if not has_class(interpreter, worker_class):
        pytest.skip("this Gunicorn has no asgi worker")
    settings = f"worker_class = {worker_class!r}"
    with server(interpreter, settings, app=APPLICATIONS[worker_class]) as running:
        wait_until_scraped(running)
        for _ in range(30):
            assert running.get("/").status == 200
        assert running.scrape()["app_requests_total", frozenset()] == 30
        wait_until(lambda: get(running.metrics_port, "/-/ready").status == 200, "it is ready")
        missing = get(running.metrics_port, "/nowhere")
        assert missing.status == 404
        assert "/metrics" in missing.body
        assert "/-/ready" in get(running.metrics_port, "/").body


def test_answers_while_all_workers_are_blocked(interpreter: Interpreter) -> None:
    """A scrape and both probes wait for no worker."""
    with server(interpreter, "timeout = 60") as running:
        wait_until_scraped(running)
        wait_until(lambda: get(running.metrics_port, "/-/ready").status == 200, "it is ready")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                get(running.port, "/block?s=4", timeout=0.2)
        for path in ("/metrics", "/-/healthy", "/-/ready"):
            assert get(running.metrics_port, path, timeout=2).status == 200
        wait_until(lambda: running.get("/pid").status == 200, "the workers are free again")


@pytest.mark.releases_differ
def test_comes_back(interpreter: Interpreter) -> None:
    """Killed, it is back by itself, no worker being replaced; and again, and at the same socket."""
    with server(interpreter) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        for _ in range(3):
            (pid,) = running.exporter_pids()
            running.send_signal(signal.SIGKILL, pid)
            wait_until(lambda old=pid: running.exporter_pids() - {old}, "another one")  # type: ignore[misc]
            wait_until_scraped(running)
        assert running.worker_pids() == workers
        assert running.stop() == 0


@pytest.mark.releases_differ
def test_scraped_through_recycling_hup_and_usr2(interpreter: Interpreter) -> None:
    """No scrape is refused and no counter goes back while workers and arbiters are replaced."""
    with server(interpreter, "max_requests = 40") as running:
        wait_until_scraped(running)
        with Watch(running, port=running.metrics_port) as watch, Load(running.port) as load:
            load.wait_for(100)
            running.send_signal(signal.SIGHUP)
            load.wait_for(100)
            old = running.arbiter_pid
            running.send_signal(signal.SIGUSR2)
            new = wait_until(running.upgraded_arbiter_pid, "there is a new arbiter")
            wait_until(lambda: running.exporter_pids(new), "the new arbiter has an exporter")
            wait_until(lambda: len(running.worker_pids(new)) == 2, "it has workers")
            load.wait_for(100)
            running.send_signal(signal.SIGTERM, old)
            wait_until(lambda: not os.path.exists(f"/proc/{old}/cwd"), "the old one has gone")
            load.wait_for(100)
            watch.wait_for_scrapes(20)
            load.stop()
            total = running.scrape()["app_requests_total", frozenset()]
            assert load.answered <= total <= load.answered + len(load.unknown)
        assert watch.wrong == []
        assert watch.refused == 0
        running.send_signal(signal.SIGTERM, new)
        running.wait_until_gone()


@pytest.mark.releases_differ
def test_rolled_back_upgrade(interpreter: Interpreter) -> None:
    """The new arbiter's end takes its exporter with it and leaves the old one's."""
    with server(interpreter) as running:
        wait_until_scraped(running)
        (first,) = running.exporter_pids()
        with Watch(running, port=running.metrics_port) as watch:
            running.send_signal(signal.SIGUSR2)
            new = wait_until(running.upgraded_arbiter_pid, "there is a new arbiter")
            wait_until(lambda: running.exporter_pids(new), "the new arbiter has an exporter")
            watch.wait_for_scrapes(10)
            wait_until(lambda: len(running.worker_pids(new)) == 2, "it has workers")
            running.send_signal(signal.SIGTERM, new)
            wait_until(lambda: running.exporter_pids() == {first}, "only the first is left")
            watch.wait_for_scrapes(10)
        assert watch.refused == 0
        assert running.stop() == 0


def test_reload_with_another_address(interpreter: Interpreter) -> None:
    """A SIGHUP moves it to where the changed option says, and leaves nobody at the old place."""
    ports = free_port(), free_port()
    described = server(interpreter, f'metrics_bind = "{HOST}:{ports[0]}"')
    del described.environment["OBSKIT_METRICS_BIND"]
    with described as running:
        running.metrics_port = ports[0]
        wait_until_scraped(running)
        config = running.root / "gunicorn.conf.py"
        config.write_text(config.read_text().replace(str(ports[0]), str(ports[1])))
        running.send_signal(signal.SIGHUP)
        running.metrics_port = ports[1]
        wait_until_scraped(running)

        def is_refused() -> bool:
            try:
                get(ports[0], "/-/healthy")
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was closed while we were waiting to be accepted
                pass
            return False

        wait_until(is_refused, "nobody is at the old address")
        wait_until(lambda: len(running.exporter_pids()) == 1, "one exporter is left")
        config.write_text(config.read_text().replace(f'"{HOST}:{ports[1]}"', "None"))
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: not running.exporter_pids(), "None means no exporter")
        assert running.stop() == 0


def test_busy_address(interpreter: Interpreter) -> None:
    """A taken address is one error line; metrics are there as soon as it is free."""
    with server(interpreter, serving=True) as first:
        wait_until_scraped(first)
        second = server(interpreter)
        second.metrics_port = first.metrics_port
        second.environment["OBSKIT_METRICS_BIND"] = f"{HOST}:{first.metrics_port}"
        with second:
            second.wait_for_log("metrics_bind")
            for _ in range(20):
                second.get("/")
            assert second.log().count("cannot listen at") == 1
            first.stop()
            wait_until_scraped(second)
            assert second.scrape()["app_requests_total", frozenset()] == 20
            # The arbiter has it now: killed, the exporter comes back at the same socket.
            (pid,) = second.exporter_pids()
            second.send_signal(signal.SIGKILL, pid)
            wait_until_scraped(second)
            assert second.stop() == 0


@pytest.mark.releases_differ
def test_answers_through_the_drain(interpreter: Interpreter) -> None:
    """While workers finish what they have begun, they are scraped; then the exporter ends."""
    with server(interpreter) as running:
        wait_until_scraped(running)

        def in_progress() -> float:
            return running.scrape()["gunicorn_requests_in_progress", frozenset()]

        running.get("/")
        wait_until(lambda: in_progress() == 0, "the first request is over")
        with pytest.raises(TimeoutError):
            get(running.port, "/sleep?s=1.8", timeout=0.2)
        wait_until(lambda: in_progress() == 1, "a worker is at the second one")
        arbiter = running.arbiter_pid
        running.send_signal(signal.SIGTERM)
        seen = 0

        def has_drained() -> bool:
            nonlocal seen
            if running.worker_pids(arbiter):
                with contextlib.suppress(OSError):
                    seen += running.scrape()["app_requests_total", frozenset()] == 1
                    return False
            return True

        wait_until(has_drained, "the workers end")
        assert seen > 1
        running.wait_until_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left(interpreter: Interpreter, number: signal.Signals) -> None:
    """Whatever ends the arbiter, the exporter is gone with the last worker."""
    with server(interpreter, "timeout = 2") as running:
        wait_until_scraped(running)
        running.wait_for_workers(2)
        running.send_signal(number)
        wait_until(lambda: not running.worker_pids(running.launcher.pid), "workers end")  # type: ignore[union-attr]
        running.wait_until_gone()
        # A process is gone from /proc a little before its sockets are closed.
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            get(running.metrics_port, "/-/healthy")


def test_signals_to_the_whole_group(interpreter: Interpreter) -> None:
    """What Ctrl-C and systemd send to every process does not end the exporter before the drain."""
    with server(interpreter) as running:
        wait_until_scraped(running)
        (pid,) = running.exporter_pids()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            running.send_signal(number, pid)
        assert get(running.metrics_port, "/-/healthy").status == 200
        assert running.exporter_pids() == {pid}
        assert running.stop() == 0


def test_inherits_next_to_nothing(newest: Interpreter) -> None:
    """It has the listening socket and the way to its arbiter: no lease, no socket of a worker."""
    with server(newest, shared=True) as running:
        wait_until_scraped(running)
        (pid,) = running.exporter_pids()

        def sockets() -> list[str]:
            targets = descriptors(pid).values()
            return [target for target in targets if target.startswith("socket:")]

        wait_until(lambda: len(sockets()) == 2, "connections of earlier scrapes are closed")
        targets = descriptors(pid).values()
        assert not [target for target in targets if "lease" in target or target.endswith(".db")]
        for worker in running.worker_pids():
            assert _listener(pid) not in descriptors(worker).values()


def _listener(pid: int) -> str:
    """Return a process's listening TCP socket, as /proc shows it."""
    with open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
        listening = {line.split()[9] for line in file if line.split()[3] == "0A"}
    for target in descriptors(pid).values():
        if target.startswith("socket:") and target[8:-1] in listening:
            return target
    raise AssertionError("it does not listen")
