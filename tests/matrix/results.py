"""What has been measured: kept beside the environments, so that a run can go on where it ended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from tests.matrix.cells import Cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["Result", "Results", "fingerprint"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a cell.

    Attributes:
        cell: The cell.
        wrong: What did not hold, in words; nothing if all counts were exact.
        figures: Counts of what was done, by name.
        versions: What was installed, by name, and ``python``.
        date: The day of the run, as in ``"2026-11-26"``.
        seconds: How long the server ran.
    """

    cell: Cell
    wrong: list[str]
    figures: dict[str, int]
    versions: dict[str, str]
    date: str
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether all held."""
        return not self.wrong


class Results:
    """A directory with one file for each cell; those of other wheels or other rules are not seen.

    Another process may write results of other cells meanwhile.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """Look into a directory, which is made.

        Args:
            directory: Where.
            key: What results depend on beside their cell, see :func:`fingerprint`.
        """
        self._directory = directory
        self._key = key
        directory.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, cell: Cell) -> Result:
        """Return a result.

        Raises:
            KeyError: There is none.
        """
        try:
            read: dict[str, Any] = json.loads(self._path(cell).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise KeyError(cell) from None
        return Result(**{**read, "cell": Cell(*read["cell"])})

    def get(self, cell: Cell) -> Result | None:
        """Return a result, or ``None``."""
        try:
            return self[cell]
        except KeyError:
            return None

    def keep(self, result: Result) -> None:
        """Write a result."""
        text = json.dumps(dataclasses.asdict(result), indent=1)
        self._path(result.cell).write_text(text, encoding="utf-8")

    def _path(self, cell: Cell) -> Path:
        return self._directory / f"{fingerprint({'cell': repr(cell).encode()}, self._key)}.json"


def fingerprint(contents: Mapping[str, bytes], *more: str) -> str:
    """Return what is the same for the same contents, and for no others."""
    return _digest([*sorted((name, data) for name, data in contents.items()), *more])


def _digest(parts: Iterable[object]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:20]
