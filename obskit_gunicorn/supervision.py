"""The arbiter's side of the exporter: bind its address, start it, bring it back, hand it on.

The exporter is a fresh interpreter in a session of its own. Its standard input is one end of a pair
of sockets; the arbiter holds the other one, and so does every worker, by fork. When the last of
them is gone, whatever ended it, the exporter reads the end of file and ends too. Through the same
pair it is told to stop, hears that a worker has booted, and gives the arbiter an address that it
could bind only later.

The arbiter binds the address, so that it outlives any exporter: one that was killed is followed by
another at the same socket, and so is the one of an arbiter that SIGUSR2 starts.

Knows nothing of prometheus_client, and imports it into no process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import types
from typing import TYPE_CHECKING, Any

from obskit_gunicorn import slots
from obskit_gunicorn.addresses import Address
from obskit_gunicorn.options import (
    BOOTED,
    LISTENER_VARIABLE,
    OPTION_VARIABLES,
    STOP,
    ExporterOptions,
)

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

__all__ = ["Exporter", "Place", "place"]

_PROGRAM = """\
import os, sys, time
try:
    import json
    order = json.loads(sys.argv[1])
    time.sleep(order["delay_seconds"])
    sys.path += order["found_at"]
    from obskit_gunicorn.exporter import main
    main(order)
except BaseException:
    if order["is_first"]:
        import traceback
        traceback.print_exc()
finally:
    os._exit(0)
"""
"""The exporter's program. It exits 0 on every path: up to 25.3 Gunicorn takes the exit status 3 or
4 of any child for a worker that cannot boot, and halts. A failure is shown once, not at each try.
"""

_NOT_HANDED_ON = (
    "GUNICORN_",
    "LISTEN_",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
    "WEB_CONCURRENCY",
    OPTION_VARIABLES,
)
_LONGEST_DELAY_SECONDS = 3.0
_SHORT_LIFE_SECONDS = 10.0


class Exporter:
    """An exporter as its arbiter sees it.

    Belongs to the arbiter's main thread. :meth:`revive` may run in signal context; it takes no lock
    and logs nothing.
    """

    def __init__(
        self, options: ExporterOptions, directory: str | None, errorlog: str | None, settings: Any
    ) -> None:
        """Make the arbiter's part; nothing is started.

        Args:
            options: What it serves, and where.
            directory: The multiprocess directory, ``None`` if there is none to be had.
            errorlog: The file that Gunicorn logs to; ``None`` for the standard error.
            settings: Gunicorn's settings, for the user to run as.
        """
        self.options = options
        self.directory = directory
        self.errorlog = errorlog
        self.listener: socket.socket | None = None
        self.starts = 0
        self._credentials = _credentials(settings)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)  # neither the arbiter nor a worker ever waits for it
        self._identity = _identity(self._ours)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._delay_seconds = 0.0
        self._is_reviving = False

    def identity(self) -> tuple[ExporterOptions, str | None, str | None]:
        """Return what makes it another exporter when it changes."""
        return self.options, self.directory, self.errorlog

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: It cannot be started.
        """
        lived = time.monotonic() - self._started
        if not self.starts or lived > _SHORT_LIFE_SECONDS:
            self._delay_seconds = 0.0
        else:
            self._delay_seconds = min(2 * self._delay_seconds + 0.2, _LONGEST_DELAY_SECONDS)
        self._receive_listener()
        order = {
            "options": self.options._asdict(),
            "directory": self.directory,
            "errorlog": self.errorlog,
            "sys_path": [os.path.abspath(path) for path in sys.path],
            "found_at": _found_at(),
            "listener": None if self.listener is None else self.listener.fileno(),
            "delay_seconds": self._delay_seconds,
            "is_first": not self.starts,
        }
        if self._process is not None:
            self._process.returncode = 0  # Gunicorn has reaped it, or will
        self._started = time.monotonic()
        self.starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, json.dumps(order)],
            stdin=self._theirs.fileno(),
            pass_fds=() if self.listener is None else (self.listener.fileno(),),
            env=_environment(),
            start_new_session=True,
            **self._credentials,
        )

    def revive(self) -> None:
        """Start the process again if it has ended; safe in signal context, never raises."""
        if self._is_reviving or not self._has_ended():
            return
        self._is_reviving = True
        try:
            self.start()
        except OSError:
            pass  # the next signal, or the next fork, tries again
        finally:
            self._is_reviving = False

    def stop(self) -> None:
        """Have the process finish what it answers, and end; the listening socket stays open."""
        with contextlib.suppress(OSError):
            self._ours.send(STOP)
        self._ours.close()
        self._theirs.close()
        if self._process is not None:
            self._process.returncode = 0  # it is Gunicorn that reaps it

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
        self._receive_listener()
        if self.listener is None:
            return None
        self.listener.set_inheritable(True)
        return f"{self.listener.fileno()} {self.options.bind}"

    def leave_to_arbiter(self) -> None:
        """Keep of the exporter, in a worker, only what says that the worker lives."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self._theirs.close()

    def abandon(self) -> None:
        """Keep nothing of the exporter, in a process that is neither arbiter nor worker."""
        self.leave_to_arbiter()
        if _identity(self._ours) == self._identity:
            self._ours.close()
        else:  # the application has closed all descriptors and taken the number
            self._ours.detach()

    def _has_ended(self) -> bool:
        if self._process is None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, _ASK) is not None
        except ChildProcessError:
            return True

    def _receive_listener(self) -> None:
        """Take the listening socket that the process has bound after us, if it has sent one."""
        if self.listener is not None:
            return
        with contextlib.suppress(OSError):
            _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                self.listener = socket.socket(fileno=descriptor)


_ASK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Place:
    """The exporter's place in this process: the arbiter has one, a worker what it inherits of it.

    Attributes:
        exporter: The exporter, if there is to be one.
        handed: What names the listening socket that another arbiter has handed on.
    """

    def __init__(self) -> None:
        """Make an empty place."""
        self.exporter: Exporter | None = None
        self.handed: str | None = None
        self._arbiter_pid = 0
        self._reported = 0
        self._problem = ""

    def keep(self, options: ExporterOptions | None, server: Arbiter, source: str) -> None:
        """See to it that the exporter which is wanted runs, and no other; runs in the arbiter.

        What has not changed is left alone, so it may be called again and again.

        Args:
            options: The exporter that is wanted; ``None`` for none.
            server: The arbiter.
            source: What to call the option for the address in an error.
        """
        self._arbiter_pid = os.getpid()
        before, after = self.exporter, None
        if options is not None:
            directory = slots.process.directory
            path = None if directory is None else directory.path
            errorlog = server.cfg.errorlog
            errorlog = None if errorlog == "-" else os.path.abspath(errorlog)
            if before is not None and (options, path, errorlog) == before.identity():
                before.revive()
                self._report(before)
                return
            after = Exporter(options, path, errorlog, server.cfg)
            after.listener = self._listener(after, before, source)
        self.exporter = after
        self._reported = 0
        if after is not None:
            _listen_to_children()
            self._start(after)
        self._drop_handed()
        if before is not None:
            before.stop()
            if after is None or after.listener is not before.listener:
                _close_listener(before)

    def _start(self, exporter: Exporter) -> None:
        bind, path = exporter.options[:2]
        try:
            exporter.start()
        except OSError as error:
            slots.process.log.error(
                "obskit: the exporter cannot be started, there are no metrics at %s: %s; the next "
                "fork tries again",
                bind,
                error,
            )
        else:
            slots.process.log.info("obskit: metrics at %s%s", bind, path)

    def leave(self, *, is_last: bool) -> None:
        """Remove the file of a Unix socket, if no other arbiter goes on with it."""
        if self.exporter is not None and is_last and self._arbiter_pid == os.getpid():
            _close_listener(self.exporter)

    def hand_on(self, environment: dict[str, str]) -> None:
        """Name the listening socket to the arbiter that SIGUSR2 starts; runs in its process."""
        environment.pop(LISTENER_VARIABLE, None)
        handed = self.exporter.hand_on() if self.exporter is not None else None
        if handed is not None:
            environment[LISTENER_VARIABLE] = handed

    def forked_by_gunicorn(self) -> None:
        """Keep of the exporter only what a worker needs; runs in the worker."""
        if self.exporter is not None:
            self.exporter.leave_to_arbiter()

    def forked(self) -> None:
        """Close what a forked child has no business with; must not log, import or wait.

        A child of the arbiter that Gunicorn forks is told apart later: a worker by ``post_fork``,
        the arbiter-to-be of a SIGUSR2 by its exec.
        """
        exporter = self.exporter
        if exporter is None or (os.getppid() == self._arbiter_pid and _is_forked_by_gunicorn()):
            return
        self.exporter = None
        exporter.abandon()

    def child_ended(self) -> None:
        """Bring the exporter back if it was the child that ended; runs in signal context."""
        if self.exporter is not None and os.getpid() == self._arbiter_pid:
            self.exporter.revive()

    def _listener(
        self, exporter: Exporter, before: Exporter | None, source: str
    ) -> socket.socket | None:
        """Return the listening socket: the one we have, the one handed on, or a new one."""
        bind = exporter.options.bind
        if before is not None and before.options.bind == bind and before.listener is not None:
            return before.listener
        if self.handed is not None:
            number, _, address = self.handed.partition(" ")
            if address == bind:
                with contextlib.suppress(OSError, ValueError):
                    listener = socket.socket(fileno=int(number))
                    listener.set_inheritable(False)
                    self.handed = None
                    return listener
        place = Address.parse(bind, os.sep)
        try:
            listener = place.listen()
            if place.path:
                exporter.own(place.path)
        except OSError as error:
            problem = f"{bind}: {error.strerror or error}"
            if problem != self._problem:
                self._problem = problem
                slots.process.log.error(
                    "obskit: the exporter cannot listen at %s (%s); it goes on trying, until then "
                    "there are no metrics",
                    problem,
                    source,
                )
            return None
        self._problem = ""
        return listener

    def _drop_handed(self) -> None:
        handed, self.handed = self.handed, None
        if handed is not None:
            with contextlib.suppress(OSError, ValueError):
                os.close(int(handed.partition(" ")[0]))

    def _report(self, exporter: Exporter) -> None:
        """Log that the exporter had to be started again; in signal context it could not be."""
        if exporter.starts - 1 > 2 * self._reported:
            self._reported = exporter.starts - 1
            slots.process.log.error(
                "obskit: the exporter has ended and was started again, %d times so far; what its "
                "first start had to say stands on the standard error",
                self._reported,
            )


place = Place()
"""The place of this process."""


def _close_listener(exporter: Exporter) -> None:
    if exporter.listener is None:
        return
    exporter.listener.close()
    exporter.listener = None
    path = Address.parse(exporter.options.bind, os.sep).path
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


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


def _found_at() -> list[str]:
    """Return where our package and what it needs are found.

    The process looks there last: what stands beside them must not hide a module of Python's own.
    """
    found = []
    for name in ("obskit_gunicorn", "prometheus_client"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            found.append(os.path.dirname(os.path.dirname(os.path.abspath(file))))
    return found


def _is_forked_by_gunicorn() -> bool:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        is_fork = frame.f_code.co_name in ("spawn_worker", "reexec")
        if is_fork and frame.f_globals.get("__name__") == "gunicorn.arbiter":
            return True
        frame = frame.f_back
    return False


_previous: Any = None


def _listen_to_children() -> None:
    """Have a look at the exporter at each SIGCHLD, after Gunicorn's own handler.

    The arbiter has no hook that tells of a child that is no worker, and none that runs by the
    clock.
    """
    global _previous  # noqa: PLW0603 - a process has one handler of a signal
    current = signal.getsignal(signal.SIGCHLD)
    if current is not _on_child:
        with contextlib.suppress(ValueError):  # not on the main thread; the next fork is
            signal.signal(signal.SIGCHLD, _on_child)
            _previous = current


def _on_child(number: int, frame: types.FrameType | None) -> None:
    if callable(_previous):
        _previous(number, frame)
    place.child_ended()


def _forked() -> None:
    place.forked()


os.register_at_fork(after_in_child=_forked)
