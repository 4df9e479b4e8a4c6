"""docs/compatibility.md claims what the tests run, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import stores

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    """Return what the page says beside a name, with the place where it is tested."""
    found = re.search(rf"^\| {re.escape(name)} \| (.+) \|$", PAGE, re.MULTILINE)
    assert found, name
    return found[1]


def test_releases() -> None:
    """Gunicorn's and prometheus_client's are those of the Makefile, Python's of pyproject.toml."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    gunicorns = re.findall(r'"gunicorn==([\d.]+)\.\*"', makefile)
    assert row("Gunicorn").startswith(", ".join(gunicorns) + " and the newest one.")
    (client,) = set(re.findall(r'"prometheus-client==([\d.]+)\.\*"', makefile))
    assert f"{client} with Gunicorn 22" in row("prometheus-client")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert f"{pythons[0]} to {pythons[-1]}." in row("Python")


def test_stores() -> None:
    """The stores are those of the tests."""
    redises, valkeys = (
        sorted(name.partition("-")[2] for name in stores.SERVERS if name.startswith(kind))
        for kind in ("redis", "valkey")
    )
    wanted = f"Redis {', '.join(redises[:-1])} and {redises[-1]}, Valkey {' and '.join(valkeys)}"
    assert row("stores").startswith(wanted)


def test_packages() -> None:
    """The instrumentation packages are those that are installed for the tests."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    group = re.search(r"^instrumentators = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert group
    packages = set(re.findall(r'^    "([a-z-]+)', group[1], re.MULTILINE))
    frameworks = {"django", "fastapi", "flask"}
    named = row("instrumentation packages").partition("|")[0]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", named)) == packages - frameworks
