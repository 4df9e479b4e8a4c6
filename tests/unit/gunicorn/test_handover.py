"""What one arbiter hands on to the next."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from obskit_gunicorn._gunicorn.handover import Handover

FILE = "/site/gunicorn/__main__.py"


@pytest.mark.parametrize(
    ("name", "program", "expected"),
    [
        ("gunicorn.__main__", FILE, ["python", "-m", "gunicorn", "app"]),
        ("shop.serve", FILE, ["python", "-m", "shop.serve", "app"]),
        (None, FILE, ["python", FILE, "app"]),  # a program that is run by its path
        ("__main__", FILE, ["python", FILE, "app"]),  # a folder or an archive
        ("gunicorn.__main__", "/bin/gunicorn", ["python", "/bin/gunicorn", "app"]),
    ],
)
def test_command(
    monkeypatch: pytest.MonkeyPatch, name: str | None, program: str, expected: list[str]
) -> None:
    """Only what was run as a module is run as a module again."""
    main = ModuleType("__main__")
    main.__file__ = FILE
    main.__spec__ = None if name is None else ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    command = ["python", program, "app"]
    Handover().give_command(command)
    assert command == expected
