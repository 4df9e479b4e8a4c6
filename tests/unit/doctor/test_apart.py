"""Looking at something in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, BinaryIO

import pytest

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._doctor.apart import EndedError, User, apart
from obskit_gunicorn._problem import Problem
from tests.support.forks import NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.finding import Finding


@pytest.fixture(name="output")
def _output() -> Iterator[BinaryIO]:
    """Where what is printed goes."""
    with tempfile.TemporaryFile() as file:
        yield file


def test_findings_come_from_another_process(output: BinaryIO) -> None:
    """They are those that were yielded there, whatever else the process prints and leaves."""

    def look() -> Iterator[Finding]:
        os.write(1, b"garbage\n")
        sleeping = subprocess.Popen(["sleep", "300"])  # keeps all that it inherits open
        yield finding.ok("files", f"{os.getpid()} {sleeping.pid}")
        yield finding.warning("store", Problem("x" * 100_000, "y"))

    first, second = apart(look, output=output.fileno())
    pid, sleeping = map(int, first.text.split())
    os.kill(sleeping, signal.SIGKILL)  # which was not waited for
    assert pid != os.getpid()
    assert (second.level, len(second.text), second.advice) == ("warning", 100_000, "y")
    output.seek(0)
    assert output.read() == b"garbage\n"


@pytest.mark.parametrize("how", ["exit", "signal", "error", "hang"])
def test_a_process_that_ends_early(how: str, output: BinaryIO) -> None:
    """What it had found is there, and then how it has ended."""

    def look() -> Iterator[Finding]:
        yield finding.ok("files", str(os.getpid()))
        if how == "exit":
            os._exit(3)
        elif how == "signal":
            os.kill(os.getpid(), 9)
        elif how == "hang":
            time.sleep(60)
        raise ValueError("mine")

    words = {
        "exit": "status 3",
        "signal": "signal 9",
        "hang": "within 0.5 s",
        "error": "ValueError: mine",
    }
    received = apart(look, seconds=0.5, output=output.fileno())
    pid = int(next(received).text)
    with pytest.raises(EndedError, match=words[how]):
        next(received)
    # That one has been waited for; another test of this process may have left a helper of Python's.
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_with_the_rights_of_a_user() -> None:
    """Root becomes the user, in the other process alone."""

    def look() -> Iterator[Finding]:
        yield finding.ok("files", f"{os.getresuid()} {os.getresgid()} {os.getgroups()}")

    (found,) = apart(look, user=User(NOBODY, NOBODY, is_other=True))
    assert found.text.startswith(f"{(NOBODY,) * 3} {(NOBODY,) * 3}")
    assert os.geteuid() == 0


def test_order_and_status() -> None:
    """Findings are sorted by part and keep their order in it; the worst one is the status."""
    fine, bites = finding.ok("versions", "a"), finding.warning("store", Problem("b", "c"))
    fails = finding.error("directory", Problem("d", "e"))
    stops = finding.error("application", Problem("f", "g"), stops=True)
    assert finding.in_order([bites, stops, fails, fine]) == [fine, fails, stops, bites]
    assert finding.status([]) == finding.status([fine]) == 0
    assert finding.status([fine, bites]) == finding.status([fails]) == 1
    assert finding.status([stops, fine]) == 2
    assert bites.lines() == "warning  store          b\n                        c"
