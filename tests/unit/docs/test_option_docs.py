"""The table of options on its page, and the program that writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[3] / "docs" / "generate_options.py"


def test_the_table_is_current() -> None:
    """The table says what the rows and the class say now."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
