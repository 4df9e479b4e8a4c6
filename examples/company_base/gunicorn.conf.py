"""Gunicorn's configuration for one service of the company."""

from __future__ import annotations

from typing import TYPE_CHECKING

from company import CompanyConfig

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter


class Config(CompanyConfig):
    """What is particular to this service."""

    bind = "127.0.0.1:8000"
    workers = 3
    team = "shop"
    slow_seconds = 0.25

    def when_ready(self, server: Arbiter) -> None:
        """Say whose service it is."""
        super().when_ready(server)
        assert server.log is not None  # to type checkers it could be; it is set before any hook
        server.log.info("A service of team %s", self.team)
