"""Real databases of metrics: a Prometheus and a VictoriaMetrics, to push to and to ask."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import subprocess
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.missing import find_program
from tests.support.process import HOST, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "pusher", "open sesame"
HASH = "$2b$04$pWwPputNJK8ncnoT6dW7p.sl34m0kkZ5WOX1kusTqw0ISQIvq/XTa"
"""bcrypt's of the password, of the lowest cost."""


class Database:
    """A Prometheus or a VictoriaMetrics."""

    def __init__(
        self, kind: str, directory: Path, *, asks_password: bool = False, scrapes: str = ""
    ) -> None:
        """Write its configuration.

        Args:
            kind: ``"prometheus"`` or ``"victoria-metrics"``.
            directory: For its data.
            asks_password: Whether it takes requests of :data:`USER` only.
            scrapes: The configuration of a Prometheus's scrapes.
        """
        self.kind, self.directory = kind, directory
        self._asks_password = asks_password
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}/api/v1/write"
        (directory / "prometheus.yml").write_text(scrapes or "global: {}\n")
        (directory / "web.yml").write_text(json.dumps({"basic_auth_users": {USER: HASH}}))

    def _command(self) -> list[str]:
        program = find_program(self.kind, self.kind)
        if self.kind == "prometheus":
            return [
                program,
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address={HOST}:{self.port}",
                "--web.enable-remote-write-receiver",
                "--log.level=warn",
                *(["--web.config.file=web.yml"] if self._asks_password else []),
            ]
        return [
            program,
            "-storageDataPath=data",
            f"-httpListenAddr={HOST}:{self.port}",
            "-retentionPeriod=1d",
            "-search.latencyOffset=0s",  # or nothing of the last 30 s is seen
            "-search.disableCache",
            "-loggerLevel=WARN",
            *(
                [f"-httpAuth.username={USER}", f"-httpAuth.password={PASSWORD}"]
                if self._asks_password
                else []
            ),
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it."""
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(self._command(), cwd=self.directory, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, f"{self.kind} is ready")
            yield
        finally:
            process.terminate()
            process.wait(20)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._get("/-/ready" if self.kind == "prometheus" else "/health")[0] == 200
        return False

    def _get(self, path: str) -> tuple[int, bytes]:
        both = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Authorization": f"Basic {both}"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, query: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return what a query finds."""
        if self.kind == "victoria-metrics":
            self._get("/internal/force_flush")  # what was sent last can be searched
        parameters = {"query": query, **({"time": f"{at:.3f}"} if at else {})}
        status, body = self._get("/api/v1/query?" + urllib.parse.urlencode(parameters))
        assert status == 200, body
        found: list[dict[str, Any]] = json.loads(body)["data"]["result"]
        return found

    def values(self, query: str) -> list[float]:
        """Return the values that a query finds, sorted."""
        return sorted(float(found["value"][1]) for found in self.ask(query))

    def history(self, series: str) -> list[tuple[float, float]]:
        """Return times and values of a series; without stale markers."""
        return [
            (float(at), float(value))
            for found in self.ask(f"{series}[10m]")
            for at, value in found["values"]
            if value != "NaN"  # VictoriaMetrics shows the markers
        ]

    def wait_for_increase(self, series: str, expected: float) -> None:
        """Wait until a counter has grown by so much, up to its last value."""

        def has_grown() -> bool:
            history = self.history(series)
            found = self.ask(f"increase({series}[10m])", history[-1][0]) if history else []
            return [float(one["value"][1]) for one in found] == [pytest.approx(expected)]

        wait_until(has_grown, f"{series} has grown by {expected}")
