"""What is found, as people read it."""

from __future__ import annotations

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._problem import Problem


def test_words_of_others_in_several_lines() -> None:
    """A line that begins at the left is a finding, and nothing else."""
    found = finding.error("application", Problem("ValueError: two\n\nfields\n missing", "mend it"))
    assert found.lines().splitlines() == [
        "error    application    ValueError: two",
        "                        fields",
        "                         missing",
        "                        mend it",
    ]
