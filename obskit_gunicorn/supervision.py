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

import atexit
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
from collections.abc import Callable, Iterator
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
end, own = os._exit, os.getpid()
os._exit = lambda status: end(0 if os.getpid() == own else status)
try:
    import json
    order = json.loads(sys.argv[1])
    time.sleep(order["delay_seconds"])
    sys.path += order["found_at"]
    from importlib.util import module_from_spec, spec_from_file_location
    for name, file in order["packages"].items():
        spec = spec_from_file_location(name, file)
        if spec is not None and os.path.exists(file):
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    from obskit_gunicorn.exporter import main
    main(order)
except BaseException:
    if order["is_first"]:
        import traceback
        traceback.print_exc()
finally:
    end(0)
"""
"""The exporter's program. It exits 0 on every path, whatever a collector of the user's does: up to
25.3 Gunicorn takes the exit status 3 or 4 of any child for a worker that cannot boot, and halts. A
failure is shown once, not at each try.
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
_MOST_EARLY_ENDS = 3


class Exporter:
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
        self.has_booted = False
        self.starts = 0
        self._credentials = _credentials(settings)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)  # neither the arbiter nor a worker ever waits for it
        self._identity = _identity(self._ours)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._delay_seconds = 0.0
        self._early_ends = 0
        self.is_busy = False
        self._put_off: Callable[[], object] | None = None

    def identity(self) -> tuple[ExporterOptions, str | None, str | None]:
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
        order = {
            "options": self.options._asdict(),
            "directory": self.directory,
            "errorlog": self.errorlog,
            "sys_path": [os.path.abspath(path) for path in sys.path],
            "packages": _packages(),
            "found_at": [os.path.dirname(os.path.dirname(path)) for path in _packages().values()],
            "listener": None if self.listener is None else self.listener.fileno(),
            "has_booted": self.has_booted,
            "delay_seconds": self._delay_seconds,
            "is_first": not self.starts,
        }
        self._started = time.monotonic()
        self.starts += 1
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, json.dumps(order)],
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
            by_signal: It is the end of a child that has brought us here. An interpreter that does
                not even wait as long as it is told cannot run; then only forks try again, lest one
                end brings the next.
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
        """Put off what the end of a child calls for.

        It must not start a second process, and the one that is being started may be the child: only
        when its pid is known is it told from a worker.
        """
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False
            put_off, self._put_off = self._put_off, None
            if put_off is not None:
                place.child_ended(put_off)

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

    def take_over(self, before: Exporter) -> None:
        """Go on from what the exporter has learnt whose place this one takes."""
        before._hear()
        self.has_booted = before.has_booted
        if before.options.bind == self.options.bind:
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

    def _hear(self, flags: int = 0) -> None:
        """Take what the process has said: that a worker has booted, or where it listens now."""
        with contextlib.suppress(OSError):
            said, descriptors, _, _ = socket.recv_fds(self._ours, 64, 4, flags)
            self.has_booted = self.has_booted or BOOTED in said
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                self.listener = socket.socket(fileno=descriptor)


_NOBODY = -1


class Place:
    """The exporter's place in this process: the arbiter has one, a worker what it inherits of it.

    Attributes:
        exporter: The exporter, if there is to be one.
    """

    def __init__(self) -> None:
        """Make an empty place."""
        self.exporter: Exporter | None = None
        self._handed: str | None = None
        self._arbiter_pid = _NOBODY
        self._reported = 0
        self._problem = ""

    @property
    def handed(self) -> str | None:
        """What names the listening socket that another arbiter has handed on."""
        return self._handed

    @handed.setter
    def handed(self, value: str | None) -> None:
        self._handed = value
        if value is not None:
            # It came through an exec; programs that the application starts shall not have it.
            with contextlib.suppress(OSError, ValueError):
                os.set_inheritable(int(value.partition(" ")[0]), False)

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
            if before is not None:
                after.take_over(before)
            if after.listener is None:
                after.listener = self._listener(after, source)
        self.exporter = after
        self._reported = 0
        if after is not None:
            _listen_to_children()
            if before is None:
                # Gunicorn skips on_exit where a hook or the configuration ends the start.
                atexit.register(lambda: self.leave(is_last=_is_last(server)))
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
            if exporter.listener is not None:
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
        self._arbiter_pid = _NOBODY
        if self.exporter is not None:
            self.exporter.leave_to_arbiter()

    def forked(self) -> None:
        """Close what a forked child has no business with; must not log, import or wait.

        A child of the arbiter that Gunicorn forks is told apart later: a worker by ``post_fork``,
        the arbiter-to-be of a SIGUSR2 by its exec.
        """
        exporter = self.exporter
        if os.getppid() == self._arbiter_pid and (
            _is_forked_by_gunicorn()
            # gevent's Popen forks in Python; this is the exporter that is to be, before its exec.
            or (exporter is not None and exporter.is_busy)
        ):
            return
        self._drop_handed()
        self.exporter = None
        if exporter is not None:
            exporter.abandon()

    def child_ended(self, handle: Callable[[], object]) -> None:
        """Bring the exporter back if it was the child that ended; runs in signal context.

        Args:
            handle: What Gunicorn does when a child has ended.
        """
        exporter = self.exporter if os.getpid() == self._arbiter_pid else None
        if exporter is not None:
            if exporter.put_off(handle):
                return
            exporter.reap()
        handle()
        if exporter is not None and exporter is self.exporter:
            exporter.revive(by_signal=True)

    def _listener(self, exporter: Exporter, source: str) -> socket.socket | None:
        """Return the listening socket that was handed on, or a new one."""
        bind = exporter.options.bind
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


def _is_last(server: Arbiter) -> bool:
    """Return whether no arbiter that a SIGUSR2 has started, or that has done so, goes on."""
    return bool(server.reexec_pid == server.master_pid == 0)


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


def _packages() -> dict[str, str]:
    """Return the files of what the process needs: its arbiter's, wherever else there are more.

    Where they stand in an archive the process finds them by name. It looks there last: what stands
    beside them must not hide a module of Python's own.
    """
    found = {}
    for name in ("prometheus_client", "obskit_gunicorn"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            found[name] = os.path.abspath(file)
    return found


def _is_forked_by_gunicorn() -> bool:
    """Return whether it is Gunicorn that has just forked, and not what runs in one of its hooks."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "gunicorn.arbiter":
            return frame.f_code.co_name in ("spawn_worker", "reexec")
        if module != __name__ and module.partition(".")[0] != "gevent":  # has a fork of its own
            return False
        frame = frame.f_back
    return False


_previous: Any = None


def _listen_to_children() -> None:
    """Have a look at the exporter at each SIGCHLD, after Gunicorn's own handler.

    The arbiter has no hook that tells of a child that is no worker, and none that runs by the
    clock.
    """
    global _previous  # noqa: PLW0603 - a process has one handler of a signal
    # Once: a handler that the application has put in ours' place may call ours.
    if _previous is None:
        with contextlib.suppress(ValueError):  # not on the main thread; the next fork is
            _previous = signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: types.FrameType | None) -> None:
    def handle() -> None:
        if callable(_previous):
            _previous(number, frame)

    place.child_ended(handle)


def _forked() -> None:
    place.forked()


os.register_at_fork(after_in_child=_forked)
