"""The arbiter's side of the exporter: bind its address, start it, restart it, end it.

Never imports prometheus_client.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

from obskit_gunicorn._exporter import launch
from obskit_gunicorn._exporter.holders import holder
from obskit_gunicorn._exporter.launch import ExporterProcess
from obskit_gunicorn._exporter.logs import settings_of
from obskit_gunicorn._exporter.protocol import Order
from obskit_gunicorn._fleet.reporter import LAST_SECONDS
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._log import log, taken
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator

    from gunicorn.arbiter import Arbiter

    from obskit_gunicorn._exporter.addresses import Address
    from obskit_gunicorn._exporter.protocol import Options

_NOBODY = -1
_LAST_ANSWERS_SECONDS = 3.0

_LAST_TOLD_SECONDS = LAST_SECONDS + 2.0
"""How long an arbiter waits where its exporter publishes or pushes what was counted last: the
container ends with the arbiter, and would take it along."""


class Supervisor:
    """This process's part of the exporter: the arbiter keeps it running, a worker can signal it.

    Attributes:
        exporter: The exporter, if one is wanted.
    """

    def __init__(self) -> None:
        """There is no exporter yet."""
        self.exporter: ExporterProcess | None = None
        self._arbiter_pid = _NOBODY
        self._code: object = None
        self._starts: list[str] = []
        self._problem = self._failure = ""
        self._not_logged: list[str] = []

    def keep(
        self, options: Options | None, server: Arbiter, source: str, *, is_reload: bool = False
    ) -> None:
        """Keep exactly the exporter that is wanted running; runs in the arbiter.

        Leaves an exporter that has not changed alone, so it may be called again and again. A reload
        renews one that has collectors or whose code has changed: workers run the new release then.

        Args:
            options: The options of the exporter; ``None`` if none is wanted.
            server: The arbiter.
            source: Where the option for the address is set, for an error.
            is_reload: Called because of a SIGHUP.
        """
        self._arbiter_pid = os.getpid()
        before, after = self.exporter, None
        if options is None:
            membership.note(exporter=None)
        else:
            order = self._order(options, server)
            membership.note(exporter=order.facts())
            if before is not None:
                before.follow(order)
            is_same = before is not None and before.order == order
            # The code is looked at when an exporter is started anyway, and at each reload.
            if (not is_same or is_reload) and self._has_new_code(order):
                is_same = False
            if before is not None and is_same:
                if before.listener is None and not before.is_running:
                    self._listen(before, source)
                before.revive()
                self._report(before)
                return
            after = ExporterProcess(order, server.cfg, self.child_ended, self._starts.append)
            if before is not None:
                after.take_over(before)
            if after.listener is None:
                self._listen(after, source)
            if after.listener is None:  # perhaps because the one before listens there
                after.retire_predecessor()
        self.exporter = after
        self._failure = ""
        if after is not None:
            if before is None:
                # Gunicorn skips on_exit if a hook or the configuration ends the start.
                atexit.register(lambda: self.end(server))
            self._start(after, "start" if before is None and not is_reload else "reload")
        handover.drop_listener()
        if before is not None and (after is None or after.predecessor is not before):
            before.stop()
            if after is None or after.listener is not before.listener:
                before.close_listener()

    def _order(self, options: Options, server: Arbiter) -> Order:
        directory = membership.directory
        logging, lost = settings_of(server.cfg)
        if lost != self._not_logged:
            self._not_logged = lost
            if lost:
                log.warning("obskit: %s", cannot_log(lost))
        path = None if directory is None else directory.path
        return Order(options, path, logging, secrets=launch.secrets(options, server.cfg))

    def _has_new_code(self, order: Order) -> bool:
        """Return whether an exporter that is started now runs other code than the last one."""
        code, before = launch.code(), self._code
        if code is None:  # removed; what runs still runs
            return False
        self._code = code
        return code != before or bool(order.options.metrics_collectors)

    def _start(self, exporter: ExporterProcess, reason: str) -> None:
        try:
            exporter.start(reason)
        except OSError:
            self._report(exporter)
        else:
            if exporter.listener is not None:
                path = exporter.order.options.metrics_path
                log.info("obskit: metrics at %s%s", exporter.address, path)

    def _report(self, exporter: ExporterProcess) -> None:
        """Log that the exporter cannot be started, which could not be logged in signal context."""
        if exporter.problem and exporter.problem != self._failure:
            log.error(
                "obskit: %s; %s at %s until the next fork or reload (SIGHUP) tries again with "
                "success",
                launch.cannot_start(exporter.problem),
                "no metrics" if exporter.predecessor is None else "the previous one serves",
                (exporter.predecessor or exporter).address,
            )
        self._failure = exporter.problem

    def starts(self) -> Iterator[str]:
        """Return the reasons of starts that were not counted yet; not in signal context."""
        return taken(self._starts if os.getpid() == self._arbiter_pid else [])

    def end(self, server: Arbiter) -> None:
        """End the exporter with its arbiter; runs when this process ends, may be called again.

        The last answers are waited for: a container ends with the arbiter. Where workers are left,
        the exporter stays with them.
        """
        exporter, self.exporter = self.exporter, None
        if exporter is None:
            return
        if os.getpid() != self._arbiter_pid:
            exporter.abandon()
            return
        # Unless another arbiter of this server still uses the socket: the one that a SIGUSR2 has
        # started, or that has started this one.
        if server.reexec_pid == server.master_pid == 0:
            exporter.close_listener()
        elif exporter.listener is not None:  # clients that come now must not wait for anybody
            exporter.listener.close()
        exporter.let_go()
        if not server.WORKERS:
            tells = exporter.order.options.metrics_redis or exporter.order.options.metrics_push
            exporter.wait(_LAST_TOLD_SECONDS if tells else _LAST_ANSWERS_SECONDS)

    def forked_by_gunicorn(self) -> None:
        """Keep only what a worker needs of the exporter; runs in the worker."""
        self._arbiter_pid = _NOBODY
        if self.exporter is not None:
            self.exporter.keep_in_worker()

    def start_over(self) -> None:
        """Close what a forked child must not keep; must not log, import or wait.

        A child that Gunicorn has forked keeps it for now: ``post_fork`` closes it in a worker, and
        the exec in the process that becomes the arbiter of a SIGUSR2.
        """
        exporter = self.exporter
        if os.getppid() == self._arbiter_pid and (
            _is_forked_by_gunicorn()
            # gevent's Popen forks in Python: this becomes the exporter, by exec.
            or (exporter is not None and exporter.is_busy)
        ):
            return
        handover.drop_listener()
        self.exporter = None
        if exporter is not None:
            exporter.abandon()

    def child_ended(self, handle: Callable[[], object]) -> None:
        """Restart the exporter if it was the child that ended; runs in signal context.

        Args:
            handle: What else to do when a child has ended.
        """
        exporter = self.exporter if os.getpid() == self._arbiter_pid else None
        if exporter is not None:
            if exporter.put_off(handle):
                return
            exporter.reap()
        handle()
        if exporter is not None and exporter is self.exporter:
            exporter.revive(by_signal=True)

    def has_lost_directory(self) -> bool:
        """Return whether the exporter has told so since the last question; in the arbiter only."""
        exporter = self.exporter if os.getpid() == self._arbiter_pid else None
        if exporter is None or not exporter.is_lost:
            return False
        exporter.is_lost = False
        return True

    def _listen(self, exporter: ExporterProcess, source: str) -> None:
        """Use the listening socket that was handed on, or a new one; log if there is none."""
        exporter.listener = handover.listener_at(str(exporter.address))
        if exporter.listener is not None:
            return
        problem = ""
        try:
            exporter.listen()
        except OSError as error:
            problem = f"{exporter.address}: {error.strerror or error}"
            if problem != self._problem:
                log.error("obskit: %s", cannot_listen(exporter.address, error, source))
        self._problem = problem


supervisor = Supervisor()
"""The supervisor of this process."""

forks.in_child("exporter", supervisor.start_over)


def cannot_log(lost: list[str]) -> Problem:
    """Return that the exporter cannot use some of Gunicorn's settings of the log."""
    return Problem(
        f"the exporter logs without {' and '.join(lost)}: only what can be imported by its name "
        "exists in a process of its own",
        "move it into a module",
    )


def cannot_listen(address: Address, error: OSError, source: str) -> Problem:
    """Return that nobody can listen at an address, and who does.

    Args:
        address: The exporter's.
        error: Why.
        source: Where the option for the address is set.
    """
    reason = f"{error.strerror or error}{holder(address)}"
    return Problem(
        f"the exporter cannot listen at {address}: {reason} ({source})",
        "it keeps trying, and there are no metrics until then: free the address, or choose "
        "another one",
    )


def _is_forked_by_gunicorn() -> bool:
    """Return whether Gunicorn itself has just forked, and not code that one of its hooks runs."""
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
