"""Fixtures for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.forks import Nursery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="_interpreter", scope="session")
def _interpreter_fixture() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(name="nursery")
def _nursery(_interpreter: Nursery, request: pytest.FixtureRequest) -> Iterator[Nursery]:
    """Where processes come from that have never touched a metric; they end with the test."""
    _interpreter.load(request.module)
    yield _interpreter
    _interpreter.forget_all()


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> str:
    """An empty multiprocess directory."""
    path = tmp_path / "metrics"
    path.mkdir()
    return str(path)
