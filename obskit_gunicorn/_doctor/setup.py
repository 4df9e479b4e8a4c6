"""A server that is to be started: all that its configuration leads to."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

from obskit_gunicorn._doctor import (
    application,
    configuration,
    exporter,
    finding,
    place,
    stores,
)
from obskit_gunicorn._doctor.apart import EndedError, User, apart
from obskit_gunicorn._gunicorn import dispatch, lifecycle
from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obskit_gunicorn._doctor.finding import Finding

_LONGEST_SECONDS = 300.0
_MOST_OUTPUT = 2000


def examine(arguments: Sequence[str]) -> Iterator[Finding]:
    """Yield what is right with a server's set-up, what will bite, and what to do.

    A configuration file is a program, and what it does to its process happens in another one.

    Args:
        arguments: Gunicorn's arguments.
    """
    with tempfile.TemporaryFile() as output:
        try:
            yield from apart(
                lambda: _look(arguments, output.fileno()),
                seconds=_LONGEST_SECONDS,
                output=output.fileno(),
            )
        except EndedError as error:
            text = f"the configuration was not looked at to the end: {error}"
            advice = last_line(output.fileno())
            if advice in str(error):  # also if nothing was printed
                advice = "see what it does when it is loaded"
            yield finding.error("configuration", Problem(text, advice), stops=True)


def last_line(output: int) -> str:
    """Return the last line that was printed to a file, which others may be writing to."""
    start = max(0, os.fstat(output).st_size - _MOST_OUTPUT)
    lines = os.pread(output, _MOST_OUTPUT, start).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _look(arguments: Sequence[str], output: int) -> Iterator[Finding]:
    sys.dont_write_bytecode = True
    yield from configuration.versions()
    try:
        loaded = configuration.load(arguments)
    except configuration.LoadingError as error:
        text, advice = error.problem
        if not text:  # Gunicorn's reader of arguments has printed it
            sys.stderr.flush()
            text = last_line(output)
        yield finding.error("configuration", Problem(text, advice), stops=True)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as an arbiter sets its own after this
    yield from configuration.examine(loaded)
    publication = dispatch.publication_of(loaded.settings)
    if publication is None:
        return  # nothing of what follows happens, and prometheus_client might write files
    options, settings = publication.options, loaded.settings
    user = User.of(settings)
    if lifecycle.missing_client() is None:
        directory = lifecycle.directory_of(options, settings)
        # Each worker, one that replaces it at a reload, and the arbiter.
        yield from place.examine(directory, user, 2 * settings.workers + 1)
        source = publication.where("metrics_bind")
        yield from exporter.examine(options, settings, user, source, directory)
        yield from stores.examine(options)
    yield from application.examine(loaded.application, options, user)
