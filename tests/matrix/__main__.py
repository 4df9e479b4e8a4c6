"""Run cells beside each other, print a row for each, and write the tables of the page.

Exit status 0 if all cells are exact, 1 if one is not, 2 if something is missing for running them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from tests.matrix import index, page
from tests.matrix.cells import choose
from tests.matrix.environments import download
from tests.matrix.job import Job, run_job
from tests.matrix.results import Results, fingerprint
from tests.support.distributions import build
from tests.support.interpreters import REPOSITORY, find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.matrix.results import Result

PLACE = REPOSITORY / ".venvs" / "matrix"
PAGE = REPOSITORY / "docs" / "compatibility.md"
RULES = (
    "matrix/environments.py",
    "matrix/server.py",
    "support/apps.py",
    "support/checks.py",
    "support/client.py",
    "support/happenings.py",
    "support/process.py",
)
"""What results depend on, below tests/."""


def row(result: Result) -> str:
    """Return the line that is printed for a result."""
    if not result.is_exact:
        return f"{result.cell.name} NOT EXACT"
    figures = result.figures
    cut = f", {figures['cut']} cut off" if figures["cut"] else ""
    return (
        f"{result.cell.name} exact: {figures['requests']:5} requests{cut}, {figures['workers']:3}"
        f" workers, {figures['scrapes']:4} scrapes, {result.seconds:3.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit status."""
    asked = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # in the background too
    os.environ.pop("PYTHONPATH", None)  # or a server would find this repository, not the wheel
    claimed = index.claimed_pythons()
    pythons = {version: path for version in claimed if (path := find(version))}
    missing = [version for version in claimed if version not in pythons]
    for version in missing:
        print(f"There is no Python {version}: not on PATH, nor of pyenv's or uv's.")
    try:
        with ThreadPoolExecutor() as pool:
            offers = dict(zip(pythons, pool.map(index.offer_for, pythons.values()), strict=True))
    except RuntimeError as error:
        print(f"The package index does not answer.\n{error}", file=sys.stderr)
        return 2
    every = choose(offers)
    selected = [cell for cell in every if all(word in cell.name for word in asked.words)]
    print(f"{len(every)} cells, {len(selected)} of them selected", flush=True)
    if not selected:
        print(f"no cell has all of {asked.words} in its name; see --list", file=sys.stderr)
        return 2
    if asked.list:
        print("\n".join(cell.name for cell in selected))
        return 0

    package = build("wheel", PLACE / "package")
    contents = {name: (REPOSITORY / "tests" / name).read_bytes() for name in RULES}
    results = Results(PLACE / "results", fingerprint(contents | {"wheel": package.read_bytes()}))
    _run(
        [Job(cell, pythons[cell.python], PLACE, package, asked.keep) for cell in selected],
        results,
        jobs=asked.jobs,
        again=asked.again,
    )
    found = [result for cell in every if (result := results.get(cell)) is not None]
    if missing or len(found) < len(every):
        print(f"{PAGE.name} is as it was: {len(every) - len(found)} cells have not been run.")
    else:
        page.write(found, package.name.split("-")[1], PAGE)
        print(f"{PAGE.relative_to(REPOSITORY)} is written.")
    wrong = [cell for cell in selected if not results[cell].is_exact]
    print(f"{len(selected) - len(wrong)} of {len(selected)} exact")
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        description="Run the built wheel with every release that it claims, in real servers.",
        epilog="What has been exact with this wheel is not run again, so a run that was "
        "interrupted goes on where it ended.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        help="run only cells whose line in --list has all of these, as in: python-3.13 gevent",
    )
    parser.add_argument("--list", action="store_true", help="print the cells, and run none")
    parser.add_argument("--again", action="store_true", help="run what has been exact, too")
    parser.add_argument("--keep", action="store_true", help="keep environments, and use kept ones")
    parser.add_argument("--jobs", type=int, default=4, help="how many servers run at once")
    return parser


def _run(todo: Sequence[Job], results: Results, *, jobs: int, again: bool) -> None:
    """Run cells, and print and keep what comes out.

    Raises:
        RuntimeError: What they need cannot be had.
    """
    known = {job.cell: results.get(job.cell) for job in todo}
    left = []
    for job in todo:
        result = known[job.cell]
        if result is None or not result.is_exact or again:
            left.append(job)
        else:
            print(f"{row(result)}, on {result.date}")
    logs = PLACE / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    if not left:
        return
    download([job.cell for job in left], {j.cell.python: j.python for j in left}, PLACE / "wheels")
    context = multiprocessing.get_context("spawn")
    # Those that run come to their end; Ctrl-C reaches them as well, and they end their servers.
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = [pool.submit(run_job, job) for job in left]
        try:
            for number, done in enumerate(as_completed(running), 1):
                result, log = done.result()
                results.keep(result)
                print(f"{number:3}/{len(left)} {row(result)}", flush=True)
                if not result.is_exact:
                    path = logs / f"{'-'.join(result.cell.name.split())}.log"
                    path.write_text("\n".join((*result.wrong, log)), encoding="utf-8")
                    for line in result.wrong[:8]:
                        print(f"        {line}")
                    print(f"        {path.relative_to(REPOSITORY)} has the log", flush=True)
        except BaseException:
            for each in running:
                each.cancel()
            raise


if __name__ == "__main__":
    sys.exit(main())
