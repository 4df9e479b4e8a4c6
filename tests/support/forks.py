"""Processes that do what a test tells them, one call at a time, and end as the test likes.

A :class:`Nursery` is a fresh interpreter with one thread, so that what it forks starts without
anything of the test run: no metrics, no leases, no threads. What it forks are
:class:`RemoteProcess` objects: they run the functions that the test sends, fork children that are
remote processes too, and end by ``os._exit`` or by a signal. Linux only.

Below them: what such a process does with metrics, and how a directory is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
import operator
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from prometheus_client import Counter, Gauge, Histogram, Metric, Summary
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics import MetricWrapperBase

__all__ = [
    "DEADLINE_SECONDS",
    "NOBODY",
    "EndedError",
    "Nursery",
    "RemoteError",
    "RemoteProcess",
    "act",
    "become_group_member",
    "become_nobody",
    "close_descriptors",
    "fill_volume",
    "flatten",
    "forget_metrics",
    "fork_call",
    "join",
    "listen",
    "log_lines",
    "mapped_files",
    "metric",
    "mount_small",
    "own_value",
    "public_directory",
    "read",
    "read_ours",
    "reap",
    "run_python",
    "slot",
    "wait_until",
]

DEADLINE_SECONDS = 60.0
"""How long a test waits for anything before it fails."""

NOBODY = 65534
"""The uid and gid of somebody who owns nothing."""

REPOSITORY = Path(__file__).parents[2]

_LARGEST_MESSAGE = 1 << 17
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER in <linux/prctl.h>
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS in <linux/sched.h>
_PRIVATE_ALL = 0x44000  # MS_REC | MS_PRIVATE in <linux/mount.h>
_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir", "OBSKIT_MULTIPROC_DIR")


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS
) -> None:
    """Ask until a condition holds, and fail when it does not in time.

    Args:
        condition: What to ask.
        what: What is waited for, for the failure.
        seconds: How long to ask.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        select.select([], [], [], 0.002)


# ------------------------------------------------------------------------------------------------
# Processes


class RemoteError(AssertionError):
    """A call raised in the remote process; the text is its traceback."""


class EndedError(AssertionError):
    """The remote process ended before it answered."""


class _Channel:
    """Messages between two processes, each with at most one descriptor."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[_Channel, _Channel]:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(first), cls(second)

    def send(self, message: object, descriptor: int | None = None) -> None:
        data = pickle.dumps(message)
        if descriptor is None:
            self._socket.send(data)
        else:
            socket.send_fds(self._socket, [data], [descriptor])

    def receive(self, seconds: float | None) -> tuple[Any, int | None]:
        self._socket.settimeout(seconds)
        data, descriptors, _flags, _address = socket.recv_fds(self._socket, _LARGEST_MESSAGE, 1)
        if not data:
            raise EOFError
        return pickle.loads(data), descriptors[0] if descriptors else None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class RemoteProcess:
    """A process that runs what it is told; see :meth:`Nursery.start`.

    Attributes:
        pid: Its pid.
    """

    def __init__(self, channel: _Channel, pid: int, nursery: Nursery) -> None:
        """Wrap the near end of a process's channel."""
        self.pid = pid
        self._channel = channel
        self._nursery = nursery
        self._handle = os.pidfd_open(pid)
        nursery.started.append(self)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Run a function of a module in the process, and return what it returns.

        Args:
            function: A function on the top level of a module.
            *arguments: Its arguments; they are pickled, and so is the result.
            **keywords: More of them.

        Raises:
            RemoteError: The function raised.
            EndedError: The process ended instead of answering.
        """
        self.tell(function, *arguments, **keywords)
        return self.answer()

    def tell(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Run a function as :meth:`call` does, without waiting for the answer."""
        self._channel.send(("call", _reference(function), arguments, keywords))

    def answer(self, seconds: float = DEADLINE_SECONDS) -> Any:
        """Wait for the answer to :meth:`tell`."""
        reply, _ = self._receive(seconds)
        return reply

    def fork(self) -> RemoteProcess:
        """Make the process fork, and return the child."""
        self._channel.send(("fork",))
        pid, descriptor = self._receive(DEADLINE_SECONDS)
        assert descriptor is not None
        child = RemoteProcess(_Channel(socket.socket(fileno=descriptor)), pid, self._nursery)
        child.call(os.getpid)  # until it has run at all, it holds whatever its parent does
        return child

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait until the process has ended by it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)
        self.wait_ended()

    def end(self) -> None:
        """Make the process end by ``os._exit``, and wait for it."""
        with contextlib.suppress(OSError):
            self._channel.send(("end",))
        self.wait_ended()

    def has_ended(self) -> bool:
        """Return whether the process has ended; its locks are gone then."""
        waiting = select.poll()  # select() takes no descriptor from 1024 on
        waiting.register(self._handle, select.POLLIN)
        return bool(waiting.poll(0))

    def wait_ended(self) -> None:
        """Wait until the process has ended."""
        wait_until(self.has_ended, f"process {self.pid} ended")

    def forget(self) -> None:
        """Kill the process if it lives, and let go of it."""
        self._nursery.started.remove(self)
        self.kill()
        os.close(self._handle)
        self._channel.close()

    def _receive(self, seconds: float) -> tuple[Any, int | None]:
        try:
            (kind, content), descriptor = self._channel.receive(seconds)
        except (EOFError, ConnectionError):
            raise EndedError(f"process {self.pid} ended without an answer") from None
        except TimeoutError:
            raise EndedError(f"process {self.pid} did not answer in {seconds} s") from None
        if kind == "error":
            raise RemoteError(content)
        return content, descriptor


class Nursery:
    """A fresh interpreter from which processes are forked; a context manager.

    Attributes:
        started: The processes that were started and not forgotten.
    """

    def __init__(self) -> None:
        """Start the interpreter."""
        self.started: list[RemoteProcess] = []
        near, far = _Channel.pair()
        environment = {name: text for name, text in os.environ.items() if name not in _VARIABLES}
        paths = [str(REPOSITORY), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        code = "import sys; from tests.support import forks; forks.serve(int(sys.argv[1]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(far.fileno())],
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        far.close()
        self._channel = near

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget_all()
        self._channel.close()
        try:
            self._process.wait(DEADLINE_SECONDS)
        finally:
            # What functions have forked themselves and left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def load(self, module: Any) -> None:
        """Import a test module now, so that the processes need not."""
        self._channel.send(("load", module.__name__, module.__file__))
        self._channel.receive(DEADLINE_SECONDS)

    def start(self) -> RemoteProcess:
        """Fork a process that has never touched a metric."""
        self._channel.send(("fork",))
        (_kind, pid), descriptor = self._channel.receive(DEADLINE_SECONDS)
        assert descriptor is not None
        return RemoteProcess(_Channel(socket.socket(fileno=descriptor)), pid, self)

    def forget_all(self) -> None:
        """Kill what was started and still lives."""
        while self.started:
            self.started[-1].forget()


def serve(descriptor: int) -> NoReturn:
    """Be the interpreter of a :class:`Nursery`, or a process of it.

    Args:
        descriptor: The far end of the channel.
    """
    import obskit_gunicorn.cli
    import obskit_gunicorn.multiprocess  # noqa: F401 - what is loaded here is loaded once

    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    nursery = os.getpid()
    channel = _Channel(socket.socket(fileno=descriptor))
    while True:
        try:
            message, _ = channel.receive(None)
        except EOFError:
            os._exit(0)
        if os.getpid() == nursery:
            _reap_all()
        if message[0] == "end":
            os._exit(0)
        elif message[0] == "load":
            _module(*message[1:])
            channel.send(("result", None))
        elif message[0] == "call":
            channel.send(_run(*message[1:]))
        else:
            channel = _fork(channel)


def _fork(channel: _Channel) -> _Channel:
    near, far = _Channel.pair()
    pid = os.fork()
    if pid == 0:
        near.close()
        channel.close()
        return far
    channel.send(("result", pid), near.fileno())
    near.close()
    far.close()
    return channel


def _run(
    reference: tuple[str, str, str], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[str, Any]:
    name, path, function = reference
    try:
        return "result", operator.attrgetter(function)(_module(name, path))(*arguments, **keywords)
    except BaseException:
        return "error", traceback.format_exc()


def _reference(function: Callable[..., Any]) -> tuple[str, str, str]:
    path = getattr(sys.modules[function.__module__], "__file__", None)
    return function.__module__, path or "", function.__qualname__


def _module(name: str, path: str) -> Any:
    if not path:
        return importlib.import_module(name)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _reap_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def fork_call(function: Callable[..., object], *arguments: Any) -> int:
    """Fork a child that runs a function and ends; for use in remote processes.

    Args:
        function: What to run. The child exits with status 1 if it raises.
        *arguments: Its arguments.

    Returns:
        The child's pid, for :func:`reap`.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def reap(pid: int, seconds: float = DEADLINE_SECONDS) -> int:
    """Wait for a child of this process.

    Args:
        pid: The child; it is killed when it does not end in time.
        seconds: How long to wait.

    Returns:
        Its exit code; for a signal its number, negative.
    """
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    try:
        wait_until(has_ended, f"child {pid} ended", seconds)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return ended[0]


def run_python(
    code: str, *arguments: object, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter.

    Args:
        code: The program.
        *arguments: Its command line.
        check: Fail when it does not exit with 0.
        **environment: Variables beside those of this process, without those of a directory.
    """
    kept = {name: text for name, text in os.environ.items() if name not in _VARIABLES}
    kept["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), *kept.get("PYTHONPATH", "").split(os.pathsep)])
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """Yield a directory that every user may pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="obskit-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------
# What remote processes do


_metrics: dict[tuple[str, str], Any] = {}
_lines: list[str] = []

_KINDS: dict[str, type[MetricWrapperBase]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
    "summary": Summary,
}


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _lines.append(record.getMessage())


_handler = _Lines()


def listen() -> None:
    """Remember what this process logs about its metrics, for :func:`log_lines`."""
    from obskit_gunicorn._log import log

    log.target.addHandler(_handler)
    log.target.propagate = False


def join(path: str) -> None:
    """Share this process's metrics in a directory, as importing ``multiprocess`` does."""
    from obskit_gunicorn._store.membership import membership
    from obskit_gunicorn._values import sharing, values

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    listen()
    sharing.install()
    membership.join(path)
    values.share()


def log_lines() -> list[str]:
    """Return what this process has logged about its metrics since :func:`listen`."""
    return list(_lines)


def metric(kind: str, name: str, labels: Mapping[str, str] | None = None) -> Any:
    """Return a metric of this process, which is made when it is first asked for.

    Args:
        kind: ``counter``, ``histogram``, ``summary`` or a gauge's mode, as in ``gauge_livesum``.
        name: Its name.
        labels: The labels of the child that is wanted.
    """
    found = _metrics.get((kind, name))
    if found is None:
        typ, _, mode = kind.partition("_")
        options: dict[str, Any] = {"multiprocess_mode": mode} if mode else {}
        if typ == "histogram":
            options["buckets"] = (1, 2, 5)
        found = _KINDS[typ](name, f"Help of {name}.", list(labels or {}), registry=None, **options)
        _metrics[kind, name] = found
    return found.labels(**labels) if labels else found


def act(
    kind: str, name: str, action: str, *values: float, labels: Mapping[str, str] | None = None
) -> None:
    """Call a method of a metric; ``set_at`` sets a gauge to a value with a timestamp."""
    chosen = metric(kind, name, labels)
    if action == "set_at":
        chosen._value.set(*values)
    else:
        getattr(chosen, action)(*values)


def forget_metrics() -> None:
    """Make every metric anew when it is next asked for."""
    _metrics.clear()


def own_value(kind: str, name: str) -> float:
    """Return what this process itself has contributed to a counter or gauge."""
    return float(metric(kind, name)._value.get())


def slot() -> str | None:
    """Return the name of this process's slot, or ``None``."""
    from obskit_gunicorn._store.membership import membership

    lease = membership.lease
    return lease.slot if lease is not None else None


def become_nobody() -> None:
    """Drop root for good; in a process that may be thrown away."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def become_group_member() -> None:
    """Drop root for good, with every capability, but stay in the group of root's files."""
    os.setgroups([])
    os.setresuid(NOBODY, NOBODY, NOBODY)


def mount_small(path: str, kilobytes: int) -> None:
    """Mount a volume of a given size at a directory, for this process and its children only.

    Needs root. The volume goes with the last of these processes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for done in (
        libc.unshare(_NEW_MOUNTS),
        libc.mount(None, b"/", None, _PRIVATE_ALL, None),
        libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=%dk" % kilobytes),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a volume", path)


def fill_volume(path: str) -> str:
    """Use up the room of a volume; return the file to remove to make room again."""
    ballast = os.path.join(path, "ballast")
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return ballast


def close_descriptors() -> None:
    """Do what ``os.closerange(3, ...)`` of an application does, but for the channel of the test."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        with contextlib.suppress(OSError):
            if number > 2 and not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.closerange(number, number + 1)


# ------------------------------------------------------------------------------------------------
# Reading


def flatten(families: Iterable[Metric]) -> dict[str, float]:
    """Return the samples of metric families, by names as in ``g{pid="slot0"}``."""
    flat: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{text}"' for name, text in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in flat, f"{key} occurs twice"
            flat[key] = sample.value
    return flat


def pauses(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, int]:
    """Return what a function returns, and how often it has paused for a lock that others hold.

    A busy machine makes everything take longer, but it makes no pauses.
    """
    from obskit_gunicorn._store import locks

    with mock.patch.object(locks, "pause", side_effect=locks.pause) as pause:
        found = function(*arguments, **options)
    return found, pause.call_count


def read(path: str | os.PathLike[str]) -> dict[str, float]:
    """Return the samples of a directory as prometheus_client's own collector finds them."""
    return flatten(TheirCollector(None, os.fspath(path)).collect())  # type: ignore[no-untyped-call]


def read_ours(path: str | os.PathLike[str]) -> dict[str, float]:
    """Return the samples of a directory as our collector finds them."""
    from obskit_gunicorn.multiprocess import MultiProcessCollector

    return flatten(MultiProcessCollector(None, os.fspath(path)).collect())


def mapped_files(pid: int) -> set[int]:
    """Return the inodes of metric files that a process has mapped for writing."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[1].startswith("rw-s") and ".db" in fields[5]:
                found.add(int(fields[4]))
    return found
