"""Metrics about Gunicorn itself: requests, workers, why workers end.

The process in which something happens counts it, never in signal context. These metrics are shared
like all others. What can be read from leases and /proc instead is read by the process that serves
the scrape, and costs workers nothing: see :mod:`obskit_gunicorn._scrape.own_metrics` and
:mod:`obskit_gunicorn._exporter.procfs`.
"""

from __future__ import annotations

import errno
import functools
import gc
import math
import sys
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from obskit_gunicorn import _prometheus
from obskit_gunicorn._gunicorn import routes, traces
from obskit_gunicorn._gunicorn.exits import REASONS
from obskit_gunicorn._values.values import end_of_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gunicorn.http.message import Request
    from gunicorn.http.wsgi import Response

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
CLIENT_CLOSED = 499
"""The code of a request whose client disconnected before there was a response."""

_LOST = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""The errors that mean, to Gunicorn, that a client has disconnected."""

_OTHER = "other"
"""The label of all other methods; clients may send any name."""

START_REASONS = ("ended", "killed", "reload", "start")
"""Why the exporter is started."""

DIRECTIONS = ("down", "up")
"""How the number of workers changes."""

_BOOT_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


_MOST_ROUTES = 1000
"""How many templates of routes a worker counts by themselves."""

_LONGEST_ROUTE = 500

OTHER_ROUTES = "__other__"
"""The label of all routes beyond those."""

WEBSOCKET_OUTCOMES = ("accepted", "refused", "abandoned")
"""What becomes of a websocket's handshake."""

CLOSE_CODES = ("1000", "1001", "1005", "1006", "1011", "1012", "1xxx", "3xxx", "4xxx", "other")
"""The labels for codes with which websockets are closed."""


class Seen(NamedTuple):
    """How requests are seen in one kind of worker, and what their servers know of each."""

    trace_of: Callable[[Any], dict[str, str] | None]
    """Returns the labels of a request's exemplar, at the end of the request."""

    route_of: Callable[[Any], str]
    """Returns the template of a request's route, at the end of the request."""

    arrivals: bool = True
    """Whether arrivals are seen; if not, nothing says how many requests are in progress."""


WSGI = Seen(traces.of_environ, routes.found.of_environ)
"""What is known of a request is its environ."""

ASGI = Seen(traces.of_scope, routes.found.of_scope)
"""What is known of a request is its scope."""

AIOHTTP = Seen(traces.of_request, routes.found.of_aiohttp)
"""What is known of a request is an ``aiohttp.web.Request``."""

TORNADO = Seen(traces.of_request, lambda _request: "", arrivals=False)
"""What is known is a request of tornado's, which does not say which of its rules has matched."""


class _Child(NamedTuple):
    """The functions to call for each request of one method and code."""

    add_one: Callable[[float], None]
    """Counts a request whose arrival was not seen."""

    end: Callable[[float], None]
    """Counts one that took so many seconds, and is no longer in progress."""

    add_exemplar: Callable[[float, dict[str, str]], None]
    """Keeps the labels of an exemplar of one that took so many seconds."""


Collected = list[dict[str, int]]
"""What the garbage collector has done in this process, by generation; see ``gc.get_stats()``."""

_NOTES_SECONDS = 1.0


class Collections:
    """Notes what the garbage collector does in this process. Thread-safe.

    It is asked now and then, and calls nobody: it may run at any moment, also under our lock. The
    names are not those of prometheus_client's own collector, which a page of the application's may
    have as well; the exporter shows them under these, see
    :mod:`obskit_gunicorn._exporter.standard`.
    """

    def __init__(self, before: Collected) -> None:
        """Make the metrics, and note what was done until now.

        Args:
            before: What had been done when this process was forked; that is its parent's.
        """
        self._lock = Lock()
        self._noted = before
        self._add = {
            kind: [
                _prometheus.adder(_counter(f"gunicorn_gc_{name}", str(generation)))
                for generation in range(len(before))
            ]
            for kind, name in (
                ("collected", "objects_collected"),
                ("uncollectable", "objects_uncollectable"),
                ("collections", "collections"),
            )
        }
        self.note()

    def note(self) -> None:
        """Note what was done since the last call; not for signal context."""
        if not self._lock.acquire(blocking=False):
            return  # another thread does
        try:
            before, self._noted = self._noted, gc.get_stats()
            for kind, adders in self._add.items():
                for add, old, new in zip(adders, before, self._noted, strict=False):
                    if new[kind] > old[kind]:
                        add(new[kind] - old[kind])
        finally:
            self._lock.release()


class Requests:
    """The requests of this process. Thread-safe; the calls never raise.

    The metrics are in no registry. They are shared by file, and the application's registry may have
    metrics with the same names.

    Attributes:
        by_route: Where requests are counted by their routes too; ``None`` if they are not.
    """

    def __init__(
        self,
        buckets: tuple[float, ...],
        collections: Collections | None = None,
        seen: Seen = WSGI,
        *,
        has_exemplars: bool = False,
        has_routes: bool = False,
    ) -> None:
        """Make the metrics; the value class must be installed.

        Args:
            buckets: Upper bounds of the durations, in seconds.
            collections: Is asked to note at the end of requests, at most once a second.
            seen: How requests are seen.
            has_exemplars: Whether durations are to have the traces of their requests as exemplars.
            has_routes: Whether requests are counted by their routes too.
        """
        self._trace_of = seen.trace_of if has_exemplars else None
        self._route_of = seen.route_of
        self.by_route = RouteRequests(buckets) if has_routes else None
        self._total = Counter(
            "gunicorn_requests",
            "Requests that workers have answered, by method and status code.",
            ["method", "code"],
            registry=None,
        )
        self._duration = Histogram(
            "gunicorn_request_duration_seconds",
            "Time from a request's arrival in a worker to the end of its response.",
            ["method"],
            buckets=buckets,
            registry=None,
        )
        self._in_progress = _in_progress() if seen.arrivals else None
        # The metrics' public methods check what is known here, and each check costs every request.
        self._count_in_progress = (
            _ignore if self._in_progress is None else _prometheus.adder(self._in_progress)
        )
        self._bounds = buckets
        self._collections = collections
        self._notes_at = math.inf if collections is None else 0.0
        self._children: dict[tuple[str | None, int], _Child] = {}

    def arrived(self) -> float:
        """Note that a request has arrived; return when, for :meth:`answered`."""
        self._count_in_progress(1.0)
        return perf_counter()

    def answered(
        self,
        method: str | None,
        code: int,
        started: float | None,
        request: Any = None,
    ) -> None:
        """Note that a request was answered.

        Args:
            method: Its method, as the client has sent it.
            code: The status code of the response.
            started: The result of :meth:`arrived`; ``None`` if it was not called.
            request: What is known of it, see :class:`Seen`.
        """
        child = self._children.get((method, code)) or self._child(method, code)
        if started is None:
            child.add_one(1.0)
        else:
            now = perf_counter()
            seconds = now - started
            child.end(seconds)
            if self._trace_of is not None:
                exemplar = self._trace_of(request)
                if exemplar is not None:
                    child.add_exemplar(seconds, exemplar)
            if now > self._notes_at:
                self._notes_at = now + _NOTES_SECONDS
                self._collections.note()  # type: ignore[union-attr]
        if self.by_route is not None:
            self.by_route.answered(self._route_of(request), method, code, started)

    def arrived_hook(self, req: Request) -> None:
        """Note in ``pre_request`` that a request has arrived."""
        self._count_in_progress(1.0)
        try:
            req.obskit_started = perf_counter()  # type: ignore[attr-defined]
        except AttributeError:  # without the attribute there is no duration
            self._count_in_progress(-1.0)

    def answered_hook(self, req: Request, resp: Response | None, environ: Any = None) -> None:
        """Note in ``post_request`` that a request was answered.

        Gunicorn calls that hook in a ``finally``, so an exception of the application may be in
        flight. If nothing has been sent then, Gunicorn answers 500.
        """
        try:
            method, code, started = req.method, resp.status_code, req.obskit_started  # type: ignore[attr-defined, union-attr]
            is_sent = resp.headers_sent  # type: ignore[union-attr]
        except AttributeError:  # a request without a response, or one of an unusual worker class
            method, code = getattr(req, "method", None), getattr(resp, "status_code", None)
            started, is_sent = (
                getattr(req, "obskit_started", None),
                getattr(resp, "headers_sent", 1),
            )
        if code is None or not is_sent:
            code = code_of(sys.exc_info()[1], code)
        self.answered(method, code, started, environ)

    def _child(self, method: str | None, code: int) -> _Child:
        name = method if method in _METHODS else _OTHER
        code = _number(code)
        total, duration = self._total.labels(name, str(code)), self._duration.labels(name)
        add_exemplar = _prometheus.exemplar_adder(duration, self._bounds)
        child = _Child(_prometheus.adder(total), self._end(total, duration), add_exemplar)
        if name is not _OTHER:  # otherwise clients could fill the memory with names
            self._children[name, code] = child
        return child

    def _end(self, total: Counter, duration: Histogram) -> Callable[[float], None]:
        """Return what counts the end of a request in these metrics, at once if possible."""
        seconds, buckets = _prometheus.values_of(duration)
        values = map(_prometheus.value_of, (total, self._in_progress))
        at_once = end_of_work(next(values), seconds, buckets, self._bounds, next(values))
        if at_once is not None:
            return at_once
        add_one, observe = _prometheus.adder(total), _prometheus.observer(duration, self._bounds)

        def end(seconds: float) -> None:
            add_one(1.0)
            observe(seconds)
            self._count_in_progress(-1.0)

        return end


class RouteRequests:
    """The requests of this process by the templates of their routes. Thread-safe.

    Metrics of their own, so that nobody's sums over those of :class:`Requests` change. The calls
    never raise.
    """

    def __init__(self, buckets: tuple[float, ...]) -> None:
        """Make the metrics; the value class must be installed.

        Args:
            buckets: Upper bounds of the durations, in seconds.
        """
        self._total = Counter(
            "gunicorn_route_requests",
            "Requests that workers have answered, by the template of their route.",
            ["route", "method", "code"],
            registry=None,
        )
        self._duration = Histogram(
            "gunicorn_route_request_duration_seconds",
            "Time from a request's arrival in a worker to the end of its response, by the "
            "template of its route.",
            ["route", "method"],
            buckets=buckets,
            registry=None,
        )
        self._bounds = buckets
        self._routes = {""}
        self._children: dict[tuple[str, str | None, int], _RouteChild] = {}

    def answered(self, route: str, method: str | None, code: int, started: float | None) -> None:
        """Note that a request was answered.

        Args:
            route: The template of its route; empty if it has none.
            method: Its method, as the client has sent it.
            code: The status code of the response.
            started: When it has arrived, see :meth:`Requests.arrived`; ``None`` if unknown.
        """
        child = self._children.get((route, method, code)) or self._child(route, method, code)
        child.add_one(1.0)
        if started is not None:
            child.observe(perf_counter() - started)

    def _child(self, route: str, method: str | None, code: int) -> _RouteChild:
        name = method if method in _METHODS else _OTHER
        code = _number(code)
        is_known = route in self._routes
        if not is_known and len(self._routes) <= _MOST_ROUTES and len(route) <= _LONGEST_ROUTE:
            self._routes.add(route)
            is_known = True
        label = route if is_known else OTHER_ROUTES
        # A lone surrogate cannot be written.
        label = label.encode(errors="backslashreplace").decode()
        child = _RouteChild(
            _prometheus.adder(self._total.labels(label, name, str(code))),
            _prometheus.observer(self._duration.labels(label, name), self._bounds),
        )
        if is_known and name is not _OTHER:  # otherwise they could fill the memory
            self._children[route, name, code] = child
        return child


class _RouteChild(NamedTuple):
    """The functions to call for each request of one route, method and code."""

    add_one: Callable[[float], None]
    observe: Callable[[float], None]


def _number(code: Any) -> int:
    """Return a status as a number, however an application spells it."""
    try:
        return int(code)  # str() of an enum's member is its name
    except (TypeError, ValueError):
        return 500


def code_of(error: BaseException | None, code: int | None) -> int:
    """Return the code of a request that ended before its headers were sent.

    Args:
        error: The exception that is in flight, if there is one.
        code: The code that the application has set; ``None`` if it has not set any.
    """
    if type(error).__module__ == "gunicorn.http.errors":  # while the application read the body
        return CLIENT_CLOSED if type(error).__name__ == "NoMoreData" else 400
    is_lost = isinstance(error, OSError) and error.errno in _LOST
    return 500 if code is None or not (error is None or is_lost) else code


def _in_progress() -> Gauge:
    return Gauge(
        "gunicorn_requests_in_progress",
        "Requests that workers are answering.",
        multiprocess_mode="livesum",
        registry=None,
    )


def _ignore(_amount: float) -> None:
    """Count nothing."""


@functools.cache
def requests(
    buckets: tuple[float, ...],
    collections: Collections | None = None,
    seen: Seen = WSGI,
    *,
    has_exemplars: bool = False,
    has_routes: bool = False,
) -> Requests:
    """Return the :class:`Requests` of this process, made at the first call."""
    return Requests(buckets, collections, seen, has_exemplars=has_exemplars, has_routes=has_routes)


class Websockets:
    """The websockets of this process. The calls never raise."""

    def __init__(self) -> None:
        """Make the metrics, all 0; the value class must be installed."""
        total = Counter(
            "gunicorn_websockets",
            "Websockets that clients have asked for, by outcome of the handshake.",
            ["outcome"],
            registry=None,
        )
        closed = Counter(
            "gunicorn_websockets_closed",
            "Accepted websockets that have ended, by code.",
            ["code"],
            registry=None,
        )
        in_progress = Gauge(
            "gunicorn_websockets_in_progress",
            "Websockets that are open.",
            multiprocess_mode="livesum",
            registry=None,
        )
        self._count_in_progress = _prometheus.adder(in_progress)
        self._outcomes = {
            name: _prometheus.adder(total.labels(name)) for name in WEBSOCKET_OUTCOMES
        }
        self._closed = {name: _prometheus.adder(closed.labels(name)) for name in CLOSE_CODES}

    def accepted(self) -> None:
        """Note that one is open."""
        self._outcomes["accepted"](1.0)
        self._count_in_progress(1.0)

    def not_accepted(self, *, has_left: bool) -> None:
        """Note that one was refused, or that its client has left before there was an answer."""
        self._outcomes["abandoned" if has_left else "refused"](1.0)

    def closed(self, code: object) -> None:
        """Note that one that was accepted has ended.

        Args:
            code: The code, as the application or the server says it.
        """
        self._closed[_close_code(code)](1.0)
        self._count_in_progress(-1.0)


def _close_code(code: object) -> str:
    """Return the label for a code with which a websocket is closed; clients send any."""
    name = str(int(code)) if isinstance(code, int) else ""
    if name in CLOSE_CODES:
        return name
    of_class = f"{name[:1]}xxx"
    return of_class if len(name) == 4 and of_class in CLOSE_CODES else "other"


@functools.cache
def websockets() -> Websockets:
    """Return the :class:`Websockets` of this process, made at the first call."""
    return Websockets()


class Connections(NamedTuple):
    """The functions that show how many connections occupy this worker."""

    add: Callable[[float], None]
    show: Callable[[float], None]


def connections() -> Connections:
    """Return the :class:`Connections` of this process; the value class must be installed."""
    gauge = Gauge(
        "gunicorn_connections",
        "Connections that occupy workers, whether they send a request or not.",
        multiprocess_mode="livesum",
        registry=None,
    )
    return Connections(_prometheus.adder(gauge), gauge.set)


def busy() -> Callable[[float], None]:
    """Return what counts seconds for which a connection has occupied this worker, or a thread."""
    return _prometheus.adder(_counter("gunicorn_worker_busy_seconds"))


COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gunicorn_worker_boots": ("Workers that have booted and begun to serve.", ()),
    "gunicorn_worker_exits": ("Workers that have ended, by reason.", ("reason",)),
    "gunicorn_worker_busy_seconds": (
        "Seconds for which connections have occupied workers or their threads.",
        (),
    ),
    "gunicorn_gc_objects_collected": (
        "Objects that workers' garbage collectors have freed.",
        ("generation",),
    ),
    "gunicorn_gc_objects_uncollectable": (
        "Objects that workers' garbage collectors could not free.",
        ("generation",),
    ),
    "gunicorn_gc_collections": (
        "Runs of the workers' garbage collectors, by generation.",
        ("generation",),
    ),
    "gunicorn_reloads": ("Reloads of the configuration by SIGHUP.", ()),
    "gunicorn_resizes": (
        "Changes of the number of workers while the server runs, by direction.",
        ("direction",),
    ),
    "gunicorn_upgrades": ("Binary upgrades that SIGUSR2 has begun.", ()),
    "gunicorn_exporter_starts": ("Starts of the exporter, by reason.", ("reason",)),
    "gunicorn_hook_failures": (
        "Exceptions in overridden server hooks that were contained.",
        ("hook",),
    ),
}
"""What happens to workers and the arbiter, with help and labels."""


@functools.cache
def _counter(name: str, *labels: str) -> Counter:
    # Made when it is first needed, so that it never exists before the value class is installed.
    if labels:
        return _counter(name).labels(*labels)
    return Counter(name, *COUNTERS[name], registry=None)


@functools.cache
def _boot_seconds() -> Histogram:
    return Histogram(
        "gunicorn_worker_boot_seconds",
        "Time from a worker's fork until it serves.",
        buckets=_BOOT_BUCKETS,
        registry=None,
    )


def count(name: str, *labels: str) -> None:
    """Count one event; not for signal context.

    Args:
        name: The counter, one of :data:`COUNTERS`.
        labels: The values of its labels.
    """
    _counter(name, *labels).inc()


def count_boot(seconds: float | None) -> None:
    """Count a worker that serves now; runs in the worker.

    Args:
        seconds: The time since it was forked, ``None`` if unknown.
    """
    count("gunicorn_worker_boots")
    if seconds is not None:
        _boot_seconds().observe(seconds)


def show_zeros(hooks: Iterable[str]) -> None:
    """Show what has not happened yet as 0, so that ``increase()`` sees the first time it happens.

    Runs in the arbiter; may be called again.

    Args:
        hooks: The server hooks whose failures would be contained.
    """
    _counter("gunicorn_worker_boots")
    _counter("gunicorn_reloads")
    _counter("gunicorn_upgrades")
    for direction in DIRECTIONS:
        _counter("gunicorn_resizes", direction)
    for reason in REASONS:
        _counter("gunicorn_worker_exits", reason)
    for reason in START_REASONS:
        _counter("gunicorn_exporter_starts", reason)
    for hook in hooks:
        _counter("gunicorn_hook_failures", hook)
