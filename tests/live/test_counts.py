"""The first promise: no count is lost and no counter goes backwards, whatever happens to workers.

Three numbers are compared. The *counter* as the server shows it; the *tally*, which the application
keeps by itself, one byte of a file for each request it has counted; and what the clients know:
requests that were answered, and requests whose outcome is unknown.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support import apps
from tests.support.checks import check_counts, total_as_others_read_it
from tests.support.client import Load, Watch
from tests.support.happenings import (
    Run,
    killed,
    killed_at_rest,
    recycled,
    reloaded,
    resized,
    rolled_back,
    timed_out,
    upgraded,
)
from tests.support.process import (
    GunicornProcess,
    Interpreter,
    interpreters,
    metric_files,
    wait_until,
)
from tests.support.releases import has_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UVICORN = "uvicorn_worker.UvicornWorker"
APPLICATIONS = {
    "sync": apps.WSGI,
    "gthread": apps.WSGI,
    "gevent": apps.WSGI,
    "asgi": apps.ASGI,
    UVICORN: apps.ASGI,
}
RECYCLES = int(os.environ.get("OBSKIT_SOAK_RECYCLES", "2000"))

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    worker_class = {worker_class!r}
    preload_app = {preload}
    threads = 2 if worker_class == "gthread" else 1
    worker_connections = 50
    {settings}
"""


class Variant(NamedTuple):
    """What a scenario is run with.

    Attributes:
        worker_class: Gunicorn's setting.
        preload: Whether the arbiter loads the application.
        shared: Whether PROMETHEUS_MULTIPROC_DIR is set.
    """

    worker_class: str
    preload: bool
    shared: bool

    @property
    def name(self) -> str:
        """A name for the test."""
        return "-".join(
            (
                self.worker_class.rpartition(".")[2].lower(),
                "preloaded" if self.preload else "each",
                "directory" if self.shared else "private",
            )
        )


# ------------------------------------------------------------------------------------------------
# What happens to a server, apart from tests.support.happenings


def daemonised(run: Run) -> None:
    """Recycle the only worker of a daemon, whose configuration another process has loaded."""
    wait_until(lambda: len(run.server.booted_pids()) >= 4, "four workers have been started")
    run.server.send_signal(signal.SIGHUP)
    run.load.wait_for(100)


SCENARIOS: dict[str, tuple[Callable[[Run], None], str]] = {
    "recycled": (recycled, "workers = 2; max_requests = 25"),
    "killed": (killed, "workers = 2"),
    "timed-out": (timed_out, "workers = 2; timeout = 2"),
    "reloaded": (reloaded, "workers = 2"),
    "resized": (resized, "workers = 2"),
    "upgraded": (upgraded, "workers = 2"),
    "rolled-back": (rolled_back, "workers = 2"),
    "daemon": (daemonised, "workers = 1; max_requests = 25"),
}


# ------------------------------------------------------------------------------------------------
# What must hold


@contextlib.contextmanager
def under_load(
    interpreter: Interpreter, variant: Variant, settings: str, *, daemon: bool = False
) -> Iterator[Run]:
    """Run a server under load and watch; afterwards check all that must hold."""
    config = CONFIG.format(
        worker_class=variant.worker_class, preload=variant.preload, settings=settings
    )
    with GunicornProcess(
        interpreter,
        config,
        APPLICATIONS[variant.worker_class],
        shared=variant.shared,
        daemon=daemon,
    ) as server:
        with Load(server.port) as load, Watch(server) as watch:
            load.wait_for(50)
            yield Run(server, load, watch)
        check_counts(server, load, watch)
        if not variant.shared:
            assert len(server.private_directories()) == 1, "the directory is kept throughout"
        server.stop()
        if variant.shared:
            assert total_as_others_read_it(server.metrics_directory) == server.tally()
        else:
            assert not server.private_directories(), "its last holder removes a private directory"


# ------------------------------------------------------------------------------------------------


def variant_of(interpreter: Interpreter, worker_class: str, scenario: str) -> Variant:
    """Return with what a scenario is run.

    With and without preloading and with and without a directory of one's own take turns, so that
    each scenario, each worker class and each Gunicorn meets all four.
    """
    number = list(SCENARIOS).index(scenario)
    turn = (
        interpreters().index(interpreter)
        + list(APPLICATIONS).index(worker_class)
        # Not just the number: neighbours of the other two would meet the same again and again.
        + (number + number // 2 + number // 4)
    ) % 4
    return Variant(worker_class, turn in (0, 3), turn in (0, 1))


@pytest.mark.releases_differ
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("worker_class", APPLICATIONS)
def test_counts_are_exact(interpreter: Interpreter, worker_class: str, scenario: str) -> None:
    """The counter equals the requests counted, at no scrape does it go down, and files stay few."""
    if not has_class(interpreter, worker_class):
        pytest.skip("this Gunicorn has no asgi worker")
    happen, settings = SCENARIOS[scenario]
    variant = variant_of(interpreter, worker_class, scenario)
    with under_load(interpreter, variant, settings, daemon=scenario == "daemon") as run:
        happen(run)


@pytest.mark.releases_differ
def test_quick_start_counts_exactly(interpreter: Interpreter) -> None:
    """The class of the README, with nothing but a number of workers, counts every request."""
    config = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 4
"""
    with GunicornProcess(interpreter, config) as server:
        with Load(server.port, threads=6, pause=0) as load:
            load.wait_for(1000)
        assert not load.unknown
        assert server.metric("app_requests_total") == load.answered == server.tally()
        assert server.stop() == 0


def test_counts_survive_kills_in_mid_request(newest: Interpreter) -> None:
    """Workers killed at any moment lose no request that was answered, and double none."""
    config = CONFIG.format(worker_class="sync", preload=True, settings="workers = 4")
    kills = 25
    with GunicornProcess(newest, config) as server:
        with Load(server.port, threads=6, pause=0) as load, Watch(server) as watch:
            for _ in range(kills):
                load.wait_for(10)
                workers = server.wait_for_workers(4)
                with contextlib.suppress(ProcessLookupError):  # the one killed before, perhaps
                    server.send_signal(signal.SIGKILL, random.choice(sorted(workers)))
        total = server.metric("app_requests_total")
        assert load.answered <= total <= load.answered + len(load.unknown)
        # A worker that died between the two has counted and not written it down.
        assert server.tally() <= total <= server.tally() + kills
        assert not watch.wrong


def test_counts_go_on_while_orphans_of_a_killed_arbiter_drain(interpreter: Interpreter) -> None:
    """An arbiter started beside orphaned workers of a killed one wipes nothing of theirs."""
    config = CONFIG.format(worker_class="sync", preload=False, settings="workers = 2")
    with GunicornProcess(interpreter, config, shared=True) as server:
        with Load(server.port) as load:
            load.wait_for(50)
        orphans = server.worker_pids()
        busy = threading.Thread(target=lambda: server.get("/sleep?s=3"), daemon=True)
        busy.start()
        server.send_signal(signal.SIGKILL, server.arbiter_pid)
        with GunicornProcess(
            interpreter,
            config,
            environment={
                "PROMETHEUS_MULTIPROC_DIR": str(server.metrics_directory),
                apps.TALLY_VARIABLE: str(server.tally_path),
            },
        ) as successor:
            assert orphans & {process.pid for process in server.processes()}
            with Load(successor.port) as more:
                more.wait_for(50)
            assert successor.metric("app_requests_total") == load.answered + more.answered
            busy.join(20)
        server.may_leave_processes()


# ------------------------------------------------------------------------------------------------
# make soak


def soak_matrix() -> list[Any]:
    """Return every worker class on every Gunicorn, preloaded."""
    found = []
    for i, interpreter in enumerate(interpreters()):
        for worker_class in APPLICATIONS:
            if has_class(interpreter, worker_class):
                variant = Variant(worker_class, preload=True, shared=i % 2 == 0)
                name = f"{interpreter.name}-{variant.name}"
                found.append(pytest.param(interpreter, variant, id=name))
    return found


@pytest.mark.load
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("gunicorn", "variant"), soak_matrix())
def test_counts_are_exact_through_thousands_of_recycles(
    gunicorn: Interpreter, variant: Variant
) -> None:
    """Thousands of recycles lose nothing and add no file."""
    with under_load(gunicorn, variant, "workers = 4; max_requests = 5") as run:
        run.watch.wait_for_scrapes(10)
        files = metric_files(run.server.metrics_directory)["counter"]
        wait_until(
            lambda: run.server.log().count("Booting worker") >= RECYCLES,
            f"{RECYCLES} workers have been started",
            seconds=1500,
        )
        assert len(metric_files(run.server.metrics_directory)["counter"]) <= len(files) + 4


@pytest.mark.load
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("gunicorn", "variant"), soak_matrix())
def test_counts_are_exact_through_everything_at_once(
    gunicorn: Interpreter, variant: Variant
) -> None:
    """Recycling, kills, reloads, resizes, upgrades and rollbacks in random order lose nothing."""
    chance = random.Random(f"{gunicorn.name}{variant.name}")
    happenings = [killed_at_rest, reloaded, resized, upgraded, rolled_back]
    with under_load(gunicorn, variant, "workers = 2; max_requests = 40") as run:
        for _ in range(12):
            chance.choice(happenings)(run)
            # A reload brings the number of workers back to the configured one.
            run.server.send_signal(signal.SIGHUP)
            run.load.wait_for(50)
