"""One cell: a real server to which everything happens, and what must hold of its counts then."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.support import apps
from tests.support.checks import total_as_others_read_it, wrong_counts
from tests.support.client import Load, Watch
from tests.support.happenings import (
    Run,
    killed_at_rest,
    recycled,
    reloaded,
    resized,
    upgraded,
)
from tests.support.process import GunicornProcess, Interpreter, metric_files, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.matrix.cells import Cell

__all__ = ["Figures", "run_server"]

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    worker_class = {worker_class!r}
    workers = 2
    max_requests = 25
    preload_app = {preload}
    threads = 2 if worker_class == "gthread" else 1
    worker_connections = 50
"""

APPLICATIONS = {
    "sync": apps.WSGI,
    "gthread": apps.WSGI,
    "gevent": apps.WSGI,
    "asgi": apps.ASGI,
    "uvicorn_worker.UvicornWorker": apps.ASGI,
}

HAPPENINGS: tuple[Callable[[Run], None], ...] = (
    recycled,
    killed_at_rest,
    reloaded,
    resized,
    upgraded,
)

_SETTLING_SECONDS = 20.0

BOTH = """
import json, sys
import prometheus_client, prometheus_client.multiprocess
import obskit_gunicorn, obskit_gunicorn.multiprocess

assert obskit_gunicorn.__file__.startswith(sys.prefix), obskit_gunicorn.__file__


def lines(module, generate):
    registry = prometheus_client.CollectorRegistry()
    module.MultiProcessCollector(registry, path=sys.argv[1])
    text = generate(registry).decode()
    return [line for line in text.splitlines() if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("app_")]


ours = lines(obskit_gunicorn.multiprocess, obskit_gunicorn.multiprocess.generate_latest)
theirs = lines(prometheus_client.multiprocess, prometheus_client.generate_latest)
json.dump([ours, theirs], sys.stdout)
"""  # noqa: E501
"""The application's metrics in a directory as this package and as prometheus_client write them."""


class Figures(NamedTuple):
    """What came out of a cell.

    Attributes:
        wrong: What did not hold, in words; nothing if all counts were exact.
        requests: How many requests were answered.
        cut: How many were sent and got no answer, so that it is unknown whether they count.
        workers: How many workers have lived.
        scrapes: At how many scrapes no counter had gone down.
    """

    wrong: list[str]
    requests: int
    cut: int
    workers: int
    scrapes: int


def run_server(interpreter: str, cell: Cell) -> Figures:
    """Run a server, let everything happen to it while clients ask, and compare the counts.

    Args:
        interpreter: One that has the releases of the cell.
        cell: How to run it.

    Raises:
        AssertionError: Something did not happen in time.
    """
    config = CONFIG.format(worker_class=cell.worker_class, preload=cell.is_preloaded)
    version = tuple(int(part) for part in cell.gunicorn.split("."))
    with GunicornProcess(
        Interpreter(interpreter, version),
        config,
        APPLICATIONS[cell.worker_class],
        shared=cell.is_shared,
        exporter=True,
    ) as server:
        with Load(server.port) as load, Watch(server, port=server.metrics_port) as watch:
            load.wait_for(50)
            for happen in HAPPENINGS:
                happen(Run(server, load, watch))
        wrong = _differences(server, load, watch)
        wrong += _texts_apart(interpreter, server)
        workers = len(server.booted_pids())
        server.stop()
        wrong += _remains(server, cell)
    return Figures(wrong, load.answered, len(load.unknown), workers, watch.scrapes)


def _differences(server: GunicornProcess, load: Load, watch: Watch) -> list[str]:
    """Return what is wrong of the counts once nobody asks any more."""
    tally = server.tally()
    wrong = [f"exporter: {each}" for each in wrong_counts(server.scrape(), tally, load)]
    # What Gunicorn counts is counted once it is over, which a client cannot see, and one more
    # worker may be about to be recycled: what was right is not looked at again.
    events: list[str] = []

    def are_counted() -> bool:
        events[:] = _wrong_events(server, tally, load)
        return not events

    with contextlib.suppress(AssertionError):
        wait_until(are_counted, "requests and workers are counted", seconds=_SETTLING_SECONDS)
    wrong += [f"exporter: {each}" for each in events]
    wrong += [f"application: {each}" for each in wrong_counts(server.metrics(), tally, load)]
    wrong += watch.wrong
    for kind, names in metric_files(server.metrics_directory).items():
        if len(names) > 2 * watch.most_processes:
            wrong.append(f"{len(names)} files of {kind}, {watch.most_processes} processes at most")
    return wrong


def _wrong_events(server: GunicornProcess, tally: int, load: Load) -> list[str]:
    """Return what is wrong of Gunicorn's own metrics, two workers being there."""
    wrong = []
    metrics, workers = server.scrape(), len(server.booted_pids())

    def total(name: str, **labels: str) -> float:
        return sum(
            value
            for (each, found), value in metrics.items()
            if each == name and labels.items() <= dict(found).items()
        )

    requests = total("gunicorn_requests_total", method="GET", code="200")
    asked = tally + 1  # and the one that saw that the server answers
    if abs(requests - asked) > len(load.unknown):
        wrong.append(f"gunicorn_requests_total is {requests}, not {asked}")
    boots, exits = total("gunicorn_worker_boots_total"), total("gunicorn_worker_exits_total")
    if exits + 2 != workers:
        wrong.append(f"gunicorn_worker_exits_total is {exits}; {workers} workers, 2 are alive")
    if not 2 < boots <= workers:  # fewer if some ended before they were ready
        wrong.append(f"gunicorn_worker_boots_total is {boots}; there were {workers} workers")
    return wrong


def _texts_apart(interpreter: str, server: GunicornProcess) -> list[str]:
    """Return lines that this package and prometheus_client write differently.

    They read one after the other, so only what they read while the same workers were there is
    compared: one that takes the place of another begins its gauges anew.
    """
    apart: list[str] = []

    def are_compared() -> bool:
        before = _ready_pids(server)
        apart[:] = _read_apart(interpreter, server)
        return len(before) == 2 and _ready_pids(server) == before

    wait_until(are_compared, "both read while no worker comes or goes", seconds=120)
    return apart


def _ready_pids(server: GunicornProcess) -> set[int]:
    """Return the workers, if all of them are ready; a worker that is about to end is not."""
    pids = server.worker_pids()
    ready = server.scrape()["gunicorn_workers_ready", frozenset()]
    return pids if len(pids) == ready else set()


def _read_apart(interpreter: str, server: GunicornProcess) -> list[str]:
    done = subprocess.run(
        [interpreter, "-I", "-c", BOTH, str(server.metrics_directory)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        return [f"the texts cannot be compared: {done.stderr}"]
    ours, theirs = json.loads(done.stdout)
    if not ours:
        return ["there is no text"]
    # Their order is that in which a file system happens to list the files.
    here, there = Counter(ours), Counter(theirs)
    return [
        *(f"only here: {line}" for line in here - there),
        *(f"only prometheus_client's: {line}" for line in there - here),
    ]


def _remains(server: GunicornProcess, cell: Cell) -> list[str]:
    """Return what is wrong of what a server has left behind."""
    if not cell.is_shared:
        left = server.private_directories()
        return [f"a private directory is left: {left}"] if left else []
    total, tally = total_as_others_read_it(server.metrics_directory), server.tally()
    return [] if total == tally else [f"the files say {total}, not {tally}"]
