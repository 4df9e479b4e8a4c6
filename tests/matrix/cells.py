"""Which releases are run together: few cells in which every pair of releases meets."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from packaging.version import Version

from tests.support.releases import covering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["WORKER_CLASSES", "Cell", "Offer", "choose", "pairs"]

WORKER_CLASSES = ("sync", "gthread", "gevent", "asgi", "uvicorn_worker.UvicornWorker")
_FIRST_WITH_ASGI = Version("24")


class Cell(NamedTuple):
    """What one server is made of.

    Attributes:
        python: As in ``"3.12"``.
        gunicorn: A release, as in ``"25.0.3"``.
        client: A release of prometheus-client.
        worker_class: Gunicorn's setting.
        is_preloaded: Whether the arbiter loads the application.
        is_shared: Whether PROMETHEUS_MULTIPROC_DIR is set; else the directory is a private one.
    """

    python: str
    gunicorn: str
    client: str
    worker_class: str
    is_preloaded: bool
    is_shared: bool

    @property
    def name(self) -> str:
        """All of it in one line, in columns."""
        return " ".join(
            (
                f"python-{self.python}",
                f"gunicorn-{self.gunicorn}",
                f"client-{self.client:6}",
                f"{self.worker_class.rpartition('.')[2]:13}",
                f"{'preloaded' if self.is_preloaded else 'each':9}",
                f"{'directory' if self.is_shared else 'private':9}",
            )
        )


class Offer(NamedTuple):
    """The releases that there are for one Python."""

    gunicorn: Sequence[str]
    client: Sequence[str]


def choose(offers: Mapping[str, Offer]) -> list[Cell]:
    """Return cells in which each two values occur together that can; the same ones each time.

    Args:
        offers: What there is, by Python.
    """
    possible = [
        Cell(python, gunicorn, client, worker_class, is_preloaded, is_shared)
        for python, offer in offers.items()
        for gunicorn, client, worker_class, is_preloaded, is_shared in itertools.product(
            offer.gunicorn, offer.client, WORKER_CLASSES, (False, True), (False, True)
        )
        if worker_class != "asgi" or Version(gunicorn) >= _FIRST_WITH_ASGI
    ]
    chosen = covering(possible, [pairs(cell) for cell in possible])
    return sorted(chosen, key=lambda cell: (Version(cell.gunicorn), Version(cell.client), *cell))


def pairs(cell: Cell) -> list[tuple[tuple[str, object], tuple[str, object]]]:
    """Return each two values that occur together in a cell, with their names."""
    return list(itertools.combinations(cell._asdict().items(), 2))
