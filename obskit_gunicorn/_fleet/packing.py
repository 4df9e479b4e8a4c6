"""How counts travel: a few kilobytes for thousands of series.

The store gives each key a number. A host sends the numbers of its keys, which it packs once, and
their values. Nothing but numbers and JSON is read back, never more than was announced, and nothing
that was damaged on its way.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COUNTING = frozenset({"counter", "histogram", "summary"})
"""The kinds of files whose values outlive their host."""

_IDS_LEVEL = 6
_VALUES_LEVEL = 1
"""A third of the default level's time for a few per cent more bytes."""

_HEAD_BYTES = 8
"""How long the description of the parts is, and the checksum of all that follows."""

_MOST_IDS_BYTES = 1 << 24
_MOST_VALUES_BYTES = 1 << 25
_MOST_JSON_BYTES = 1 << 23
"""Four million series, and a thousand times the figures of a host: so that foreign bytes cannot
fill the memory."""


class PackingError(ValueError):
    """What was read is not what :func:`pack` has written."""


class PackedPart(NamedTuple):
    """A part of what a host publishes, see :class:`~obskit_gunicorn._scrape.source.Part`."""

    prefix: str
    holder: str
    ids: bytes
    """The numbers of its keys, by :func:`pack_ids`."""

    numbers: array[float]


def pack_ids(ids: Iterable[int]) -> bytes:
    """Return numbers, packed; those that ascend by one take next to no room."""
    deltas, last = array("i"), 0
    for each in ids:
        deltas.append(each - last)
        last = each
    return zlib.compress(_little(deltas).tobytes(), _IDS_LEVEL)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Return what :func:`pack_ids` was given.

    Raises:
        PackingError: It was not.
    """
    deltas = array("i")
    try:
        deltas.frombytes(_inflated(packed, _MOST_IDS_BYTES))
    except ValueError as error:
        raise PackingError(str(error)) from None
    ids = tuple(accumulate(_little(deltas)))
    if ids and min(ids) < 0:  # where they are looked up, it would be another key, from the end
        raise PackingError("it has a negative number of a key")
    return ids


def pack(parts: Sequence[PackedPart]) -> bytes:
    """Return parts as bytes."""
    head = json.dumps(
        [[part.prefix, part.holder, len(part.ids), len(part.numbers)] for part in parts]
    ).encode()
    ids = b"".join(part.ids for part in parts)
    values = b"".join(_little(part.numbers).tobytes() for part in parts)
    rest = head + ids + zlib.compress(_planes(values), _VALUES_LEVEL)
    return len(head).to_bytes(4, "big") + zlib.crc32(rest).to_bytes(4, "big") + rest


def unpack(packed: bytes) -> list[PackedPart]:
    """Return what :func:`pack` was given.

    Raises:
        PackingError: It was not.
    """
    try:
        if zlib.crc32(packed[_HEAD_BYTES:]) != int.from_bytes(packed[4:_HEAD_BYTES], "big"):
            raise PackingError("its checksum is wrong")
        at = _HEAD_BYTES + int.from_bytes(packed[:4], "big")
        head = json.loads(packed[_HEAD_BYTES:at])
        ids = []
        for prefix, holder, size, count in head:
            if not (isinstance(prefix, str) and isinstance(holder, str) and size >= 0 <= count):
                raise PackingError("its head is wrong")
            ids.append(packed[at : at + size])
            at += size
        wanted = 8 * sum(count for *_, count in head)
        if wanted > _MOST_VALUES_BYTES:
            raise PackingError("it announces too much")
        values = _inflated(packed[at:], wanted)
        if len(values) != wanted:
            raise PackingError(f"it has {len(values)} bytes of values in place of {wanted}")
        values = _rows(values)
        parts, at = [], 0
        for (prefix, holder, _size, count), each in zip(head, ids, strict=True):
            numbers = array("d")
            numbers.frombytes(values[at : at + 8 * count])
            parts.append(PackedPart(prefix, holder, each, _little(numbers)))
            at += 8 * count
    except PackingError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise PackingError(str(error)) from None
    return parts


def pack_json(content: Any) -> bytes:
    """Return JSON, packed."""
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), _VALUES_LEVEL)


def unpack_json(packed: bytes) -> Any:
    """Return what :func:`pack_json` was given.

    Raises:
        PackingError: It was not.
    """
    try:
        return json.loads(_inflated(packed, _MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise PackingError(str(error)) from None


def _inflated(packed: bytes, most: int) -> bytes:
    """Return what was compressed, and never more than expected.

    Raises:
        PackingError: It is damaged, or more.
    """
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(packed, most + 1)
    except zlib.error as error:
        raise PackingError(str(error)) from None
    if len(data) > most or not inflate.eof or inflate.unused_data:
        raise PackingError("it is damaged, or has more in it than announced")
    return data


def _planes(values: bytes) -> bytes:
    """Return the first bytes of all doubles, then the second ones, and so on.

    Most of them are 0 then, many in a row: that is faster to compress, and gets smaller.
    """
    return b"".join([values[at::8] for at in range(8)])


def _rows(planes: bytes) -> bytes:
    """Return what :func:`_planes` was given."""
    values = bytearray(len(planes))
    count = len(planes) // 8
    for at in range(8):
        values[at::8] = planes[at * count : (at + 1) * count]
    return bytes(values)


def _little(numbers: array[Any]) -> array[Any]:
    """Return numbers in the byte order of the store, or from there: the same on most machines."""
    if sys.byteorder == "little":
        return numbers
    swapped = numbers[:]
    swapped.byteswap()
    return swapped
