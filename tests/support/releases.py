"""Which live tests run on which Gunicorn in ``make test``; ``make soak`` runs the rest.

A test that asks for an ``interpreter`` could run on every release with every combination of its
parameters. The newest release gets all of them. The older ones get

- of a test that is marked ``releases_differ``, because what it holds us to hangs on something that
  Gunicorn has changed: each of them at least one combination, and as few together as have every
  value of every parameter at least once. So each scenario and each worker class is met on one of
  them, and on another one by the next test;
- of any other test: one combination, on one older release. They take turns.

What is left over is marked ``load``. ``make matrix`` runs one scenario on many more releases.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.process import Interpreter, interpreters

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["covering", "has_class", "mark_load"]

Combination = TypeVar("Combination")


def covering(
    combinations: Sequence[Combination],
    values: Sequence[Sequence[Hashable]],
    *,
    more: Sequence[Sequence[Hashable]] | None = None,
    first: int = 0,
) -> list[Combination]:
    """Return few combinations in which every value occurs, and each about as often as another.

    Args:
        combinations: What to choose from.
        values: The values of each.
        more: Values of each that need not occur, but are to be spread evenly too.
        first: Which to begin with, so that another choice can be had.
    """
    every = values if more is None else [(*a, *b) for a, b in zip(values, more, strict=True)]
    if not any(values):
        return list(combinations)
    left = {value for each in values for value in each}
    uses: Counter[Hashable] = Counter()

    def merit(number: int) -> tuple[int, int]:
        return len(left & set(values[number])), -sum(uses[value] for value in every[number])

    order = [(first + number) % len(combinations) for number in range(len(combinations))]
    found = []
    while left:
        best = max(order, key=merit)  # the first of equals
        found.append(combinations[best])
        left -= set(values[best])
        uses.update(every[best])
    return found


def mark_load(items: Sequence[pytest.Item]) -> None:
    """Mark what only ``make soak`` is to run, by the rule above."""
    older = interpreters()[:-1]
    if not older:
        return
    functions: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and "interpreter" in _parameters(item):
            functions.setdefault((str(item.path), item.originalname), []).append(item)
    for turn, function in enumerate(functions.values()):
        here = [item for item in function if _could_run(item, older)]
        if not here:
            kept = []
        elif here[0].get_closest_marker("releases_differ"):
            kept = covering(
                here,
                [_needed(item) for item in here],
                more=[_pairs(item) for item in here],
                first=7 * turn,  # tests beside each other do not begin alike
            )
        else:
            one = [item for item in here if _release(item) == older[turn % len(older)]]
            kept = one[turn // len(older) % len(one) :][:1] if one else []
        for item in function:
            if _release(item) in older and item not in kept:
                item.add_marker(pytest.mark.load)


def has_class(interpreter: Interpreter, worker_class: str) -> bool:
    """Return whether a Gunicorn has a worker class."""
    return worker_class != "asgi" or interpreter.version >= (25,)


def _could_run(item: pytest.Function, releases: Sequence[Interpreter]) -> bool:
    """Return whether a test is one of some releases', has its worker class, and is not marked."""
    release = _release(item)
    return (
        release in releases
        and has_class(release, str(_parameters(item).get("worker_class")))
        and item.get_closest_marker("load") is None
    )


def _needed(item: pytest.Function) -> list[Hashable]:
    """Return what is to occur: the release, and, on any of them, each other parameter's value."""
    return [_release(item), *(pair[1:] for pair in _pairs(item))]


def _pairs(item: pytest.Function) -> list[tuple[Interpreter, str, str]]:
    """Return the release with each other parameter and its value, as something to be hashed."""
    return [
        (_release(item), name, repr(value))
        for name, value in _parameters(item).items()
        if name != "interpreter"
    ]


def _release(item: pytest.Function) -> Interpreter:
    release = _parameters(item)["interpreter"]
    assert isinstance(release, Interpreter)
    return release


def _parameters(item: pytest.Function) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}
