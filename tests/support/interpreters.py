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
def interpreter(version: str) -> str:
    """Return the path of an interpreter of a version; skips the test where there is none."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    installed = glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))
    for path in (shutil.which(f"python{version}"), *installed):
        if path is not None:
            code = "import sys; print('{}.{}'.format(*sys.version_info))"
            done = subprocess.run(
                [path, "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
            if done.stdout.strip() == version:
                return path
    pytest.skip(f"there is no Python {version}")


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
