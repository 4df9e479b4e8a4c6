"""Overridden hooks: what forgetting ``super()``, raising and returning ``False`` do."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import apps
from tests.support.checks import check_counts
from tests.support.client import Load, Watch
from tests.support.process import HOST, GunicornProcess, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

FORGETFUL = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    max_requests = 40

    def on_starting(self, server): pass
    def on_reload(self, server): pass
    def when_ready(self, server): pass
    def pre_fork(self, server, worker): pass
    def post_fork(self, server, worker): pass
    def post_worker_init(self, worker): pass
    def worker_int(self, worker): pass
    def worker_abort(self, worker): pass
    def pre_exec(self, server): pass
    def pre_request(self, worker, req): pass
    def post_request(self, worker, req, environ, resp): pass
    def child_exit(self, server, worker): pass
    def worker_exit(self, server, worker): pass
    def nworkers_changed(self, server, new_value, old_value): pass
    def on_exit(self, server): pass
    def ssl_context(self, config, default_ssl_context_factory):
        return default_ssl_context_factory()
    def on_dirty_starting(self, arbiter): pass
    def dirty_post_fork(self, arbiter, worker): pass
    def dirty_worker_init(self, worker): pass
    def dirty_worker_exit(self, arbiter, worker): pass
    def hook_event(self, event): pass
"""


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", ["sync", "uvicorn_worker.UvicornWorker"])
def test_override_that_forgets_super_everywhere_still_counts_exactly(
    interpreter: Interpreter, worker_class: str
) -> None:
    """With every hook overridden and no ``super()``, no count is lost in anything that happens."""
    with GunicornProcess(
        interpreter,
        FORGETFUL,
        apps.WSGI if worker_class == "sync" else apps.ASGI,
        arguments=["--worker-class", worker_class],
    ) as server:
        directories = server.private_directories()
        with Load(server.port) as load, Watch(server) as watch:
            load.wait_for(100)
            with load.paused():
                server.kill_a_worker()
            load.wait_for(30)
            server.send_signal(signal.SIGTTIN)
            server.send_signal(signal.SIGHUP)
            load.wait_for(50)
            old = server.arbiter_pid
            server.start_upgrade()
            server.send_signal(signal.SIGTERM, old)
            wait_until(
                lambda: old not in {process.pid for process in server.processes()},
                "the old arbiter has ended",
            )
            load.wait_for(50)
        check_counts(server, load, watch)
        assert server.private_directories() == directories
        wait_until(server.pid_path.exists, "the new arbiter has taken over")


RAISING = """
import json
import os

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2

    def child_exit(self, server, worker):
        raise RuntimeError("from child_exit")

    def worker_exit(self, server, worker):
        raise RuntimeError("from worker_exit")

    def nworkers_changed(self, server, new_value, old_value):
        if old_value is not None:
            raise RuntimeError("from nworkers_changed")

    def on_reload(self, server):
        raise RuntimeError("from on_reload")

    def pre_exec(self, server):
        raise RuntimeError("from pre_exec")

    def on_exit(self, server):
        raise RuntimeError("from on_exit")

    def hook_event(self, event):
        line = json.dumps([event.name, event.hook, event.pid, repr(event.error)])
        path = os.path.join(os.path.dirname(__file__), "events")
        with open(path, "a") as file:
            file.write(line + "\\n")
"""


@pytest.mark.releases_differ
def test_exception_in_a_contained_hook_leaves_the_server_up(interpreter: Interpreter) -> None:
    """What six hooks raise is logged with its traceback and counted, and the server goes on."""
    with GunicornProcess(interpreter, RAISING) as server:
        arbiter = server.arbiter_pid
        with Load(server.port) as load:
            with load.paused():
                workers = server.wait_for_workers(2)
                server.send_signal(signal.SIGKILL, min(workers))
                workers = server.wait_for_workers(2, without={min(workers)})
            server.send_signal(signal.SIGHUP)
            workers = server.wait_for_workers(2, without=workers)
            load.wait_for(50)
            server.send_signal(signal.SIGTTOU)
            server.wait_for_workers(1)
            server.send_signal(signal.SIGTTIN)
            server.wait_for_workers(2)
            new = server.start_upgrade()
            load.wait_for(50)
            # The raising pre_exec must not have hurt the old arbiter, its workers or its pidfile.
            assert server.pid_path.read_text().strip() == str(arbiter)
            server.send_signal(signal.SIGTERM, new)
            wait_until(
                lambda: new not in {process.pid for process in server.processes()},
                "the new arbiter has ended",
            )
            assert server.arbiter_pid == arbiter
            load.wait_for(50)
        check_counts(server, load)
        metrics = server.metrics()
        for hook in ("child_exit", "worker_exit", "nworkers_changed", "on_reload"):
            labels = frozenset({("hook", hook)})
            assert metrics.get(("gunicorn_hook_failures_total", labels), 0) >= 1, hook
        assert server.stop() == 0
        log = server.log()
        events = [json.loads(line) for line in (server.root / "events").read_text().splitlines()]
        for hook in (
            "child_exit",
            "worker_exit",
            "nworkers_changed",
            "on_reload",
            "pre_exec",
            "on_exit",
        ):
            assert f"RuntimeError: from {hook}" in log
            assert ["hook_failure", hook] in [event[:2] for event in events]
        assert log.count("Traceback (most recent call last)") >= log.count("RuntimeError: from")
        assert "Unhandled exception in main loop" not in log


@pytest.mark.releases_differ
@pytest.mark.parametrize("hook", ["on_starting", "when_ready", "nworkers_changed", "pre_fork"])
def test_exception_at_the_start_ends_the_start(interpreter: Interpreter, hook: str) -> None:
    """Before the server runs, an exception in an override means what it means to Gunicorn."""
    config = f"""
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 1

    def {hook}(self, server, *arguments):
        raise ValueError("from {hook}")
"""
    # Gunicorn counts parameters, and so do we.
    parameters = {"nworkers_changed": ", new_value, old_value", "pre_fork": ", worker"}
    config = config.replace(", *arguments", parameters.get(hook, ""))
    with GunicornProcess(interpreter, config, serving=False) as server:
        assert server.exit_status() != 0
        assert f"ValueError: from {hook}" in server.log()
        server.wait_until_gone()
        assert not server.private_directories()


@pytest.mark.releases_differ
@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
@pytest.mark.parametrize("preload", [False, True])
def test_false_from_a_gate_ends_the_start_with_one_line(
    interpreter: Interpreter, hook: str, preload: bool
) -> None:
    """``False`` ends the start: one error line, a status, and nothing of the server left."""
    config = f"""
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    preload_app = {preload}

    def {hook}(self, server):
        super().{hook}(server)
        return False
"""
    with GunicornProcess(interpreter, config, serving=False) as server:
        assert server.exit_status() == 1
        server.wait_until_gone()
        log = server.log()
        errors = [line for line in log.splitlines() if "[ERROR]" in line]
        assert len(errors) == 1, log
        assert hook in errors[0]
        assert "Config" in errors[0]
        assert "Traceback" not in log
        assert not server.pid_path.exists()
        assert not server.private_directories()
        assert not connects(server.port)


@pytest.mark.parametrize("value", ["None", "True", "0", "''"])
def test_nothing_but_false_ends_the_start(newest: Interpreter, value: str) -> None:
    """A gate that returns anything but ``False`` itself is open."""
    config = f"""
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    def on_starting(self, server):
        return {value}

    def when_ready(self, server):
        return {value}
"""
    with GunicornProcess(newest, config) as server:
        assert server.get("/").status == 200


def test_events_tell_of_every_hook_but_those_of_requests(newest: Interpreter) -> None:
    """``hook_event`` hears of the hooks that ran, in their order, with process and duration."""
    config = """
import json
import os

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 1

    def hook_event(self, event):
        facts = [event.name, event.hook, event.pid, event.time, event.duration_seconds]
        path = os.path.join(os.path.dirname(__file__), "events")
        with open(path, "a") as file:
            file.write(json.dumps([*facts, repr(event.error)]) + "\\n")
"""
    with GunicornProcess(newest, config) as server:
        started = time.time()
        arbiter = server.arbiter_pid
        (worker,) = server.worker_pids()
        for _ in range(5):
            assert server.get("/").status == 200
        assert server.stop() == 0
        events: list[Any] = [
            json.loads(line) for line in (server.root / "events").read_text().splitlines()
        ]
    assert [event[1] for event in events if event[2] == arbiter] == [
        "nworkers_changed",
        "on_starting",
        "when_ready",
        "pre_fork",
        "child_exit",
        "on_exit",
    ]
    assert [event[1] for event in events if event[2] == worker] == [
        "post_fork",
        "post_worker_init",
        "worker_exit",
    ]
    assert all(event[0] == "hook_success" and event[5] == "None" for event in events)
    assert all(abs(event[3] - started) < 60 and 0 <= event[4] < 30 for event in events)


def test_events_that_raise_change_nothing(newest: Interpreter) -> None:
    """An exception in ``hook_event`` is logged, and neither hook nor server is hurt."""
    config = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 2

    def hook_event(self, event):
        raise LookupError("from hook_event")
"""
    with GunicornProcess(newest, config) as server:
        old = server.wait_for_workers(2)
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(2, without=old)
        with Load(server.port) as load:
            load.wait_for(50)
        check_counts(server, load)
        assert server.stop() == 0
        assert "LookupError: from hook_event" in server.log()


# ------------------------------------------------------------------------------------------------


def connects(port: int) -> bool:
    """Return whether somebody listens on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=2):
        return True
    return False
