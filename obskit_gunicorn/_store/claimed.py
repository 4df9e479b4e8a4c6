"""Files that one process writes and all may read, opened with their claim or made whole.

Lock and data are the same inode, so that two processes never write to one file, and a file is
complete and claimed before it gets its name.

Safe with threads and forks. Must not run in signal context.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from obskit_gunicorn._store.locks import LockedFile

if TYPE_CHECKING:
    from collections.abc import Callable

_ASKING_SECONDS = 0.1


def open_claimed(path: str, *, by_flock: bool) -> LockedFile | None:
    """Open a file that is there, to be its only writer.

    Args:
        path: The file.
        by_flock: Whether another writer may hold only an flock.

    Returns:
        The file, locked; ``None`` if another process writes it.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be opened.
    """
    while True:
        file = LockedFile(path, os.O_RDWR)
        try:
            # A process that only checks whether the slot is free holds an flock for a moment.
            if not file.claim(by_flock=by_flock, wait_seconds=_ASKING_SECONDS):
                if file.is_claimed(by_flock=by_flock):
                    file.close()
                    return None
                # Only the read lock of a process that may not write prevents the claim. The lease
                # still keeps others out.
                file.lock()
            if file.is_in_place():
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def make_claimed(path: str, unfinished: str, make: Callable[[LockedFile], object]) -> LockedFile:
    """Create a file that only this process writes, in the place of one that is there.

    Args:
        path: The file.
        unfinished: Its name until it is complete.
        make: Writes its content; called while it has that name.

    Returns:
        The file, locked.

    Raises:
        OSError: It cannot be created.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)
    file = LockedFile(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        file.claim(by_flock=False)
        make(file)
        os.rename(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        file.close()
        raise
    file.path = path
    return file
