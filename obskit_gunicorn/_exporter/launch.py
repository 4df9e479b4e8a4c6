"""Starting an exporter: the arbiter's handle on the process.

The exporter is a fresh interpreter in a session of its own. See
:mod:`obskit_gunicorn._exporter.protocol` for what is said between it and its arbiter.

The arbiter binds the address, so that it outlives any exporter: one that was killed is followed by
another at the same socket, and so is the one of an arbiter that SIGUSR2 starts.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.protocol import BOOTED, STOP, Options, Order

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

    Belongs to the arbiter's main thread. :meth:`revive` may run in signal context; it takes no lock
    and logs nothing.

    Attributes:
        options: What it serves, and where.
        directory: The multiprocess directory, ``None`` if there is none to be had.
        errorlog: The file that Gunicorn logs to; ``None`` for the standard error.
        listener: The listening socket, once there is one.
        has_booted: A worker without a lease has said that it serves.
        starts: How often the process was started.
        is_busy: The process is being started or reaped at this moment.
    """

    def __init__(
        self,
        options: Options,
        directory: str | None,
        errorlog: str | None,
        settings: Any,
        child_ended: Callable[[Callable[[], object]], object],
    ) -> None:
        """Make the arbiter's part; nothing is started.

        Args:
            options: What it serves, and where.
            directory: The multiprocess directory, ``None`` if there is none to be had.
            errorlog: The file that Gunicorn logs to; ``None`` for the standard error.
            settings: Gunicorn's settings, for the user to run as.
            child_ended: Called with what was put off, when a child has ended while the process was
                being started or reaped.
        """
        self.options = options
        self.directory = directory
        self.errorlog = errorlog
        self.listener: socket.socket | None = None
        self.has_booted = False
        self.starts = 0
        self._credentials = _credentials(settings)
        self._child_ended = child_ended
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)  # neither the arbiter nor a worker ever waits for it
        self._identity = _identity(self._ours)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._delay_seconds = 0.0
        self._early_ends = 0
        self.is_busy = False
        self._put_off: Callable[[], object] | None = None

    def identity(self) -> tuple[Options, str | None, str | None]:
        """Return what makes it another exporter when it changes."""
        return self.options, self.directory, self.errorlog

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
        order = Order(
            self.options,
            self.directory,
            self.errorlog,
            [os.path.abspath(path) for path in sys.path],
            None if self.listener is None else self.listener.fileno(),
            self.has_booted,
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
                pass_fds=() if self.listener is None else (self.listener.fileno(),),
                env=_environment(),
                start_new_session=True,
                **self._credentials,
            )
        except BaseException:
            self._early_ends += 1  # the child that could not exec has ended
            raise

    def revive(self, *, by_signal: bool = False) -> None:
        """Start the process again if it has ended; safe in signal context, never raises.

        Args:
            by_signal: Called from SIGCHLD. An interpreter that does not even wait as long as it is
                told cannot run; then only forks try again, so that one end does not bring the next.
        """
        if self.is_busy:
            return
        # What fails now is tried again by the next signal, or the next fork.
        with self._undisturbed(), contextlib.suppress(Exception):
            self._hear()
            self._reap()
            if self._process is None and (self._early_ends < _MOST_EARLY_ENDS or not by_signal):
                self._start()

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Defer SIGCHLD handling while the process is being started or reaped.

        It must not start a second process, and the child that has ended may be the one that is
        being started: only when its pid is known can it be told from a worker.
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
        """Put the handling of a child's end off if need be; return whether it was put off."""
        if self.is_busy:
            self._put_off = handle
        return self.is_busy

    def reap(self) -> None:
        """Take the exit status of the process if it has ended.

        In Gunicorn's hands it might pass for that of a worker. Safe in signal context.
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
            has_ended = True  # Gunicorn was quicker
        if has_ended:
            is_early = time.monotonic() - self._started < self._delay_seconds
            self._early_ends = self._early_ends + 1 if is_early else 0
            process.returncode = 0
            self._process = None  # its pid may be another child's from now on

    def stop(self) -> None:
        """Have the process finish what it answers, and end; the listening socket stays open."""
        with contextlib.suppress(OSError):
            self._ours.send(STOP)
        self._ours.close()
        self._theirs.close()
        if self._process is not None:
            self._process.returncode = 0  # it is Gunicorn that reaps it

    def take_over(self, before: ExporterProcess) -> None:
        """Continue with what the exporter before this one has learnt."""
        before._hear()
        self.has_booted = before.has_booted
        if before.options.metrics_bind == self.options.metrics_bind:
            self.listener = before.listener

    def tell_booted(self) -> None:
        """Tell the process that a worker serves which has no lease; runs in the worker."""
        with contextlib.suppress(OSError):
            self._ours.send(BOOTED)

    def own(self, path: str) -> None:
        """Give a file to the user whom the process runs as."""
        if self._credentials:
            os.chown(path, self._credentials["user"], self._credentials["group"])

    def hand_on(self) -> str | None:
        """Return what names the listening socket to the program that this process becomes."""
        self._hear(socket.MSG_PEEK)  # what there is to hear is for the arbiter
        if self.listener is None:
            return None
        self.listener.set_inheritable(True)
        return f"{self.listener.fileno()} {self.options.metrics_bind}"

    def keep_in_worker(self) -> None:
        """Keep of the exporter, in a worker, only what says that the worker lives."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self._theirs.close()

    def abandon(self) -> None:
        """Keep nothing of the exporter, in a process that is neither arbiter nor worker."""
        self.keep_in_worker()
        if _identity(self._ours) == self._identity:
            self._ours.close()
        else:  # the application has closed all descriptors and taken the number
            self._ours.detach()

    def _hear(self, flags: int = 0) -> None:
        """Take what the process has said: that a worker has booted, or where it listens now."""
        with contextlib.suppress(OSError):
            said, descriptors, _, _ = socket.recv_fds(self._ours, 64, 4, flags)
            self.has_booted = self.has_booted or BOOTED in said
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                self.listener = socket.socket(fileno=descriptor)


def _identity(end: socket.socket) -> tuple[int, int] | None:
    try:
        status = os.fstat(end.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _credentials(settings: Any) -> dict[str, Any]:
    """Return the user and groups to start the process as, as Gunicorn's workers run."""
    uid, gid = settings.uid, settings.gid
    if os.geteuid() != 0 or (uid, gid) == (0, os.getegid()):
        return {}
    groups = []
    if settings.initgroups:
        with contextlib.suppress(KeyError):
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return {"user": uid, "group": gid, "extra_groups": groups}


def _environment() -> dict[str, str]:
    """Return the application's environment, without what would make a server of the process.

    Nor does it name the multiprocess directory: what a collector of the user's makes there stays in
    the exporter.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_HANDED_ON) and name.lower() != "prometheus_multiproc_dir"
    }


def _packages() -> dict[str, str]:
    """Return the files of what the process needs: its arbiter's, wherever else there are more."""
    found = {}
    for name in ("prometheus_client", "obskit_gunicorn"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            found[name] = os.path.abspath(file)
    return found


@lru_cache(maxsize=1)
def _program() -> str:
    """Return the source of what the process runs first, also where it stands in an archive."""
    spec = find_spec("obskit_gunicorn._exporter.start")
    source: str = spec.loader.get_source(spec.name)  # type: ignore[union-attr]
    return source
