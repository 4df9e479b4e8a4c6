"""The application: when it is imported, by whom, and which of its metrics cannot be shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._doctor.apart import EndedError, apart
from obskit_gunicorn._gunicorn import lifecycle
from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.apart import User
    from obskit_gunicorn._doctor.finding import Finding
    from obskit_gunicorn._exporter.protocol import Options

_PART = "application"
_LONGEST_IMPORT_SECONDS = 120.0


def examine(application: Any, options: Options, user: User) -> Iterator[Finding]:
    """Yield whether an application can be imported, and what it has that files cannot hold.

    Args:
        application: Gunicorn's application object, which has loaded its configuration.
        options: Ours.
        user: The user of the workers, who imports it.
    """
    name, settings = application.app_uri, application.cfg
    if not name:
        advice = "name it behind the arguments, as for gunicorn"
        yield finding.ok(_PART, "no application is named, so none was looked at", advice)
        return
    early = lifecycle.imported_early(application, settings)
    if early is not None:
        yield finding.warning(_PART, early)
    importer = user
    if settings.preload_app:
        text = "preload_app: the arbiter imports it once, so a SIGHUP does not load new code"
        yield finding.ok(_PART, text, "restart the server, or send SIGUSR2, for new code")
        importer = user._replace(is_other=False)
    who = f"uid {os.geteuid()}" if importer is not user else str(user)
    try:
        yield from apart(
            lambda: _imported(application, options, who),
            user=importer,
            seconds=_LONGEST_IMPORT_SECONDS,
        )
    except EndedError as error:
        yield _unimportable(name, who, str(error))


def _imported(application: Any, options: Options, who: str) -> Iterator[Finding]:
    """Import the application as a worker does; in a process of its own."""
    settings = application.cfg
    os.environ.update(settings.env)
    for path in (settings.pythonpath or "").split(","):
        if path and os.path.abspath(path) not in sys.path:
            sys.path.insert(0, os.path.abspath(path))
    try:
        loaded = application.wsgi()
    except (Exception, SystemExit) as error:
        import traceback

        traceback.print_exc()
        yield _unimportable(application.app_uri, who, f"{type(error).__name__}: {error}")
        return
    yield finding.ok(_PART, f"{application.app_uri} can be imported by {who}")
    if lifecycle.missing_client() is not None:
        return
    from obskit_gunicorn._gunicorn import applications, routes, seams, worker_classes
    from obskit_gunicorn._values import sharing

    for _level, line in sharing.put_back():
        text, _, advice = line.removeprefix("obskit: ").rpartition(". ")
        yield finding.warning("metrics", Problem(text, advice))
    problem = applications.unshown(options)
    if problem is not None:
        yield finding.warning("metrics", problem)
    else:
        yield finding.ok("metrics", "all that the application makes at its import can be shared")
    if options.metrics_requests:
        kind = worker_classes.kind_of(settings.worker_class)
        problem = seams.uncounted(kind.requests, loaded)
        if problem is not None:
            yield finding.warning("metrics", problem)
    if options.metrics_routes:
        routes.watch(loaded)
        problem = applications.unrouted()
        if problem is not None:
            yield finding.warning("metrics", problem)
        else:
            names = ", ".join(sorted(routes.found.frameworks))
            yield finding.ok("metrics", f"requests are counted by the routes of {names}")


def _unimportable(name: str, who: str, reason: str) -> Finding:
    text = f"{name} cannot be imported by {who}: {reason}"
    advice = "correct that: no worker boots without it"
    return finding.error(_PART, Problem(text, advice), stops=True)
