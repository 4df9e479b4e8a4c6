"""What is known of each class of workers, and of the classes that are derived from it.

How many requests one of them can answer at a time, and how requests are seen. And what a worker
knows of itself: when it stops accepting, what it is busy with. Gunicorn has no hook for either. Its
own classes keep both in attributes of the worker and pass each connection to its method ``handle``;
Uvicorn's worker has a server with methods of its own. What a class does not have, it does not tell.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._gunicorn import exits

if TYPE_CHECKING:
    from gunicorn.workers.base import Worker

    from obskit_gunicorn._gunicorn.telemetry import Connections


_LOOK_SECONDS = 1.0

HOOKS = "hooks"
"""Requests are seen by Gunicorn's request hooks, which the worker calls for each."""


class Kind(NamedTuple):
    """What is known of a class of workers."""

    requests: str
    """How requests are seen: :data:`HOOKS`, a name in :data:`seams.SEAMS`, or empty: perhaps not
    at all."""

    capacity: Callable[[Any], int] | None = None
    """Returns from Gunicorn's settings how many requests a worker can answer at the same time."""

    connections: str = ""
    """What of the worker shows its connections: ``handle`` is called for each, ``nr_conns`` is
    their number, ``server`` has them; empty if nothing does."""

    is_busy: bool = False
    """Whether a worker, or a thread of it, does nothing else while ``handle`` runs."""


_ASYNC = Kind(HOOKS, lambda settings: settings.worker_connections, "handle")  # gevent, eventlet
_KINDS = {
    "gunicorn.workers.sync.SyncWorker": Kind(HOOKS, lambda settings: 1, "handle", is_busy=True),
    "gunicorn.workers.gthread.ThreadWorker": Kind(
        HOOKS, lambda settings: settings.threads, "handle", is_busy=True
    ),
    "gunicorn.workers.base_async.AsyncWorker": _ASYNC,
    "gunicorn.workers.gasgi.ASGIWorker": Kind(
        "asgi", lambda settings: settings.worker_connections, "nr_conns"
    ),
    "gunicorn.workers.gtornado.TornadoWorker": Kind("tornado"),
    "aiohttp.worker.GunicornWebWorker": Kind("aiohttp"),
}
"""By where a class is defined: most of them are of packages that need not be installed."""

_PYWSGI = Kind("wsgi", _ASYNC.capacity)  # gevent hands the application to a server of its own
_UVICORNS = Kind("uvicorn", None, "server")
_UNKNOWN = Kind("")


def kind_of(worker_class: type) -> Kind:
    """Return what is known of a class of workers: by itself, or by what it is derived from."""
    if hasattr(worker_class, "CONFIG_KWARGS"):  # it is in two packages, and copied into others
        return _UVICORNS
    for base in worker_class.__mro__:
        kind = _KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            is_pywsgi = kind is _ASYNC and getattr(worker_class, "server_class", None) is not None
            return _PYWSGI if is_pywsgi else kind
    return _UNKNOWN


def capacity(worker_class: type, settings: Any) -> int | None:
    """Return how many requests a worker can answer at the same time; ``None`` if not known."""
    of = kind_of(worker_class).capacity
    return None if of is None else of(settings)


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
    if kind_of(type(worker)) is _UVICORNS:
        _before_server("shutdown", lambda server: tell(not server.should_exit))
    else:
        _watch(worker, "alive", lambda alive: alive or tell(exits.is_used_up(worker)))


def watch_connections(
    worker: Worker,
    connections: Callable[[], Connections],
    busy: Callable[[], Callable[[float], None]],
) -> None:
    """Have it shown how many connections occupy the worker, and for how long.

    Args:
        worker: The worker, before it runs.
        connections: Returns where to show it; called only if this class can tell.
        busy: Returns what counts the seconds; called only if a connection occupies a worker.
    """
    kind = kind_of(type(worker))
    shown_by = kind.connections
    if shown_by == "server":
        show = connections().show
        _before_server("on_tick", lambda server: show(len(server.server_state.connections)))
    elif shown_by == "nr_conns":
        import gunicorn

        if gunicorn.version_info >= (26,):  # before, it does not notice the end of each connection
            _watch(worker, "nr_conns", connections().show)
    elif shown_by == "handle":
        add = connections().add
        if not kind.is_busy:
            _count_calls(worker, add)
        elif is_sync(worker):
            _time_calls(worker, add, busy())
        else:
            _time_long_calls(worker, add, busy())


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


def _time_calls(worker: Any, add: Callable[[float], None], busy: Callable[[float], None]) -> None:
    """Count the calls of ``handle`` that run, and the seconds of those that have ended."""
    handle = worker.handle

    @functools.wraps(handle)
    def timed(*args: Any) -> Any:
        add(1)
        started = perf_counter()
        try:
            return handle(*args)
        finally:
            busy(perf_counter() - started)
            add(-1)

    worker.handle = timed


def _time_long_calls(
    worker: Any, add: Callable[[float], None], busy: Callable[[float], None]
) -> None:
    """Count the calls of ``handle`` that run in threads, and their seconds while they pass.

    A stream may run for hours: at each heartbeat of the worker its time until then is counted.
    """
    handle = worker.handle
    # Who takes a thread's entry out counts the time since then; nobody else can.
    since: dict[int, float] = {}
    lock = threading.Lock()
    looks_at = 0.0

    def look() -> None:
        nonlocal looks_at
        if perf_counter() <= looks_at:
            return
        looks_at = perf_counter() + _LOOK_SECONDS
        for thread in list(since):
            with lock:
                started, now = since.pop(thread, None), perf_counter()
                if started is not None:
                    busy(now - started)
                    since[thread] = now

    def taken_back(thread: int) -> float:
        """Return the entry that a look has in its hands at this moment."""
        # A child that was forked at such a moment waits in vain.
        if lock.acquire(timeout=1.0):
            lock.release()
        return since.pop(thread, perf_counter())

    @functools.wraps(handle)
    def timed(*args: Any) -> Any:
        thread = threading.get_ident()
        add(1)
        since[thread] = perf_counter()
        try:
            return handle(*args)
        finally:
            started = since.pop(thread, None)
            if started is None:
                started = taken_back(thread)
            busy(perf_counter() - started)
            add(-1)

    worker.handle = timed
    at_heartbeats(worker, look)


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
