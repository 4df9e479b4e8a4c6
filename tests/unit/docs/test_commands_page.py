"""The page of the command: what it lists is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from obskit_gunicorn._doctor.finding import JSON_VERSION, PARTS, Finding, as_json
from obskit_gunicorn.cli import main

PAGE = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")


def test_parts() -> None:
    """The table has every part, in the order in which they are printed."""
    table = PAGE.partition("| part | what")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == PARTS


def test_json() -> None:
    """The example is what is printed, and the table has each field."""
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(example)
    found = [Finding(**each) for each in shown["findings"]]
    assert as_json(found, arguments=shown["arguments"]) == shown
    assert shown["version"] == JSON_VERSION
    fields = PAGE.partition("| field |")[2].partition("\n\n")[0]
    for name in (*shown, *Finding._fields):
        assert f"`{name}`" in fields, name


def test_text() -> None:
    """The example of the text is made of lines as they are printed."""
    (example,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    lines = example.splitlines()
    parts = []
    for line in lines:
        if not line.startswith(" "):
            level, part, text = line.split(None, 2)
            parts.append(PARTS.index(part))
            assert Finding(part, level, text).lines() == line
    assert parts == sorted(parts)


def test_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    """The page has a chapter for each subcommand."""
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    names = re.findall(r"^    (\w+) ", printed, re.MULTILINE)
    assert names
    assert set(names) <= set(re.findall(r"^## (\w+)", PAGE, re.MULTILINE))
