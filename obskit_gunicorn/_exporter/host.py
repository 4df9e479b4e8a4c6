"""What a scrape shows of this host besides what was counted: processes, sockets, standard names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obskit_gunicorn._exporter.connections import listen_families, listeners
from obskit_gunicorn._exporter.procfs import Processes, process_families
from obskit_gunicorn._exporter.standard import StandardNames
from obskit_gunicorn._scrape.registry import Found

if TYPE_CHECKING:
    from obskit_gunicorn._scrape.own_metrics import Scrape


class HostFigures:
    """Reads /proc and the kernel's sockets, once for each scrape. Thread-safe."""

    def __init__(self, directory: str, *, standard: bool) -> None:
        """Read nothing yet.

        Args:
            directory: The multiprocess directory, for the log.
            standard: Whether to show the standard names.
        """
        self._processes = Processes(directory)
        self._standard = StandardNames() if standard else None

    def read(self, scrape: Scrape) -> Found:
        """Return the families to show beside what a scrape has read."""
        if scrape.collector is None:
            return Found(())
        seen = self._processes.look(scrape.records)
        families = [*process_families(seen), *listen_families(listeners(scrape.held))]
        if self._standard is None:
            return Found(families)
        return Found(families, list(self._standard.families(scrape, seen)))
