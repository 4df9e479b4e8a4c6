"""Looking at something in a process of its own, so that nothing changes in this one.

What is looked at may end its process, hang, write to its streams, or need another user's rights.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from obskit_gunicorn._doctor.finding import Finding

_POLL_SECONDS = 0.1


class User(NamedTuple):
    """With whose rights the workers of a server run."""

    uid: int
    gid: int
    is_other: bool
    """Whether this process would have to become that user."""

    initgroups: bool = False

    @classmethod
    def of(cls, settings: Any) -> User:
        """Return the user that Gunicorn's settings name."""
        uid, gid = settings.uid, settings.gid
        is_other = os.geteuid() == 0 and (uid, gid) != (0, os.getegid())
        return cls(uid, gid, is_other, bool(settings.initgroups))

    def become(self) -> None:
        """Become that user for good, as Gunicorn's workers do."""
        from gunicorn import util

        util.set_owner_process(self.uid, self.gid, initgroups=self.initgroups)

    def __str__(self) -> str:
        return f"uid {self.uid}"


class EndedError(Exception):
    """The process has ended before it had said everything; the text says how."""


def apart(
    look: Callable[[], Iterable[Finding]],
    *,
    user: User | None = None,
    seconds: float = 60.0,
    output: int | None = None,
) -> Iterator[Finding]:
    """Yield what is found in a forked process.

    Args:
        look: Looks, in that process.
        user: With whose rights; by default with those of this process.
        seconds: How long it may take.
        output: The descriptor that what is printed there goes to.

    Raises:
        EndedError: The process has ended, or was ended, before it had said everything.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(look, user, output, writing)
    os.close(writing)
    try:
        yield from _received(reading, pid, seconds)
    finally:
        os.close(reading)


def _run(
    look: Callable[[], Iterable[Finding]], user: User | None, output: int | None, writing: int
) -> NoReturn:
    try:
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        if user is not None and user.is_other:
            user.become()
        for each in look():
            _send(writing, each)
        _send(writing, None)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            import traceback

            traceback.print_exc()
            with contextlib.suppress(OSError):
                _send(writing, f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(0)  # what the application registers at its import must not run


def _send(writing: int, what: Finding | str | None) -> None:
    """Send what was found, what was raised, or nothing at the end."""
    data = pickle.dumps(what)
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(writing, data) :]


def _received(reading: int, pid: int, seconds: float) -> Iterator[Finding]:
    """Yield what a child sends; end with it, for its own children may keep the pipe open."""
    deadline = time.monotonic() + seconds
    data, ended = b"", None
    try:
        while True:
            while select.select([reading], [], [], 0 if ended is not None else _POLL_SECONDS)[0]:
                part = os.read(reading, 1 << 16)
                data += part
                if not part:
                    break
            while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
                end = 4 + int.from_bytes(data[:4], "big")
                found, data = pickle.loads(data[4:end]), data[end:]
                if found is None:
                    return
                if isinstance(found, str):
                    raise EndedError(found)
                yield found
            if ended is not None:
                raise EndedError(_words(ended))
            found_pid, status = os.waitpid(pid, os.WNOHANG)
            if found_pid:
                ended = status
            elif time.monotonic() > deadline:
                raise EndedError(f"it did not end within {seconds:g} s")
    finally:
        if ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _words(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"it was ended by signal {os.WTERMSIG(status)}"
    return f"it ended by itself, with status {os.WEXITSTATUS(status)}"
