"""The cores: what each hook does for the promises of this package, whatever the user overrides.

Each runs where Gunicorn calls the hook, before the user's method. None depends on a hook that may
not run. An error in one is caught by its caller.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import children, exits
from obskit_gunicorn._gunicorn.contract import CONTAINED, overrides
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._gunicorn.options import absolute, exporter_options
from obskit_gunicorn._gunicorn.supervisor import supervisor
from obskit_gunicorn._log import log
from obskit_gunicorn._store import private
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership
from obskit_gunicorn._store.slots import SlotDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

    from obskit_gunicorn._gunicorn.contract import Publication
    from obskit_gunicorn._gunicorn.telemetry import Requests


NEWEST_TESTED = 27
"""The newest major release of Gunicorn that the tests were run with."""

_MOST_LISTENERS = 16

failures: list[tuple[str, str, bool]] = []
"""What could not be logged or counted in signal context: hook, text, whether to count it."""


_import_error: list[str] = []


def sharing() -> Any:
    """Return :mod:`obskit_gunicorn._values.sharing`, or ``None`` without prometheus_client."""
    try:
        from obskit_gunicorn._values import sharing as module
    except ImportError as error:
        _import_error[:] = [str(error)]
        return None
    return module


def is_signal_context(name: str) -> bool:
    """Return whether Gunicorn calls a hook from a signal handler."""
    if name == "child_exit":
        return importlib.import_module("gunicorn").version_info < (24,)  # type: ignore[no-any-return]
    return name in ("worker_int", "worker_abort")


def flush_failures() -> None:
    """Log and count what has happened in signal context, now that this is none."""
    exits.flush()
    while failures:
        name, message, counts = failures.pop(0)
        log.error("%s", message)
        if counts and sharing() is not None:
            with contextlib.suppress(Exception):  # counting it must not add a failure to it
                _telemetry().count_hook_failure(name)


def _core_nworkers_changed(
    publication: Publication, server: Arbiter, new_value: int, old_value: int | None
) -> None:
    # The first thing an arbiter calls: after daemonizing, before a preloaded application is
    # imported and before any fork. Called again at each SIGHUP, TTIN and TTOU, perhaps on the
    # control thread.
    membership.role, log.target = "arbiter", server.log
    flush_failures()
    shared = sharing()
    if shared is None:
        if old_value is None:
            log.warning(
                "obskit: prometheus-client cannot be imported (%s), there are no metrics; "
                "pip install prometheus-client",
                _import_error[-1],
            )
        return
    if old_value is None:
        _say_if_untested()
    shared.install()
    _begin(publication, server, shared)
    _describe(server, new_value)


def _say_if_untested() -> None:
    gunicorn = importlib.import_module("gunicorn")
    if gunicorn.version_info[0] > NEWEST_TESTED:
        log.info(
            "obskit: Gunicorn %s is newer than any release that obskit-gunicorn was tested with "
            "(up to %d)",
            gunicorn.__version__,
            NEWEST_TESTED,
        )


def _describe(server: Arbiter, workers: int) -> None:
    """Write down beside the arbiter's lease what a scrape shall find there."""
    settings = server.cfg
    kind = settings.worker_class_str
    capacity = {
        "sync": 1,
        "gthread": settings.threads,
        "gevent": settings.worker_connections,
        "asgi": settings.worker_connections,
    }.get(kind)
    membership.note(
        workers=workers,
        capacity=capacity,
        worker_class=kind,
        gunicorn=str(importlib.import_module("gunicorn").__version__),
        python=platform.python_version(),
        backlog=settings.backlog,
        listeners=_listeners(server),
    )


def _listeners(server: Arbiter) -> list[list[Any]]:
    """Return the addresses of the TCP sockets, as the kernel writes them once they are bound."""
    addresses = []
    for listener in server.LISTENERS:
        with contextlib.suppress(OSError, AttributeError):
            addresses.append(listener.sock.getsockname())
    found = [address for address in addresses or server.cfg.address if isinstance(address, tuple)]
    return [list(address[:2]) for address in found[:_MOST_LISTENERS]]


def _begin(publication: Publication, server: Arbiter, shared: Any) -> None:
    path = publication.options.multiproc_dir
    # raw_env is the environment too; Gunicorn applies it a little later.
    from_raw_env = server.cfg.env.get(DIRECTORY_VARIABLE)
    if from_raw_env:
        path = absolute(from_raw_env, handover.started_in)
    if path is None:
        path = _private_path()
    keep = publication.options.metrics_keep
    # Set in an arbiter that SIGUSR2 has started: its directory is the old one's, whatever has
    # become of that in the meantime.
    keep = keep or "GUNICORN_PID" in os.environ
    try:
        shared.begin(path, keep=keep, user=server.cfg.uid, group=server.cfg.gid)
    finally:
        handover.drop_lease()
    handover.export()


def _private_path() -> str | None:
    """Return the private directory to go on with, or ``None`` to make one."""
    if membership.directory is not None and membership.is_private:
        return membership.directory.path
    # Handed on by the arbiter whose SIGUSR2 has started this one.
    for handed in handover.exported:
        if private.is_private(SlotDirectory(handed)):
            return handed
    return None


def _core_when_ready(publication: Publication, server: Arbiter) -> None:
    children.listen(server)
    _describe(server, server.num_workers)
    _show_zeros(publication)
    _keep_exporter(publication, server)


def _core_on_reload(publication: Publication, server: Arbiter) -> None:
    _show_zeros(publication)
    if sharing() is not None:
        _telemetry().count_reload()
    _keep_exporter(publication, server)


def _show_zeros(publication: Publication) -> None:
    if sharing() is not None:
        _telemetry().show_zeros([name for name in CONTAINED if overrides(publication.config, name)])


def _keep_exporter(publication: Publication, server: Arbiter) -> None:
    options = exporter_options(publication.options) if sharing() is not None else None
    supervisor.keep(options, server, publication.where("metrics_bind"))


def _core_pre_fork(publication: Publication, server: Arbiter, worker: Worker) -> None:
    flush_failures()
    shared = sharing()
    if shared is not None:
        # The arbiter is the one to notice that its directory was removed or cleaned.
        _begin(publication, server, shared)
        _describe(server, server.num_workers)
        membership.remove_live_gauges()
    _keep_exporter(publication, server)


def _core_post_fork(publication: Publication, server: Arbiter, worker: Worker) -> None:
    membership.role = "worker"
    counting.forked_at = time.monotonic()
    supervisor.forked_by_gunicorn()


def _core_post_worker_init(publication: Publication, worker: Worker) -> None:
    shared = sharing()
    if shared is not None:
        shared.take_lease(state="booted")
    exporter = supervisor.exporter
    if exporter is not None and membership.lease is None:
        exporter.tell_booted()
    if shared is not None:
        forked_at = counting.forked_at
        _telemetry().count_boot(None if forked_at is None else time.monotonic() - forked_at)
        _count_requests(publication, worker)


def _count_requests(publication: Publication, worker: Worker) -> None:
    """Begin to count requests; under ASGI workers, where request hooks are silent, by a wrapper."""
    if not publication.options.metrics_requests:
        return
    buckets = publication.options.metrics_buckets
    name = "asgi" if hasattr(worker, "asgi") else "wsgi"
    if name == "wsgi" and not hasattr(worker, "CONFIG_KWARGS"):
        counting.requests = _telemetry().requests(buckets)
        return
    from obskit_gunicorn._gunicorn import asgi

    application = getattr(worker, name)
    if name == "wsgi" and not asgi.is_asgi3(application):
        log.warning(
            "obskit: requests are not counted: %r is not an ASGI 3 application", application
        )
        return
    requests = _telemetry().requests(buckets)
    setattr(worker, name, asgi.CountedApplication(application, requests, worker))
    # What nobody overrides need not be called for each request.
    for hook in ("pre_request", "post_request"):
        if not overrides(publication.config, hook):
            setting = worker.cfg.settings[hook]
            setting.value = setting.default


class Counting:
    """What this process counts, if it is a worker.

    Attributes:
        forked_at: When it was forked, on the monotonic clock.
        requests: Where request hooks count; ``None`` where the application is wrapped, and where
            requests are not counted.
    """

    def __init__(self) -> None:
        """It is no worker yet."""
        self.forked_at: float | None = None
        self.requests: Requests | None = None


counting = Counting()


def _telemetry() -> Any:
    """Return the module that counts; not loaded before prometheus_client is known to be there."""
    from obskit_gunicorn._gunicorn import telemetry

    return telemetry


def _core_worker_int(publication: Publication, worker: Worker) -> None:
    exits.leaving.is_interrupted = True


def _core_worker_abort(publication: Publication, worker: Worker) -> None:
    exits.leaving.is_aborted = True


def _core_child_exit(publication: Publication, server: Arbiter, worker: Worker) -> None:
    exits.note(worker)
    if not is_signal_context("child_exit"):
        flush_failures()


def _core_worker_exit(publication: Publication, server: Arbiter, worker: Worker) -> None:
    # Gunicorn may call this in the arbiter, for a worker it could not find any more.
    if os.getpid() != worker.pid:  # type: ignore[comparison-overlap]
        return
    reason = exits.leaving.reason(worker) if sharing() is not None else None
    if reason is not None:
        _telemetry().count_exit(reason)
    membership.note(state="leaving", reason=reason, is_counted=reason is not None)


def _core_pre_exec(publication: Publication, server: Arbiter) -> None:
    # In the child that becomes the new arbiter. It gets env_orig, a copy of the environment from
    # before the configuration file ran.
    handover.give(server.cfg.env_orig, supervisor.hand_on())


def _core_on_exit(publication: Publication, server: Arbiter) -> None:
    flush_failures()
    supervisor.remove_socket_file(server)


CORES: dict[str, Callable[..., None]] = {
    "nworkers_changed": _core_nworkers_changed,
    "when_ready": _core_when_ready,
    "on_reload": _core_on_reload,
    "pre_fork": _core_pre_fork,
    "post_fork": _core_post_fork,
    "post_worker_init": _core_post_worker_init,
    "worker_int": _core_worker_int,
    "worker_abort": _core_worker_abort,
    "child_exit": _core_child_exit,
    "worker_exit": _core_worker_exit,
    "pre_exec": _core_pre_exec,
    "on_exit": _core_on_exit,
}
