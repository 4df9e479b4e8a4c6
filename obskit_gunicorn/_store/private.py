"""The private directory, used if no directory is named; its last holder removes it.

It is in memory if possible, and closed to other users (mode 0700). Directories that killed runs
left behind are removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store.directory import SlotDirectory, explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obskit_gunicorn._store.leases import Lease

_PREFIX = "obskit-gunicorn-"
_STALE_SECONDS = 60.0
# What systemd makes of `RuntimeDirectory=shop`, of `shop/web`, and of the first in a user's unit.
# Only the unit has RUNTIME_DIRECTORY in its environment; whoever looks at its server has not.
_RUNTIME_DIRECTORIES = ("/run/*", "/run/*/*", "/run/user/*/*")


class NoPlaceError(OSError):
    """There is no directory in which a private one can be made."""


def why_not(error: OSError, user: int) -> Problem:
    """Return why a private directory cannot be made, and what to do about it.

    Args:
        error: What :func:`make` has raised.
        user: The uid of the workers.
    """
    advice = f"let uid {user} write to one, or set multiproc_dir"
    if isinstance(error, NoPlaceError):
        places = "neither /dev/shm nor a temporary directory"
        return Problem(f"there is no place for a private directory: {places}", advice)
    problem = explain(error, "private directory")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        # Nobody has named the directory that this is about, so he cannot mend that one.
        return Problem(problem.text, advice)
    return problem


def is_private(directory: SlotDirectory) -> bool:
    """Return whether we created this directory as a private one, and so may remove it."""
    is_named_so = os.path.basename(directory.path).startswith(_PREFIX)
    return is_named_so and directory.generation().get("private") is True


def may_stay(directory: SlotDirectory) -> bool:
    """Return whether a private directory is there, or can be made again where it was."""
    parent = os.path.dirname(directory.path)
    return os.path.isdir(directory.path) or os.access(parent, os.W_OK | os.X_OK)


def make(
    user: int, *, continued: Mapping[str, Any] | None = None, keep_unpublished: bool = False
) -> tuple[SlotDirectory, Lease]:
    """Create a private directory, and take the arbiter's lease in it.

    Args:
        user: The uid of the workers, with whose rights this is done.
        continued: What tells the generation that goes on here, because its directory is lost.
        keep_unpublished: Note that nothing was published, for the next server.

    Raises:
        OSError: No private directory can be created.
    """
    error: OSError = NoPlaceError()
    for parent in places(user):
        if os.path.isabs(parent) and os.access(parent, os.W_OK | os.X_OK):
            try:
                return _make_in(parent, user, continued, keep_unpublished)
            except OSError as reason:
                error = reason
    raise error


def _make_in(
    parent: str, user: int, continued: Mapping[str, Any] | None, keep_unpublished: bool
) -> tuple[SlotDirectory, Lease]:
    # It has another name until it is leased, so that a server which starts at the same time does
    # not remove it as a leftover.
    unfinished = tempfile.mkdtemp(prefix=f".{_PREFIX}{user}-", dir=parent)
    try:
        started = SlotDirectory(unfinished).start_generation(
            keep=False, private=True, continued=continued, keep_unpublished=keep_unpublished
        )
        path = os.path.join(parent, os.path.basename(unfinished)[1:])
        os.rename(unfinished, path)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    started.lease.moved_to(path)
    return SlotDirectory(path), started.lease


def remove_leftovers(user: int, *, unpublished_to: str | None = None) -> None:
    """Remove the private directories that killed runs of this user left behind.

    Args:
        user: The uid of their workers.
        unpublished_to: The directory to which what is unpublished is moved before.
    """
    for parent in places(user):
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if _may_be_left(entry, user):
                        SlotDirectory(entry.path).remove_if_unused(
                            wait_seconds=0, unpublished_to=unpublished_to
                        )


def find() -> list[str]:
    """Return the private directories of this machine that this user can see."""
    found = [
        path
        for parent in [*map(glob.escape, places(os.geteuid())), *_RUNTIME_DIRECTORIES]
        for path in sorted(glob.glob(os.path.join(parent, f"{_PREFIX}*")))
    ]
    # One may be there under several names: /run/shm is /dev/shm on Debian.
    once = {os.path.realpath(path): path for path in reversed(found)}
    return [path for path in reversed(once.values()) if is_private(SlotDirectory(path))]


def _may_be_left(entry: os.DirEntry[str], user: int) -> bool:
    """Return whether a directory is a private one of this user, and not being created just now."""
    if not entry.name.removeprefix(".").startswith(_PREFIX):
        return False
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
        return False
    if entry.name.startswith("."):
        return time.time() - status.st_mtime >= _STALE_SECONDS
    return is_private(SlotDirectory(entry.path))


def places(user: int) -> Iterator[str]:
    """Yield directories for a private one of a user, in memory first; perhaps not there."""
    # Workers that run as another user have no access to this user's directory.
    if user == os.geteuid():
        # That of a systemd unit, which lives just as long as the server does.
        yield from filter(None, os.environ.get("RUNTIME_DIRECTORY", "").split(":"))
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        # A session's goes at the user's last logout, under a server that goes on.
        if runtime and not os.path.realpath(runtime).startswith("/run/user/"):
            yield runtime
    yield "/dev/shm"
    with contextlib.suppress(FileNotFoundError):
        yield tempfile.gettempdir()
