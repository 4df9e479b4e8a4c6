"""What a reader may believe of a value column, told as plainly as possible."""

from __future__ import annotations

import os
import struct

from obskit_gunicorn._store.column import HEADER_BYTES, column_path, unpack_header
from obskit_gunicorn._store.fileformat import HEADER_BYTES as METRIC_FILE_HEADER_BYTES
from obskit_gunicorn._store.fileformat import read_entries
from obskit_gunicorn._store.locks import LockedFile, NotAFileError


def read_column(path: str) -> list[float] | None:
    """Return the values in the column of a metric file; ``None`` if the file must be read."""
    try:
        with LockedFile(column_path(path), os.O_RDONLY) as file:
            is_claimed = file.is_claimed(by_flock=False)
            data = os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0)
    except (FileNotFoundError, NotAFileError):
        return None
    header = unpack_header(data)
    if header is None or not is_claimed or not _is_of(path, header.inode, header.number):
        return None
    return list(struct.unpack_from(f"={header.length}d", data, HEADER_BYTES))


def _is_of(path: str, inode: int, number: bytes) -> bool:
    try:
        with LockedFile(path, os.O_RDONLY) as file:
            found = os.pread(file.descriptor, METRIC_FILE_HEADER_BYTES, 0)
            return os.fstat(file.descriptor).st_ino == inode and found[4:] == number
    except FileNotFoundError:
        return False


def read_metric_file(path: str) -> tuple[list[bytes], list[float]]:
    """Return the keys and values of the entries of a metric file, in their order."""
    with open(path, "rb") as file:
        data = file.read()
    (used,) = struct.unpack_from("=i", data)
    keys, _end, damage = read_entries(data, METRIC_FILE_HEADER_BYTES, used)
    assert damage is None
    values: list[float] = []
    at = METRIC_FILE_HEADER_BYTES
    for key in keys:
        at += len(key) + 16
        values += struct.unpack_from("=d", data, at - 16)
    return keys, values
