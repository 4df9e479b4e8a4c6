"""The declarations of settings: they are current, checkers and editors use them, nobody runs them.

What mypy and pyright must say stands in ``tests/typing/settings.py``, and in pieces of the pages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn import ObskitGunicornConfig
from obskit_gunicorn._gunicorn import checks
from obskit_gunicorn._gunicorn.contract import PARAMETERS
from obskit_gunicorn._gunicorn.options import OPTIONS
from tests.support.editor import running
from tests.support.missing import missing
from tests.support.pages import all_blocks

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "docs" / "generate_settings.py"
CASES = ROOT / "tests" / "typing" / "settings.py"


@pytest.fixture(name="generator", scope="module")
def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_settings", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _program(name: str) -> str:
    """Return a program of the group ``lint``, which stands beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    return found or missing(f"{name} is missing: pip install --group lint")


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    """Return the folder of a user who has the cases as configuration, and no settings of ours."""
    cases = CASES.read_text(encoding="utf-8")
    shown = [block.text for block in all_blocks() if "# an error" in block.text]
    assert shown
    lines = [re.sub(r"# an error.*", "# wrong", line) for line in "\n".join(shown).splitlines()]
    there = {line for line in cases.splitlines() if "import " in line}
    added = "\n".join(line for line in lines if line not in there)
    (tmp_path / "conf.py").write_text(f"{cases}\n\n{added}\n", encoding="utf-8")
    _write_strict(tmp_path)
    return tmp_path


def _write_strict(folder: Path) -> None:
    """Make checkers as strict as they can be in a folder."""
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n", encoding="utf-8")
    settings = {"typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")


def _expected(project: Path, *marks: str) -> set[int]:
    """Return the lines on which there must be an error."""
    lines = (project / "conf.py").read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith(marks)}


# ---- The file


def test_the_declarations_are_current() -> None:
    """They are what the installed Gunicorn and the class say now."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PORT": "5000"},  # which Gunicorn would make a default of
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_check_exits_1_for_old_declarations_and_says_what_to_run(
    generator: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Declarations of an older Gunicorn fail ``--check`` and stay as they are."""
    page = tmp_path / "settings.pyi"
    assert generator.main([], page) == 0
    assert generator.main(["--check"], page) == 0
    older = page.read_text(encoding="utf-8").replace("http2_cleartext", "http2_plain")
    page.write_text(older, encoding="utf-8")

    assert generator.main(["--check"], page) == 1
    assert "python docs/generate_settings.py" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == older


def test_everything_that_may_be_set_is_declared(generator: ModuleType) -> None:
    """Each setting of Gunicorn is declared or a hook, and each of our options is declared."""
    known = checks.gunicorn_settings()
    declared = [each.name for each in (*generator.settings(known), *generator.options())]
    assert len(declared) == len(set(declared))
    assert {*declared, *PARAMETERS} == {*known, *PARAMETERS, *(option.name for option in OPTIONS)}


def test_a_setting_of_a_kind_that_is_not_known_is_named(generator: ModuleType) -> None:
    """A future setting that Gunicorn checks in a new way is an error, not a guess."""

    def validate_quantum(value: object) -> object:
        return value

    future = SimpleNamespace(validator=validate_quantum, default=0)
    with pytest.raises(LookupError, match=r"qubits: .*validate_quantum"):
        list(generator.settings({"qubits": future}))


def test_each_near_name_is_a_warning_at_run_time_too(generator: ModuleType) -> None:
    """Checkers refuse only names that the server calls a mistake, and never a right one."""
    known = checks.gunicorn_settings()
    right = {*known, *dir(ObskitGunicornConfig)}
    near = generator.nearly(known)
    assert near["worker"] == ["workers"]
    assert near["access_logfile"] == ["accesslog"]
    assert near["on_start"] == ["on_starting"]
    assert not right & near.keys()
    assert {name: checks.near(name, known) for name in near} == near


# ---- Run time


def test_nothing_is_there_at_run_time() -> None:
    """A setting that is only declared is not set, not published, and not even a module."""
    hooks_and_options = {*PARAMETERS, *(option.name for option in OPTIONS)}
    for name in checks.gunicorn_settings():
        assert hasattr(ObskitGunicornConfig, name) == (name in hooks_and_options), name
    assert importlib.util.find_spec("obskit_gunicorn._gunicorn.settings") is None


# ---- Checkers and editors


def test_mypy_finds_each_mistake_and_no_other(project: Path) -> None:
    """Under ``--strict`` each wrong line is an error, and no other line."""
    done = subprocess.run(
        [_program("mypy"), "--python-executable", sys.executable, "conf.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
    )
    found = set(map(int, re.findall(r"^conf\.py:(\d+): error:", done.stdout, re.MULTILINE)))
    assert found == _expected(project, "# wrong"), done.stdout + done.stderr
    assert "DidYouMean[Literal['workers']]" in done.stdout


def test_pyright_finds_each_mistake_and_no_other(project: Path) -> None:
    """In strict mode each wrong line is an error, and no other line."""
    done = subprocess.run(
        [_program("basedpyright"), "--pythonpath", sys.executable, "--outputjson", "conf.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
    )
    said = json.loads(done.stdout)["generalDiagnostics"]
    found = {each["range"]["start"]["line"] + 1 for each in said if each["severity"] == "error"}
    assert found == _expected(project, "# wrong", "# wrong to pyright"), json.dumps(said, indent=1)
    assert any("DidYouMean[Literal['workers']]" in each["message"] for each in said)


def test_examples_have_no_mistake(tmp_path: Path) -> None:
    """The examples' configuration files are right to mypy and pyright, at their strictest."""
    _write_strict(tmp_path)
    for path in ROOT.glob("examples/*/gunicorn.conf.py"):
        if path.parent.name != "fastapi":  # what obskit exports is an ``object`` to them
            shutil.copy(path, tmp_path / f"{path.parent.name}_conf.py")  # a module's name
    shutil.copy(ROOT / "examples" / "company_base" / "company.py", tmp_path)
    for command in (
        [_program("mypy"), "--python-executable", sys.executable, "."],
        [_program("basedpyright"), "--pythonpath", sys.executable, "."],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_editors_complete_settings_and_show_what_they_are(project: Path) -> None:
    """In the body of a class settings and options are offered, near names are not."""
    with running(_program("basedpyright-langserver"), project) as editor:
        assert editor.complete("bi") == ["bind"]
        assert editor.complete("worker") == [
            "worker_class",
            "worker_connections",
            "worker_tmp_dir",
            "workers",
        ]
        assert "metrics_bind" in editor.complete("metrics_")
        assert "metric_bind" not in editor.complete("metric")
        shown = editor.describe("timeout")
        assert "timeout: int" in shown
        assert "Workers silent for more than this many seconds" in shown
        assert "Default: `30`" in shown
