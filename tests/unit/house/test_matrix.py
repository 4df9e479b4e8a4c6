"""What ``make matrix`` runs, keeps and writes; the servers themselves are its own business."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import TYPE_CHECKING

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.matrix import index, page
from tests.matrix.cells import WORKER_CLASSES, Cell, Offer, choose
from tests.matrix.results import Result, Results, fingerprint
from tests.support.interpreters import REPOSITORY, VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

OFFERS = {
    "3.12": Offer(("22.0.0", "23.0.0", "25.3.0", "27.0.1"), ("0.20.0", "0.22.1", "0.26.0")),
    "3.13": Offer(("23.0.0", "25.3.0", "27.0.1"), ("0.22.1", "0.26.0")),
}
CELL = Cell("3.12", "25.3.0", "0.22.1", "gevent", is_preloaded=True, is_shared=False)
RESULT = Result(
    CELL,
    [],
    {"requests": 1000, "cut": 0, "workers": 40, "scrapes": 100},
    {"python": "3.12.1", "gevent": "26.9.0", "uvicorn": "0.54.0", "uvicorn-worker": "0.4.0"},
    "2026-11-26",
    9.5,
)


def possible() -> list[Cell]:
    """Return every cell that could be run, by other means than those of the tested."""
    found = []
    for python, offer in OFFERS.items():
        for gunicorn, client in itertools.product(*offer):
            for worker_class in WORKER_CLASSES:
                if worker_class == "asgi" and gunicorn.startswith(("22", "23")):
                    continue
                for preloads, is_shared in itertools.product((False, True), repeat=2):
                    found.append(Cell(python, gunicorn, client, worker_class, preloads, is_shared))
    return found


def together(cells: list[Cell]) -> set[tuple[int, object, int, object]]:
    """Return each two values that occur in one cell, with their places in it."""
    return {
        (first, cell[first], second, cell[second])
        for cell in cells
        for first, second in itertools.combinations(range(len(cell)), 2)
    }


def test_each_two_that_can_meet_do() -> None:
    """All pairs of values are in the chosen cells, in much fewer cells than there could be."""
    chosen = choose(OFFERS)
    every = possible()
    assert set(chosen) <= set(every)
    assert together(chosen) == together(every)
    assert len(chosen) == len(set(chosen)) < len(every) / 10
    assert ("23.0.0", "asgi") not in {(cell.gunicorn, cell.worker_class) for cell in chosen}


def test_the_choice_is_the_same_each_time() -> None:
    """A run that was interrupted finds its cells again, whatever the order of the offers."""
    assert choose(OFFERS) == choose(OFFERS)
    assert len({cell.name for cell in choose(OFFERS)}) == len(choose(OFFERS))


def test_claims() -> None:
    """What is run is what the package says it works with."""
    assert tuple(index.claimed_pythons()) == VERSIONS
    assert "22.0.0" in index.claimed("gunicorn")
    assert "21.2.0" not in index.claimed("gunicorn")
    assert "0.19.0" not in index.claimed("prometheus-client")
    with pytest.raises(LookupError, match="redis"):
        index.claimed("redis")  # an extra's


def test_releases_are_chosen() -> None:
    """The last patch of each minor release counts, and of these both ends of each major one."""
    offered = ["27.0.0", "21.2.0", "22.0.0", "24.0.0", "24.1.0", "24.1.1", "26.0.0", "26.1.0"]
    offered += ["26.2.0", "26.2.1", "27.0.1", "28.0.0rc1"]
    minors = index.newest_of_each_minor(offered, SpecifierSet(">=22"))
    assert minors == ["22.0.0", "24.1.1", "26.0.0", "26.1.0", "26.2.1", "27.0.1"]
    assert index.ends_of_each_major(minors) == ["22.0.0", "24.1.1", "26.0.0", "26.2.1", "27.0.1"]


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    """A result is found by its cell, and not by another wheel or by other rules."""
    key = fingerprint({"wheel": b"one"})
    assert key == fingerprint({"wheel": b"one"}) != fingerprint({"wheel": b"two"})
    Results(tmp_path, key).keep(RESULT)
    assert Results(tmp_path, key)[CELL] == RESULT
    assert Results(tmp_path, key).get(CELL._replace(is_shared=True)) is None
    assert Results(tmp_path, fingerprint({"wheel": b"two"})).get(CELL) is None


def test_tables() -> None:
    """The sum is said first; a release that was not exact everywhere is in bold."""
    wrong = dataclasses.replace(
        RESULT,
        cell=CELL._replace(client="0.26.0", python="3.13", worker_class="sync"),
        wrong=["lost"],
        date="2026-11-27",
    )
    text = page.tables([RESULT, wrong], "0.1.0")
    assert text.startswith(
        "2026-11-26 to 2026-11-27, obskit_gunicorn 0.1.0: **1 of 2 servers exact**, "
        "over 2,000 requests, 80 workers and 200 scrapes.\n"
        "Beside them: Python 3.12.1; gevent 26.9.0, uvicorn 0.54.0 and uvicorn-worker 0.4.0.\n"
    )
    assert "| 25.3.0 | **0/1** | - | 1/1 | - | - | 1/1 | **0/1** | **1/2** |\n" in text
    assert "| 0.22.1 | - | - | 1/1 | - | - | 1/1 | - | 1/1 |\n" in text


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    """The rest of the page stays as it is; a page without marks is an error."""
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}old\n{page.END}after\n")
    page.write([RESULT], "0.1.0", path)
    wanted = page.tables([RESULT], "0.1.0")
    assert path.read_text() == f"before\n{page.BEGIN}{wanted}{page.END}after\n"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="lacks the line"):
        page.write([RESULT], "0.1.0", path)


def test_the_page_has_what_is_claimed() -> None:
    """The tables that are in the page are of all Pythons and of the oldest releases, all exact."""
    text = (REPOSITORY / "docs" / "compatibility.md").read_text(encoding="utf-8")
    written = text.partition(page.BEGIN)[2].partition(page.END)[0]
    found = re.search(r"\*\*(\d+) of (\d+) servers exact\*\*", written)
    assert found
    assert found[1] == found[2]
    gunicorns, clients = written.split("\n\n")[1:]
    for table, name in ((gunicorns, "gunicorn"), (clients, "prometheus-client")):
        head, _, *lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        assert [cell.removeprefix("Python ") for cell in head if "Python" in cell] == [*VERSIONS]
        releases = [Version(line[0]) for line in lines]
        assert releases == sorted(releases)
        assert all(release in index.claimed(name) for release in releases)
        (oldest,) = {each.version for each in index.claimed(name) if each.operator == ">="}
        assert releases[0].release[:1] == Version(oldest).release[:1]
        assert str(releases[0]).startswith(oldest)
        assert sum(int(line[-1].split("/")[0]) for line in lines) == int(found[1])
