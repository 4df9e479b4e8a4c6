"""What happens to a server whose counts have to stay exact, while clients ask."""

from __future__ import annotations

import contextlib
import http.client
import random
import signal
from typing import TYPE_CHECKING, NamedTuple

from tests.support.process import get, wait_until

if TYPE_CHECKING:
    from tests.support.client import Load, Watch
    from tests.support.process import GunicornProcess

__all__ = [
    "Run",
    "killed",
    "killed_at_rest",
    "recycled",
    "reloaded",
    "resized",
    "rolled_back",
    "timed_out",
    "upgraded",
]


class Run(NamedTuple):
    """A server under load and under watch."""

    server: GunicornProcess
    load: Load
    watch: Watch


def recycled(run: Run) -> None:
    """Replace workers after a few requests each."""
    wait_until(lambda: len(run.server.booted_pids()) >= 7, "seven workers have been started")


def killed(run: Run) -> None:
    """Kill workers while no request is in flight; the rest goes on at once."""
    for _ in range(5):
        workers = run.server.wait_for_workers(2)
        with run.load.paused():
            run.server.send_signal(signal.SIGKILL, random.choice(sorted(workers)))
        run.load.wait_for(30)


def timed_out(run: Run) -> None:
    """Hold one worker up until Gunicorn takes it for dead: in a request, then between two."""
    before = run.server.wait_for_workers(2)
    if "gthread" not in run.server.log():  # whose main thread never is busy
        # Its client gives up; the worker does not.
        with contextlib.suppress(OSError, http.client.HTTPException):
            get(run.server.port, "/block?s=25", timeout=0.5)
        wait_until(lambda: before - run.server.worker_pids(), "a busy worker timed out")
    # Not the new one, which may have the smaller pid: Gunicorn waits for ever for a worker that has
    # given no sign of life at all.
    idle = min(before & run.server.wait_for_workers(2))
    with run.load.paused():
        run.server.send_signal(signal.SIGSTOP, idle)
    wait_until(lambda: idle not in run.server.worker_pids(), "an idle worker timed out")
    run.server.wait_for_workers(2)
    run.load.wait_for(50)


def reloaded(run: Run) -> None:
    """Send SIGHUP three times, the second time while old workers are still there."""
    old = run.server.wait_for_workers(2)
    run.server.send_signal(signal.SIGHUP)
    old |= run.server.wait_for_workers(2, without=old)
    run.server.send_signal(signal.SIGHUP)
    run.server.send_signal(signal.SIGHUP)
    run.load.wait_for(50)
    run.server.wait_for_workers(2, without=old)


def resized(run: Run) -> None:
    """Go up to four workers and down to one with SIGTTIN and SIGTTOU."""
    for number, counts in ((signal.SIGTTIN, (3, 4)), (signal.SIGTTOU, (3, 2, 1))):
        for count in counts:
            run.server.send_signal(number)
            run.server.wait_for_workers(count)
            run.load.wait_for(30)
    run.server.send_signal(signal.SIGTTIN)
    run.server.wait_for_workers(2)


def upgraded(run: Run) -> None:
    """Replace the arbiter with SIGUSR2, stop the old one, and do it again."""
    for _ in range(2):
        old = run.server.arbiter_pid
        new = upgrade(run)
        run.server.send_signal(signal.SIGTERM, old)
        wait_until(
            lambda old=old: old not in {p.pid for p in run.server.processes()},  # type: ignore[misc]
            "the old arbiter has ended",
        )
        wait_until(
            lambda new=new: run.server.pid_path.exists() and run.server.arbiter_pid == new,  # type: ignore[misc]
            "the new arbiter has taken over",
        )
        run.load.wait_for(50)


def rolled_back(run: Run) -> None:
    """Start a new arbiter with SIGUSR2, stop it, and reload the old one, which goes on."""
    new = upgrade(run)
    run.server.send_signal(signal.SIGTERM, new)
    wait_until(
        lambda: new not in {process.pid for process in run.server.processes()},
        "the new arbiter has ended",
    )
    run.load.wait_for(50)
    old = run.server.wait_for_workers(2)
    run.server.send_signal(signal.SIGHUP)
    run.server.wait_for_workers(2, without=old)


def upgrade(run: Run) -> int:
    """Start a new arbiter, wait until both serve, and return the new one."""
    new = run.server.start_upgrade()
    run.load.wait_for(100)
    return new


def killed_at_rest(run: Run) -> None:
    """Kill a worker while no request is in flight, even if workers are being recycled."""
    with run.load.paused():
        # All that have lived are to be known by their lines in the log.
        run.server.kill_a_worker(is_announced=True)
