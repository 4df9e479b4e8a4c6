"""What all slots of a directory have in one kind of file beside their metric files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

from obskit_gunicorn._store.beside import BesideReader
from obskit_gunicorn._store.fileformat import is_slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from obskit_gunicorn._store.fileformat import Damage

Reader = TypeVar("Reader", bound=BesideReader)


class FilesBeside(Generic[Reader]):
    """The readers of these files, scrape after scrape; iterates over them. Not thread-safe.

    A directory without such files costs a look at the names of its files.
    """

    def __init__(self, suffix: str, make: Callable[[str], Reader]) -> None:
        """Know no file yet.

        Args:
            suffix: What their names end with.
            make: Returns a reader of the file with this path.
        """
        self._suffix = suffix
        self._make = make
        self._readers: dict[str, Reader] = {}
        self._seen: list[object] = []

    def __iter__(self) -> Iterator[Reader]:
        """Return the readers, by the names of their files."""
        return iter(self._readers.values())

    def refresh(
        self, directory: str, names: Iterable[str], skip: Callable[[str, Damage], object]
    ) -> bool:
        """Read what has changed.

        Args:
            directory: The directory.
            names: The files in it.
            skip: Called with the name of a file that cannot be read, and why.

        Returns:
            Whether anything has changed.
        """
        found = [name for name in names if name.endswith(self._suffix)]
        if not found and not self._readers:
            return False
        readers: dict[str, Reader] = {}
        for name in sorted(found):
            if not is_slot(name.removesuffix(self._suffix)):
                continue
            path = os.path.join(directory, name)
            reader = self._readers.get(name)
            if reader is None or reader.path != path:
                reader = self._make(path)
            try:
                reader.refresh()
            except FileNotFoundError:
                continue
            readers[name] = reader
            if reader.damage is not None:
                skip(name, reader.damage)
        self._readers = readers
        seen, self._seen = self._seen, [reader.content() for reader in readers.values()]
        return [*map(id, seen)] != [*map(id, self._seen)]
