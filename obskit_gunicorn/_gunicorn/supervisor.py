"""The arbiter's side of the exporter: bind its address, start it, bring it back, end it.

Knows nothing of prometheus_client, and imports it into no process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.launch import ExporterProcess
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._log import log
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    import socket
    import types
    from collections.abc import Callable

    from gunicorn.arbiter import Arbiter

    from obskit_gunicorn._exporter.protocol import Options

_NOBODY = -1


class Supervisor:
    """What this process has of the exporter: the arbiter keeps it, a worker can tell it things.

    Attributes:
        exporter: The exporter, if there is to be one.
    """

    def __init__(self) -> None:
        """There is no exporter yet."""
        self.exporter: ExporterProcess | None = None
        self._arbiter_pid = _NOBODY
        self._reported = 0
        self._problem = ""

    def keep(self, options: Options | None, server: Arbiter, source: str) -> None:
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
            directory = membership.directory
            path = None if directory is None else directory.path
            errorlog = server.cfg.errorlog
            errorlog = None if errorlog == "-" else os.path.abspath(errorlog)
            if before is not None and (options, path, errorlog) == before.identity():
                before.revive()
                self._report(before)
                return
            after = ExporterProcess(options, path, errorlog, server.cfg, self.child_ended)
            if before is not None:
                after.take_over(before)
            if after.listener is None:
                after.listener = self._listener(after, source)
        self.exporter = after
        self._reported = 0
        if after is not None:
            if before is None:
                # Gunicorn skips on_exit where a hook or the configuration ends the start.
                atexit.register(lambda: self.remove_socket_file(server))
            self._start(after)
        handover.drop_listener()
        if before is not None:
            before.stop()
            if after is None or after.listener is not before.listener:
                _close_listener(before)

    def _start(self, exporter: ExporterProcess) -> None:
        bind, path = exporter.options.metrics_bind, exporter.options.metrics_path
        try:
            exporter.start()
        except OSError as error:
            log.error(
                "obskit: the exporter cannot be started, there are no metrics at %s: %s; the next "
                "fork tries again",
                bind,
                error,
            )
        else:
            if exporter.listener is not None:
                log.info("obskit: metrics at %s%s", bind, path)

    def remove_socket_file(self, server: Arbiter) -> None:
        """Remove the file of a Unix socket, unless another arbiter of this server goes on with it.

        Runs when the arbiter ends; may be called again.
        """
        # An arbiter that a SIGUSR2 has started, or the one that has started this one.
        is_last = server.reexec_pid == server.master_pid == 0
        if self.exporter is not None and is_last and self._arbiter_pid == os.getpid():
            _close_listener(self.exporter)

    def hand_on(self) -> str | None:
        """Return what names the listening socket to the arbiter that SIGUSR2 starts."""
        return self.exporter.hand_on() if self.exporter is not None else None

    def forked_by_gunicorn(self) -> None:
        """Keep of the exporter only what a worker needs; runs in the worker."""
        self._arbiter_pid = _NOBODY
        if self.exporter is not None:
            self.exporter.keep_in_worker()

    def start_over(self) -> None:
        """Close what a forked child must not keep; must not log, import or wait.

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
        handover.drop_listener()
        self.exporter = None
        if exporter is not None:
            exporter.abandon()

    def child_ended(self, handle: Callable[[], object]) -> None:
        """Bring the exporter back if it was the child that ended; runs in signal context.

        Args:
            handle: What else is to be done when a child has ended.
        """
        exporter = self.exporter if os.getpid() == self._arbiter_pid else None
        if exporter is not None:
            if exporter.put_off(handle):
                return
            exporter.reap()
        handle()
        if exporter is not None and exporter is self.exporter:
            exporter.revive(by_signal=True)

    def _listener(self, exporter: ExporterProcess, source: str) -> socket.socket | None:
        """Return the listening socket that was handed on, or a new one."""
        bind = exporter.options.metrics_bind
        handed = handover.listener_at(bind)
        if handed is not None:
            return handed
        address = Address.parse(bind, os.sep)
        try:
            listener = address.listen()
            if address.path:
                exporter.own(address.path)
        except OSError as error:
            problem = f"{bind}: {error.strerror or error}"
            if problem != self._problem:
                self._problem = problem
                log.error(
                    "obskit: the exporter cannot listen at %s (%s); it goes on trying, until then "
                    "there are no metrics",
                    problem,
                    source,
                )
            return None
        self._problem = ""
        return listener

    def _report(self, exporter: ExporterProcess) -> None:
        """Log that the exporter had to be started again; in signal context it could not be."""
        if exporter.starts - 1 > 2 * self._reported:
            self._reported = exporter.starts - 1
            log.error(
                "obskit: the exporter has ended and was started again, %d times so far; see the "
                "standard error of its first start",
                self._reported,
            )


supervisor = Supervisor()
"""The supervisor of this process."""

forks.in_child("exporter", supervisor.start_over)


def _close_listener(exporter: ExporterProcess) -> None:
    if exporter.listener is None:
        return
    exporter.listener.close()
    exporter.listener = None
    path = Address.parse(exporter.options.metrics_bind, os.sep).path
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _is_forked_by_gunicorn() -> bool:
    """Return whether it is Gunicorn that has just forked, and not what runs in one of its hooks."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "gunicorn.arbiter":
            return frame.f_code.co_name in ("spawn_worker", "reexec")
        ours = (__name__, forks.__name__)
        if module not in ours and module.partition(".")[0] != "gevent":  # has a fork of its own
            return False
        frame = frame.f_back
    return False
