"""What a package index shows: the metadata that is built, and the address its links begin with."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from email import message_from_string
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from readme_renderer import markdown

from obskit_gunicorn import __version__
from tests.support.missing import find_program

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).resolve().parents[3]
BUILD = "import sys, hatchling.build as b; print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
MEANT_AS_THEY_ARE = ("http://127.0.0.1:", "#user-content-")
"""Links to the reader's own machine, and within the page."""


class Links(HTMLParser):
    """Collects what a page leads to and what it shows.

    Attributes:
        found: The links, with the name of their attribute.
    """

    def __init__(self, page: str) -> None:
        """Read a page."""
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links of an element."""
        self.found += [(name, value or "") for name, value in attrs if name in {"href", "src"}]


def built(place: Path, result: Path) -> Message:
    """Return the metadata that the build makes of a source tree."""
    result.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(result)],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    return message_from_string((result / done.stdout.strip() / "METADATA").read_text("utf-8"))


def shown(metadata: Message) -> list[tuple[str, str]]:
    """Return where the page that an index makes of metadata leads to, with the attributes."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str)
    page = markdown.render(text)
    assert page is not None
    return [link for link in Links(page).found if not link[1].startswith(MEANT_AS_THEY_ARE)]


@pytest.fixture(name="metadata", scope="module")
def _metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    return built(ROOT, tmp_path_factory.mktemp("metadata"))


def urls(metadata: Message) -> dict[str, str]:
    """Return the links beside the description, by their names."""
    pairs = [entry.partition(", ") for entry in metadata.get_all("Project-URL") or []]
    return {name: url for name, _, url in pairs}


def test_links_of_the_description(metadata: Message) -> None:
    """Each link and picture of the page leads to a file of the repository, at the release."""
    base = urls(metadata)["Source"]
    links = shown(metadata)
    assert len(links) > 20
    for attribute, target in links:
        view = "raw" if attribute == "src" else "blob"
        start = f"{base}/{view}/v{__version__}/"
        assert target.startswith(start), target
        assert (ROOT / target.removeprefix(start).partition("#")[0]).exists(), target
    assert ("src", f"{base}/raw/v{__version__}/docs/pictures/page.png") in links


def test_links_beside_the_description(metadata: Message) -> None:
    """Documentation, source, issues and changes are there, all below one address."""
    found = urls(metadata)
    base = found.pop("Source")
    assert set(found) == {"Documentation", "Issues", "Changelog"}
    assert found.pop("Issues") == f"{base}/issues"
    for url in found.values():
        start = f"{base}/blob/main/"
        assert url.startswith(start), url
        assert (ROOT / url.removeprefix(start)).exists(), url


def test_extras_are_explained(metadata: Message) -> None:
    """First steps has each extra, and no page names another one."""
    page = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    table = page.partition("| extra | for what |")[2].partition("\n\n")[0]
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == extras
    texts = [page.read_text("utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    named = re.findall(r"(?:obskit-gunicorn|pip install \"[\w./]+)\[([\w,]+)\]", "\n".join(texts))
    assert {extra for each in named for extra in each.split(",")} == extras


def test_an_address_replaces_the_one_that_leads_nowhere(tmp_path: Path) -> None:
    """The command of CONTRIBUTING.md puts an address everywhere, and the index shows it."""
    find_program("perl", "perl")
    git = find_program("git", "git")
    tree = tmp_path / "tree"
    for name in ("docs", ".github", "obskit_gunicorn"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "CONTRIBUTING.md", "SECURITY.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([git, "init", "--quiet"], cwd=tree, check=True)
    subprocess.run([git, "add", "."], cwd=tree, check=True)

    page = (tree / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```sh\n(git grep .*?)^```", page, re.MULTILINE | re.DOTALL)
    (old,) = re.findall(r"git grep -lF (\S+) ", command)
    new = "https://code.example.org/team/repository"
    assert "https://HOST/PATH" in command
    subprocess.run(["sh", "-ec", command.replace("https://HOST/PATH", new)], cwd=tree, check=True)

    texts = {
        str(path.relative_to(tree)): path.read_text(encoding="utf-8")
        for path in tree.rglob("*.*")
        if path.suffix in {".md", ".toml", ".yml", ".py"} and ".git" not in path.parts
    }
    assert [name for name, text in texts.items() if old in text] == []
    placeholder = "//" + old.split("/")[2]
    assert [name for name, text in texts.items() if placeholder in text] == []
    metadata = built(tree, tmp_path / "metadata")
    assert [link for link in shown(metadata) if not link[1].startswith(f"{new}/")] == []
    assert [url for url in urls(metadata).values() if not url.startswith(new)] == []


def test_pages_that_say_that_nothing_is_published() -> None:
    """CONTRIBUTING.md names each page that has to change with the first release."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    found = {
        str(page.relative_to(ROOT))
        for page in pages
        if re.search(r"^\W*Nothing is published yet", page.read_text("utf-8"), re.MULTILINE)
    }
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (sentence,) = re.findall("^With the first one, .*", text, re.MULTILINE)
    assert set(re.findall(r"`([\w/-]+\.md)`", sentence)) == found
