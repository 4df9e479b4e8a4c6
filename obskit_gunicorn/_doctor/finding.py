"""What is found when something is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obskit_gunicorn._problem import Problem

JSON_VERSION = 1
"""The version of what :func:`as_json` returns; a larger one for what old readers misread."""

PARTS = (
    "versions",
    "configuration",
    "hooks",
    "environment",
    "directory",
    "volume",
    "files",
    "processes",
    "exporter",
    "application",
    "metrics",
    "store",
    "push",
)
"""What is looked at, in the order in which it is printed."""

_WIDTH = max(map(len, PARTS))


class Finding(NamedTuple):
    """One thing that was looked at."""

    part: str
    """What was looked at: one of :data:`PARTS`."""

    level: Literal["ok", "warning", "error"]
    """``warning`` for what will bite, ``error`` for what does not work."""

    text: str
    """What was found."""

    advice: str = ""
    """What to do about it; empty if there is nothing to do."""

    stops: bool = False
    """Whether the server cannot be started, or cannot serve."""

    @property
    def is_problem(self) -> bool:
        """Whether something should be done."""
        return self.level != "ok"

    def lines(self) -> str:
        """Return it for people: a line, and an indented one that says what to do."""
        below = "\n" + " " * (_WIDTH + 11)
        # What others raise may have several lines, and one that begins at the left is a finding.
        text, advice = (
            below.join(filter(str.strip, each.splitlines())) for each in (self.text, self.advice)
        )
        line = f"{self.level:<8} {self.part:<{_WIDTH}}  {text}"
        return f"{line}{below}{advice}" if advice else line


def ok(part: str, text: str, advice: str = "") -> Finding:
    """Return that something is right; with advice if it could be better."""
    return Finding(part, "ok", text, advice)


def warning(part: str, problem: Problem) -> Finding:
    """Return that something will bite."""
    return Finding(part, "warning", *problem)


def error(part: str, problem: Problem, *, stops: bool = False) -> Finding:
    """Return that something does not work."""
    return Finding(part, "error", *problem, stops)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings sorted by part."""
    return sorted(findings, key=lambda finding: PARTS.index(finding.part))


def status(findings: Iterable[Finding]) -> int:
    """Return the exit status: 0, 1 if something is wrong, 2 if the server cannot be started."""
    return max((2 if each.stops else int(each.is_problem) for each in findings), default=0)


def as_json(findings: list[Finding], **facts: object) -> dict[str, Any]:
    """Return findings for programs, see ``docs/commands.md``.

    Args:
        findings: What was found, in order.
        **facts: What was looked at.
    """
    return {
        "version": JSON_VERSION,
        **facts,
        "status": status(findings),
        "findings": [finding._asdict() for finding in findings],
    }
