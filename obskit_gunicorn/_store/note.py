"""What a directory says about its publication: so that nothing is counted twice, or forgotten.

The arbiter begins it, and the exporter goes on. A store that is blank, and an exporter that is new,
cannot know that the counts of a directory were published before; and the arbiter that is about to
wipe cannot know whether something was left unpublished.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import NamedTuple

NAME = "fleet.json"


class Note(NamedTuple):
    """What was published of a directory."""

    generation: str
    """Which generation."""

    number: int = 0
    """As which incarnation of it."""

    epoch: str = ""
    """In which epoch of the store last; empty if it never was."""

    ended: bool = False
    """Whether that was its last publication."""


def read(directory: str) -> Note | None:
    """Return the note in a directory; ``None`` if there is none, or none that can be read."""
    try:
        with open(os.path.join(directory, NAME), encoding="utf-8") as file:
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
    """Replace the note in a directory.

    Raises:
        OSError: It cannot be written.
    """
    path = os.path.join(directory, NAME)
    unfinished = f"{path}.{os.urandom(4).hex()}.new"
    try:
        with open(unfinished, "x", encoding="utf-8") as file:
            json.dump(note._asdict(), file)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
