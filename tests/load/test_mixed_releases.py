"""Writers of this release and of the one before, in one directory, killed at random.

The release before knows no columns: it takes over slots, grows files and wipes the directory, and
leaves the columns as they are. Whoever reads by the rule of
:mod:`obskit_gunicorn._store.column` must not notice.
"""

from __future__ import annotations

import glob
import itertools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from obskit_gunicorn._store.directory import SlotDirectory
from tests.support.columns import read_column, read_metric_file
from tests.support.forks import REPOSITORY, wait_until

pytestmark = [
    pytest.mark.load,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
]

SECONDS = float(os.environ.get("OBSKIT_SOAK_SECONDS", "120"))
BEFORE = "22a4ccb"
"""The last commit without columns."""

WRITERS = 4
_MOST_WRITERS = 100_000

WHICH = """
import os, obskit_gunicorn
assert obskit_gunicorn.__file__.startswith(os.environ["PYTHONPATH"])
"""

WRITE = """
import itertools, mmap, os, random, sys, time
path, tallies, number = sys.argv[1:]
os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
import obskit_gunicorn.multiprocess
from prometheus_client import Counter
counter, rng = Counter("c", "Counted.", ["label"], registry=None), random.Random(int(number))
most = rng.choice((5, 60, 1500))
with open(tallies, "r+b") as file:
    cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
announced, done = 2 * int(number), 2 * int(number) + 1
for step in itertools.count():
    label = str(rng.randrange(1 + min(step // 5, most)))
    cells[announced] += 1
    counter.labels(label).inc()
    cells[done] += 1
    if step % 200 == 0:
        time.sleep(0.001)
"""

BEGIN = """
import sys
from obskit_gunicorn._store.directory import SlotDirectory
started = SlotDirectory(sys.argv[1]).start_generation(keep=False)
assert started.is_wiped
"""


@pytest.fixture(name="before")
def _before(tmp_path: Path) -> Path:
    """The release before, to be found by PYTHONPATH."""
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", BEFORE, "obskit_gunicorn"],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the repository does not have {BEFORE}")
    place = tmp_path / "before"
    place.mkdir()
    subprocess.run(["tar", "-x", "-C", str(place)], input=done.stdout, check=True)
    return place


class Fleet:
    """The writers of both releases, and what they have counted in this generation.

    Attributes:
        directory: Where all write.
    """

    def __init__(self, place: Path, before: Path) -> None:
        """Make the directory; nobody writes yet."""
        self._place = place
        self.directory = str(place / "metrics")
        os.mkdir(self.directory)
        self._releases = (str(REPOSITORY), str(before))
        self._tallies = str(place / "tallies")
        Path(self._tallies).write_bytes(bytes(16 * _MOST_WRITERS))
        with open(self._tallies, "rb") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("q")
        self._numbers = itertools.count()
        self._first = 0
        self._writers: list[subprocess.Popen[bytes]] = []
        self.started = [0, 0]
        self.killed = 0

    def start(self, release: int) -> None:
        """Start a writer of this release, 0, or the one before, 1."""
        arguments = (self.directory, self._tallies, str(next(self._numbers)))
        self._writers.append(subprocess.Popen(**self._program(release, WRITE, *arguments)))
        self.started[release] += 1

    def kill(self, writer: int) -> None:
        """Kill one of the writers."""
        process = self._writers.pop(writer)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        self.killed += 1

    def kill_all(self) -> None:
        """Kill every writer."""
        while self._writers:
            self.kill(0)

    def begin(self, release: int) -> None:
        """Have an arbiter of a release wipe the directory."""
        subprocess.run(**self._program(release, BEGIN, self.directory), check=True)
        self._first = next(self._numbers) + 1

    def _program(self, release: int, code: str, *arguments: str) -> dict[str, Any]:
        return {
            "args": [sys.executable, "-c", f"{WHICH}\n{code}", *arguments],
            "cwd": self._place,
            "env": {**os.environ, "PYTHONPATH": self._releases[release]},
        }

    def counted(self) -> tuple[int, int]:
        """Return what was done in this generation at least, and what was announced."""
        announced, done = self._cells[2 * self._first :: 2], self._cells[2 * self._first + 1 :: 2]
        return sum(done), sum(announced)


def files_of(directory: str) -> list[str]:
    """Return the paths of the metric files."""
    return glob.glob(f"{glob.escape(directory)}/counter_*.db")


def by_rule(path: str) -> tuple[list[float], bool]:
    """Return the values that a reader shows of a metric file, and whether the column has them."""
    column = read_column(path)
    return (read_metric_file(path)[1], False) if column is None else (column, True)


def test_nobody_is_shown_less(tmp_path: Path, before: Path) -> None:
    """No reader by the rule sees less than the metric files held before, and all is counted."""
    rng = random.Random(4711)
    fleet = Fleet(tmp_path, before)
    deadline = time.monotonic() + SECONDS
    replace_at = wipe_at = 0.0
    passes = columns = wipes = 0
    try:
        while time.monotonic() < deadline or min(columns, passes - columns, wipes - 2) <= 0:
            now = time.monotonic()
            if now >= wipe_at:
                if wipes:
                    fleet.kill_all()
                    check_totals(fleet)
                fleet.begin(wipes % 2)
                wipes, wipe_at = wipes + 1, now + 10.0
                for number in range(WRITERS):
                    fleet.start(number % 2)
                wait_until(lambda: len(files_of(fleet.directory)) == WRITERS, "all have files")
            elif now >= replace_at:
                fleet.kill(rng.randrange(WRITERS))
                fleet.start(rng.randrange(2))
                replace_at = now + rng.uniform(0.1, 0.6)
            for path in files_of(fleet.directory):
                held = read_metric_file(path)[1]
                shown, is_column = by_rule(path)
                # A writer may be between its two stores, and is in one value at a time.
                short = [max(0.0, old - new) for old, new in zip(held, shown, strict=False)]
                assert sum(short) <= 1.0, path
                assert len(held) - len(shown) <= 1
                passes, columns = passes + 1, columns + is_column
        fleet.kill_all()
        check_totals(fleet)
    finally:
        fleet.kill_all()
    assert min(fleet.started) > 0


def check_totals(fleet: Fleet) -> None:
    """Compare what the files hold with what dead writers have announced and done."""
    done, announced = fleet.counted()
    held = sum(sum(read_metric_file(path)[1]) for path in files_of(fleet.directory))
    assert done <= held <= announced
    assert announced - done <= fleet.killed
    assert all(
        by_rule(path) == (read_metric_file(path)[1], False) for path in files_of(fleet.directory)
    )
    assert not any(SlotDirectory(fleet.directory).records().values())
