"""One cell, run in a process of the pool: environment, server, result."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import shutil
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

from tests.matrix.environments import environment_of, make_environment, versions_in
from tests.matrix.results import Result
from tests.matrix.server import run_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.matrix.cells import Cell

__all__ = ["Job", "run_job"]


class Job(NamedTuple):
    """A cell to run, and with what.

    Attributes:
        cell: The cell.
        python: The path of its Python.
        place: Where environments are made, beside the wheels.
        package: The wheel of this package.
        keeps: Whether its environment stays, and one that is there is used.
    """

    cell: Cell
    python: str
    place: Path
    package: Path
    keeps: bool


def run_job(job: Job) -> tuple[Result, str]:
    """Run a cell in an environment of its own, which is removed; in a process of the pool.

    Returns:
        What came out, and the server's log.
    """
    place = environment_of(job.cell, job.place / "environments")
    output = io.StringIO()
    figures: dict[str, int] = {}
    versions: dict[str, str] = {}
    started = time.monotonic()
    try:
        interpreter = str(place / "bin" / "python")
        if not (job.keeps and place.exists()):
            interpreter = make_environment(
                job.cell, job.python, place=place, wheels=job.place / "wheels", package=job.package
            )
        versions = versions_in(interpreter)
        started = time.monotonic()
        with contextlib.redirect_stdout(output):  # where GunicornProcess prints the log
            wrong, *counts = run_server(interpreter, job.cell)
        figures = dict(zip(("requests", "cut", "workers", "scrapes"), counts, strict=True))
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}".strip()]
        traceback.print_exc(file=output)
    finally:
        if not job.keeps:
            shutil.rmtree(place, ignore_errors=True)
    seconds = time.monotonic() - started
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    return Result(job.cell, wrong, figures, versions, today, seconds), output.getvalue()
