"""The tables of docs/compatibility.md that are written from a run."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from packaging.version import Version

from tests.matrix.cells import WORKER_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tests.matrix.cells import Cell
    from tests.matrix.results import Result

__all__ = ["BEGIN", "END", "tables", "write"]

BEGIN = "<!-- matrix: written by make matrix -->\n"
END = "<!-- end of matrix -->\n"

_BESIDE = ("gevent", "uvicorn", "uvicorn-worker")


def write(results: Sequence[Result], package: str, page: Path) -> None:
    """Write the tables into a page, between their marks.

    Args:
        results: All of them.
        package: The release of this package.
        page: The page.

    Raises:
        ValueError: The page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, found_too, after = rest.partition(END)
    if not (found and found_too):
        raise ValueError(f"{page} lacks the line {BEGIN.strip()!r} or {END.strip()!r}")
    page.write_text(before + BEGIN + tables(results, package) + END + after, encoding="utf-8")


def tables(results: Sequence[Result], package: str) -> str:
    """Return in Markdown what came out.

    Args:
        results: All of them.
        package: The release of this package.
    """
    dates = sorted({result.date for result in results})
    exact = sum(result.is_exact for result in results)
    requests, workers, scrapes = (
        sum(result.figures[name] for result in results)
        for name in ("requests", "workers", "scrapes")
    )
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, obskit_gunicorn {package}: "
        f"**{exact} of {len(results)} servers exact**, "
        f"over {requests:,} requests, {workers:,} workers and {scrapes:,} scrapes.\n"
        f"Beside them: Python {_releases(results, ['python'])}; {_beside(results)}.\n\n"
        + _table(results, "Gunicorn", lambda cell: cell.gunicorn)
        + "\n"
        + _table(results, "prometheus-client", lambda cell: cell.client)
    )


def _releases(results: Iterable[Result], names: Sequence[str]) -> str:
    found = {
        result.versions[name] for result in results for name in names if name in result.versions
    }
    return ", ".join(sorted(found, key=Version))


def _beside(results: Sequence[Result]) -> str:
    parts = [f"{name} {_releases(results, [name])}" for name in _BESIDE]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _table(results: Sequence[Result], name: str, row_of: Callable[[Cell], str]) -> str:
    """Return a table with a row for each release, and a column for each class and each Python."""
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for result in results:
        for column in (result.cell.worker_class, result.cell.python, "all"):
            counts[row_of(result.cell), column].append(result.is_exact)
    pythons = sorted({result.cell.python for result in results}, key=Version)
    columns = [*WORKER_CLASSES, *pythons, "all"]
    heads = [_short(each) for each in WORKER_CLASSES] + [f"Python {each}" for each in pythons]
    lines = [
        f"| {' | '.join((name, *heads, 'all'))} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for row in sorted({row_of(result.cell) for result in results}, key=Version):
        lines.append(f"| {' | '.join((row, *(_shown(counts[row, each]) for each in columns)))} |")
    return "\n".join(lines) + "\n"


def _short(worker_class: str) -> str:
    return worker_class.rpartition(".")[2]


def _shown(found: Sequence[bool]) -> str:
    """Return how many of so many were exact; in bold if not all were."""
    if not found:
        return "-"
    text = f"{sum(found)}/{len(found)}"
    return text if all(found) else f"**{text}**"
