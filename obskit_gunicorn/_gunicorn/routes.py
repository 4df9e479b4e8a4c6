"""Which template a request was routed by: ``/items/{id}``, and never the path that a client asked.

Frameworks say it in different places, and some only while the request runs. Nothing of them is
imported here that the application has not imported, and none of their classes is changed:

* Starlette and FastAPI leave the route in the scope, and this module finds what contains it.
* Flask sends a signal for each request.
* Falcon's application is given a middleware.
* Django's handler is told which class its requests have, one that notes what they resolve to.

The last three note it under :data:`KEY` in the environ or the scope, and so may an application.
All runs in workers. Nothing here raises: what has an unexpected shape has no template.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from obskit_gunicorn._log import log

KEY = "obskit_gunicorn.route"
"""The key of a template in a WSGI environ or an ASGI scope."""

_MOST_OBJECTS = 2000
"""How many objects of an application are looked at, in search of those of frameworks."""

_DISPATCHER = ("werkzeug.middleware.dispatcher", "DispatcherMiddleware")

_MOST_ROUTERS = 16
_MOST_BUILDS = 1000
_MOST_NESTED = 20


class Found:
    """What was found behind the application of this process.

    Attributes:
        frameworks: Those that will say templates, by name.
        mounts: Where Werkzeug's dispatcher serves applications, the longest first.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.frameworks: set[str] = set()
        self.mounts: tuple[str, ...] = ()
        self._routers: dict[int, _Router] = {}
        self._has_failed = False

    def of_environ(self, environ: Any) -> str:
        """Return the template of a WSGI request that was answered; empty if there is none."""
        try:
            template = _noted(environ)
            if self.mounts:
                # Where it is mounted is in the environ as the client wrote it, behind what a proxy
                # may have put there; it only chooses.
                script = environ.get("SCRIPT_NAME", "")
                template = next(filter(script.endswith, self.mounts), "") + template
        except Exception as error:
            self.fail(error)
            return ""
        return template

    def of_scope(self, scope: Any) -> str:
        """Return the template of an ASGI request that was answered; empty if there is none."""
        try:
            template = _noted(scope)
            if not template and (top := scope.get("router")) is not None:
                router = self._routers.get(id(top)) or self._router(top)
                template = router.template(scope)
        except Exception as error:
            self.fail(error)
            return ""
        return template

    def of_aiohttp(self, request: Any) -> str:
        """Return the template of a request to aiohttp; empty if there is none."""
        try:
            resource = request.match_info.route.resource
            return "" if resource is None else str(resource.canonical)
        except Exception as error:
            self.fail(error)
            return ""

    def _router(self, top: Any) -> _Router:
        if len(self._routers) >= _MOST_ROUTERS:  # an application that makes one for each request
            return _Router(top, builds=0)
        # It keeps the router alive, so that no other one has its id.
        return self._routers.setdefault(id(top), _Router(top))

    def fail(self, error: Exception) -> None:
        """Say once that a framework has an unexpected shape."""
        if not self._has_failed:
            self._has_failed = True
            log.warning(
                "obskit: a request has no route, its framework has another shape: %r", error
            )


def _noted(where: Mapping[str, Any]) -> str:
    """Return the template under :data:`KEY`; empty if there is none, or something else."""
    noted = where.get(KEY)
    return noted if isinstance(noted, str) else ""


found = Found()
"""What was found in this process."""


# ------------------------------------------------------------------------------------------------
# Starlette and FastAPI


class _Place(NamedTuple):
    """Where a route stands."""

    template: str
    thing: Any
    """The route, kept alive because its id is a key."""

    patterns: tuple[Any, ...]
    """The regular expressions that match a path on the way to it."""


class _Router:
    """The routes below the outermost router of an application, with the templates of their paths.

    Thread-safe.
    """

    def __init__(self, top: Any, *, builds: int = _MOST_BUILDS) -> None:
        """Prepare to look.

        Args:
            top: The router.
            builds: How often routes may be added while the application runs.
        """
        self._top = top
        self._builds = builds
        self._places: dict[int, list[_Place]] = {}
        self._elsewhere: dict[int, list[_Place]] = {}
        self._lock = threading.Lock()

    def template(self, scope: Any) -> str:
        """Return the template of the route that a scope says, with what contains it."""
        route, is_sure = _innermost(scope)
        if route is None:
            return ""
        places = self._places.get(id(route)) or self._look_again(route)
        if is_sure and len(places) == 1:
            return places[0].template
        return (
            _matching(places, scope)
            or _matching(self._look_again(route), scope)
            or places[0].template
        )

    def _look_again(self, route: Any) -> list[_Place]:
        """Find a route that was added, or that stands where nobody can look."""
        with self._lock:
            if self._builds > 0:
                self._builds -= 1
                places: dict[int, list[_Place]] = {}
                _place(self._top.routes, "", (), places)
                if id(route) not in places:
                    self._elsewhere[id(route)] = [_alone(route)]
                self._places = self._elsewhere | places
            return self._places.get(id(route)) or [_alone(route)]


def _alone(route: Any) -> _Place:
    """Return the place of a route of which nothing is known but its own template."""
    path = getattr(route, "path", "")
    return _Place(path if isinstance(path, str) else "", route, ())


def _innermost(scope: Any) -> tuple[Any, bool]:
    """Return what has matched last, and whether it is the route itself and not its endpoint.

    ``None`` if nothing has.
    """
    route, endpoint = scope.get("route"), scope.get("endpoint")
    if route is not None:
        fastapi = scope.get("fastapi")  # there since routers are included without copying routes
        if fastapi is not None:
            context = fastapi.get("effective_route_context")
            if getattr(context, "original_route", None) is route:
                return context, True
        # Not every release and not every kind of route leaves itself in the scope, and then that is
        # a route further out.
        own = _endpoint(route)
        if endpoint is None or own is None or own is endpoint:
            return route, True
    return endpoint, False


def _endpoint(route: Any) -> Any:
    return getattr(route, "endpoint", None) or getattr(route, "app", None)


def _place(
    routes: Iterable[Any],
    prefix: str,
    patterns: tuple[Any, ...],
    places: dict[int, list[_Place]],
) -> None:
    """Note where routes stand, and all that they contain, under their ids and endpoints'.

    Args:
        routes: The routes of one router.
        prefix: The templates of what contains it.
        patterns: The regular expressions of those.
        places: Where to note it.
    """
    if len(patterns) > _MOST_NESTED:
        return
    for route in routes:
        try:
            included = getattr(route, "effective_route_contexts", None)
            if included is None:
                _place_route(route, (), prefix, patterns, places)
                continue
            for context in included():
                one = context.starlette_route or context
                _place_route(one, (context,), prefix, patterns, places)
        except Exception as error:  # the others are as they should be
            found.fail(error)


def _place_route(
    route: Any,
    aliases: tuple[Any, ...],
    prefix: str,
    patterns: tuple[Any, ...],
    places: dict[int, list[_Place]],
) -> None:
    inner = None
    if hasattr(route, "host_regex"):  # it adds nothing to a path
        inner, template = route.app, prefix
    else:
        path = getattr(route, "path", None)
        if not isinstance(path, str):
            return
        template, patterns = prefix + path, (*patterns, route.path_regex)
        inner = None if hasattr(route, "endpoint") else getattr(route, "app", None)
    for key in (route, *aliases, _endpoint(route) or route):
        where = places.setdefault(id(key), [])
        if all(place.template != template for place in where):
            # What stands at the root has an empty path.
            where.append(_Place(template or "/", (route, key), patterns))
    for _ in range(_MOST_NESTED):  # what is mounted may stand behind middleware
        if inner is None or isinstance(getattr(inner, "routes", None), list):
            break
        inner = getattr(inner, "app", None)
    if inner is not None:
        _place(inner.routes, template, patterns, places)


def _matching(places: list[_Place], scope: Any) -> str:
    """Return the template of that of several places which matches the path of a request."""
    path, root = scope["path"], scope.get("app_root_path", scope.get("root_path", ""))
    if root and path.startswith(root.rstrip("/") + "/"):
        path = path[len(root.rstrip("/")) :]
    for place in places:
        rest = path
        for pattern in place.patterns:
            match = pattern.match(rest)
            if match is None:
                break
            rest = "/" + match.groupdict().get("path", "")
        else:
            return place.template
    return ""


# ------------------------------------------------------------------------------------------------
# Frameworks that say it while a request runs


def watch(application: Any) -> None:
    """Have the frameworks behind an application note templates; runs once, before it serves.

    Args:
        application: The WSGI or ASGI application, perhaps wrapped.
    """
    if "flask" in sys.modules:
        _tell("Flask", _watch_flask, sys.modules["flask"])
    mounts: set[str] = set()
    has_flask = has_quart = False
    for one in _reachable(application):
        kind = type(one)
        if _is(kind, "django.core.handlers.base", "BaseHandler"):
            _tell("Django", _watch_django, one)
        elif _is(kind, "falcon", "App"):
            _tell("Falcon", _watch_falcon, one)
        elif _is_starlette(kind):
            found.frameworks.add("Starlette")
        elif _is(kind, "aiohttp.web", "Application") or _is_factory(one):
            found.frameworks.add("aiohttp")
        elif _is(kind, *_DISPATCHER):
            mounts.update(_places_in(one))
        elif _is(kind, "flask", "Flask"):
            has_flask = True
        elif _is(kind, "quart", "Quart"):
            has_quart = True
    if has_quart and not has_flask:  # it imports Flask, and does not send its signals
        found.frameworks.discard("Flask")
    found.mounts = tuple(sorted(mounts, key=len, reverse=True))


def _places_in(dispatcher: Any, nested: int = 0) -> Iterator[str]:
    """Yield where a dispatcher of Werkzeug's serves applications, and dispatchers below it."""
    for place, application in dispatcher.mounts.items():
        if not place:
            continue
        yield place
        if nested < _MOST_NESTED:
            for one in _reachable(application):
                if _is(type(one), *_DISPATCHER):
                    yield from (place + below for below in _places_in(one, nested + 1))


def _tell(name: str, watch: Callable[[Any], None], framework: Any) -> None:
    try:
        watch(framework)
    except Exception as error:  # of another release than those that were tested, or without signals
        log.warning("obskit: routes of %s are not known: %r", name, error)
    else:
        found.frameworks.add(name)


def _is(kind: type, module: str, name: str) -> bool:
    """Return whether a class is one of a framework that is loaded, or derived from it."""
    # Not isinstance(), which would make lazy objects of the application evaluate themselves.
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)


def _is_starlette(kind: type) -> bool:
    names = (("starlette.applications", "Starlette"), ("starlette.routing", "Router"))
    return any(_is(kind, *name) for name in names)


def _is_factory(one: Any) -> bool:
    """Return whether something makes applications of aiohttp, while their server starts."""
    is_function = type(one) is types.FunctionType and "aiohttp.web" in sys.modules
    return is_function and inspect.iscoroutinefunction(one) and not one.__code__.co_argcount


def _note(where: Any, template: object) -> None:
    try:
        if template is not None:
            where[KEY] = template
    except Exception as error:  # the request must go on
        found.fail(error)


def _watch_flask(flask: Any) -> None:
    def started(_sender: Any, **_arguments: Any) -> None:
        request = flask.request
        _note(getattr(request, "environ", None), getattr(request.url_rule, "rule", None))

    flask.request_started.connect(started, weak=False)


def _watch_falcon(application: Any) -> None:
    application.add_middleware(_FalconMiddleware())


class _FalconMiddleware:
    """Notes the template of each request, at its end."""

    def process_response(self, req: Any, resp: Any, resource: Any, req_succeeded: bool) -> None:
        """Note it in the environ."""
        _note(req.env, req.uri_template)

    async def process_response_async(
        self, req: Any, resp: Any, resource: Any, req_succeeded: bool
    ) -> None:
        """Note it in the scope."""
        _note(req.scope, req.uri_template)


def _watch_django(handler: Any) -> None:
    handler.request_class = _telling(handler.request_class)


@functools.cache
def _telling(kind: Any) -> Any:
    """Return a class of Django's requests that note what they resolve to; otherwise like ``kind``.

    Args:
        kind: The class that a handler makes its requests of.
    """

    class Telling(kind):  # type: ignore[misc]
        @property
        def resolver_match(self) -> Any:
            return self.__dict__.get("resolver_match")

        @resolver_match.setter
        def resolver_match(self, match: Any) -> None:
            self.__dict__["resolver_match"] = match
            route = getattr(match, "route", None)
            if isinstance(route, str):
                # With a slash, as a path has it: otherwise that of the root would be empty.
                template = "/" + route.removeprefix("^").removeprefix("/")
                _note(self.__dict__.get("scope") or self.__dict__.get("environ"), template)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # A copy, and one that is unpickled elsewhere, tells nothing.
            return object.__new__, (kind,), *super().__reduce_ex__(protocol)[2:]

    Telling.__name__, Telling.__qualname__ = kind.__name__, kind.__qualname__
    Telling.__module__ = kind.__module__
    return Telling


_PLAIN = (str, bytes, int, float, complex, type, type(None), types.ModuleType)


def _reachable(application: Any) -> Iterator[Any]:
    """Yield an application, and the objects that it may hand requests to, the nearest first."""
    waiting, seen = deque([application]), {id(application): application}
    while waiting:
        one = waiting.popleft()
        yield one
        if _is_starlette(type(one)):  # it says by itself what it has mounted
            continue
        try:
            inside = list(itertools.islice(_inside(one), _MOST_OBJECTS - len(seen)))
            if one is application:
                inside += _named(one)
        except Exception:  # the application's objects may do anything when they are looked at
            continue
        for each in inside:
            if id(each) not in seen and not issubclass(type(each), _PLAIN):
                seen[id(each)] = each
                waiting.append(each)


def _inside(one: Any) -> Iterator[Any]:
    """Yield what an object holds."""
    kind = type(one)
    if issubclass(kind, dict):
        yield from one.values()
    elif issubclass(kind, (list, tuple)):
        yield from one
    elif issubclass(kind, functools.partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif kind is types.MethodType:
        yield from (one.__self__, one.__func__)
    elif kind is types.FunctionType:
        yield from vars(one).values()
        for cell in one.__closure__ or ():
            with contextlib.suppress(ValueError):  # it is empty
                yield cell.cell_contents
    else:
        with contextlib.suppress(AttributeError):
            yield from object.__getattribute__(one, "__dict__").values()
        for base in kind.__mro__:
            for member in vars(base).values():
                if type(member) is types.MemberDescriptorType:  # of __slots__
                    with contextlib.suppress(AttributeError):  # it is not set
                        yield member.__get__(one)


def _named(application: Any) -> Iterator[Any]:
    """Yield what an application uses by global names, if its code is Python."""
    function = getattr(application, "__func__", application)
    if type(function) is not types.FunctionType:
        function = getattr(type(application), "__call__", None)  # noqa: B004
    if type(function) is types.FunctionType:
        yield from map(function.__globals__.get, function.__code__.co_names)
