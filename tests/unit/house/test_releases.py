"""The rule by which live tests are spread over releases of Gunicorn."""

from __future__ import annotations

import itertools

import pytest

from tests.support.releases import covering

COLOURS = ("red", "green", "blue")
SIZES = (1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("first", [0, 5, 20])
def test_every_value_is_covered_by_as_few_as_can_be(first: int) -> None:
    """There are as many as the longest parameter has values, and each value is used evenly."""
    every = list(itertools.product(COLOURS, SIZES))
    found = covering(every, every, first=first)
    assert sorted(size for _colour, size in found) == list(SIZES)
    counts = [sum(colour == each for colour, _size in found) for each in COLOURS]
    assert sorted(counts) == [2, 2, 3]
    assert found[0] == every[first]


def test_what_does_not_exist_is_not_chosen() -> None:
    """Only what is there is chosen from, and still every value occurs."""
    every = [pair for pair in itertools.product(COLOURS, SIZES) if pair != ("red", 1)]
    found = covering(every, every)
    assert set(found) <= set(every)
    assert {value for pair in found for value in pair} == {*COLOURS, *SIZES}


def test_without_parameters_there_is_one() -> None:
    """A test without other parameters has one combination, and runs."""
    assert covering(["only"], [()]) == ["only"]


def test_what_need_not_occur_is_spread() -> None:
    """Each size occurs once, and the colours, which need not occur, come about equally often."""
    every = list(itertools.product(COLOURS, SIZES))
    sizes = [[size] for _colour, size in every]
    found = covering(every, sizes, more=[[colour] for colour, _size in every])
    assert sorted(size for _colour, size in found) == list(SIZES)
    counts = [sum(colour == each for colour, _size in found) for each in COLOURS]
    assert sorted(counts) == [2, 2, 3]
