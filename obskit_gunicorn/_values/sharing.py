"""Sharing a process's metrics: the arbiter begins, other processes join, the last one leaves.

Nothing here raises because of the directory. If it cannot be used, one line in the log says so and
metrics stay in memory. Must not run in signal context.
"""

from __future__ import annotations

import atexit
import logging
import os
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._store import private
from obskit_gunicorn._store.directory import explain
from obskit_gunicorn._store.membership import (
    DIRECTORY_VARIABLE,
    is_loading_configuration,
    membership,
)
from obskit_gunicorn._values import adoption, states, values
from obskit_gunicorn._values.budget import Budget, budget_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_has_installed = False
_missing: list[str] = []
_last_problem: list[str] = []
"""What :func:`begin` logged last; it logs a problem once, not at every fork."""


def install() -> list[str]:
    """Install the value class, and take over metrics that exist already.

    Returns:
        The names of metrics that could not be taken over, which are also logged; see
        :func:`obskit_gunicorn._values.adoption.take_over`.
    """
    is_theirs = _prometheus.is_their_class(_prometheus.installed())
    if values.is_installed() or (_has_installed and not is_theirs) or _prometheus.problem():
        return []  # what put_back() leaves alone stays
    stray = adoption.names_of(_install())
    if stray:
        log.warning(
            "obskit: %s: created before obskit_gunicorn.multiprocess was imported, so not shared",
            ", ".join(stray),
        )
    return stray


def _install() -> list[Any]:
    """Install the value class, and return the values that are left, which no scrape sees."""
    global _has_installed  # noqa: PLW0603
    _has_installed = True
    _missing[:] = values.install()
    states.install()
    left = adoption.take_over()
    values.note_elsewhere(len(left))
    _watch()
    return left


def _watch() -> None:
    """Notice from now on what is removed of the metrics of the default registry."""
    for metric in filter(_prometheus.is_their_metric, _prometheus.collectors_of(REGISTRY) or ()):
        values.watch(metric)


def put_back() -> list[tuple[int, str]]:
    """Put back what other code has changed since it was installed, where that is safe.

    That is the value class, and the variable that names the directory; runs when the application is
    loaded. Its metrics are watched from now on: a worker may remove what only others have counted.

    Returns:
        The lines to log, each with its level.
    """
    if values.is_installed():
        _watch()
    return [*_put_class_back(), *_put_directory_back()]


def _put_class_back() -> Iterator[tuple[int, str]]:
    found = _prometheus.installed()
    name = f"{found.__module__}.{found.__qualname__}"
    if values.is_installed() or _prometheus.problem():
        return
    if not _prometheus.is_their_class(found):
        values.note_elsewhere(max(1, adoption.count_of(found)))
        yield (
            logging.ERROR,
            f"obskit: other code has replaced prometheus_client.values.ValueClass by {name}: "
            "metrics that were created since then are not shared, and neither are those of "
            "requests. Remove that code: nothing is needed in its place",
        )
        return
    left = _install()
    yield (
        logging.WARNING,
        f"obskit: other code had replaced prometheus_client.values.ValueClass by {name}; it is put "
        "back, so that all workers share their metrics. Remove that code: nothing is needed in its "
        "place",
    )
    if left:
        yield (
            logging.ERROR,
            f"obskit: {', '.join(adoption.names_of(left))}: created while ValueClass was replaced, "
            "and not to be taken over, so not shared",
        )


def _put_directory_back() -> Iterator[tuple[int, str]]:
    directory = membership.directory
    named = os.environ.get(DIRECTORY_VARIABLE)
    if directory is None or (named and os.path.realpath(named) == os.path.realpath(directory.path)):
        return
    change = f"set {DIRECTORY_VARIABLE} to {named}" if named else f"unset {DIRECTORY_VARIABLE}"
    if not values.is_installed() or adoption.has_values_in(named):
        yield (
            logging.ERROR,
            f"obskit: the application has {change}, and other code has metrics there; they are not "
            f"among those of this server, which are in {directory.path}. Remove that assignment",
        )
        return
    os.environ[DIRECTORY_VARIABLE] = directory.path
    if named:
        adoption.redirect_collectors(named, directory.path)
    yield (
        logging.WARNING,
        f"obskit: the application has {change} while the metrics of this server are in "
        f"{directory.path}; the variable names that again, and so do collectors that were made "
        "meanwhile. Remove that assignment, or set multiproc_dir instead",
    )


def limit(series: Mapping[str, int], size: int | None) -> None:
    """Limit how many label sets there may be; runs in the arbiter, before there are any.

    Args:
        series: How many each metric may have, see :func:`obskit_gunicorn._values.budget.parse`.
        size: From which size of the metric files on there may be no more, in bytes.
    """
    values.limit(Budget(series, size))


def begin(
    path: str | None, *, keep: bool, user: int, group: int, keep_unpublished: bool = False
) -> None:
    """Share metrics in a directory as its arbiter; runs in the arbiter.

    May be called again. Then it does nothing, unless the directory has changed or was removed or
    cleaned.

    Args:
        path: The directory, ``None`` for a private one.
        keep: Continue from the totals of earlier runs.
        user: The uid that workers run as.
        group: Their gid.
        keep_unpublished: Keep what a killed server has counted and nobody has published.
    """
    if membership.has_begun_in(path):
        return
    _report_missing()
    before = membership.directory
    if before is not None and membership.lease is not None:
        if not membership.lease.is_in_place() or "started" not in before.generation():
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
        membership.begin(path, keep=keep, user=user, group=group, keep_unpublished=keep_unpublished)
    except OSError as error:
        problem = str(explain(error, path) if path else private.why_not(error, user))
        if [problem] != _last_problem:
            _last_problem[:] = [problem]
            log.error(
                "obskit: metrics stay in the memory of each process and are not shared: %s", problem
            )
    else:
        _last_problem.clear()
        if membership.not_kept is not None:
            log.warning(
                "obskit: what a killed server had counted and not published is lost: %s",
                membership.not_kept,
            )
            membership.not_kept = None
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
    if membership.role == "process":
        try:
            values.limit(budget_of(os.environ))
        except ValueError as error:
            log.error("obskit: there is no budget for label sets: %s", error)
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


def keep_place() -> None:
    """Make sure that readers find this process's values; call it again and again."""
    values.keep_place()


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
