"""What a test needs and does not find."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["find_program", "missing"]


def missing(message: str) -> NoReturn:
    """Skip the test; fail it under CI, where everything has to be there.

    Args:
        message: What is missing, and what to install.
    """
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def find_program(name: str, package: str) -> str:
    """Return a program's path.

    Args:
        name: The program.
        package: The Debian package that has it.
    """
    return shutil.which(name) or missing(f"{name} is missing: install the Debian package {package}")
