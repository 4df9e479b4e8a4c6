"""docs/versioning.md says of this release what is so."""

from __future__ import annotations

import re
from pathlib import Path

from obskit_gunicorn._store.directory import PROTOCOL

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")


def test_what_we_need() -> None:
    """The oldest supported releases are those that the package asks for."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (Python|Gunicorn|prometheus-client) \| (.+?) \|", PAGE, re.M))
    for name, wanted in (
        ("Python", r'requires-python = ">=(?P<oldest>[\d.]+)"'),
        ("Gunicorn", r'"gunicorn>=(?P<oldest>[\d.]+)"'),
        ("prometheus-client", r'"prometheus-client>=(?P<oldest>[\d.]+),<(?P<end>[\d.]+)"'),
    ):
        found = re.search(wanted, project)
        assert found, name
        said = f"{found['oldest']} and newer"
        said += f", below {found['end']}" if "end" in found.groupdict() else ""
        assert table[name] == said


def test_slot_protocol() -> None:
    """The number of the rules of the directory is the one in force."""
    assert re.findall(r"\(how-it-works\.md#the-directory\), now (\d+)\.", PAGE) == [str(PROTOCOL)]


def test_nothing_is_deprecated() -> None:
    """The page says so as long as nothing of ours warns of it; this test goes with the sentence."""
    assert "At present nothing is deprecated." in PAGE
    package = ROOT / "obskit_gunicorn"
    assert [
        path for path in package.rglob("*.py") if "DeprecationWarning" in path.read_text()
    ] == []
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "### Deprecated" not in log
