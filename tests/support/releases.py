"""Which live tests run on which Gunicorn in ``make test``; ``make soak`` runs the rest.

A test that asks for an ``interpreter`` could run on every release with every combination of its
parameters. The newest release gets all of them. An older one gets

- of a test that is marked ``releases_differ``, because what it holds us to hangs on something that
  Gunicorn has changed: as few combinations as have every value of every parameter at least once;
- of any other test: one combination, on one older release. They take turns.

What is left over is marked ``load``.
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
    combinations: Sequence[Combination], values: Sequence[Sequence[Hashable]], *, first: int = 0
) -> list[Combination]:
    """Return few combinations in which every value occurs, and each about as often as another.

    Args:
        combinations: What to choose from.
        values: The values of each.
        first: Which to begin with, so that another choice can be had.
    """
    if not any(values):
        return list(combinations)
    left = {value for each in values for value in each}
    uses: Counter[Hashable] = Counter()

    def merit(number: int) -> tuple[int, int]:
        return len(left & set(values[number])), -sum(uses[value] for value in values[number])

    order = [(first + number) % len(combinations) for number in range(len(combinations))]
    found = []
    while left:
        best = max(order, key=merit)  # the first of equals
        found.append(combinations[best])
        left -= set(values[best])
        uses.update(values[best])
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
        kept = []
        for number, release in enumerate(older):
            here = [item for item in function if _could_run(item, release)]
            if not here:
                continue
            if here[0].get_closest_marker("releases_differ"):
                values = [tuple(_values(item).items()) for item in here]
                kept += covering(here, values, first=number * len(here) // len(older))
            elif turn % len(older) == number:
                kept.append(here[turn // len(older) % len(here)])
        for item in function:
            if _parameters(item)["interpreter"] in older and item not in kept:
                item.add_marker(pytest.mark.load)


def has_class(interpreter: Interpreter, worker_class: str) -> bool:
    """Return whether a Gunicorn has a worker class."""
    return worker_class != "asgi" or interpreter.version >= (25,)


def _could_run(item: pytest.Function, release: Interpreter) -> bool:
    """Return whether a test is one of a release, has its worker class, and is not marked yet."""
    parameters = _parameters(item)
    return (
        parameters["interpreter"] == release
        and has_class(release, str(parameters.get("worker_class")))
        and item.get_closest_marker("load") is None
    )


def _parameters(item: pytest.Function) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _values(item: pytest.Function) -> dict[str, str]:
    """Return the parameters of a test but for the interpreter, as something that can be hashed."""
    found = _parameters(item).items()
    return {name: repr(value) for name, value in found if name != "interpreter"}
