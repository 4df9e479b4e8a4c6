"""The files that a package index gets: built as for a release."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

from tests.support.interpreters import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["build"]


def build(kind: Literal["wheel", "sdist"], place: Path, *, source: Path = REPOSITORY) -> Path:
    """Build a distribution, with the build system that is installed for the tests.

    Args:
        kind: Which.
        place: Where to put it; what is there is removed.
        source: The tree that it is made from.

    Raises:
        RuntimeError: It cannot be built; with what the build has said.
    """
    shutil.rmtree(place, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", place, source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the {kind} of {source} cannot be built:\n{done.stdout}")
    (built,) = place.iterdir()
    return built
