"""Counting without a lock, for long, on each interpreter that there is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.counting import DISTURBANCES
from tests.support.interpreters import VERSIONS, run_with

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.load

SECONDS = min(60.0, float(os.environ.get("OBSKIT_SOAK_SECONDS", "20")))


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_lost(tmp_path: Path, version: str, disturbance: str) -> None:
    """Millions of counts of four threads are in the files, whatever happens to these meanwhile."""
    program = ("-m", "tests.support.counting", str(tmp_path), disturbance, str(SECONDS))
    done = run_with(version, *program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["lost"], found["errors"], found["differing"]) == (0, [], [])
    assert found["counted"] > 10_000 * SECONDS
