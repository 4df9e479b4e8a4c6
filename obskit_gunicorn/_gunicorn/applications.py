"""What applications do behind our back, looked at when one is loaded.

An application may undo what was installed before: that is put back where it is safe. It may create
metrics that no file can hold, or serve those of one worker: a line in the log says so.

Every worker finds the same. Of those that are forked after a start or a reload, the first one
speaks.
"""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import routes
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._scrape import witness
from obskit_gunicorn._values import sharing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gunicorn.workers.base import Worker

    from obskit_gunicorn._exporter.protocol import Options

_MOST_NAMES = 10


class Turn:
    """Whose turn it is to speak.

    Attributes:
        is_due: In the arbiter: whether the next worker speaks.
        is_ours: In a worker: whether it speaks.
        said: The lines that were logged, by the arbiter too; workers inherit them.
    """

    def __init__(self) -> None:
        """Let the first worker speak."""
        self.is_due = True
        self.is_ours = False
        self.said: set[str] = set()

    def pass_on(self) -> None:
        """Give the turn to the worker that is forked next; runs in the arbiter."""
        self.is_ours, self.is_due = self.is_due, False


turn = Turn()
"""The turn of this process."""


def look_in_arbiter() -> None:
    """Put back what a preloaded application has changed, before workers are forked."""
    _log(sharing.put_back())


def look_in_worker(options: Options, worker: Worker) -> None:
    """Put back what the application has changed, and say what it has that cannot be shown."""
    lines = sharing.put_back()
    if turn.is_ours:
        _log(lines)
        if options.metrics_bind is not None or not witness.is_replaced():
            problem = unshown(options)
            if problem is not None:
                log.warning("obskit: %s", problem)
    if worker.cfg.workers > 1:
        witness.watch()


def _log(lines: Iterable[tuple[int, str]]) -> None:
    for level, line in lines:
        if line not in turn.said:
            turn.said.add(line)
            log.log(level, "%s", line)


def unshown(options: Options) -> Problem | None:
    """Return which metrics of the application cannot be shown, if there are any."""
    run = [_loaded(name) for name in options.metrics_collectors]
    names = [
        name
        for collector, name in witness.unshared().items()
        if not any(collector is each or type(collector) is each for each in run)
    ]
    if not names:
        return None
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"and {len(names) - _MOST_NAMES} more"]
    return Problem(
        f"not shown, because files cannot hold them: {', '.join(names)}",
        "run them once, in the exporter, with metrics_collectors, or use a Gauge that is set "
        "(docs/deployment.md)",
    )


def watch_routes(application: Any) -> None:
    """Begin to see by which routes an application serves, or say that nothing will tell.

    Runs in a worker, once, before it serves.
    """
    try:
        routes.watch(application)
    except Exception:  # it looks at objects of the application; requests must be counted
        log.exception("obskit: it is unknown how the application routes requests")
        return
    problem = unrouted()
    if problem is not None and turn.is_ours:
        log.info("obskit: %s", problem)


def unrouted() -> Problem | None:
    """Return why requests may have no routes, after :func:`routes.watch`."""
    if routes.found.frameworks:
        return None
    return Problem(
        "metrics_routes is on, and no framework was found behind the application whose routes are "
        'known, so each request has the route ""',
        f"put the template of each into the environ or the scope, as {routes.KEY} "
        "(docs/metrics.md)",
    )


def _loaded(name: str) -> object:
    """Return what an import string names if it is loaded already."""
    module, _, attribute = name.partition(":")
    try:
        return operator.attrgetter(attribute)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
