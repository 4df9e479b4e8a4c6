"""What a directory says about its publication: so that nothing is counted twice, or forgotten.

The exporter writes it. A store that is blank, and an exporter that is new, cannot know that the
counts of a directory were published before; and the arbiter that is about to wipe cannot know
whether something was left unpublished.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import NamedTuple

from obskit_gunicorn._log import log
from obskit_gunicorn._store.remains import NOTE_NAME


class Note(NamedTuple):
    """What was published of a directory."""

    generation: str
    """Which generation."""

    number: int
    """As which incarnation of it."""

    epoch: str
    """In which epoch of the store last; empty if it never was."""

    ended: bool
    """Whether that was its last publication."""


def read(directory: str) -> Note | None:
    """Return the note in a directory; ``None`` if there is none, or none that can be read."""
    try:
        with open(os.path.join(directory, NOTE_NAME), encoding="utf-8") as file:
            found = json.load(file)
        return Note(
            str(found["generation"]),
            int(found["number"]),
            str(found["epoch"]),
            bool(found["ended"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(directory: str, note: Note) -> None:
    """Replace the note in a directory; logs what keeps it from being written."""
    path = os.path.join(directory, NOTE_NAME)
    unfinished = f"{path}.{os.getpid()}.new"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(note._asdict(), file)
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        if path not in _reported:
            _reported.add(path)
            log.warning(
                "%s cannot be written (%s): if this exporter and the store are lost at once, "
                "counts are published twice, and a killed server's last ones are not published",
                path,
                error.strerror,
            )


_reported: set[str] = set()
