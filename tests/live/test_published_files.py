"""Configuration files as people publish them, adopted in each documented way."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.checks import check_counts, wait_until_load_is_counted
from tests.support.client import reload_under_load
from tests.support.process import GunicornProcess
from tests.support.published import FILES, SHAPES, WAYS, adopted, hooks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.process import Interpreter


SHADOWED = ("defaults of the company", "star first")
"""What only fills in missing names finds ours there; docs/migrating.md says so."""


def _combinations() -> list[object]:
    """Return every file with every way; ``make test`` runs each file in one way."""
    return [
        pytest.param(
            shape,
            way,
            marks=() if WAYS[number % len(WAYS)] == way else pytest.mark.load,
            id=f"{shape}-{way}",
        )
        for number, shape in enumerate(SHAPES)
        for way in WAYS
        if (shape, way) != SHADOWED
    ]


@pytest.mark.parametrize(("shape", "way"), _combinations())
def test_published_file_is_whole(interpreter: Interpreter, shape: str, way: str) -> None:
    """Counts are exact and every hook is called, through a SIGHUP; or one message says it all."""
    lines = lines_to_write(interpreter, shape) if way == "class" else ()
    config = adopted(shape, way, lines)
    hooks = hooks_of(shape)
    with GunicornProcess(interpreter, config, files=FILES) as server:
        load, workers = reload_under_load(server)
        check_counts(server, load)
        wait_until_load_is_counted(server, load, workers)
        assert server.metric("gunicorn_reloads_total") == 1
        assert server.stop(signal.SIGINT if "worker_int" in hooks else signal.SIGTERM) == 0
        log = server.log()
        missing = [hook for hook in hooks if f"hook: {hook}" not in log]
        assert not missing
        assert log.count("hook: when_ready") == ("when_ready" in hooks)
        assert log.count("hook: on_exit") == ("on_exit" in hooks)
        assert "did you mean" not in log


def lines_to_write(interpreter: Interpreter, shape: str) -> Sequence[str]:
    """Return what one message says is to be written into a class beside the file."""
    if not hooks_of(shape):
        return ()
    with GunicornProcess(
        interpreter,
        adopted(shape, "class"),
        files=FILES,
        arguments=["--check-config"],
        serving=False,
    ) as server:
        assert server.exit_status() == 1
        (message,) = [line for line in server.log().splitlines() if "Error: " in line]
        return re.findall(r"write (\w+ = staticmethod\(\w+\)) into the class", message)
