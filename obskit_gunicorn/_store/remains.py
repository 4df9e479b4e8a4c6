"""What a killed server has counted and nobody has published: kept when the next one wipes.

The arbiter that begins a generation moves the files into a directory of their own, beside those of
the new generation. The exporter publishes them as the counts of a server that has ended, and
removes them. Only where many hosts come together in a store; otherwise a wipe is a wipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

from obskit_gunicorn._store import baselines, note
from obskit_gunicorn._store.fileformat import MetricFileName

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "unpublished-"
"""How the names of such directories begin."""

_MOST = 4
_KINDS = ("counter", "histogram", "summary")


def find(directory: str) -> list[str]:
    """Return the paths of what is unpublished in a directory.

    Raises:
        OSError: It cannot be read.
    """
    return sorted(
        os.path.join(directory, name)
        for name in os.listdir(directory)
        if name.startswith(PREFIX) and not name.endswith(".new")
    )


def keep(source: str, directory: str) -> None:
    """Move what is unpublished in a directory that nobody uses out of the way of a wipe.

    The note says whether there is anything. It moves last, so that a move that was cut short is
    finished by the next start. Of very many the oldest are removed.

    Args:
        source: Where it is.
        directory: Where it is kept; perhaps the same.

    Raises:
        OSError: It cannot be moved.
    """
    found = note.read(source)
    if found is None or found.ended or os.sep in found.generation:
        return
    target = os.path.join(directory, f"{PREFIX}{found.generation}")
    os.makedirs(target, mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # first: what was removed stays so
        _move(os.path.join(source, baselines.NAME), os.path.join(target, baselines.NAME))
    for each in os.listdir(source):
        parsed = MetricFileName.parse(each)
        if parsed is not None and parsed.prefix in _KINDS:
            _move(os.path.join(source, each), os.path.join(target, each))
    _move(os.path.join(source, note.NAME), os.path.join(target, note.NAME))
    kept = sorted(find(directory), key=lambda path: os.stat(path).st_mtime)
    for path in kept[:-_MOST]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def claimed(path: str) -> Iterator[bool]:
    """Hold one of :func:`find` for this process; yield whether it could be had.

    Another exporter may be publishing and removing it: what is half removed must not be published
    in the place of the whole.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.stat(path), os.fstat(descriptor))
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        yield is_there
    finally:
        os.close(descriptor)


def drop(directory: str) -> None:
    """Remove what is unpublished: it is no longer wanted."""
    with contextlib.suppress(OSError):
        for path in find(directory):
            shutil.rmtree(path, ignore_errors=True)


def _move(source: str, target: str) -> None:
    """Move a file; to another file system too."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copyfile(source, target)
        os.unlink(source)
