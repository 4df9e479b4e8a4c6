"""The site: its navigation has every page once, and it builds without a warning."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.browser import Browser
from tests.support.missing import missing
from tests.support.pages import all_blocks
from tests.support.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venvs" / "docs" / "bin" / "python"
FROM_THE_ROOT = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}


class _Loader(yaml.SafeLoader):
    """Reads MkDocs' file without the Python objects that are named in it."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages(navigation: list[Any]) -> Iterator[str]:
    """Return the pages of a navigation, in its order."""
    for entry in navigation:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages(target)


def test_navigation() -> None:
    """Each page stands in it once, and nothing else does."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    found = list(pages(yaml.load(text, Loader=_Loader)["nav"]))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert sorted(found) == sorted(there | FROM_THE_ROOT)


def test_strict_build(tmp_path: Path) -> None:
    """The site builds without a warning, shows what it is to show, and asks no other host."""
    if not PYTHON.exists():
        missing("the environment that builds the site is missing: make docs")
    done = subprocess.run(
        [PYTHON, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    for directive in re.findall("^::: (.+)", (ROOT / "docs" / "reference.md").read_text(), re.M):
        assert f'id="{directive}"' in reference, directive
    pages, shown = list((tmp_path / "site").rglob("*.html")), 0
    assert not [
        (page.name, asked) for page in pages for asked in asked_of_others(page.read_text("utf-8"))
    ]
    with Browser() as browser:
        for page in pages:
            diagrams = page.read_text(encoding="utf-8").count('<pre class="mermaid">')
            if diagrams:
                shown += diagrams
                browser.show(page.as_uri())
                wait_until(
                    lambda diagrams=diagrams: (  # type: ignore[misc]
                        browser.run("document.querySelectorAll('div.mermaid').length") == diagrams
                    ),
                    f"the diagrams of {page.name} are drawn",
                )
        assert browser.errors == []
        assert not [url for url in browser.requests if not url.startswith(("file:", "data:"))]
    assert shown == sum(block.language == "mermaid" for block in all_blocks()) > 0


def asked_of_others(html: str) -> list[str]:
    """Return what a browser that shows a page asks other hosts for."""
    found = []
    for tag in re.findall(r"<(?:script|link|img|iframe|source|object|video|audio)\b[^>]*>", html):
        # Which page is meant is no request.
        if 'rel="canonical"' not in tag:
            found += re.findall(r"""(?:src|href|data|srcset)=["']?((?:https?:)?//[^"'\s>]+)""", tag)
    return found + re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')\s]+)", html)


def test_what_is_asked_of_others_is_found() -> None:
    """A script, a style or a picture of another host is seen; a link to follow is none."""
    assert asked_of_others('<script src="https://a.example/x.js">') == ["https://a.example/x.js"]
    assert asked_of_others('<link href="//b.example/x.css">') == ["//b.example/x.css"]
    assert asked_of_others("<style>@import 'http://c.example/x'</style>") == ["http://c.example/x"]
    assert not asked_of_others('<a href="https://d.example/"><img src="pictures/page.png"></a>')


def test_public_names_are_in_the_reference() -> None:
    """The page that is made from docstrings has every public name."""
    import obskit_gunicorn
    from obskit_gunicorn import multiprocess

    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall("^::: (.+)", text, re.MULTILINE)}
    assert shown == {*obskit_gunicorn.__all__, *multiprocess.__all__} - {"__version__"}
