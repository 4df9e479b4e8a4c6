"""docs/metrics.md as data: every metric that it documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGE", "Row", "documented", "exposition", "rows", "sample_names"]

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

_HEADER = ["metric", "type", "labels", "meaning", "who writes it", "absent"]
_CODE = re.compile(r"`([^`]*)`")
_CELLS = re.compile(r"(?<!\\)\|")


class Row(NamedTuple):
    """One metric of the page."""

    name: str
    """Its name as it is exposed; a counter's ends in ``_total``."""

    type: str
    """``counter``, ``gauge`` or ``histogram``."""

    labels: tuple[str, ...]
    """The names of its labels, in the page's order."""

    meaning: str
    writer: str
    absent: str


def rows(text: str | None = None) -> list[Row]:
    """Return the metrics of the page, in its order.

    Args:
        text: The page; by default the one in the tree.

    Raises:
        ValueError: A row of a table of metrics is not as the others are.
    """
    found = []
    is_table = False
    for line in (PAGE.read_text(encoding="utf-8") if text is None else text).splitlines():
        if not line.startswith("|"):
            is_table = False
            continue
        cells = [cell.strip() for cell in _CELLS.split(line)[1:-1]]
        if cells == _HEADER:
            is_table = True
        elif is_table and set(line) - set("|- "):
            found.append(_row(line, cells))
    return found


def _row(line: str, cells: list[str]) -> Row:
    if len(cells) != len(_HEADER):
        raise ValueError(f"{len(cells)} cells, not {len(_HEADER)}: {line}")
    name, kind, labels, *rest = cells
    label_names = tuple(_CODE.findall(labels))
    if not re.fullmatch("`[a-z_]+`", name) or ", ".join(f"`{x}`" for x in label_names) != labels:
        raise ValueError(f"name and labels stand in backticks, labels between commas: {line}")
    return Row(name.strip("`"), kind, label_names, *rest)


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return type and labels of every metric of the page, by name as in ``# TYPE`` lines."""
    return {row.name: (row.type, row.labels) for row in rows()}


def sample_names() -> set[str]:
    """Return the names that samples of the documented metrics have."""
    names: set[str] = set()
    for row in rows():
        if row.type == "histogram":
            names.update(f"{row.name}{suffix}" for suffix in ("_bucket", "_sum", "_count"))
        else:
            names.add(row.name)
    return names


def exposition() -> str:
    """Return an exposition with one series of each metric of the page, in the text format."""
    lines = []
    for name, kind, labels, meaning, *_ in rows():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        pairs = [f'{label}="x"' for label in labels]
        shown = f"{{{','.join(pairs)}}}" if pairs else ""
        if kind == "histogram":
            for bound in ("0.1", "+Inf"):
                bucket = ",".join([*pairs, f'le="{bound}"'])
                lines.append(f"{name}_bucket{{{bucket}}} 1")
            lines += [f"{name}_sum{shown} 1", f"{name}_count{shown} 1"]
        else:
            lines.append(f"{name}{shown} 1")
    return "\n".join([*lines, ""])
