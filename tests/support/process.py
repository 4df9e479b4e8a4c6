"""Real Gunicorn processes, started for one test and gone after it.

Every process of a server is found by a variable in its environment, which forks, daemons and the
arbiter of a SIGUSR2 inherit; so nothing else is ever signalled, and nothing is overlooked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import apps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "HOST",
    "GunicornProcess",
    "Interpreter",
    "Metrics",
    "Response",
    "can_run",
    "can_unshare",
    "free_port",
    "interpreters",
    "metric_files",
    "on_a_volume",
    "parse_metrics",
    "process_stat",
    "send_if_alive",
    "wait_until",
]

HOST = "127.0.0.1"
DEADLINE_SECONDS = 30.0
"""How long a server may take for anything that it does at once on an idle machine."""

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]
Result = TypeVar("Result")

_MARK = "OBSKIT_TEST_SERVER"
_POLL_SECONDS = 0.02
_MOST_PAUSE_SECONDS = 0.2
_REMEMBERED_SECONDS = 1.0
_MOST_LOG = 8000
_TICKS = os.sysconf("SC_CLK_TCK")
_INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")


# ------------------------------------------------------------------------------------------------
# Interpreters


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """A Python that has one release of Gunicorn.

    Attributes:
        path: The interpreter.
        version: Gunicorn's version, as in ``(25, 3, 0)``.
    """

    path: str
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        """The Gunicorn, for the name of a test."""
        return "gunicorn-" + ".".join(map(str, self.version))


@functools.cache
def interpreters() -> tuple[Interpreter, ...]:
    """Return the interpreters to test with, the oldest Gunicorn first.

    ``OBSKIT_TEST_PYTHONS`` lists them, separated by colons; without it there is the one that runs
    the tests.
    """
    paths = os.environ.get("OBSKIT_TEST_PYTHONS", sys.executable).split(os.pathsep)
    found = [Interpreter(path, _gunicorn_version(path)) for path in paths if path]
    return tuple(sorted(found, key=lambda interpreter: interpreter.version))


def _gunicorn_version(path: str) -> tuple[int, ...]:
    command = "from importlib.metadata import version; print(version('gunicorn'))"
    done = subprocess.run(
        [path, "-c", command], check=True, capture_output=True, text=True, timeout=60
    )
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:3])


# ------------------------------------------------------------------------------------------------
# Waiting and asking


def wait_until(
    condition: Callable[[], Result | None], message: str, *, seconds: float = DEADLINE_SECONDS
) -> Result:
    """Return the first true result of a condition.

    Args:
        condition: Asked again and again; with pauses, so that what is costly to ask does not keep
            from happening what is waited for. They grow with the wait: to see a little later what
            took seconds costs nothing, and asking costs processor time that other tests wait for.
        message: What did not happen in time.
        seconds: How long to ask.

    Raises:
        AssertionError: The condition did not come true in time.
    """
    began = time.monotonic()
    while True:
        started = time.monotonic()
        result = condition()
        if result:
            return result
        now = time.monotonic()
        if now > began + seconds:
            raise AssertionError(f"not within {seconds:g} s: {message}")
        pause = max(_POLL_SECONDS, 3 * (now - started), (now - began) / 10)
        time.sleep(min(pause, _MOST_PAUSE_SECONDS))


_ports: Iterator[int] | None = None


def _claim_ports() -> Iterator[int]:
    """Return ports that no other process of pytest takes, of this session or another one.

    Below the range that the kernel takes client ports from.
    """
    for number in range(16):
        path = Path(tempfile.gettempdir()) / f"obskit-ports-{number}.lock"
        claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # open until the end
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            continue
        start, offset = 12000 + number * 1200, os.getpid() % 600
        return iter([*range(start + offset, start + 1200), *range(start, start + offset)] * 20)
    raise AssertionError("16 processes of pytest run already")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on.

    Nobody else takes it before the server does. And nobody has asked for it before: the system may
    give a port that another test's client still tries to reach.
    """
    global _ports  # noqa: PLW0603 - each pytest process has its own
    if _ports is None:
        _ports = _claim_ports()
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise AssertionError("no free port")


class Response(NamedTuple):
    """What a server has answered."""

    status: int
    body: str


def get(
    port: int, path: str, *, headers: Mapping[str, str] | None = None, timeout: float = 10.0
) -> Response:
    """Ask a server of 127.0.0.1 for a page.

    Raises:
        OSError: No connection, or it was cut.
        http.client.HTTPException: The answer was cut short.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return Response(response.status, response.read().decode())
    finally:
        connection.close()


def parse_metrics(text: str) -> Metrics:
    """Return the samples of an exposition by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metric_files(directory: str | Path) -> dict[str, list[str]]:
    """Return the metric files of a directory by type, as in ``gauge_livesum``."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".db"):
            found.setdefault(name.rpartition("_")[0], []).append(name)
    return found


# ------------------------------------------------------------------------------------------------
# Processes


class _Process(NamedTuple):
    """One process of a server, as /proc shows it."""

    pid: int
    parent: int
    environment: frozenset[str]
    is_exporter: bool


class GunicornProcess:
    """A Gunicorn server in a directory of its own; a context manager.

    Leaving the context stops the server and everything that came of it, and fails the test if
    something had to be killed. The server's log is printed, for tests that fail.

    Attributes:
        root: The directory with configuration, application, log and pidfile.
        run: The server's ``XDG_RUNTIME_DIR``, where private metrics directories are made.
        port: Where it listens.
        metrics_port: Where its exporter listens, if it has one.
        launcher: The process that was started; the arbiter, unless it is a daemon.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        config: str | None,
        app: str = apps.WSGI,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        config_arguments: Sequence[str] = ("-c", "gunicorn.conf.py"),
        config_name: str = "gunicorn.conf.py",
        files: Mapping[str, str] | None = None,
        shared: bool = False,
        daemon: bool = False,
        serving: bool = True,
        exporter: bool = False,
        prefix: Sequence[str] = (),
        prefix_stays: bool = False,
        user: int | None = None,
        root: Path | None = None,
    ) -> None:
        """Describe a server; entering the context starts it.

        Args:
            interpreter: What runs it.
            config: The text of the configuration file, ``None`` for none.
            app: The text of the application's module ``app``, whose ``application`` is served.
            arguments: More of Gunicorn's arguments.
            environment: More variables.
            config_arguments: How the configuration file is named on the command line.
            config_name: What it is called.
            files: More files to write, by name.
            shared: Set ``PROMETHEUS_MULTIPROC_DIR``, to a directory that the server has to make.
            daemon: Start it with ``--daemon``.
            serving: Wait until it answers.
            exporter: Have an exporter, at :attr:`metrics_port`.
            prefix: A command to run Gunicorn's command with, as in ``["unshare", "--mount"]``.
            prefix_stays: The prefix remains the arbiter's parent, as ``unshare --fork`` does.
            user: The uid to run it as, and its gid.
            root: Where to put everything; a new directory by default.
        """
        self.interpreter = interpreter
        self._own_root = root is None
        self.root = root or Path(tempfile.mkdtemp(prefix="obskit-test-"))
        self.root.chmod(0o755)
        self.run = self.root / "run"
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.port = free_port()
        self.metrics_port = free_port()
        self.log_path = self.root / "gunicorn.log"
        self.pid_path = self.root / "gunicorn.pid"
        self.tally_path = self.root / "tally"
        self._shared = shared
        self._daemon = daemon
        self._wrapped = prefix_stays
        self._user = user
        self._serving = serving
        self._mark = f"{_MARK}={uuid.uuid4()}"
        self._may_be_left = False
        self._recycles = "max_requests" in (config or "")
        self._seen: dict[tuple[int, int], _Process] = {}
        self._others: set[int] = set()
        self._looked = 0.0
        # What was there before is none of ours. A tick earlier, for ticks are rounded down.
        self._began = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS) - 1
        texts = {"app.py": app, **(files or {})}
        if config is not None:
            texts[config_name] = config
        for name, text in texts.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.command = [
            *prefix,
            interpreter.path,
            str(Path(interpreter.path).parent / "gunicorn"),
            *(config_arguments if config is not None else ()),
            "--bind",
            f"{HOST}:{self.port}",
            "--pid",
            str(self.pid_path),
            "--graceful-timeout",
            "2",
            *(("--daemon", "--error-logfile", str(self.log_path)) if daemon else ()),
            *arguments,
            "app:application",
        ]
        mark, _, value = self._mark.partition("=")
        self.environment = {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "HOME": str(self.run),
            "XDG_RUNTIME_DIR": str(self.run),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "OBSKIT_METRICS_BIND": f"{HOST}:{self.metrics_port}" if exporter else "",
            apps.TALLY_VARIABLE: str(self.tally_path),
            **({"PROMETHEUS_MULTIPROC_DIR": str(self.root / "metrics")} if shared else {}),
            **(environment or {}),
            mark: value,
        }
        self.launcher: subprocess.Popen[bytes] | None = None
        if user is not None:
            for path in (self.root, self.run):
                os.chown(path, user, user)

    def __enter__(self) -> GunicornProcess:
        """Start the server, and wait until it answers."""
        self.start()
        try:
            if self._daemon:
                assert self.exit_status() == 0
                wait_until(self.pid_path.exists, "the daemon writes its pidfile")
            if self._serving:
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
        """Stop what is left of the server; its directory goes too."""
        killed = self._end()
        log = self.log()
        # pytest shows it where a test has failed; a fixture does not learn of that.
        print(f"--- log of {' '.join(self.command)}\n{log[-_MOST_LOG:]}---")
        if self._own_root:
            shutil.rmtree(self.root, ignore_errors=True)
        if kind is None and killed and not self._may_be_left:
            raise AssertionError(
                f"processes {killed} did not end by themselves\n{log[-_MOST_LOG:]}"
            )

    def start(self) -> None:
        """Start the server and do not wait."""
        with self.log_path.open("ab") as log:
            self.launcher = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                group=self._user,
            )

    def wait_until_serving(self) -> None:
        """Wait until the server answers; fail at once if it has ended instead."""

        def answers() -> bool:
            if not self._daemon and self.launcher and self.launcher.poll() is not None:
                raise AssertionError(f"the server ended, status {self.launcher.returncode}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/pid").status == 200
            return False

        wait_until(answers, "the server answers")

    # What it says

    def get(self, path: str, *, timeout: float = 10.0) -> Response:
        """Ask the server for a page."""
        return get(self.port, path, timeout=timeout)

    def page(self, path: str, *, port: int | None = None) -> Response:
        """Ask for a page that may be asked for twice.

        A gthread worker of Gunicorn's, or one of uvicorn's, that has had its number of requests
        closes connections that it has accepted and read nothing from. Whoever is cut off by a
        server that recycles workers asks again, as Prometheus does.

        Args:
            path: The page.
            port: Where to ask; by default, whichever worker answers.
        """

        def answered() -> Response | None:
            try:
                return get(port or self.port, path)
            except ConnectionResetError:  # or no answer at all, which is one of its kind
                if not self._recycles:
                    raise
                return None

        return wait_until(answered, f"{path} is answered")

    def metrics(self) -> Metrics:
        """Scrape the server once."""
        response = self.page("/metrics")
        assert response.status == 200, response
        return parse_metrics(response.body)

    def scrape(self) -> Metrics:
        """Scrape the exporter once."""
        response = get(self.metrics_port, "/metrics")
        assert response.status == 200, response
        return parse_metrics(response.body)

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample of a new scrape, or not-a-number, which equals nothing."""
        return self.metrics().get((name, frozenset(labels.items())), float("nan"))

    def tally(self) -> int:
        """Return how many requests to ``/`` the application has counted, by its own bookkeeping."""
        try:
            return self.tally_path.stat().st_size
        except FileNotFoundError:
            return 0

    def log(self) -> str:
        """Return the server's log."""
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_log(self, text: str, *, count: int = 1) -> None:
        """Wait until the log has a text."""
        wait_until(lambda: self.log().count(text) >= count, f"the log says {text!r}")

    @property
    def metrics_directory(self) -> Path:
        """The server's metrics directory: the one it was told, or its private one."""
        if self._shared:
            return self.root / "metrics"
        (found,) = self.private_directories()
        return found

    def private_directories(self) -> list[Path]:
        """Return the private metrics directories of the server."""
        return sorted(self.run.glob("obskit-gunicorn-*"))

    # Its processes

    @property
    def arbiter_pid(self) -> int:
        """The arbiter; of a daemon, or once the first one is gone, the one in the pidfile."""
        if not self._daemon and self.launcher is not None and self.launcher.poll() is None:
            if not self._wrapped:
                return self.launcher.pid
            launcher = self.launcher.pid
            return wait_until(
                lambda: next((p.pid for p in self.processes() if p.parent == launcher), 0),
                "the arbiter is there",
            )
        # At a SIGHUP, Gunicorn removes the file for a moment.
        return wait_until(self._written_pid, "the arbiter has written its pid")

    def _written_pid(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self.pid_path.read_text())
        return 0

    def processes(self) -> list[_Process]:
        """Return all processes that came of this server and have not ended.

        One that is about to end has no memory any more, and so no environment to know it by, while
        its files are still open and their locks held: it is remembered until it is a zombie. Those
        of others are remembered too, to look at most of them once: what ours fork is ours at once,
        and only what this process starts becomes ours later. Not for long, for pids come again.
        """
        found = {}
        others = self._others if time.monotonic() < self._looked + _REMEMBERED_SECONDS else set()
        self._others, self._looked = set(), time.monotonic()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            pid = int(name)
            if pid in others:
                self._others.add(pid)
                continue
            environment = command = b""
            try:
                state, parent, started = process_stat(pid)
                if started < self._began:
                    self._others.add(pid)
                    continue
                with contextlib.suppress(ProcessLookupError):
                    environment = Path(f"/proc/{pid}/environ").read_bytes()
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if state in "ZX":
                continue
            process = self._seen.get((pid, started))
            if self._mark.encode() in environment:
                variables = frozenset(environment.decode(errors="replace").split("\0"))
                is_exporter = b"gunicorn: metrics exporter" in command
                process = _Process(pid, parent, variables, is_exporter)
            elif environment and process is None and parent != os.getpid():
                self._others.add(pid)
            if process is not None:
                found[pid, started] = process
        self._seen = found
        return list(found.values())

    def upgraded_arbiter_pid(self) -> int | None:
        """Return the arbiter that a SIGUSR2 to the present one has started."""
        old = self.arbiter_pid
        for process in self.processes():
            if process.parent == old and f"GUNICORN_PID={old}" in process.environment:
                return process.pid
        return None

    def start_upgrade(self) -> int:
        """Send a SIGUSR2, and return the new arbiter once it has two workers."""
        self.send_signal(signal.SIGUSR2)
        new = wait_until(self.upgraded_arbiter_pid, "there is a new arbiter")
        wait_until(lambda: len(self.worker_pids(new)) == 2, "it has two workers")
        return new

    def worker_pids(self, arbiter: int | None = None) -> set[int]:
        """Return the workers of an arbiter, by default of :attr:`arbiter_pid`."""
        parent = arbiter or self.arbiter_pid
        return {
            process.pid
            for process in self.processes()
            if process.parent == parent
            and f"GUNICORN_PID={parent}" not in process.environment
            and not process.is_exporter
        }

    def exporter_pids(self, arbiter: int | None = None) -> set[int]:
        """Return the exporters, all of them or those that one arbiter has started."""
        return {
            process.pid
            for process in self.processes()
            if process.is_exporter and arbiter in (None, process.parent)
        }

    def booted_pids(self) -> set[int]:
        """Return the processes whose worker has announced itself in the log."""
        return {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log())}

    def wait_for_workers(self, count: int, *, without: set[int] | None = None) -> set[int]:
        """Wait until the arbiter has so many workers, none of which is one of those named."""

        def right() -> set[int]:
            pids = self.worker_pids()
            return pids if len(pids) == count and not pids & (without or set()) else set()

        return wait_until(right, f"there are {count} workers other than {without or 'none'}")

    def send_signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to the arbiter, or to one of the server's processes."""
        os.kill(pid or self.arbiter_pid, number)

    def kill_a_worker(self, *, is_announced: bool = False) -> None:
        """Kill one of the workers; not one that ends by itself at this moment.

        Args:
            is_announced: Nor one that is not in :meth:`booted_pids` yet. Not for workers in another
                pid namespace.
        """

        def killed() -> bool:
            pids = self.worker_pids()
            if is_announced:
                pids &= self.booted_pids()
            return any(send_if_alive(signal.SIGKILL, pid) for pid in pids)

        wait_until(killed, "a worker is killed")

    def exit_status(self, *, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end of the process that was started, and return its status."""
        assert self.launcher is not None
        return self.launcher.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Stop the arbiter, wait until all processes are gone, and return its exit status."""
        self.send_signal(number)
        self.wait_until_gone()
        return None if self._daemon or self.launcher is None else self.launcher.returncode

    def wait_until_gone(self) -> None:
        """Wait until no process of the server is left."""
        wait_until(lambda: not self._left(), "all processes of the server have ended")
        if self.launcher is not None:
            self.launcher.wait(5)

    def may_leave_processes(self) -> None:
        """Say that the test leaves processes behind on purpose; they are ended without a word."""
        self._may_be_left = True

    def _left(self) -> list[_Process]:
        if self.launcher is not None:
            self.launcher.poll()
        return self.processes()

    def _end(self) -> list[int]:
        """End all processes, gently first; return those that had to be killed."""
        signalled: set[int] = set()

        def ended() -> bool:
            left = self._left()
            pids = {process.pid for process in left}
            if self._wrapped and self.launcher is not None:
                pids.discard(self.launcher.pid)
            # Arbiters only; the one of a SIGUSR2 has its turn when the one before it is gone.
            for process in left:
                if process.parent not in pids and process.pid not in signalled:
                    signalled.add(process.pid)
                    send_if_alive(signal.SIGCONT, process.pid)
                    send_if_alive(signal.SIGTERM, process.pid)
            return not left

        with contextlib.suppress(AssertionError):
            wait_until(ended, "all processes have ended", seconds=20)
        killed = [process.pid for process in self._left()]
        for pid in killed:
            send_if_alive(signal.SIGKILL, pid)
        self.wait_until_gone()
        return killed


def send_if_alive(number: signal.Signals, pid: int) -> bool:
    """Send a signal to a process; return whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def can_unshare(*kinds: str) -> bool:
    """Return whether this process may make namespaces."""
    done = subprocess.run(["unshare", *kinds, "true"], capture_output=True, check=False, timeout=10)
    return done.returncode == 0


def on_a_volume(variable: str, options: str) -> list[str]:
    """Return what to run a server with that is to have a tmpfs of its own, or skip the test.

    Args:
        variable: The environment variable that says where.
        options: Those of the tmpfs, as for mount.
    """
    if not can_unshare("--mount"):
        pytest.skip("mount namespaces are not to be had")
    script = f'mount -t tmpfs -o {options} tmpfs "${variable}" && exec "$0" "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def can_run(interpreter: Interpreter, user: int) -> bool:
    """Return whether a user may run an interpreter and what is installed there."""
    command = (
        "import gunicorn.app.wsgiapp, prometheus_client; from importlib.util import find_spec; "
        "raise SystemExit(find_spec('obskit_gunicorn') is None)"
    )
    try:
        done = subprocess.run(
            [interpreter.path, "-c", command],
            cwd="/",
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def process_stat(pid: int) -> tuple[str, int, int]:
    """Return a process's state, parent and start in clock ticks since boot, see proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[1]), int(fields[19])
