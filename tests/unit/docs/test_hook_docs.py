"""docs/hooks.md and the program that writes it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

PROGRAM = Path(__file__).resolve().parents[3] / "docs" / "generate_hooks.py"


@pytest.fixture(name="generator", scope="module")
def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_hooks", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hooks_page_is_current(generator: ModuleType) -> None:
    """The page in the tree is what the docstrings and signatures say now."""
    assert generator.PAGE.read_text(encoding="utf-8") == generator.render(
        generator.SOURCE.read_text(encoding="utf-8")
    )


def test_check_exits_0_for_a_current_page_and_writes_nothing(
    generator: ModuleType, tmp_path: Path
) -> None:
    """A page that was just written passes ``--check``, which leaves it alone."""
    page = tmp_path / "hooks.md"
    assert generator.main([], page=page) == 0
    os.utime(page, (1, 1))

    assert generator.main(["--check"], page=page) == 0
    assert page.stat().st_mtime == 1


def test_check_exits_1_for_a_stale_page_and_says_what_to_run(
    generator: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that somebody edited fails ``--check`` and is not repaired by it."""
    page = tmp_path / "hooks.md"
    page.write_text("# Server hooks, by hand\n", encoding="utf-8")

    assert generator.main(["--check"], page=page) == 1
    assert "python docs/generate_hooks.py" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "# Server hooks, by hand\n"


def test_check_exits_1_for_a_missing_page(generator: ModuleType, tmp_path: Path) -> None:
    """A page that is not there is out of date, not an exception."""
    assert generator.main(["--check"], page=tmp_path / "hooks.md") == 1


def test_command_runs_without_gunicorn_and_prometheus_client() -> None:
    """The command itself needs the source only, from whatever directory it is run."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(PROGRAM), "--check"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_table_comes_from_the_docstrings(generator: ModuleType) -> None:
    """A cell of the table is the first sentence of the docstring's line, and nothing else."""
    source = generator.SOURCE.read_text(encoding="utf-8")
    changed = source.replace("- Signal context: before Gunicorn 24.", "- Signal context: perhaps.")
    assert changed != source

    row = next(
        line
        for line in generator.render(changed).splitlines()
        if line.startswith("| [`child_exit`]")
    )
    assert "| perhaps |" in row


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("arbiter. Once per worker.", "arbiter"),
        ("no.", "no"),
        ("from Gunicorn 25.1 on. And so forth.", "from Gunicorn 25.1 on"),
    ],
)
def test_cell_ends_at_the_first_full_stop(generator: ModuleType, text: str, cell: str) -> None:
    """A version number does not end a sentence."""
    assert generator.first_sentence(text) == cell


def test_public_method_without_docstring_is_an_error(generator: ModuleType) -> None:
    """A method that says nothing cannot slip into the page."""
    source = generator.SOURCE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no docstring"):
        generator.render(source + "\n    def new_hook(self, server: Arbiter) -> None: ...\n")
