"""What is found when something is looked at."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at."""

    is_problem: bool
    """Whether something is wrong, and should be fixed."""

    text: str
    """What was found, and what to do about it."""
