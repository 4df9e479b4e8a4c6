"""Other interpreters on this machine, for what differs between them."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import prometheus_client
import pytest

REPOSITORY = Path(__file__).parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")


@functools.cache
def find(version: str) -> str | None:
    """Return the path of an interpreter of a version: on PATH, of pyenv's, of uv's; or ``None``."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    installed = glob.glob(f"{glob.escape(str(pyenv))}/versions/{version}.*/bin/python")
    for path in (shutil.which(f"python{version}"), *sorted(installed), _of_uv(version)):
        if path is not None:
            code = "import sys; print('{}.{}'.format(*sys.version_info))"
            done = subprocess.run(
                [path, "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
            if done.stdout.strip() == version:
                return path
    return None


def _of_uv(version: str) -> str | None:
    if shutil.which("uv") is None:
        return None
    done = subprocess.run(
        ["uv", "python", "find", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip() or None


def interpreter(version: str) -> str:
    """Return the path of an interpreter of a version; skips the test where there is none."""
    return find(version) or pytest.skip(f"there is no Python {version}")


def run_with(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter, which finds this repository and prometheus_client."""
    client = Path(prometheus_client.__file__).parents[1]
    return subprocess.run(
        [interpreter(version), *arguments],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{client}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
