"""Something that is wrong, in words: the same in a server's log and in a report."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong, and what to do: one line of a log, two of ``obskit-gunicorn check``."""

    text: str
    """What is wrong."""

    advice: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}"
