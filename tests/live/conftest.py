"""Which Gunicorn each live test runs on, and what they share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.process import interpreters
from tests.support.releases import mark_load

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIVE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this directory, and of it what only ``make soak`` runs."""
    here = [item for item in items if item.path.is_relative_to(_LIVE)]
    for item in here:
        item.add_marker(pytest.mark.live)
    mark_load(here)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for an ``interpreter`` on each Gunicorn, see ``tests.support.releases``.

    ``newest`` is for what has nothing to do with Gunicorn's release.
    """
    for name in ("interpreter", "newest"):
        if name in metafunc.fixturenames:
            chosen = interpreters() if name == "interpreter" else interpreters()[-1:]
            metafunc.parametrize(name, chosen, ids=[found.name for found in chosen])


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may enter, its path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="obskit-place-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
