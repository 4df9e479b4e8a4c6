"""What is counted of a request, without a server."""

from __future__ import annotations

import enum

import pytest

from obskit_gunicorn._gunicorn.telemetry import Requests


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
