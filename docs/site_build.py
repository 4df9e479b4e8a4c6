"""What MkDocs does besides, when it builds the site: pages of the root, and links that leave docs/.

The pages are written for a code host, where a link may lead to any file of the repository. The
site has the pages of docs/ and, in the same folder, those of the root that ``ROOT_PAGES`` names. A
link to anything else becomes its text, because the site has no address for it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
README = "README.md"
"""It stands where the site has its own first page."""

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:]+)\)")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_DOUBLE_COLON = re.compile(r"::(?=</p>)")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_others: object) -> str:
    """Make each link lead where the page is in the site."""
    folder = ROOT if page.file.src_uri in ROOT_PAGES else ROOT / "docs"

    def replace(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, hash_mark, anchor = target.partition("#")
        if not path:
            return found.group()
        place = (folder / path).resolve()
        if place.is_relative_to(ROOT / "docs"):
            uri = place.relative_to(ROOT / "docs").as_posix()
        elif place == ROOT / README:
            return f"[{text}](index.md)"
        else:
            uri = place.relative_to(ROOT).as_posix()
            if uri not in ROOT_PAGES:
                return text
        return f"[{text}]({uri}{hash_mark}{anchor})"

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(replace, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_others: object) -> str:
    """Take away what docstrings write for Sphinx: roles, and the second colon before code."""
    return _DOUBLE_COLON.sub(":", _ROLE.sub("", html))
