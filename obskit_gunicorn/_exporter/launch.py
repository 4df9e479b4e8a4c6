"""Starting an exporter: the arbiter's handle on the process.

The exporter is a fresh interpreter in its own session. :mod:`obskit_gunicorn._exporter.protocol`
defines the messages between it and its arbiter.

The arbiter binds the address, so the socket outlives any exporter. If an exporter is killed, the
next one continues on the same socket; so does the exporter of an arbiter that SIGUSR2 starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.protocol import BOOTED, LOST, MOVED, STOP, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOT_HANDED_ON = (
    "GUNICORN_",
    "LISTEN_",
    "NOTIFY_SOCKET",
    "OBSKIT_METRICS_",
    "WATCHDOG_",
    "WEB_CONCURRENCY",
)
_LONGEST_DELAY_SECONDS = 3.0
_SHORT_LIFE_SECONDS = 10.0
_MOST_EARLY_ENDS = 3


class ExporterProcess:
    """An exporter as its arbiter sees it.

    For the arbiter's main thread only. :meth:`reap` and :meth:`revive` may run in signal context:
    they take no lock and log nothing.

    Attributes:
        order: What to serve, and where; another order needs another exporter.
        address: Where it listens.
        listener: The listening socket, once there is one.
        has_booted: Whether a worker without a lease has reported that it serves.
        starts: How often the process was started.
        is_busy: Whether the process is being started or reaped at this moment.
        is_lost: Whether the process has found that the directory was taken away from the arbiter.
    """

    def __init__(
        self,
        order: Order,
        settings: Any,
        child_ended: Callable[[Callable[[], object]], object],
    ) -> None:
        """Make the arbiter's handle; nothing is started.

        Args:
            order: What to serve, and where.
            settings: Gunicorn's settings, which name the user to run as.
            child_ended: Called with what was deferred, if a child has ended while the process was
                being started or reaped.
        """
        self.order = order
        self.address = Address.parse(order.options.metrics_bind, os.sep)
        self.listener: socket.socket | None = None
        self.has_booted = False
        self.starts = 0
        self._credentials = _credentials(settings)
        self._child_ended = child_ended
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)  # neither the arbiter nor a worker ever waits for it
        _wake_by(self._ours)
        self._status = os.fstat(self._ours.fileno())
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._delay_seconds = 0.0
        self._early_ends = 0
        self.is_busy = self.is_lost = False
        self._put_off: Callable[[], object] | None = None

    def listen(self) -> None:
        """Listen at the address.

        Raises:
            OSError: Somebody else listens there, or this process is not allowed to.
        """
        listener = self.address.listen()
        if self.address.path and self._credentials:
            os.chown(self.address.path, self._credentials["user"], self._credentials["group"])
        self.listener = listener

    def close_listener(self) -> None:
        """Close the listening socket, if there is one, and remove its file."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
            self.address.remove_file()

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: It cannot be started.
        """
        with self._undisturbed():
            self._start()

    def _start(self) -> None:
        lived = time.monotonic() - self._started
        if not self.starts or lived > _SHORT_LIFE_SECONDS:
            self._delay_seconds = 0.0
        else:
            self._delay_seconds = min(2 * self._delay_seconds + 0.2, _LONGEST_DELAY_SECONDS)
        self._hear()
        listener = None if self.listener is None else self.listener.fileno()
        order = self.order._replace(
            sys_path=[os.path.abspath(path) for path in sys.path],
            listener=listener,
            has_booted=self.has_booted,
        )
        argument = order.to_json(
            packages=_packages(), delay_seconds=self._delay_seconds, is_first=not self.starts
        )
        self._started = time.monotonic()
        self.starts += 1
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _program(), argument],
                stdin=self._theirs.fileno(),
                pass_fds=() if listener is None else (listener,),
                env=_environment(),
                start_new_session=True,
                **self._credentials,
            )
        except BaseException:
            self._early_ends += 1  # the child could not exec, and has ended
            raise

    def revive(self, *, by_signal: bool = False) -> None:
        """Start the process again if it has ended; safe in signal context, never raises.

        Args:
            by_signal: Called from SIGCHLD. A process that ends before its delay is over cannot run
                at all. After a few of those only forks try again, so that one end does not cause
                the next start, and so on.
        """
        if self.is_busy:
            return
        # If this fails, the next signal or the next fork tries again.
        with self._undisturbed(), contextlib.suppress(Exception):
            self._hear()
            self._reap()
            if self._process is None and (self._early_ends < _MOST_EARLY_ENDS or not by_signal):
                self._start()

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Defer SIGCHLD handling while the process is being started or reaped.

        The handler must not start a second process. And the child that has ended may be the one
        that is being started; until its pid is known it cannot be told from a worker.
        """
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False
            put_off, self._put_off = self._put_off, None
            if put_off is not None:
                self._child_ended(put_off)

    def put_off(self, handle: Callable[[], object]) -> bool:
        """Defer the handling of SIGCHLD while busy; return whether it was deferred."""
        if self.is_busy:
            self._put_off = handle
        return self.is_busy

    def reap(self) -> None:
        """Take the exit status of the process if it has ended. Safe in signal context.

        Gunicorn, if it took it, might mistake it for the status of a worker.
        """
        with self._undisturbed():
            self._reap()

    def _reap(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            has_ended = os.waitpid(process.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            has_ended = True  # Gunicorn has reaped it already
        if has_ended:
            is_early = time.monotonic() - self._started < self._delay_seconds
            self._early_ends = self._early_ends + 1 if is_early else 0
            process.returncode = 0
            self._process = None  # from now on its pid may be another child's

    def stop(self) -> None:
        """Let the process finish its answers, then end; the listening socket stays open."""
        with contextlib.suppress(OSError):
            self._ours.send(STOP)
        self._ours.close()
        self._theirs.close()
        if self._process is not None:
            self._process.returncode = 0  # Gunicorn reaps it

    def take_over(self, before: ExporterProcess) -> None:
        """Continue with what the exporter before this one knew."""
        before._hear()
        self.has_booted = before.has_booted
        if before.address == self.address:
            self.listener = before.listener

    def move(self, directory: str) -> bool:
        """Have the process go on in another directory; return whether it could be told.

        It goes on reading what was removed of the first one, as another process could not.
        """
        try:
            self._ours.send(MOVED + os.fsencode(directory) + b"\0")
        except OSError:
            return False
        self.order = self.order._replace(directory=directory)
        return True

    def tell_booted(self) -> None:
        """Tell the process that this worker serves, although it has no lease."""
        with contextlib.suppress(OSError):
            self._ours.send(BOOTED)

    def hand_on(self) -> str | None:
        """Return descriptor and address of the listening socket, for the next arbiter.

        Runs in the process that is about to become that arbiter.
        """
        self._hear(socket.MSG_PEEK)  # leave the messages for the arbiter of this exporter
        if self.listener is None:
            return None
        self.listener.set_inheritable(True)
        return f"{self.listener.fileno()} {self.address}"

    def keep_in_worker(self) -> None:
        """Keep, in a worker, only the socket that shows the exporter that the worker lives."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self._theirs.close()

    def abandon(self) -> None:
        """Keep nothing of the exporter, in a process that is neither arbiter nor worker."""
        self.keep_in_worker()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._ours.fileno()), self._status):
                self._ours.close()
        self._ours.detach()  # if the application has closed all descriptors and reused the number

    def _hear(self, flags: int = 0) -> None:
        """Read what the process has sent: that a worker has booted, or the socket it listens at."""
        with contextlib.suppress(OSError):
            said, descriptors, _, _ = socket.recv_fds(self._ours, 64, 4, flags)
            self.has_booted = self.has_booted or BOOTED in said
            self.is_lost = LOST in said
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                self.listener = socket.socket(fileno=descriptor)


def _wake_by(end: socket.socket) -> None:
    """Have the kernel send SIGCHLD to this process, whose handler looks, when a message arrives.

    Gunicorn has no hook that runs by the clock, and a thread would be in the way of forks. Where
    the system cannot do it, messages wait for the next fork.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGCHLD)
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


def _credentials(settings: Any) -> dict[str, Any]:
    """Return the user and groups to start the process as: those of Gunicorn's workers."""
    uid, gid = settings.uid, settings.gid
    if os.geteuid() != 0 or (uid, gid) == (0, os.getegid()):
        return {}
    groups = []
    if settings.initgroups:
        with contextlib.suppress(KeyError):
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return {"user": uid, "group": gid, "extra_groups": groups}


def _environment() -> dict[str, str]:
    """Return the application's environment, without what would make the process act as a server.

    The multiprocess directory is left out too, so that metrics which a user's collector creates
    stay in the exporter.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_HANDED_ON) and name.lower() != "prometheus_multiproc_dir"
    }


def _packages() -> dict[str, str]:
    """Return the files of the packages that the process needs: the very ones of its arbiter."""
    names = ("prometheus_client", "obskit_gunicorn")
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {name: os.path.abspath(file) for name, file in files.items() if file}


@lru_cache(maxsize=1)
def _program() -> str:
    """Return the source of what the process runs first; it may be in an archive."""
    spec = find_spec("obskit_gunicorn._exporter.start")
    source: str = spec.loader.get_source(spec.name)  # type: ignore[union-attr]
    return source
