"""What the package claims, and what of it the package index has."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.version import Version

from tests.matrix.cells import Offer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from packaging.specifiers import SpecifierSet

__all__ = ["claimed", "claimed_pythons", "ends_of_each_major", "newest_of_each_minor", "offer_for"]

UNUSABLE = {"24.0.0"}
"""Releases of Gunicorn that cannot replace a worker themselves, see docs/compatibility.md."""

_PACKAGE = "obskit-gunicorn"
_PYTHON = "Programming Language :: Python :: "


def claimed_pythons() -> list[str]:
    """Return the Pythons that the package says it is for, as in ``"3.12"``."""
    classifiers = importlib.metadata.metadata(_PACKAGE).get_all("Classifier") or []
    found = [line.removeprefix(_PYTHON) for line in classifiers if line.startswith(_PYTHON)]
    return [version for version in found if "." in version]


def claimed(name: str) -> SpecifierSet:
    """Return the releases of a dependency that the package says it works with."""
    for line in importlib.metadata.requires(_PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.name == name and requirement.marker is None:
            return requirement.specifier
    raise LookupError(name)


def offer_for(python: str) -> Offer:
    """Return the releases that pip finds for an interpreter.

    Args:
        python: Its path.

    Raises:
        RuntimeError: pip has not reached an index; with what it has said.
    """
    with ThreadPoolExecutor() as pool:
        gunicorn, client = pool.map(
            lambda name: newest_of_each_minor(_versions(python, name), claimed(name)),
            ("gunicorn", "prometheus-client"),
        )
    return Offer(ends_of_each_major(gunicorn), client)


def _versions(python: str, name: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "--python", python, "index", "versions", "--json", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    found: list[str] = json.loads(done.stdout)["versions"]
    return found


def newest_of_each_minor(versions: Iterable[str], claim: SpecifierSet) -> list[str]:
    """Return the newest release of each minor one that is claimed and works, the oldest first."""
    newest = {
        version.release[:2]: str(version)
        for version in sorted(map(Version, versions))
        if version in claim and not version.is_prerelease and str(version) not in UNUSABLE
    }
    return list(newest.values())


def ends_of_each_major(versions: Sequence[str]) -> list[str]:
    """Return the oldest and the newest of each major release; what is between is like one of them.

    Args:
        versions: The oldest first.
    """
    majors = [list(found) for _, found in itertools.groupby(versions, lambda v: Version(v).major)]
    return [version for found in majors for version in dict.fromkeys((found[0], found[-1]))]
