"""What each worker imports of ours: nothing that only the exporter or other workers need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("asyncio", "http.server", "obskit_gunicorn._exporter.server", "ssl")
SCRAPES = ("obskit_gunicorn._scrape.collector", "obskit_gunicorn._scrape.formats")

IMPORTS = """
import sys
import gunicorn.app.wsgiapp, prometheus_client
from obskit_gunicorn import ObskitGunicornConfig
before = set(sys.modules)
from obskit_gunicorn._gunicorn import applications, lifecycle, seams, telemetry, worker_classes
print(*sorted(set(sys.modules) - before))
"""


def test_a_sync_worker_imports_nothing_heavy() -> None:
    """It is forked hundreds of times, and each import is made in each of them."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=60
    )
    imported = done.stdout.split()
    assert "obskit_gunicorn._gunicorn.telemetry" in imported
    assert not {*HEAVY, *SCRAPES} & {*imported}
