"""The pages for people: their links lead somewhere, and each can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Gauge

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made from the text."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links(page: Path) -> None:
    """Each relative link leads to a file that is there, and to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in _anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files(page: Path) -> None:
    """Each test and each benchmark that a page names is there."""
    text = page.read_text(encoding="utf-8")
    for named in re.findall(r"\btests/[\w/]+(?:\.py)?", text):
        assert (ROOT / named).exists(), named
    for benchmark in re.findall(r"-m benchmarks\.(\w+)", text):
        assert (ROOT / "benchmarks" / f"{benchmark}.py").exists(), benchmark


def test_every_page_can_be_found() -> None:
    """Each page of docs/ is linked from the first one, and that from the README."""
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)", first))
    assert linked == {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"}
    assert "](docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short_and_its_figures_are_measured() -> None:
    """It is little more than a screen, and its figures stand on the page that says how."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 110
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = {
        line.split(" | ")[0].removeprefix("| "): set(re.findall(r"[\d.,]*\d", line))
        for line in measured.splitlines()
    }
    table = readme.partition("| measured ([how]")[2].partition("\n\n")[0]
    scrape, answer, count = [line.split(" | ")[1:] for line in table.splitlines()[2:]]
    for cells, row in (
        (scrape, "32 \u00d7 9,000"),
        (answer, "734 ms"),
        (count, "`Counter.inc()`"),
    ):
        assert {re.findall(r"[\d.]+", cell)[0] for cell in cells} <= rows[row], row


def test_every_gauge_mode_is_explained() -> None:
    """The table of modes has each that prometheus_client knows, and no other."""
    page = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    table = page.partition("| what you measure | mode |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[1] for line in table.splitlines()[2:]]
    modes = [mode for cell in cells for mode in re.findall(r"`(\w+)`", cell)]
    assert sorted(modes) == sorted(Gauge._MULTIPROC_MODES)
