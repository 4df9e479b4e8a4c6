"""Files of a slot that stand beside its metric files: one process writes them, and all may read.

As with metric files lock and data are the same inode, so that two processes never write to one, and
a file is complete and claimed before it gets its name. Their suffixes are not ``.db``, so that no
reader of metric files takes them for one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from obskit_gunicorn._store.locks import LockedFile

if TYPE_CHECKING:
    from collections.abc import Callable

_ASKING_SECONDS = 0.1


def open_beside(
    path: str,
    *,
    by_flock: bool,
    wrong: Callable[[LockedFile], str | None],
    make: Callable[[LockedFile], object],
) -> tuple[LockedFile, str | None]:
    """Open or create a file that only this process writes.

    Args:
        path: The file.
        by_flock: Whether another writer may hold only an flock.
        wrong: Returns what is wrong with a file that is there; then another one takes its place.
        make: Writes the content of a new one.

    Returns:
        The file, locked, and what was wrong with the one that was there before, if so.

    Raises:
        OSError: It cannot be opened or created, or another process writes it.
    """
    while True:
        try:
            file = LockedFile(path, os.O_RDWR)
        except FileNotFoundError:
            return make_beside(path, make), None
        try:
            if not file.claim(by_flock=by_flock, wait_seconds=_ASKING_SECONDS):
                if file.is_claimed(by_flock=by_flock):
                    raise OSError(errno.EBUSY, "another process writes this file", path)
                file.lock()  # who may only read is in the way; the lease keeps others out
            if file.is_in_place():
                found = wrong(file)
                if found is None:
                    return file, None
                other = make_beside(path, make)
                file.close()
                return other, found
        except BaseException:
            file.close()
            raise
        file.close()


def make_beside(path: str, make: Callable[[LockedFile], object]) -> LockedFile:
    """Create a file that only this process writes, in the place of one that is there.

    Args:
        path: The file.
        make: Writes its content.

    Raises:
        OSError: It cannot be created.
    """
    unfinished = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)
    file = LockedFile(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        file.claim(by_flock=False)
        make(file)
        os.rename(unfinished, path)
        file.path = path
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        file.close()
        raise
    return file
