"""The forms for issues: a forge can show them, and they ask for what an answer needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FORMS = Path(__file__).resolve().parents[3] / ".github" / "ISSUE_TEMPLATE"


def problems(schema: str, path: Path) -> str:
    """Return what is wrong with a file by GitHub's schema; nothing if it is right."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


def fields(name: str) -> dict[str, Any]:
    """Return the fields of a form that people fill in, by their ids."""
    body = yaml.safe_load((FORMS / name).read_text(encoding="utf-8"))["body"]
    return {field["id"]: field for field in body if "id" in field}


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.github-issue-forms", "bug.yml"),
        ("vendor.github-issue-forms", "feature.yml"),
        ("vendor.github-issue-config", "config.yml"),
    ],
)
def test_schema(schema: str, name: str, tmp_path: Path) -> None:
    """Each file is what the schema asks for; one with a wrong key is not."""
    assert problems(schema, FORMS / name) == ""
    broken = tmp_path / name
    broken.write_text((FORMS / name).read_text(encoding="utf-8") + "\nnonsense: 1\n")
    assert "nonsense" in problems(schema, broken)


def test_no_form_is_left_out() -> None:
    """There are no others."""
    assert {path.name for path in FORMS.iterdir()} == {"bug.yml", "feature.yml", "config.yml"}


def test_a_bug_is_told_with_what_an_answer_needs() -> None:
    """Required are the output of check, the worker class and the configuration."""
    found = fields("bug.yml")
    required = {
        name for name, field in found.items() if field.get("validations", {}).get("required")
    }
    assert required == {"what", "check", "worker-class", "configuration"}
    assert "obskit-gunicorn check" in found["check"]["attributes"]["label"]
    for name in ("obskit-gunicorn", "Python", "Gunicorn", "prometheus-client"):
        assert name in found["versions"]["attributes"]["description"]
