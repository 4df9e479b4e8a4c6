"""The floor plan of docs/architecture.md: no circle, and nothing imports upwards."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import obskit_gunicorn

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(obskit_gunicorn.__file__).parent
FLOORS = (
    {"_problem"},
    {"_version", "_log", "errors", "_prometheus", "_store"},
    {"_values"},
    {"_scrape"},
    {"_fleet"},
    {"_exporter", "multiprocess"},
    {"_gunicorn"},
    {"config", "_doctor"},
    {"_terminal"},
    {"hooks", "cli", "__init__"},
    {"__main__"},
)
"""The rooms of each floor, from the ground. A room imports from lower floors and from itself."""

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}


def imports(source: str) -> set[str]:
    """Return the modules of ours that a module imports: at once, lazily, for types, or by name."""
    return {name for name in _named(ast.parse(source)) if name in MODULES}


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # A name of the package itself is in its __init__.
                is_ours = node.module == PACKAGE.name and inner not in MODULES
                is_folder = f"{inner}.__init__" in MODULES
                outer = f"{PACKAGE.name}.__init__" if is_ours and not is_folder else node.module
                yield inner if inner in MODULES else outer
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
            if "." in node.value:  # as in _load("_values.sharing")
                yield f"{PACKAGE.name}.{node.value}"


def room(module: str) -> str:
    """Return the folder or the file of the front door that a module is in."""
    return module.split(".")[1]


def floor(module: str) -> int:
    """Return the floor of a module."""
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upwards(module: str) -> None:
    """A module imports from its own room and from lower floors only."""
    for imported in imports(MODULES[module].read_text(encoding="utf-8")):
        assert room(imported) == room(module) or floor(imported) < floor(module), imported


def test_no_circle() -> None:
    """No file imports itself through others, inside the folders too."""
    graph = {module: imports(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_is_on_a_floor() -> None:
    """A new room is placed on a floor, and none is left that is gone."""
    assert {room(module) for module in MODULES} == set.union(*FLOORS)


def test_folders_hold_no_code() -> None:
    """A folder's ``__init__`` says what the room is for, and loads nothing."""
    for module, path in MODULES.items():
        if module.endswith("__init__") and path.parent != PACKAGE:
            (node,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(node, ast.Expr), module


def test_what_prometheus_client_does_not_promise_is_in_one_file() -> None:
    """No other module uses a private name, or one of a module that is not documented."""
    promised = {
        "prometheus_client",
        "prometheus_client.core",
        "prometheus_client.exposition",
        "prometheus_client.metrics_core",
        "prometheus_client.multiprocess",
        "prometheus_client.openmetrics.exposition",
        "prometheus_client.registry",
        "prometheus_client.samples",
    }
    for module, path in MODULES.items():
        if room(module) == "_prometheus":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            source = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and source.startswith("prometheus_client"):
                assert source in promised, (module, source)
                assert not any(alias.name.startswith("_") for alias in node.names), module


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import obskit_gunicorn.config", {"obskit_gunicorn.config"}),
        ("def f():\n    from obskit_gunicorn import cli", {"obskit_gunicorn.cli"}),
        ("from obskit_gunicorn._store import locks", {"obskit_gunicorn._store.locks"}),
        ("from obskit_gunicorn._store.locks import pause", {"obskit_gunicorn._store.locks"}),
        ("from obskit_gunicorn import __version__", {"obskit_gunicorn.__init__"}),
        ("import_module('obskit_gunicorn._log')", {"obskit_gunicorn._log"}),
        ("_load('_values.sharing')", {"obskit_gunicorn._values.sharing"}),
    ],
)
def test_imports_are_found(source: str, found: set[str]) -> None:
    """The reader of imports sees every way to import."""
    assert imports(source) == found


def test_the_page_has_the_floors() -> None:
    """docs/architecture.md names every module."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w]+\.py", page))
    assert {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py", "__main__.py"} <= named
