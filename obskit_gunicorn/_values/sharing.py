"""Sharing a process's metrics: the arbiter begins, other processes join, the last one leaves.

Nothing here raises because of the directory. If it cannot be used, one line in the log says so and
metrics stay in memory. Must not run in signal context.
"""

from __future__ import annotations

import atexit
import os

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._store.directory import explain
from obskit_gunicorn._store.membership import (
    DIRECTORY_VARIABLE,
    is_loading_configuration,
    membership,
)
from obskit_gunicorn._values import adoption, values

_missing: list[str] = []
_last_problem: list[str] = []
"""What :func:`begin` logged last; it logs a problem once, not at every fork."""


def install() -> list[str]:
    """Install the value class, and take over metrics that exist already.

    Returns:
        The names of metrics that could not be taken over, which are also logged; see
        :func:`obskit_gunicorn._values.adoption.take_over`.
    """
    if values.is_installed() or _prometheus.problem():
        return []
    _missing[:] = values.install()
    stray = adoption.take_over()
    values.install()  # after the takeover prometheus_client may no longer close our files
    if stray:
        log.warning(
            "obskit: %s: created before obskit_gunicorn.multiprocess was imported, so not shared",
            ", ".join(stray),
        )
    return stray


def begin(path: str | None, *, keep: bool, user: int, group: int) -> None:
    """Share metrics in a directory as its arbiter; runs in the arbiter.

    May be called again. Then it does nothing, unless the directory has changed or was removed or
    cleaned.

    Args:
        path: The directory, ``None`` for a private one.
        keep: Continue from the totals of earlier runs.
        user: The uid that workers run as.
        group: Their gid.
    """
    if membership.has_begun_in(path):
        return
    _report_missing()
    before = membership.directory
    if before is not None and membership.lease is not None:
        if not membership.lease.is_in_place():
            log.warning(
                "obskit: metrics directory %s was removed or cleaned while in use; it is made "
                "again, here or elsewhere, and counting continues. If systemd did it: set "
                "RuntimeDirectory= in the unit, or RemoveIPC=no (docs/deployment.md)",
                before.path,
            )
        elif before.path != path:
            log.warning("obskit: metrics directory changed; %s is no longer used", before.path)
    # Not in on_exit: metrics may be written until the very end, and Gunicorn does not always call
    # on_exit. Workers inherit this.
    atexit.unregister(_leave)
    atexit.register(_leave)
    # This process must not have files open while the directory is wiped.
    values.withdraw(take_along=not membership.has_ever_begun)
    try:
        membership.begin(path, keep=keep, user=user, group=group)
    except OSError as error:
        problem = explain(error, path or "private directory")
        if [problem] != _last_problem:
            _last_problem[:] = [problem]
            log.error(
                "obskit: metrics stay in the memory of each process and are not shared: %s", problem
            )
    else:
        _last_problem.clear()
    values.share()


def join() -> None:
    """Share this process's metrics if the environment names a directory.

    For a process that Gunicorn did not start, or has not configured yet. Does nothing where an
    arbiter has chosen the directory, or has found that it cannot be used.
    """
    path = os.environ.get(DIRECTORY_VARIABLE)
    if not path or membership.directory is not None or membership.is_led:
        return
    problem = _prometheus.problem()
    if problem:
        if membership.role == "process":  # else the arbiter has said so
            log.error("obskit: metrics of this process are not shared: %s", problem)
        return
    install()
    if membership.is_configuring or is_loading_configuration():
        # Either an arbiter begins, or, if no class is published, this process and its forks join
        # at their first metric.
        membership.join_later(path)
        return
    _report_missing()
    try:
        membership.join(path)
    except OSError as error:
        log.error("obskit: metrics of this process stay in its memory: %s", explain(error, path))
    values.share()


def take_lease(**facts: object) -> None:
    """Make sure that this process has a lease, and record facts about it.

    Args:
        **facts: What to change in the lease's record.
    """
    values.share(now=True)
    membership.note(**facts)


def has_lease() -> bool:
    """Return whether this process has a lease, after one more try if it is time for one."""
    values.try_again()
    return membership.lease is not None


def _report_missing() -> None:
    """Log once which names prometheus_client no longer has."""
    missing, _missing[:] = _missing[:], []
    if missing:
        log.error(
            "obskit: this release of prometheus-client is newer than obskit-gunicorn supports; "
            "counting continues without %s. Use an older release, or report this",
            ", ".join(missing),
        )


def _leave() -> None:
    """Leave the directory when this process ends, if this process must clean up."""
    if membership.is_in_charge():
        values.close_files()
        membership.leave()
