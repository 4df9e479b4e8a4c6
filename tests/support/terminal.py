"""A command on a real terminal: a pseudo-terminal, what it shows, and keys that are pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

from tests.support.process import DEADLINE_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Terminal"]

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])")


class Terminal:
    """The command ``obskit-gunicorn`` on a terminal; a context manager.

    Attributes:
        raw: All that it has written.
        process: The process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        rows: int = 40,
        columns: int = 120,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe it; entering the context starts it."""
        self._arguments, self._size = arguments, (rows, columns)
        self._environment = environment or {}
        self.raw = ""
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Terminal:
        """Start it."""
        self._ours, self._theirs = os.openpty()
        size = struct.pack("HHHH", *self._size, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)
        self._before = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "obskit_gunicorn", *self._arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={
                **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
                "TERM": "xterm-256color",
                **self._environment,
            },
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def read(self) -> str:
        """Return what it has written since the last call, without colours and movements."""
        new = ""
        while select.select([self._ours], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):
                new += os.read(self._ours, 1 << 16).decode(errors="replace")
        self.raw += new
        return _ESCAPES.sub("", new)

    def wait_for(self, pattern: str) -> str:
        """Return what it writes until a pattern has come; fails if it does not."""
        seen = ""

        def found() -> bool:
            nonlocal seen
            seen += self.read()
            return bool(re.search(pattern, seen))

        try:
            wait_until(found, f"{pattern} is shown")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}") from None
        return seen

    def press(self, keys: str) -> None:
        """Press keys, each by itself."""
        os.write(self._ours, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait until it ends, read the rest, and return its exit status."""
        end = time.monotonic() + DEADLINE_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            self.read()
        self.read()
        return self.process.wait(1)

    def is_as_before(self) -> bool:
        """Return whether the terminal is as it was before the command, on its first screen."""
        modes = termios.tcgetattr(self._theirs) == self._before
        return modes and self.raw.rfind("\x1b[?1049l") >= self.raw.rfind("\x1b[?1049h")
