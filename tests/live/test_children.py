"""Processes that workers start: nothing of what they count is lost, nothing is counted twice."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support import apps
from tests.support.checks import check_counts, slot_of
from tests.support.client import Load, Watch
from tests.support.process import GunicornProcess, metric_files, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = {workers}
    preload_app = {preload}
"""

# Imported by the application, and by the children that start from nothing.
JOBS = '''
import os
import time

import obskit_gunicorn.multiprocess
from prometheus_client import Counter, Gauge, Histogram

DONE = Counter("job_done", "Jobs done.", ["by"])
SECONDS = Histogram("job_seconds", "Durations of jobs.")
RUNNING = Gauge("job_running", "Jobs running.", multiprocess_mode="livesum")


def work(number, by):
    with RUNNING.track_inprogress():
        for _ in range(number):
            DONE.labels(by).inc()
            SECONDS.observe(0.1)


def work_until(stop, tally):
    """Count until a file appears, one byte of another for each count."""
    RUNNING.inc()
    file = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while not os.path.exists(stop):
        DONE.labels("orphan").inc()
        os.write(file, b".")
        time.sleep(0.002)
'''

APP = (
    apps.WSGI.replace("def application(", "def answer(")
    + """
import multiprocessing

import jobs


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/children":
        context = multiprocessing.get_context(query)
        children = [context.Process(target=jobs.work, args=(100, query)) for _ in range(3)]
        for child in children:
            child.start()
        jobs.work(10, query)
        for child in children:
            child.join()
        assert not any(child.exitcode for child in children)
    elif path == "/orphan":
        # Started and not waited for, not even when the worker ends in an orderly way.
        if os.fork() == 0:
            jobs.work_until("stop", "orphan-tally")
            os._exit(0)
    elif path == "/sleeper":
        # A child that has counted at its parent's, and not yet by itself.
        jobs.work(5, "parent")
        if os.fork() == 0:
            while not os.path.exists("go"):
                time.sleep(0.002)
            jobs.work(1, "parent")
            open("gone", "w").close()
            while not os.path.exists("stop"):
                time.sleep(0.002)
            jobs.work(1, "parent")
            os._exit(0)
        jobs.work(100, "parent")
    return answer(environ, start_response)
"""
)


def jobs_done(server: GunicornProcess, by: str) -> float:
    """Return the number of jobs that a scrape shows."""
    return server.metric("job_done_total", by=by)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("preload", [False, True])
def test_children_of_a_worker_count_exactly(
    interpreter: Interpreter, method: str, preload: bool
) -> None:
    """Children of multiprocessing count by slot, however they start; files stay bounded."""
    config = CONFIG.format(workers=2, preload=preload)
    with GunicornProcess(interpreter, config, APP, files={"jobs.py": JOBS}, shared=True) as server:
        for round_number in range(1, 4):
            assert server.get(f"/children?{method}", timeout=60).status == 200
            assert jobs_done(server, method) == 310 * round_number
        metrics = server.metrics()
        assert metrics["job_seconds_count", frozenset()] == 930
        assert metrics["job_running", frozenset()] == 0
        assert metrics["obskit_gunicorn_values_not_shared", frozenset()] == 0
        # Arbiter, two workers, three children, at most.
        for names in metric_files(server.metrics_directory).values():
            assert len(names) <= 6
            assert all(re.search(r"_slot\d+\.db$", name) for name in names)
        assert server.stop() == 0


def test_child_that_outlives_its_worker_counts_exactly(interpreter: Interpreter) -> None:
    """A child goes on counting through the kill, the recycling and the reload of its worker."""
    config = CONFIG.format(workers=1, preload=False) + "    max_requests = 30\n"
    with GunicornProcess(interpreter, config, APP, files={"jobs.py": JOBS}) as server:
        tally = server.root / "orphan-tally"
        worker = server.wait_for_workers(1)
        with Load(server.port, threads=2) as load, Watch(server) as watch:
            with load.paused():
                assert server.get("/orphan").status == 200
                wait_until(tally.exists, "the child counts")
                server.send_signal(signal.SIGKILL, min(worker))
                worker |= server.wait_for_workers(1, without=worker)
            load.wait_for(80)
            server.send_signal(signal.SIGHUP)
            load.wait_for(40)
            counted = tally.stat().st_size
            wait_until(lambda: tally.stat().st_size > counted + 20, "the child still counts")
            wait_until(lambda: server.metric("job_running") == 1, "the child's live gauge is shown")
            (server.root / "stop").touch()
            orphans_end(server)
        assert jobs_done(server, "orphan") == tally.stat().st_size
        check_counts(server, load, watch)
        wait_until(lambda: server.metric("job_running") == 0, "the child's live gauge is gone")


def orphans_end(server: GunicornProcess) -> None:
    """Wait until only arbiter and workers are left."""
    arbiter = server.arbiter_pid
    wait_until(
        lambda: all(arbiter in (process.pid, process.parent) for process in server.processes()),
        "the worker's child has ended",
    )


@pytest.mark.parametrize("preload", [False, True])
def test_child_that_takes_its_dead_parents_slot_counts_exactly(
    interpreter: Interpreter, preload: bool
) -> None:
    """A child forked at 5 that takes its dead parent's slot, which is at 105, goes on to 106."""
    config = CONFIG.format(workers=1, preload=preload)
    with GunicornProcess(interpreter, config, APP, files={"jobs.py": JOBS}, shared=True) as server:
        (parent,) = server.wait_for_workers(1)
        assert server.get("/sleeper").status == 200
        assert jobs_done(server, "parent") == 105
        slot = slot_of(server.metrics_directory, parent)
        # No other worker may take the slot first.
        arbiter = server.arbiter_pid
        server.send_signal(signal.SIGSTOP, arbiter)
        try:
            server.send_signal(signal.SIGKILL, parent)
            wait_until(
                lambda: parent not in {process.pid for process in server.processes()},
                "the worker is dead",
            )
            (server.root / "go").touch()
            wait_until((server.root / "gone").exists, "the child has counted")
            (child,) = {process.pid for process in server.processes()} - {arbiter}
            assert slot_of(server.metrics_directory, child) == slot
        finally:
            server.send_signal(signal.SIGCONT, arbiter)
        server.wait_for_workers(1, without={parent})
        assert jobs_done(server, "parent") == 106
        (server.root / "stop").touch()
        orphans_end(server)
        assert jobs_done(server, "parent") == 107
        with Load(server.port) as load:
            load.wait_for(30)
        check_counts(server, load)


def test_job_outside_of_gunicorn_counts_into_the_same_directory(newest: Interpreter) -> None:
    """A management command that imports the metrics adds to the server's, and never wipes."""
    config = CONFIG.format(workers=2, preload=False)
    with GunicornProcess(newest, config, APP, files={"jobs.py": JOBS}, shared=True) as server:
        for number in range(1, 4):
            command = GunicornProcess(newest, None, APP, serving=False, root=server.root)
            command.command = [newest.path, "-c", "import jobs; jobs.work(7, 'command')"]
            command.environment["PROMETHEUS_MULTIPROC_DIR"] = str(server.metrics_directory)
            with command:
                assert command.exit_status() == 0
            assert jobs_done(server, "command") == 7 * number
        names = metric_files(server.metrics_directory)["counter"]
        assert len(names) <= 4
        assert all("slot" in name for name in names)
