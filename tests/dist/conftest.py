"""The files that a package index gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.distributions import build


@pytest.fixture(name="wheel", scope="session")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of ``make dist``; elsewhere one that is built from the tree."""
    return _made("*.whl") or build("wheel", tmp_path_factory.mktemp("dist") / "wheel")


@pytest.fixture(name="sdist", scope="session")
def _sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sdist of ``make dist``; elsewhere one that is built from the tree."""
    return _made("*.tar.gz") or build("sdist", tmp_path_factory.mktemp("dist") / "sdist")


def _made(pattern: str) -> Path | None:
    place = os.environ.get("OBSKIT_TEST_DIST")
    if place is None:
        return None
    (found,) = Path(place).glob(pattern)
    return found
