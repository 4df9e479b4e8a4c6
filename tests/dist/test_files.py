"""What is in the wheel and in the sdist."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn import __version__
from tests.support.distributions import build
from tests.support.interpreters import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "obskit_gunicorn"
INFO = f"{PACKAGE}-{__version__}.dist-info"
ABOUT = {
    f"{INFO}/{name}"
    for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
}
NOT_PYTHON = {
    f"{PACKAGE}/py.typed",
    f"{PACKAGE}/_gunicorn/settings.pyi",
    f"{PACKAGE}/_exporter/static/page.js",
    f"{PACKAGE}/_exporter/static/page.css",
}


def in_repository() -> set[str]:
    """Return the files that are, or would be, in the repository; skip the test outside of one."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode or not (REPOSITORY / ".git").exists():
        pytest.skip("this is no repository of git")
    return {name for name in done.stdout.splitlines() if (REPOSITORY / name).exists()}


def unpacked(sdist: Path, place: Path) -> Path:
    """Unpack an sdist, and return its only folder."""
    place.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xzf", sdist, "-C", place], check=True)
    (folder,) = place.iterdir()
    return folder


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """Its modules, types, page and licence are in the wheel; neither tests nor byte code are."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / PACKAGE).rglob("*.py")
    }
    assert names == modules | NOT_PYTHON | ABOUT


def test_the_sdist_has_the_repository(sdist: Path) -> None:
    """Whatever a contributor has is in the sdist, so that everything can be done with it."""
    wanted = in_repository()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == wanted | {"PKG-INFO"}


def test_the_wheel_is_the_same_from_the_sdist(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Whoever builds from the sdist, or from the tree, gets the wheel byte by byte."""
    folder = unpacked(sdist, tmp_path / "unpacked")
    again = build("wheel", tmp_path / "from sdist", source=folder)
    here = build("wheel", tmp_path / "from tree")
    assert again.name == here.name == wheel.name
    assert again.read_bytes() == here.read_bytes() == wheel.read_bytes()


def test_metadata(wheel: Path) -> None:
    """An index is told what the package needs, by whom it may be used, and how it is typed."""
    with zipfile.ZipFile(wheel) as archive:
        told = email.message_from_bytes(archive.read(f"{INFO}/METADATA"))
        licence = archive.read(f"{INFO}/licenses/LICENSE")
    assert (told["Name"], told["Version"]) == ("obskit-gunicorn", __version__)
    assert told["License-Expression"] == "Apache-2.0"
    assert licence == (REPOSITORY / "LICENSE").read_bytes()
    assert told["Requires-Python"] == ">=3.10"
    extras = {"auth", "cli", "push", "redis", "typing"}
    assert set(told.get_all("Provides-Extra") or ()) == extras
    needed = [line for line in told.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert needed == ["gunicorn>=22", "prometheus-client<1.0,>=0.20"]
    assert "Typing :: Typed" in (told.get_all("Classifier") or ())


@pytest.mark.load
@pytest.mark.timeout(900)
def test_the_tests_of_the_sdist_run(sdist: Path, tmp_path: Path) -> None:
    """Unpacked, the sdist has what those of its tests need that read files of the repository."""
    folder = unpacked(sdist, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not live and not load", "-n", "2"]
        + ["-p", "no:cacheprovider", "tests/unit/docs", "tests/unit/house"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
