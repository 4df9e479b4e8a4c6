"""What is counted of a request, without a server."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

import pytest

from obskit_gunicorn._gunicorn import routes, telemetry
from obskit_gunicorn._gunicorn.telemetry import Requests, Seen


class Status(int, enum.Enum):
    """As applications write them."""

    OK = 200
    MISSING = 404


def counted(requests: Requests) -> dict[tuple[str, str], float]:
    """Return what was counted, by method and code."""
    (family,) = requests._total.collect()
    return {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_codes_are_numbers() -> None:
    """However an application spells a status, its label is the number."""
    requests = Requests((0.1, 1.0))
    for code in (Status.OK, 200, Status.MISSING, 404.0, "201"):
        requests.answered("GET", code, None)  # type: ignore[arg-type]
    assert counted(requests) == {
        ("GET", "200"): 2,
        ("GET", "404"): 2,
        ("GET", "201"): 1,
    }


@pytest.mark.parametrize("code", ["", "teapot"])
def test_a_code_that_is_none(code: str) -> None:
    """A status that is no number is an error, and raises nothing."""
    requests = Requests((0.1, 1.0))
    for _ in range(2):
        requests.answered("GET", code, None)  # type: ignore[arg-type]
    assert counted(requests) == {("GET", "500"): 2}


def test_methods_are_bounded() -> None:
    """What clients call a method has one name, and leaves nothing behind."""
    requests = Requests((0.1, 1.0))
    for number in range(50):
        requests.answered(f"BREW{number}", 200, requests.arrived())
    requests.answered(None, 200, None)
    assert counted(requests) == {("other", "200"): 51}
    assert requests._children == {}


def by_route(requests: Requests) -> dict[tuple[str, ...], float]:
    """Return what was counted by route, method and code."""
    assert requests.by_route is not None
    (family,) = requests.by_route._total.collect()
    return {
        tuple(sample.labels[name] for name in ("route", "method", "code")): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_routes_are_counted_where_they_are_asked_for() -> None:
    """By the hooks as by wrappers; what is off is not there."""
    assert Requests((0.1, 1.0)).by_route is None
    requests = Requests((0.1, 1.0), has_routes=True)
    for environ in ({routes.KEY: "/a/{x}"}, {}, None):
        request: Any = SimpleNamespace(method="GET")
        requests.arrived_hook(request)
        response: Any = SimpleNamespace(status_code=Status.OK, headers_sent=True)
        requests.answered_hook(request, response, environ)
    assert by_route(requests) == {("/a/{x}", "GET", "200"): 1, ("", "GET", "200"): 2}
    assert counted(requests) == {("GET", "200"): 3}


@pytest.mark.parametrize("is_on", [True, False])
def test_traces_are_looked_for_where_they_are_asked_for(is_on: bool) -> None:
    """Without the option nobody looks for one; a request whose duration is unknown has none."""
    asked: list[object] = []
    seen = Seen(trace_of=asked.append, route_of=lambda _: "")
    requests = Requests((0.1, 1.0), seen=seen, has_exemplars=is_on)
    requests.answered("GET", 200, requests.arrived(), "one")
    requests.answered("GET", 200, None, "another")
    assert asked == (["one"] if is_on else [])


def test_routes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of routes the others have one name, and none is lost."""
    monkeypatch.setattr(telemetry, "_MOST_ROUTES", 3)
    requests = Requests((0.1, 1.0), has_routes=True)
    assert requests.by_route is not None
    for number in range(50):
        requests.by_route.answered(f"/{number % 25}", "GET", 200, 0.0)
        requests.by_route.answered("", "GET", 404, None)
    assert by_route(requests) == {
        **{(f"/{number}", "GET", "200"): 2 for number in range(3)},
        ("__other__", "GET", "200"): 44,
        ("", "GET", "404"): 50,
    }
    assert len(requests.by_route._children) == 4


def test_routes_of_unusual_text() -> None:
    """A route that cannot be written, or is very long, harms nobody."""
    requests = Requests((0.1, 1.0), has_routes=True)
    assert requests.by_route is not None
    for route in ("/\ud800", '/"\n', "/" + "x" * 600):
        requests.by_route.answered(route, "BREW", 200, 0.0)
    assert by_route(requests) == {
        ("/\\ud800", "other", "200"): 1,
        ('/"\n', "other", "200"): 1,
        ("__other__", "other", "200"): 1,
    }


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (1000, "1000"),
        (1001, "1001"),
        (1002, "1xxx"),
        (1012, "1012"),
        (3000, "3xxx"),
        (4999, "4xxx"),
        (2999, "other"),
        (0, "other"),
        (10_000, "other"),
        (-100, "other"),
        ("1000", "other"),
        (None, "other"),
        (Status.OK, "other"),
    ],
)
def test_codes_of_websockets_are_bounded(code: object, label: str) -> None:
    """Whatever a client or an application closes with has one of a few labels."""
    assert telemetry._close_code(code) == label
