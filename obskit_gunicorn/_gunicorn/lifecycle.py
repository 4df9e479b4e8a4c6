"""The cores: what each hook must do for this package, whatever the user overrides.

The core of a hook is the function with its name. It runs where Gunicorn calls the hook, before the
user's method. No core depends on a hook that may not run. The caller of a core catches its errors.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import children, exits, worker_classes
from obskit_gunicorn._gunicorn.contract import CONTAINED, PARAMETERS, overrides
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._gunicorn.options import absolute, exporter_options
from obskit_gunicorn._gunicorn.supervisor import supervisor
from obskit_gunicorn._log import log, taken
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import private
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

    from obskit_gunicorn._exporter.protocol import Options
    from obskit_gunicorn._gunicorn.contract import Publication
    from obskit_gunicorn._gunicorn.telemetry import Collected, Collections, Requests


NEWEST_TESTED = 27
"""The newest major release of Gunicorn that was tested."""

_MOST_LISTENERS = 16
_MOST_PATHS = 1000

failures: list[tuple[str, str, bool]] = []
"""What could not be logged or counted in signal context: hook, text, whether to count it."""

_import_error: list[Problem] = []
"""Why prometheus_client cannot be used, and what to do."""


def _load(name: str) -> Any:
    """Return a module of ours that needs prometheus_client; ``None`` if that cannot be used."""
    try:
        problem: Problem | None = importlib.import_module("obskit_gunicorn._prometheus").problem()
        if problem is None:
            return importlib.import_module(f"obskit_gunicorn.{name}")
    except ImportError as error:
        problem = _explain(error)
    _import_error[:] = [problem]
    return None


def _explain(error: ImportError) -> Problem:
    """Return why a module cannot be imported, and what to do."""
    import gunicorn

    if error.name == "prometheus_client":
        text = f"prometheus-client is not installed ({error})"
        return Problem(text, "pip install prometheus-client")
    path = os.path.dirname(os.path.realpath(gunicorn.__file__))
    text = f"prometheus-client cannot be imported ({error})"
    if path in map(os.path.realpath, sys.path):
        text += f"; {path} is in sys.path and hides modules of Python's"
        return Problem(text, "start Gunicorn by its command, or as python -m gunicorn")
    return Problem(text, "pip install --force-reinstall prometheus-client")


def missing_client() -> Problem | None:
    """Return why there are no metrics at all; ``None`` if prometheus_client can be used."""
    if sharing() is not None:
        return None
    text, advice = _import_error[-1]
    return Problem(f"there are no metrics: {text}", advice)


def sharing() -> Any:
    """Return :mod:`obskit_gunicorn._values.sharing`, or ``None`` without prometheus_client."""
    return _load("_values.sharing")


def _count(name: str, *labels: str) -> None:
    """Count an event, see :func:`telemetry.count`; nothing without prometheus_client."""
    telemetry = _load("_gunicorn.telemetry")
    if telemetry is not None:
        telemetry.count(name, *labels)


def is_signal_context(name: str) -> bool:
    """Return whether Gunicorn calls a hook from a signal handler."""
    if name == "child_exit":
        import gunicorn

        return gunicorn.version_info < (24,)
    return name in ("worker_int", "worker_abort")


def flush_failures() -> None:
    """Log and count what has happened in signal context; not for signal context itself."""
    for reason in exits.flush():
        _count("gunicorn_worker_exits", reason)
    for reason in supervisor.starts():
        _count("gunicorn_exporter_starts", reason)
    for name, message, counts in taken(failures):
        log.error("%s", message)
        if counts:
            with contextlib.suppress(Exception):  # counting a failure must not cause another one
                _count("gunicorn_hook_failures", name)


def nworkers_changed(
    publication: Publication, server: Arbiter, new_value: int, old_value: int | None
) -> None:
    """Choose the directory, take the arbiter's lease in it, and begin a generation.

    The first hook that an arbiter calls: after it has daemonized, before it imports a preloaded
    application and before any fork. Called again at each SIGHUP, TTIN and TTOU, perhaps on the
    control thread.
    """
    membership.role = "arbiter"
    log.use(server.log)
    flush_failures()
    shared = sharing()
    is_new, arbiter.settings = arbiter.settings is not server.cfg, server.cfg
    if shared is None:
        if old_value is None:
            log.warning("obskit: %s", missing_client())
        return
    if old_value is None:
        for level, problem in (
            (logging.INFO, untested()),
            (logging.WARNING, imported_early(server.app, server.cfg)),
        ):
            if problem is not None:
                log.log(level, "obskit: %s", problem)
    shared.install()
    _begin(publication, server, shared)
    _describe(server, new_value)
    if is_new:
        problem = uncounted(publication.options, server.cfg, server.worker_class)
        if problem is not None:
            log.warning("obskit: %s", problem)
    elif old_value is not None and new_value != old_value:
        _count("gunicorn_resizes", "up" if new_value > old_value else "down")


class _Arbiter:
    """What this process knows, if it is an arbiter."""

    settings: Any = None
    """Gunicorn's settings; each SIGHUP makes new ones."""


arbiter = _Arbiter()


def uncounted(options: Options, settings: Any, worker_class: type) -> Problem | None:
    """Return why requests will not be counted although they should be."""
    if not options.metrics_requests or worker_classes.kind_of(worker_class).requests:
        return None
    return Problem(
        f"worker class {settings.worker_class_str} is not known to call Gunicorn's request hooks",
        "unless it does, requests are not counted (docs/metrics.md)",
    )


def untested() -> Problem | None:
    """Return why nobody knows whether this release of Gunicorn will do."""
    import gunicorn

    if gunicorn.version_info[0] <= NEWEST_TESTED:
        return None
    return Problem(
        f"Gunicorn {gunicorn.__version__} is newer than any release that obskit-gunicorn was "
        f"tested with (up to {NEWEST_TESTED})",
        "look for a newer obskit-gunicorn, or report what does not work",
    )


def imported_early(application: Any, settings: Any) -> Problem | None:
    """Return why the application should not have been imported by the configuration, if it was.

    Before the arbiter itself imports a preloaded one.
    """
    module = str(getattr(application, "app_uri", None) or "").partition(":")[0]
    if settings.preload_app or module not in sys.modules or module == "__main__":
        return None
    return Problem(
        f"the application {module} is imported by the configuration, in the arbiter: workers are "
        "forked with it, so a SIGHUP does not load new code",
        "do not import it there; or set preload_app, if that is what you want",
    )


def _describe(server: Arbiter, workers: int) -> None:
    """Record, beside the arbiter's lease, the facts that a scrape shows."""
    import gunicorn

    settings = server.cfg
    membership.note(
        workers=workers,
        capacity=worker_classes.capacity(server.worker_class, settings),
        worker_class=settings.worker_class_str,
        gunicorn=gunicorn.__version__,
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        backlog=settings.backlog,
        **_listeners(server),
    )


def _listeners(server: Arbiter) -> dict[str, list[Any]]:
    """Return the addresses of the sockets; once they are bound, as the kernel writes them."""
    addresses = []
    for listener in server.LISTENERS:
        with contextlib.suppress(OSError, AttributeError):
            addresses.append(listener.sock.getsockname())
    found = addresses or server.cfg.address
    tcp = [list(address[:2]) for address in found if isinstance(address, tuple)]
    unix = [address for address in found if isinstance(address, str) and address]
    while len(json.dumps(unix)) > _MOST_PATHS:  # a record has room for so much
        unix.pop()
    return {"listeners": tcp[:_MOST_LISTENERS], "unix_listeners": unix}


def directory_of(options: Options, settings: Any) -> str | None:
    """Return the directory that is asked for; ``None`` for a private one."""
    # raw_env is part of the environment; Gunicorn applies it a little later.
    from_raw_env: str | None = settings.env.get(DIRECTORY_VARIABLE)
    if from_raw_env:
        return absolute(from_raw_env, handover.started_in)
    path: str | None = options.multiproc_dir
    return path


def _begin(publication: Publication, server: Arbiter, shared: Any) -> None:
    path = directory_of(publication.options, server.cfg)
    if path is None:
        path = _private_path()
    keep = publication.options.metrics_keep
    # GUNICORN_PID is set in an arbiter that SIGUSR2 has started. It shares the directory of the old
    # one, even if that has ended in the meantime.
    keep = keep or "GUNICORN_PID" in os.environ
    options = publication.options
    shared.limit(options.metrics_max_series, options.metrics_max_bytes)
    try:
        shared.begin(
            path,
            keep=keep,
            user=server.cfg.uid,
            group=server.cfg.gid,
            keep_unpublished=publication.options.metrics_redis is not None,
        )
    finally:
        handover.drop_lease()
    handover.export()


def _private_path() -> str | None:
    """Return the private directory to continue with, or ``None`` to make one."""
    if membership.directory is not None and membership.is_private:
        return membership.directory.path if private.may_stay(membership.directory) else None
    # The arbiter whose SIGUSR2 has started this one may have handed one on.
    for handed in handover.exported:
        if private.is_private(SlotDirectory(handed)):
            return handed
    return None


def when_ready(publication: Publication, server: Arbiter) -> None:
    """Start the exporter."""
    applications = _load("_gunicorn.applications")
    if applications is not None:
        applications.look_in_arbiter()
    _listen(publication, server)
    _describe(server, server.num_workers)
    _show_zeros(publication)
    _keep_exporter(publication, server)


def on_reload(publication: Publication, server: Arbiter) -> None:
    """Count the reload, and adapt the exporter to changed options."""
    _listen(publication, server)
    _show_zeros(publication)
    _count("gunicorn_reloads")
    applications = _load("_gunicorn.applications")
    if applications is not None:
        applications.turn.is_due = True
    _keep_exporter(publication, server, is_reload=True)


def _listen(publication: Publication, server: Arbiter) -> None:
    """Hear of ended children, and of a directory that is lost."""

    def begin_anew() -> None:
        """Do what the next fork would do."""
        try:
            _keep_directory(publication, server)
            _keep_exporter(publication, server)
        except Exception:
            log.exception("obskit: the metrics directory cannot be made again")

    children.listen(server, begin_anew)


def _keep_directory(publication: Publication, server: Arbiter) -> None:
    """Make sure that the directory still exists: the arbiter notices here if it was removed."""
    shared = sharing()
    if shared is not None:
        _begin(publication, server, shared)
        _describe(server, server.num_workers)


def _show_zeros(publication: Publication) -> None:
    telemetry = _load("_gunicorn.telemetry")
    if telemetry is not None:
        telemetry.show_zeros([name for name in CONTAINED if overrides(publication.config, name)])


def _keep_exporter(publication: Publication, server: Arbiter, *, is_reload: bool = False) -> None:
    options = exporter_options(publication.options) if sharing() is not None else None
    supervisor.keep(options, server, publication.where("metrics_bind"), is_reload=is_reload)
    flush_failures()


def pre_fork(publication: Publication, server: Arbiter, worker: Worker) -> None:
    """Make sure that the directory and the exporter still exist; clean up after ended workers."""
    flush_failures()
    applications = _load("_gunicorn.applications")
    if applications is not None:
        applications.turn.pass_on()
        with contextlib.suppress(OSError):
            exits.listen_to(worker)
    _keep_directory(publication, server)
    membership.remove_live_gauges()
    _keep_exporter(publication, server)


def post_fork(publication: Publication, server: Arbiter, worker: Worker) -> None:
    """Become a worker."""
    membership.role = "worker"
    counting.forked_at = time.monotonic()
    counting.collected = gc.get_stats() if sys.implementation.name == "cpython" else None
    supervisor.forked_by_gunicorn()


def post_worker_init(publication: Publication, worker: Worker) -> None:
    """Take the worker's lease, count the boot, and begin to count requests."""
    shared = sharing()
    if shared is None:
        return
    from obskit_gunicorn._gunicorn import applications, telemetry

    shared.take_lease(state="booted")
    try:
        applications.look_in_worker(publication.options, worker)
    except Exception:  # it looks at objects of the application; the rest must happen
        log.exception("obskit: it is unknown what the application has changed")
    if membership.lease is None and supervisor.exporter is not None:
        supervisor.exporter.tell_booted()
    worker_classes.at_heartbeats(worker, shared.keep_place)
    forked_at = counting.forked_at
    exits.said(worker).has_booted = True
    telemetry.count_boot(None if forked_at is None else time.monotonic() - forked_at)
    worker_classes.when_leaving(worker, functools.partial(_leave, worker))
    if publication.options.metrics_requests:
        worker_classes.watch_connections(worker, telemetry.connections, telemetry.busy)
        _count_requests(publication, worker)


def _leave(worker: Worker, is_used_up: bool) -> None:
    """Say that a worker accepts no more; safe in signal context."""
    if exits.is_of(worker):
        reason = "max_requests" if is_used_up else ""
        membership.note(state="leaving", reason=reason)
        # A sync worker is still busy with its last request. If that hangs, it is a time-out.
        if reason and not worker_classes.is_sync(worker):
            exits.say(worker, reason)


def _count_requests(publication: Publication, worker: Worker) -> None:
    """Begin to count requests: by the request hooks, or where its class shows them."""
    from obskit_gunicorn._gunicorn import applications, seams, telemetry

    options = publication.options
    if options.metrics_standard and counting.collected is not None:
        counting.collections = telemetry.Collections(counting.collected)
    make = functools.partial(
        telemetry.requests,
        options.metrics_buckets,
        counting.collections,
        has_exemplars=options.metrics_exemplars,
        has_routes=options.metrics_routes,
    )
    seen_by = worker_classes.kind_of(type(worker)).requests
    if options.metrics_routes:
        applications.watch_routes(getattr(worker, "asgi", None) or worker.wsgi)
    if seen_by == worker_classes.HOOKS:
        counting.requests = make()
    elif not seen_by:
        # Nothing is shown as 0 that may never be counted.
        counting.make_requests = make
    else:
        seams.count(worker, seen_by, make)
        # Hooks that nobody overrides need not be called for each request.
        for hook in ("pre_request", "post_request"):
            if not overrides(publication.config, hook):
                setting = worker.cfg.settings[hook]
                setting.value = setting.default


class Counting:
    """What this process counts, if it is a worker."""

    forked_at: float | None = None
    """When it was forked, on the monotonic clock."""

    collected: Collected | None = None
    """What the garbage collector had done then; ``None`` if that is not known."""

    collections: Collections | None = None
    """What notes it; ``None`` if nobody wants to know."""

    requests: Requests | None = None
    """Where request hooks count; ``None`` if they are not called, or if they do not count."""

    make_requests: Callable[[], Requests] | None = None
    """Makes :attr:`requests` when a request hook is called for the first time; ``None`` if there is
    nothing to make."""

    def by_hook(self) -> Requests | None:
        """Return where request hooks count, if they do."""
        if self.requests is None and self.make_requests is not None:
            self.requests = self.make_requests()
        return self.requests


counting = Counting()


def worker_int(publication: Publication, worker: Worker) -> None:
    """Note why the worker leaves."""
    exits.say(worker, "interrupted")


def worker_abort(publication: Publication, worker: Worker) -> None:
    """Note why the worker leaves."""
    exits.aborted.pid = os.getpid()


def child_exit(publication: Publication, server: Arbiter, worker: Worker) -> None:
    """Note that a worker has ended."""
    exits.note(worker)
    if not is_signal_context("child_exit"):
        flush_failures()


def worker_exit(publication: Publication, server: Arbiter, worker: Worker) -> None:
    """Say why this worker ends, to the arbiter and in the lease."""
    if not exits.is_of(worker):
        # Gunicorn calls this in the arbiter too, for a worker that it cannot find any more.
        if os.getpid() == worker.ppid:
            exits.note(worker)
            flush_failures()
        return
    if counting.collections is not None:
        counting.collections.note()
    reason = exits.own_reason(worker)
    is_orphan = os.getppid() != worker.ppid
    if reason and (is_orphan or reason == "boot_error" or is_signal_context("child_exit")):
        if exits.say(worker, exits.COUNTED):
            _count("gunicorn_worker_exits", reason)
    elif reason:
        exits.say(worker, reason)
    membership.note(state="leaving", reason=reason)


def pre_exec(publication: Publication, server: Arbiter) -> None:
    """Hand on what the new arbiter needs; runs in the child that becomes it.

    Its environment will be ``env_orig``, a copy from before the configuration file ran.
    """
    exporter = supervisor.exporter
    handover.give(server.cfg.env_orig, exporter.hand_on() if exporter is not None else None)
    _count("gunicorn_upgrades")
    command = server.START_CTX["args"]
    if isinstance(command, list):
        handover.give_command(command)


def on_exit(publication: Publication, server: Arbiter) -> None:
    """Count and log what is left, and end the exporter."""
    # Gunicorn has killed them, and will not see their end.
    for worker in list(server.WORKERS.values()):  # one may be reaped meanwhile
        exits.note(worker)
    flush_failures()
    supervisor.end(server)


CORES: dict[str, Callable[..., None]] = {
    name: globals()[name] for name in PARAMETERS if name in globals()
}
"""The core of each hook that has one: the function above with the name of the hook."""
