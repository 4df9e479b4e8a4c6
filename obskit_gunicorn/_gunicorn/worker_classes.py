"""What a worker knows of itself, class by class: when it stops accepting, what it is busy with.

Gunicorn has no hook for either. Its own classes keep both in attributes of the worker and pass each
connection to its method ``handle``; Uvicorn's worker has a server with methods of its own. All runs
in the worker. What a class does not have, it does not tell.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import exits

if TYPE_CHECKING:
    from collections.abc import Callable

    from gunicorn.workers.base import Worker

    from obskit_gunicorn._gunicorn.telemetry import Connections


def is_uvicorns(worker: Worker) -> bool:
    """Return whether a worker is of Uvicorn's class, or of one that is derived from it."""
    return hasattr(worker, "CONFIG_KWARGS")


def is_sync(worker: Worker) -> bool:
    """Return whether a worker serves one connection at a time, and does nothing else meanwhile."""
    return hasattr(worker, "run_for_one")


def when_leaving(worker: Worker, tell: Callable[[bool], object]) -> None:
    """Have a function told when the worker stops accepting connections.

    Args:
        worker: The worker, before it runs.
        tell: Called perhaps in signal context or on another thread, with whether the worker leaves
            because it has served its number of requests.
    """
    if is_uvicorns(worker):
        _before_server("shutdown", lambda server: tell(not server.should_exit))
    else:
        _watch(worker, "alive", lambda alive: alive or tell(exits.is_used_up(worker)))


def watch_connections(worker: Worker, connections: Callable[[], Connections]) -> None:
    """Have it shown how many connections occupy the worker.

    Args:
        worker: The worker, before it runs.
        connections: Returns where to show it; called only if this class can tell.
    """
    if is_uvicorns(worker):
        show = connections().show
        _before_server("on_tick", lambda server: show(len(server.server_state.connections)))
    elif hasattr(worker, "asgi"):
        import gunicorn

        if gunicorn.version_info >= (26,):  # before, it does not notice the end of each connection
            _watch(worker, "nr_conns", connections().show)
    elif hasattr(worker, "handle") and not getattr(worker, "server_class", None):
        _count_calls(worker, connections().add)


def at_heartbeats(worker: Any, function: Callable[[], object]) -> None:
    """Have a function called at each heartbeat of the worker; it must return at once.

    Each class has them, also when there are no requests, at least twice in ``timeout``; a sync
    worker also before each request.
    """
    notify = worker.notify

    @functools.wraps(notify)
    def notified() -> None:
        notify()
        with contextlib.suppress(Exception):  # the worker must go on
            function()

    worker.notify = notified


def _count_calls(worker: Any, add: Callable[[float], None]) -> None:
    """Count the calls of ``handle`` that run: of a connection, or of a thread with a connection."""
    handle = worker.handle

    @functools.wraps(handle)
    def counted(*args: Any) -> Any:
        add(1)
        try:
            return handle(*args)
        finally:
            add(-1)

    worker.handle = counted


class _Watched:
    """An attribute of a worker whose changes are told."""

    def __init__(self, name: str, tell: Callable[[Any], object]) -> None:
        self._name = name
        self._tell = tell

    def __get__(self, worker: Any, owner: type) -> Any:
        return self if worker is None else vars(worker)[self._name]

    def __set__(self, worker: Any, value: Any) -> None:
        before, vars(worker)[self._name] = vars(worker)[self._name], value
        if value != before:
            with contextlib.suppress(Exception):  # the worker must go on
                self._tell(value)


def _watch(worker: Worker, name: str, tell: Callable[[Any], object]) -> None:
    """Watch an attribute, if the worker has it as a plain one."""
    if name in vars(worker) and not hasattr(type(worker), name):
        setattr(type(worker), name, _Watched(name, tell))  # this process has no other worker


def _before_server(name: str, tell: Callable[[Any], object]) -> None:
    """Have a function told of each call of a method of Uvicorn's server, before it runs."""
    with contextlib.suppress(ImportError, AttributeError):
        server = importlib.import_module("uvicorn.server").Server
        method = getattr(server, name)

        @functools.wraps(method)
        async def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(Exception):  # the worker must go on
                tell(self)
            return await method(self, *args, **kwargs)

        setattr(server, name, told)
