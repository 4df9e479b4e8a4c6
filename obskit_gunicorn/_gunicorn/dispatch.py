"""The function that Gunicorn calls for a hook: the core, then the user's method.

An error in a core is logged and never reaches Gunicorn. An error in a user's override means what it
means to Gunicorn, except in the hooks of :data:`contract.CONTAINED` once the server runs: there it
is logged with its traceback and counted, and the server continues. In signal context nothing is
logged or counted; the next core that runs elsewhere does that.
"""

from __future__ import annotations

import inspect
import os
import time
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import checks, contract, lifecycle
from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.arbiter import Arbiter
    from gunicorn.http.message import Request
    from gunicorn.workers.base import Worker

    from obskit_gunicorn._gunicorn.contract import Publication

_GATES = frozenset({"on_starting", "when_ready"})
_REQUEST_HOOKS = frozenset({"pre_request", "post_request"})

ACTING = frozenset({*lifecycle.CORES, "on_starting"})
"""Hooks that act even if nobody overrides them: they have a core, or their base method acts."""


_made: weakref.WeakKeyDictionary[Any, tuple[Publication, Callable[..., Any] | None]] = (
    weakref.WeakKeyDictionary()
)
"""The functions of :func:`hook_function`, and the publication and the user's part of each."""


def is_made_here(value: object) -> bool:
    """Return whether something is a function of :func:`hook_function`.

    By identity: decorators such as ``functools.wraps`` copy every mark.
    """
    return isinstance(value, types.FunctionType) and value in _made


def users_part(value: Any) -> Callable[..., Any] | None:
    """Return what a user has contributed to a function of :func:`hook_function`, if anything."""
    return _made[value][1] if value in _made else None


def publication_of(settings: Any) -> Publication | None:
    """Return the publication that Gunicorn's settings come from; ``None`` if it is not ours.

    Args:
        settings: An instance of Gunicorn's class of settings.
    """
    setting = settings.settings.get("nworkers_changed")  # one that every publication has
    value = None if setting is None else setting.get()
    return _made[value][0] if is_made_here(value) else None


def needs_publishing(publication: Publication, name: str) -> bool:
    """Return whether Gunicorn must call a hook at all; a hook that does nothing costs nothing."""
    config = publication.config
    if name in _REQUEST_HOOKS:
        return _counts_requests(publication) or contract.overrides(config, name)
    return name in ACTING or any(contract.overrides(config, each) for each in (name, "hook_event"))


def _counts_requests(publication: Publication) -> bool:
    return publication.options.metrics_requests and lifecycle.sharing() is not None


def hook_function(
    publication: Publication, name: str, method: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the function that Gunicorn calls for a hook: the core, then the method."""
    run = _function(publication, name, method)
    dress(run, name, publication.name_of(name), method.__doc__)
    own = method if contract.overrides(publication.config, name) else None
    _made[run] = publication, own
    return run


def _function(
    publication: Publication, name: str, method: Callable[..., Any]
) -> Callable[..., Any]:
    core = lifecycle.CORES.get(name)
    accepted = checks.accepted_arguments(name, method)
    if name in _REQUEST_HOOKS:
        return _request_function(publication, name, method, accepted)
    watches_events = contract.overrides(publication.config, "hook_event")

    def run(*args: Any) -> Any:
        if core is not None:
            _run_core(name, core, publication, args)
        started, clock = time.time(), time.monotonic()
        error: Exception | None = None
        result = None
        try:
            result = method(*args)
        except Exception as raised:
            error = raised
        if watches_events:
            event = contract.HookEvent(
                name="hook_success" if error is None else "hook_failure",
                hook=name,
                time=started,
                duration_seconds=time.monotonic() - clock,
                pid=os.getpid(),
                error=error,
            )
            _tell(publication, event)
        if error is not None:
            if not _is_contained(name, args):
                raise error
            message = f"{publication.name_of(name)} raised; the server continues"
            _report(name, message, error, counts=True)
        if name in _GATES and result is False:
            _abort(publication, name, args[0])
        return result

    return run


def _request_function(
    publication: Publication, name: str, method: Callable[..., Any], accepted: int | None
) -> Callable[..., Any]:
    """Return the function for a hook that runs for each request and so must be cheap."""
    if not _counts_requests(publication):
        return lambda *args: method(*args[:accepted])
    counting = lifecycle.counting

    def run_before(worker: Worker, req: Request) -> Any:
        requests = counting.requests or counting.by_hook()
        if requests is not None:
            requests.arrived_hook(req)
        return method(worker, req)

    def run_after(worker: Worker, req: Request, environ: Any, resp: Any) -> Any:
        requests = counting.requests
        if requests is not None:
            requests.answered_hook(req, resp, environ)
        if accepted == 4:
            return method(worker, req, environ, resp)
        return method(*(worker, req, environ, resp)[:accepted])

    return run_before if name == "pre_request" else run_after


def dress(run: Any, name: str, qualname: str, doc: str | None) -> None:
    """Give a function the name, the signature and the docstring of a hook."""
    # Gunicorn counts the parameters that the signature shows.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(each, kind) for each in contract.PARAMETERS[name]]
    run.__signature__ = inspect.Signature(parameters)
    run.__name__ = name
    run.__qualname__ = qualname
    run.__doc__ = doc


def _run_core(
    name: str, core: Callable[..., None], publication: Publication, args: tuple[Any, ...]
) -> None:
    try:
        core(publication, *args)
    except Exception:
        # Our errors must not harm the service.
        log.exception("obskit: the core of %s failed; the server continues", name)


def _is_contained(name: str, args: tuple[Any, ...]) -> bool:
    if name == "nworkers_changed" and args[2] is None:
        return False  # the server is starting
    return name in contract.CONTAINED


def _report(name: str, message: str, error: Exception, *, counts: bool) -> None:
    """Log an exception of a user's method in a hook, and perhaps count it, now or later."""
    text = "".join(traceback.format_exception(error)).rstrip()
    lifecycle.failures.append((name, f"obskit: {message}\n{text}", counts))
    if not lifecycle.is_signal_context(name):
        lifecycle.flush_failures()


def _tell(publication: Publication, event: contract.HookEvent) -> None:
    try:
        publication.config.hook_event(event)
    except Exception as error:
        message = f"{publication.name_of('hook_event')} raised in {event.hook}"
        _report(event.hook, message, error, counts=False)


def _abort(publication: Publication, name: str, server: Arbiter) -> None:
    """End a start that a hook has refused; close what Gunicorn has opened so far."""
    log.error("obskit: %s returned False: not starting", publication.name_of(name))
    server.stop()
    if server.pidfile is not None:
        server.pidfile.unlink()
    raise SystemExit(1)
