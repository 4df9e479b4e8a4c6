"""Files that this process keeps open, so that it can go on reading them when they are removed.

Somebody may clear a directory that is in use, as systemd does at a user's last logout. Processes
then go on writing files that have no name any more, and only who has them open can read them. For
the exporter: of all others each scrape opens what it reads, and closes it again.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

from obskit_gunicorn._store.locks import LockedFile

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHARE = 6
"""A sixth of the descriptors that the process may have, and so room for everything else: there are
metric files, columns and leases."""


class KeptFiles:
    """Files of one directory, each open for reading, by name.

    Not thread-safe. A forked child that forgets it closes its copies.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._files: dict[str, LockedFile] = {}
        self._directory = ""
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE

    def get(self, name: str) -> LockedFile | None:
        """Return the open file of a name; ``None`` if it must be opened by its name."""
        return self._files.get(name)

    def look(self, directory: str, names: Mapping[str, int]) -> list[tuple[str, LockedFile]]:
        """Keep the files with these names open, as far as there are descriptors.

        Args:
            directory: The directory; another one than before if that was lost.
            names: The files that are in it now, each with its inode if that is known, or else 0.

        Returns:
            Those that were removed since the last look, still open, with their names.
        """
        removed = []
        is_same, self._directory = directory == self._directory, directory
        for name, file in list(self._files.items()):
            if is_same and (names.get(name) == file.inode or file.is_in_place()):
                continue
            del self._files[name]
            # One that has another name now was replaced by its own process, which has salvaged it.
            if file.is_open() and not file.is_linked():
                removed.append((name, file))
            else:
                file.close()
        for name in names:
            if name not in self._files and len(self._files) < self._most:
                with contextlib.suppress(OSError):
                    self._files[name] = LockedFile(os.path.join(directory, name), os.O_RDONLY)
        return removed


def is_over(file: LockedFile) -> bool:
    """Return whether nobody holds a removed file any more; asked before it is read the last time.

    The question itself takes the lock for a moment, which nobody can notice: who could take it
    would have to find the file.
    """
    try:
        return not file.is_claimed(by_flock=True)
    except OSError:
        return False
