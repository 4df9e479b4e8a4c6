"""What MkDocs does besides, when it builds the site: pages of the root, links, and scripts.

The pages are written for a code host, where a link may lead to any file of the repository. The
site has the pages of docs/ and, in the same folder, those of the root that ``ROOT_PAGES`` names. A
link to anything else becomes its text, because the site has no address for it.

Two scripts the theme would load from another host: what draws diagrams, and what the search needs
in pages that are opened from the disk. The site brings them along, so that it asks nobody else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
README = "README.md"
"""It stands where the site has its own first page."""

SCRIPTS = Path(sys.prefix) / "share" / "scripts"
"""Where ``make`` has put them, in the environment that builds the site."""
_SCRIPT_URI = "assets/javascripts/{}"
_MERMAID = "mermaid.js"
_MERMAID_SCRIPT = f'<script src="{_SCRIPT_URI.format(_MERMAID)}"></script>'
_DIAGRAM = '<pre class="mermaid">'

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:]+)\)")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_DOUBLE_COLON = re.compile(r"::(?=</p>)")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and the scripts.

    Raises:
        PluginError: The scripts are not in the environment.
    """
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    scripts = sorted(SCRIPTS.glob("*.js"))
    if not scripts:
        raise PluginError(f"there are no scripts in {SCRIPTS}: build the site with make docs")
    for script in scripts:
        uri = _SCRIPT_URI.format(script.name)
        files.append(File.generated(config, uri, abs_src_path=str(script)))
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


def on_post_page(output: str, **_others: object) -> str:
    """Have a page with a diagram load what draws it, before the theme looks whether it is there."""
    if _DIAGRAM not in output:
        return output
    before = output.rindex("<script src=")  # the theme's own, which is the last one
    return output[:before] + _MERMAID_SCRIPT + output[before:]
