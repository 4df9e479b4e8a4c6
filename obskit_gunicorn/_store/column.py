"""The bytes of a ``.col`` value column: the values of a metric file once more, close together.

A metric file is mostly keys, which do not change. So its writer stores each value a second time, in
a column beside the file, and a scrape reads a twentieth of the bytes::

    offset 0   8 bytes  obskcol1
    offset 8   uint64   the inode of the metric file that the column belongs to
    offset 16  8 bytes  the random number in the header of that file, then 4 zero bytes
    offset 24  int64    count: how many values there are
    offset 32  doubles  the value of each entry of the metric file, in the order of the entries; a
                        key that occurs twice has two

Integers and doubles have the byte order of the machine. The metric file is the truth: it is what
prometheus_client reads, and it is stored to first, the column second. ``count`` grows last, in one
store, when the entry is in both.

A column counts only while its writer has a claim on it, see :mod:`obskit_gunicorn._store.locks`,
and while it names the metric file that is in place: inode and number. Otherwise it may be what
another holder has left behind, who was killed, and the metric file is read. Each time that a
process opens a metric file it makes a new column, complete and claimed before it gets its name. A
file with timestamps has none: there value and timestamp are stored at once.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = b"obskcol1"
HEADER_BYTES = 32
COUNT_INDEX = 3
"""Which of the eight-byte words of a column is the count."""

SUFFIX = ".col"
_METRIC_FILE_SUFFIX = ".db"

_HEADER = struct.Struct("=8sQ4s4xq")


class Header(NamedTuple):
    """What the header of a column says."""

    inode: int
    """The inode of its metric file."""

    number: bytes
    """The four bytes in the header of its metric file that tell it from its replacement."""

    length: int
    """How many values there are; not checked against the size of the column."""


def pack_header(inode: int, number: bytes, count: int) -> bytes:
    """Return a header as it is stored in the column.

    Args:
        inode: The inode of the metric file.
        number: Bytes 4 to 8 of the metric file's header.
        count: How many values there are.
    """
    return _HEADER.pack(MAGIC, inode, number, count)


def unpack_header(data: bytes | bytearray | memoryview) -> Header | None:
    """Return what a header says; ``None`` if it is not that of a column.

    Args:
        data: The first :data:`HEADER_BYTES` of the file, or more, or fewer if it has fewer.
    """
    if len(data) < HEADER_BYTES:
        return None
    magic, inode, number, length = _HEADER.unpack_from(data)
    return Header(inode, number, length) if magic == MAGIC and length >= 0 else None


def column_path(path: str) -> str:
    """Return the path, or the name, of the column of a metric file."""
    return path.removesuffix(_METRIC_FILE_SUFFIX) + SUFFIX


def metric_file_path(path: str) -> str:
    """Return the path, or the name, of the metric file of a column; empty if it is no column's."""
    if not path.endswith(SUFFIX):
        return ""
    return path.removesuffix(SUFFIX) + _METRIC_FILE_SUFFIX
