"""The wheel, what is installed with it, and an environment for each cell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tests.matrix.cells import Cell

__all__ = ["download", "environment_of", "make_environment", "versions_in"]

BESIDE = {
    "gevent": ("gevent", "packaging"),  # Gunicorn's worker needs packaging, not always brings it
    "uvicorn_worker.UvicornWorker": ("uvicorn", "uvicorn-worker"),
}
"""What worker classes need beside Gunicorn: the newest that there is for a Python."""

_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def _run_pip(python: str, *arguments: str) -> None:
    command = [*_PIP, "--python", python, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")


def download(cells: Collection[Cell], pythons: Mapping[str, str], wheels: Path) -> None:
    """Get what cells need from the index, each release once.

    Args:
        cells: The cells.
        pythons: The path of each Python.
        wheels: Where to put it. A release that is there already is not asked for again; what has
            no fixed release is, so that the newest one is found.

    Raises:
        RuntimeError: pip has failed; with what it has said.
    """
    newest = max(pythons, key=lambda python: int(python.partition(".")[2]))
    todo: set[tuple[str, tuple[str, ...]]] = {
        (python, BESIDE[worker_class])
        for python, worker_class in {(cell.python, cell.worker_class) for cell in cells}
        if worker_class in BESIDE
    }
    for name, releases in (
        ("gunicorn", {cell.gunicorn for cell in cells}),
        ("prometheus_client", {cell.client for cell in cells}),
    ):
        for release in releases:
            if not list(wheels.glob(f"{name}-{release}-*.whl")):
                todo.add((newest, (f"{name}=={release}",)))
    options = ("download", "--only-binary", ":all:", "--dest", str(wheels))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: _run_pip(pythons[each[0]], *options, *each[1]), sorted(todo)))


def environment_of(cell: Cell, directory: Path) -> Path:
    """Return where the environment of a cell is, or will be."""
    return directory / "-".join(cell.name.split())


def make_environment(cell: Cell, python: str, *, place: Path, wheels: Path, package: Path) -> str:
    """Make an environment with the releases of a cell and the built wheel.

    Args:
        cell: The cell.
        python: The path of its Python.
        place: Where to make it.
        wheels: Where the releases are.
        package: The wheel of this package.

    Returns:
        The path of its interpreter.

    Raises:
        RuntimeError: It cannot be made; with what the program that failed has said.
    """
    shutil.rmtree(place, ignore_errors=True)
    made = subprocess.run(
        [python, "-m", "venv", "--without-pip", str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode:
        raise RuntimeError(made.stdout)
    interpreter = str(place / "bin" / "python")
    _run_pip(
        interpreter,
        "install",
        "--no-index",
        "--find-links",
        str(wheels),
        "--no-compile",
        str(package),
        f"gunicorn=={cell.gunicorn}",
        f"prometheus-client=={cell.client}",
        *BESIDE.get(cell.worker_class, ()),
    )
    # Byte code once, and not in each process of a server; of gevent's own tests not at all.
    compiled = [interpreter, "-m", "compileall", "-q", "-x", "/tests/", str(place / "lib")]
    subprocess.run(compiled, stdout=subprocess.DEVNULL, check=False)
    return interpreter


def versions_in(interpreter: str) -> dict[str, str]:
    """Return what is installed where an interpreter is, by name."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {each.metadata['Name'].lower(): each.version for each in m.distributions()}\n"
        "found['python'] = '{}.{}.{}'.format(*sys.version_info)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [interpreter, "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
