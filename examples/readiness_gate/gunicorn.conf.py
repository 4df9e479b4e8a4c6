"""A readiness gate: the server starts only when a service that it needs can be reached.

Set ``GATE_ADDRESS`` to ``host:port`` of a TCP server, a database for example, and ``GATE_SECONDS``
to how long to wait for it (30 by default). While the gate is closed, no port is open and no worker
runs, so to a load balancer or an orchestrator the server does not exist yet. If the service does
not answer in time, the start ends with one line in the log and exit status 1, and the supervisor
of the server decides what to do next::

    GATE_ADDRESS=127.0.0.1:5432 gunicorn myapp:app

Without ``GATE_ADDRESS`` there is no gate.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from obskit_gunicorn import ObskitGunicornConfig

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

_POLL_SECONDS = 0.2


class Config(ObskitGunicornConfig):
    """Two workers behind a readiness gate."""

    bind = os.environ.get("BIND", "127.0.0.1:8000")
    workers = 2

    def on_starting(self, server: Arbiter) -> bool | None:
        """Wait until the service answers; ``False`` ends the start."""
        super().on_starting(server)
        log = server.log
        assert log is not None  # to type checkers it could be; it is set before any hook
        address = os.environ.get("GATE_ADDRESS")
        if not address:
            return None
        if not address.rpartition(":")[2].isdigit():
            log.error("Gate: GATE_ADDRESS is %r, expected host:port", address)
            return False
        seconds = float(os.environ.get("GATE_SECONDS", "30"))
        if _answers_within(address, seconds):
            log.info("Gate: %s answers", address)
            return None
        log.error("Gate: %s did not answer within %g seconds", address, seconds)
        return False


def _answers_within(address: str, seconds: float) -> bool:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        try:
            socket.create_connection((host, int(port)), timeout=min(2.0, remaining)).close()
        except OSError:
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        else:
            return True
