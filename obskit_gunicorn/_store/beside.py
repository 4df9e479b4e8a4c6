"""Files of a slot that stand beside its metric files: one process writes them, and all may read.

Their suffixes are not ``.db``, so that no reader of metric files takes them for one.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from obskit_gunicorn._store.claimed import make_claimed, open_claimed
from obskit_gunicorn._store.fileformat import Damage
from obskit_gunicorn._store.locks import NotAFileError, open_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._store.locks import LockedFile


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
    try:
        file = open_claimed(path, by_flock=by_flock)
    except FileNotFoundError:
        return make_beside(path, make), None
    if file is None:
        raise OSError(errno.EBUSY, "another process writes this file", path)
    try:
        found = wrong(file)
        if found is None:
            return file, None
        other = make_beside(path, make)
    except BaseException:
        file.close()
        raise
    file.close()
    return other, found


def make_beside(path: str, make: Callable[[LockedFile], object]) -> LockedFile:
    """Create a file that only this process writes, in the place of one that is there.

    Args:
        path: The file.
        make: Writes its content.

    Raises:
        OSError: It cannot be created.
    """
    return make_claimed(path, path + ".new", make)


class BesideReader(ABC):
    """Reads such a file at each scrape.

    Nothing in the file can fail or hang the reader. It maps nothing and keeps nothing open. Not
    thread-safe.

    Attributes:
        path: The file.
        damage: What was wrong with the file when it was last read, if anything.
    """

    __slots__ = ("damage", "path")

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        self.path = path
        self.damage: Damage | None = None

    def refresh(self) -> None:
        """Read the file, and set :attr:`damage`.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        try:
            descriptor = open_file(self.path, os.O_RDONLY)
            try:
                self.damage = self._read(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except NotAFileError as error:
            self.damage = Damage("foreign", str(error))
        except OSError as error:
            self.damage = Damage("unreadable", str(error))

    @abstractmethod
    def content(self) -> object:
        """Return what was read; another object if that has changed."""

    @abstractmethod
    def _read(self, descriptor: int) -> Damage | None:
        """Read the file through a descriptor, and return what is wrong with it.

        Raises:
            OSError: It cannot be read.
        """
