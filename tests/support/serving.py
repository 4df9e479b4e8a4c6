"""The command ``obskit-gunicorn serve`` as a real process: started for a test, asked, and ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.process import (
    DEADLINE_SECONDS,
    HOST,
    Metrics,
    free_port,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["WAITS", "Page", "ServeProcess", "ask", "may_run", "reset"]

_INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")
_TICKS = os.sysconf("SC_CLK_TCK")

WAITS = """
import os
import time

from obskit_gunicorn._exporter import user_collectors


class Waits:
    calls = 0

    def collect(self):
        user_collectors.LONGEST_SECONDS = 1000  # for later ones
        self.calls += 1
        while self.calls > 1 and not os.path.exists("end"):
            time.sleep(0.01)
        return []
"""
"""A collector that lets every scrape but the first wait until there is a file ``end``."""


class Page(NamedTuple):
    """What was answered."""

    status: int
    headers: dict[str, str]
    """By names in small letters."""

    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class ServeProcess:
    """A running ``obskit-gunicorn serve``; a context manager.

    Leaving the context ends it by SIGTERM, and fails the test if its status is not 0 or if it has
    written a traceback that nobody expected.

    Attributes:
        root: The process's working directory, where modules for ``--collectors`` are put.
        port: Where it listens, if it is at TCP.
        process: The process.
    """

    def __init__(
        self,
        directory: str | Path,
        *arguments: str,
        bind: str | None = None,
        files: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        descriptors: int | None = None,
        user: int | None = None,
        prefix: Sequence[str] = (),
        tracebacks: bool = False,
        serving: bool = True,
    ) -> None:
        """Describe it; entering the context starts it.

        Args:
            directory: The multiprocess directory.
            arguments: More of the command's arguments.
            bind: Where it listens; by default a free port of 127.0.0.1.
            files: Files to write into its working directory, by name.
            environment: More variables.
            descriptors: How many descriptors it may have.
            user: The uid to run it as, and its gid.
            prefix: A command to run it with, which ends in ``exec``.
            tracebacks: Tracebacks in its log are expected.
            serving: Wait until it serves.
        """
        self.root = Path(tempfile.mkdtemp(prefix="obskit-serve-"))
        self.root.chmod(0o755)
        self.port = free_port()
        self.bind = bind or f"{HOST}:{self.port}"
        for name, text in (files or {}).items():
            (self.root / name).write_text(text)
        self.command = [
            *prefix,
            *(sys.executable, "-m", "obskit_gunicorn", "serve"),
            *("--directory", str(directory), "--bind", self.bind),
            *arguments,
        ]
        self.environment = {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        self._descriptors = descriptors
        self._user = user
        self._tracebacks = tracebacks
        self._serving = serving
        self._log_path = self.root / "log"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> ServeProcess:
        """Start it, and wait until it serves."""
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        if self._descriptors is not None:
            limits = (self._descriptors, self._descriptors)
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, limits)
        if self._serving:
            try:
                self.wait_until_serving()
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        was_running = self.process.poll() is None
        status = self.stop() if was_running else self.process.returncode
        log = self.log()
        shutil.rmtree(self.root, ignore_errors=True)
        if kind is not None:
            print(f"--- log of {' '.join(self.command)}\n{log[-8000:]}---")
            return
        if was_running:
            assert status == 0, log
        assert self._tracebacks or "Traceback" not in log, log

    def wait_until_serving(self) -> None:
        """Wait until it says that it serves; fail at once if it has ended instead."""

        def serves() -> bool:
            assert self.process.poll() is None, self.log()
            return "obskit-gunicorn: serving" in self.log()

        wait_until(serves, "it serves")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, wait until it ends, and return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends, and return its exit status."""
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"it has not ended within {DEADLINE_SECONDS:g} s\n{self.log()}"
            ) from None

    # What it says

    def log(self) -> str:
        """Return what it has written."""
        with contextlib.suppress(FileNotFoundError):
            return self._log_path.read_text(errors="replace")
        return ""

    def get(
        self,
        path: str = "/metrics",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> Page:
        """Ask it for a page, over TCP.

        Raises:
            OSError: No connection, or it was cut.
            http.client.HTTPException: The answer was cut short.
        """
        connection = (
            http.client.HTTPConnection(HOST, self.port, timeout=timeout)
            if tls is None
            else http.client.HTTPSConnection(HOST, self.port, timeout=timeout, context=tls)
        )
        return ask(connection, path, method=method, headers=headers)

    def scrape(self, *, timeout: float = 10.0) -> Metrics:
        """Scrape it once."""
        page = self.get(timeout=timeout)
        assert page.status == 200, page
        return parse_metrics(page.text)

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample of a new scrape, or not-a-number, which equals nothing."""
        return self.scrape().get((name, frozenset(labels.items())), float("nan"))

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """Return a connection to it on which nothing was sent.

        Args:
            receive_bytes: How much the client's side takes before it is read.
        """
        client = socket.socket()
        client.settimeout(20)
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect((HOST, self.port))
        return client

    def exchange(self, data: bytes) -> bytes:
        """Send something and return all that is answered until the connection ends."""
        with self.connect() as client:
            answer = b""
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                client.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while chunk := client.recv(1 << 16):
                    answer += chunk
            return answer

    # What it uses

    def threads(self) -> int:
        """Return how many threads it has."""
        return int(self._status("Threads"))

    def resident_kilobytes(self) -> int:
        """Return how much memory it has that is resident."""
        return int(self._status("VmRSS").split()[0])

    def descriptors(self) -> int:
        """Return how many descriptors it has."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        """Return how much processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def wait_until_idle(self, *, threads: int = 2, descriptors: int | None = None) -> None:
        """Wait until it serves nobody, and uses next to no processor time."""
        wait_until(lambda: self.threads() <= threads, "its threads end")
        if descriptors is not None:
            wait_until(lambda: self.descriptors() <= descriptors, "descriptors close")

        def is_idle() -> bool:
            before = self.cpu_seconds()
            time.sleep(0.3)
            return self.cpu_seconds() - before <= 0.02

        wait_until(is_idle, "it is idle")

    def _status(self, name: str) -> str:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
        raise AssertionError(f"/proc knows no {name}")


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> Page:
    """Send one request on a connection, and close it.

    Raises:
        OSError: No connection, or it was cut.
        http.client.HTTPException: The answer was cut short.
    """
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        names = [name.lower() for name, _ in response.getheaders()]
        once = [name for name in names if name != "www-authenticate"]  # one for each scheme
        assert len(once) == len(set(once)), f"a header stands twice: {names}"
        found = {name.lower(): value for name, value in response.getheaders()}
        return Page(response.status, found, response.read())


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side finds it reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def may_run(user: int) -> bool:
    """Return whether a user may run the interpreter of the tests and what is installed there."""
    done = subprocess.run(
        [sys.executable, "-c", "import obskit_gunicorn, prometheus_client"],
        cwd="/",
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0
