"""prometheus_client's own tests of its multiprocess mode, run on our value class and collector.

The tests are those of the source distribution of each version; they are downloaded when this test
runs and are no part of this repository.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.forks import REPOSITORY
from tests.support.missing import missing

pytestmark = pytest.mark.conformance

OLDEST = "0.20.0"
NEWEST = importlib.metadata.version("prometheus-client")

EXPECTED_FAILURES = {
    "TestMultiProcess.test_initialization_detects_pid_change": (
        "lists the directory and expects nothing beside the metric files; ours holds lock and "
        "leases too, none of which ends in .db"
    ),
    "TestMultiProcess.test_remove_clear_warning": (
        "expects warnings that remove() and clear() do nothing for other processes; here they do"
    ),
}
"""Each of their tests that cannot pass here, and why. All others must pass, and these must not."""


@pytest.fixture(name="sources", params=[OLDEST, NEWEST], scope="module")
def _sources(request: pytest.FixtureRequest, cache: Path) -> Path:
    """The unpacked source distribution of a version of prometheus_client."""
    version = request.param
    with open(cache / "lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _unpacked(cache, version)
        if found is None:
            _download(cache, version)
            found = _unpacked(cache, version)
    assert found is not None
    return found


def test_theirs_pass_as_they_are(sources: Path) -> None:
    """Their tests pass here with their own classes, so that a failure below means something."""
    assert _failures(sources, "theirs") == {}


def test_theirs_pass_on_ours(sources: Path) -> None:
    """Every test of theirs passes with our classes, but for those that are listed with a reason."""
    failed = _failures(sources, "ours")
    assert {name: text for name, text in failed.items() if name not in EXPECTED_FAILURES} == {}
    assert EXPECTED_FAILURES.keys() <= failed.keys(), "passes now: take it off the list"


def _failures(sources: Path, whose: str) -> dict[str, str]:
    environment = {name: text for name, text in os.environ.items() if "MULTIPROC" not in name}
    environment["PYTHONPATH"] = os.pathsep.join([str(sources), str(REPOSITORY)])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    runner = Path(__file__).with_name("simulated_processes.py")
    path = sources / "tests" / "test_multiprocess.py"
    done = subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning", str(runner), whose, str(path)],
        cwd=sources,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    assert len(outcomes) > 25
    return {name: text for name, text in outcomes.items() if text}


def _unpacked(cache: Path, version: str) -> Path | None:
    path = cache / f"prometheus_client-{version}"
    return path if (path / "tests" / "test_multiprocess.py").exists() else None


def _download(cache: Path, version: str) -> None:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(cache), f"prometheus-client=={version}"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode != 0:
        missing(f"cannot download prometheus-client {version}: {done.stderr}")
    (archive,) = cache.glob(f"prometheus[-_]client-{version}.tar.gz")
    with tarfile.open(archive) as content:
        if hasattr(tarfile, "data_filter"):
            content.extraction_filter = tarfile.data_filter
        content.extractall(cache)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    return [shutil.which("pip") or "pip"]
