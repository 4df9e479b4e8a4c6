"""Fixtures for tests in which prometheus_client is the judge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(name="cache", scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where downloads are kept: the directory OBSKIT_TEST_CACHE names, else one of this run."""
    named = os.environ.get("OBSKIT_TEST_CACHE")
    path = Path(named) if named else tmp_path_factory.getbasetemp().parent / "downloads"
    path.mkdir(parents=True, exist_ok=True)
    return path
