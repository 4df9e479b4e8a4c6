"""Starting an exporter: the arbiter's handle on the process.

The exporter is a fresh interpreter in its own session. :mod:`obskit_gunicorn._exporter.protocol`
defines the messages between it and its arbiter.

The arbiter binds the address and keeps the socket, so it outlives any exporter. If an exporter is
killed, the next one continues on the same socket; so does the exporter of an arbiter that SIGUSR2
starts. If an exporter cannot be started, the arbiter closes the socket: clients are refused at
once, and do not wait for somebody who will never come.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.protocol import (
    BOOTED,
    LOST,
    MOVED,
    SECRET_FILES,
    SERVING,
    STOP,
    Options,
    Order,
)
from obskit_gunicorn._exporter.secret_files import identity
from obskit_gunicorn._exporter.start import ORDER_VARIABLE, VARIABLE
from obskit_gunicorn._fleet.secret import VARIABLES as SECRETS

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
_INTERPRETER = "/proc/self/exe"
"""The running interpreter; it is there even if its file was removed."""

_COMMAND = f"import os; exec(os.environ.pop({VARIABLE!r}))"

_LONGEST_DELAY_SECONDS = 3.0
_SHORT_LIFE_SECONDS = 10.0
_MOST_FAILURES = 3
_LONGEST_TRIAL_SECONDS = 30.0


class ExporterProcess:
    """An exporter as its arbiter sees it.

    For the arbiter's main thread only. :meth:`reap` and :meth:`revive` may run in signal context:
    they take no lock and log nothing.

    Attributes:
        order: What to serve, and where; another order needs another exporter.
        address: Where it listens.
        listener: The listening socket, once there is one.
        has_booted: Whether a worker without a lease has reported that it serves.
        problem: Why it could not be started, if it could not.
        is_busy: Whether the process is being started or reaped at this moment.
        is_lost: Whether the process has found that the directory was taken away from the arbiter.
        predecessor: The exporter that serves until this one does, after a reload.
    """

    def __init__(
        self,
        order: Order,
        settings: Any,
        child_ended: Callable[[Callable[[], object]], object],
        started: Callable[[str], object],
    ) -> None:
        """Make the arbiter's handle; nothing is started.

        Args:
            order: What to serve, and where.
            settings: Gunicorn's settings, which name the user to run as.
            child_ended: Called with what was deferred, if a child has ended while the process was
                being started or reaped.
            started: Called with the reason whenever the process was started; perhaps in signal
                context.
        """
        self.order = order
        self.address = Address.parse(order.options.metrics_bind, os.sep)
        self.listener: socket.socket | None = None
        self.has_booted = False
        self.problem = ""
        self.predecessor: ExporterProcess | None = None
        self._name = f"gunicorn: metrics exporter [{settings.proc_name}]"
        self._starts = 0
        self._report_start = started
        self._ended = ("", "")
        self._serves = False
        self._credentials = credentials(settings)
        self._child_ended = child_ended
        # Not the class of socket: eventlet and gevent put one of their own in its place.
        self._ours, self._theirs = _socket.socketpair()
        self._ours.setblocking(False)  # neither the arbiter nor a worker ever waits for it
        _wake_by(self._ours.fileno())
        self._status = os.fstat(self._ours.fileno())
        self._pid: int | None = None
        self._started = self._delay_seconds = 0.0
        self._failures = 0
        self.is_busy = self.is_lost = False
        self._put_off: Callable[[], object] | None = None

    def listen(self) -> None:
        """Listen at the address.

        Raises:
            OSError: Somebody else listens there, or this process is not allowed to.
        """
        user = self._credentials
        self.listener = self.address.listen((user["user"], user["group"]) if user else None)

    def close_listener(self) -> None:
        """Close the listening socket, if there is one, and remove its file."""
        if self.predecessor is not None and self.predecessor.listener is not self.listener:
            self.predecessor.close_listener()
        if self.listener is not None:
            self.address.remove_file(self.listener)
            self._refuse()

    def _refuse(self) -> None:
        """Close the listening socket: nobody accepts. Its file may be another arbiter's."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def start(self, reason: str) -> None:
        """Start the process.

        Args:
            reason: Why; what the start is counted under.

        Raises:
            OSError: It cannot be started.
        """
        with self._undisturbed():
            self._start(reason)

    def _start(self, reason: str) -> None:
        lived = time.monotonic() - self._started
        if not self._starts or lived > _SHORT_LIFE_SECONDS:
            self._delay_seconds = 0.0
        else:
            self._delay_seconds = min(2 * self._delay_seconds + 0.2, _LONGEST_DELAY_SECONDS)
        self._hear()
        self._serves = False
        listener = None if self.listener is None else self.listener.fileno()
        predecessor = None if self.predecessor is None else self.predecessor._ours.fileno()
        descriptors = self._opened_secrets()
        order = self.order._replace(
            descriptors=descriptors,
            sys_path=[_absolute(path) for path in sys.path],
            listener=listener,
            predecessor=predecessor,
            has_booted=self.has_booted,
            ended=self._ending(),
        )
        started = order.to_json(
            packages=_packages(),
            delay_seconds=self._delay_seconds,
            is_silent=self._failures > 0,
        )
        self._started = time.monotonic()
        self._starts += 1
        try:
            process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", _COMMAND, self._name],
                executable=interpreter(),
                stdin=self._theirs.fileno(),
                pass_fds=[
                    *(each for each in (listener, predecessor) if each is not None),
                    *descriptors.values(),
                ],
                env=_environment() | {VARIABLE: _program(), ORDER_VARIABLE: started},
                start_new_session=True,
                **self._credentials,
            )
        except BaseException as error:
            self._failures += 1  # the child could not exec, and has ended
            self._fail(str(error))
            raise
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
        self._pid = process.pid
        process.returncode = 0  # we reap it ourselves, and a worker cannot
        self._report_start(reason)

    def _opened_secrets(self) -> dict[str, int]:
        """Open the files of who may ask for a process that has fewer rights; see :func:`secrets`.

        One that cannot be opened is left to the process, which says why.
        """
        found: dict[str, int] = {}
        for name in SECRET_FILES if self._credentials else ():
            path = getattr(self.order.options, name)
            if path:
                with contextlib.suppress(OSError):
                    found[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return found

    def _fail(self, problem: str) -> None:
        """Note why there is no process; clients are refused, unless the predecessor serves."""
        self.problem = problem
        if self.predecessor is None:
            self._refuse()

    def _ending(self) -> str:
        """Return what to say of the end of the exporter before; in a crash loop less and less."""
        _, how = self._ended
        is_rare = not self._delay_seconds or not self._starts & (self._starts - 1)
        if not how or not is_rare:
            return ""
        return (
            f"the exporter has ended ({how}) and was started again; restarts so far: {self._starts}"
        )

    def revive(self, *, by_signal: bool = False) -> None:
        """Start the process again if it has ended; safe in signal context, never raises.

        Args:
            by_signal: Called from SIGCHLD. After a few processes that could not run only forks and
                reloads try again, so that one end does not cause the next start, and so on.
        """
        if self.is_busy:
            return
        # If this fails, the next signal or the next fork tries again.
        with self._undisturbed(), contextlib.suppress(Exception):
            self._hear()
            self._reap()
            if self._pid is None and (self._failures < _MOST_FAILURES or not by_signal):
                self._start(self._ended[0] or "ended")

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
        if self.predecessor is not None:
            self.predecessor._reap()
            if not self.predecessor.is_running:
                self.retire_predecessor()
                if self.problem:
                    self._refuse()
        if self._pid is None:
            return
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._pid, None  # Gunicorn has reaped it already
        if not pid:
            return
        self._pid = None  # from now on its pid may be another child's
        self._hear()
        self._ended = _ending(status)
        is_early = time.monotonic() - self._started < self._delay_seconds
        has_failed = self._ended[0] == "ended" and status is not None and not self._serves
        if self._serves:
            self._failures = 0
        elif has_failed or is_early:
            self._failures += 1
        if has_failed:
            self._fail(f"it ends before it serves ({self._ended[1]})")

    @property
    def is_running(self) -> bool:
        """Whether there is a process, as far as is known."""
        return self._pid is not None

    def stop(self) -> None:
        """Let the process finish its answers, then end; the listening socket stays open."""
        self.retire_predecessor()
        with contextlib.suppress(OSError):
            self._ours.send(STOP)
        self.let_go()

    def let_go(self) -> None:
        """Let the process end when the workers have ended; the listening socket stays open."""
        if self.predecessor is not None:
            self.predecessor.let_go()
        self._ours.close()
        self._theirs.close()

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended; SIGCHLD must not revive it meanwhile."""
        deadline = time.monotonic() + seconds
        while self._pid is not None and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)

    def take_over(self, before: ExporterProcess) -> None:
        """Continue with what the exporter before this one knew.

        If that one serves, it becomes the predecessor: it ends when this one serves. If it has not
        come so far, its own predecessor does.
        """
        before._hear()
        self.has_booted = before.has_booted
        if before.address == self.address:
            self.listener = before.listener
        if before.is_running and before._serves:
            self.predecessor = before
        else:
            self.predecessor, before.predecessor = before.predecessor, None

    def retire_predecessor(self) -> None:
        """End the exporter before this one; it is not needed any more."""
        before, self.predecessor = self.predecessor, None
        if before is not None:
            before.stop()
            if before.listener is not self.listener:
                before.close_listener()

    def follow(self, order: Order) -> None:
        """Have the process go on in another directory, if an order differs in nothing else.

        It goes on reading what was removed of the first one, as another process could not.
        """
        here, there = self.order.directory, order.directory
        if here and there and here != there and self.order._replace(directory=there) == order:
            with contextlib.suppress(OSError):
                self._ours.send(MOVED + os.fsencode(there) + b"\0")
                self.order = order

    def tell_booted(self) -> None:
        """Tell the process that this worker serves, although it has no lease."""
        with contextlib.suppress(OSError):
            self._ours.send(BOOTED)

    def hand_on(self) -> str | None:
        """Return descriptor and address of the listening socket, for the next arbiter.

        Runs in the process that is about to become that arbiter.
        """
        self._hear(peek=True)  # leave the messages for the arbiter of this exporter
        if self.listener is None:
            return None
        self.listener.set_inheritable(True)
        return f"{self.listener.fileno()} {self.address}"

    def keep_in_worker(self) -> None:
        """Keep, in a worker, only the socket that shows the exporter that the worker lives."""
        if self.predecessor is not None:
            self.predecessor.keep_in_worker()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self._theirs.close()

    def abandon(self) -> None:
        """Keep nothing of the exporter, in a process that is neither arbiter nor worker."""
        if self.predecessor is not None:
            self.predecessor.abandon()
        self.keep_in_worker()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._ours.fileno()), self._status):
                self._ours.close()
        self._ours.detach()  # if the application has closed all descriptors and reused the number

    def _hear(self, *, peek: bool = False) -> None:
        """Read what the process has sent: that it serves, that a worker has booted, its socket."""
        said = b"?"
        with contextlib.suppress(OSError):
            while said:
                flags = socket.MSG_PEEK if peek else 0
                # It takes whatever has the method, and returns what it is given.
                said, descriptors, _, _ = socket.recv_fds(self._ours, 64, 4, flags)  # type: ignore[arg-type]
                self.has_booted = self.has_booted or BOOTED in said
                self.is_lost = self.is_lost or LOST in said
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                    self._refuse()
                    self.listener = socket.socket(fileno=descriptor)
                if peek:
                    break
                if SERVING in said:
                    self._serves = True
                    self.problem = ""
                    self.retire_predecessor()


def _wake_by(end: int) -> None:
    """Have the kernel send SIGCHLD to this process when a socket has a message; its handler looks.

    Gunicorn has no hook that runs by the clock, and a thread would be in the way of forks. Where
    the system cannot do it, messages wait for the next fork.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGCHLD)
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


def cannot_start(problem: str) -> str:
    """Return that an exporter cannot be started, and why."""
    return f"the exporter cannot be started: {problem}"


def interpreter() -> str:
    """Return the file of the interpreter that runs an exporter."""
    return sys.executable if os.path.exists(sys.executable) else _INTERPRETER


def can_start(settings: Any) -> str:
    """Return why the workers' user could not run an exporter; empty if he could.

    Args:
        settings: Gunicorn's settings, which name the user.
    """
    files = _packages()
    code = "import sys\nfor path in sys.argv[1:]: open(path).close()"
    try:
        done = subprocess.run(
            [sys.executable, *_flags(), "-c", code, *files.values()],
            executable=interpreter(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST_TRIAL_SECONDS,
            check=False,
            **credentials(settings),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""


def credentials(settings: Any) -> dict[str, Any]:
    """Return the user and groups to start the process as: those of Gunicorn's workers."""
    uid, gid = settings.uid, settings.gid
    if os.geteuid() != 0 or (uid, gid) == (0, os.getegid()):
        return {}
    groups = []
    if settings.initgroups:
        with contextlib.suppress(KeyError):
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return {"user": uid, "group": gid, "extra_groups": groups}


def secrets(options: Options, settings: Any) -> tuple[tuple[int, ...], ...]:
    """Return what changes with the files of who may ask, where the arbiter hands them over.

    It does so where the process runs as another user, who may not be allowed to read them: each
    process has them as they were when it was started.

    Args:
        options: The options, which name the files.
        settings: Gunicorn's settings, which name the user.
    """
    if not credentials(settings):
        return ()
    return tuple(identity(getattr(options, name) or "") for name in SECRET_FILES)


def _environment() -> dict[str, str]:
    """Return the application's environment, without what would make the process act as a server.

    The multiprocess directory is left out too, so that metrics which a user's collector creates
    stay in the exporter.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in SECRETS
        or (not name.startswith(_NOT_HANDED_ON) and name.lower() != "prometheus_multiproc_dir")
    }


def _packages() -> dict[str, str]:
    """Return the files of the packages that the process needs: the very ones of its arbiter."""
    names = ("prometheus_client", "obskit_gunicorn")
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {name: _absolute(file) for name, file in files.items() if file}


def code() -> object:
    """Return what tells the code that an exporter would run now from any other; to compare.

    ``None`` if there is none, because the release that the arbiter runs was removed.
    """
    packages = _packages().values()
    found: list[object] = []
    for path in (sys.executable, *map(os.path.dirname, packages)):
        real = os.path.realpath(path)
        files = [real]
        for folder, _, names in os.walk(real):
            files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
        while files[0] not in ("", os.sep) and os.path.isfile(os.path.dirname(files[0])):
            files[0] = os.path.dirname(files[0])  # in an archive
        for file in sorted(files):
            try:
                status = os.stat(file)
            except OSError:
                return None
            # A folder changes when Python caches what it has compiled.
            time_ns = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found.append((file, status.st_ino, time_ns))
    return found


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory was removed
        return path


def _flags() -> list[str]:
    """Return options of the interpreter: isolated, and otherwise like this one."""
    # -I ignores PYTHONUTF8, without which names of files may be read in another encoding.
    flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}"]
    flags += ["-B"] if sys.flags.dont_write_bytecode else []
    return [*flags, "-X", "dev"] if sys.flags.dev_mode else flags


def _program() -> str:
    """Return the source of what the process runs first, as it is now; it may be in an archive.

    If it was removed, the exporter can still say so itself, with the source that was there before.
    """
    with contextlib.suppress(Exception):
        spec = find_spec("obskit_gunicorn._exporter.start")
        _sources.append(spec.loader.get_source(spec.name))  # type: ignore[union-attr]
    del _sources[:-1]
    return _sources[0]


_sources: list[str] = []


def _ending(status: int | None) -> tuple[str, str]:
    """Return how a process has ended: the reason to count, and words.

    Args:
        status: What waitpid(2) says; ``None`` if somebody else was told.
    """
    if status is None:
        return "ended", "nobody knows how"
    if not os.WIFSIGNALED(status):
        return "ended", f"exit status {os.WEXITSTATUS(status)}"
    try:
        name = signal.Signals(os.WTERMSIG(status)).name
    except ValueError:
        name = f"signal {os.WTERMSIG(status)}"
    return "killed", name + (", perhaps out of memory" if name == "SIGKILL" else "")
