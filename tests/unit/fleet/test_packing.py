"""How counts travel: back as they were, and nothing at all of what was damaged or is foreign."""

from __future__ import annotations

import json
import math
import tracemalloc
import zlib
from array import array

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from obskit_gunicorn._fleet import packing
from obskit_gunicorn._fleet.packing import (
    PackedPart,
    PackingError,
    pack,
    pack_ids,
    pack_json,
    unpack,
    unpack_ids,
    unpack_json,
)

ids_lists = st.lists(st.integers(0, 2**31 - 1), max_size=50)
parts_lists = st.lists(
    st.builds(
        lambda prefix, holder, ids, numbers: PackedPart(
            prefix, holder, pack_ids(ids), array("d", numbers)
        ),
        st.text(max_size=10),
        st.text(max_size=10),
        ids_lists,
        st.lists(st.floats(), max_size=50),
    ),
    max_size=5,
)
SOME = [
    PackedPart("counter", "", pack_ids(range(100)), array("d", map(float, range(100)))),
    PackedPart("gauge_all", "slot-1", pack_ids([7, 3]), array("d", [1.5, math.inf, -0.0, 2.0])),
]
PACKED = pack(SOME)


def sealed(head: object, rest: bytes = zlib.compress(b"")) -> bytes:
    """Return what :func:`pack` would write if it had made that head."""
    described = head if isinstance(head, bytes) else json.dumps(head).encode()
    all_of_it = described + rest
    size, checksum = len(described), zlib.crc32(all_of_it)
    return size.to_bytes(4, "big") + checksum.to_bytes(4, "big") + all_of_it


@given(parts_lists)
def test_what_was_packed_comes_back(parts: list[PackedPart]) -> None:
    """Every bit of every number does, not-a-number and minus zero included."""
    found = unpack(pack(parts))
    assert [part[:3] for part in found] == [part[:3] for part in parts]
    assert [part.numbers.tobytes() for part in found] == [part.numbers.tobytes() for part in parts]


@given(ids_lists)
def test_numbers_of_keys_come_back(ids: list[int]) -> None:
    """In the order in which they were given."""
    assert unpack_ids(pack_ids(ids)) == tuple(ids)


@given(st.recursive(st.none() | st.text() | st.floats(allow_nan=False), st.lists, max_leaves=20))
def test_json_comes_back(content: object) -> None:
    """Whatever JSON can be."""
    assert unpack_json(pack_json(content)) == content


def test_ascending_numbers_take_next_to_no_room() -> None:
    """The numbers of 9,000 keys that were new at once are packed to less than 100 bytes."""
    assert len(pack_ids(range(500, 9500))) < 100


@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * 8)
@example(b"\xff" * 300)
@example(sealed({"a": 1}))
@example(sealed(5))
@example(sealed(["abcd"]))
@example(sealed([["c", "", 0, -1]]))
@example(sealed([["c", "", -1, 0]]))
@example(sealed([["c", "", 0, 0.5]]))
@example(sealed([["c", "", 0, math.nan]]))
@example(sealed([["c", "", 0, math.inf]]))
@example(sealed([["c", "", 0, 10**300]]))
@example(sealed(b'[["c", "", 0, 1' + b"0" * 5000 + b"]]"))
@example(sealed([["c", "", 10**300, 0]]))
@example(sealed([[1, "", 0, 0]]))
@example(sealed([["c", None, 0, 0]]))
@example(sealed([["c", "", 0, 1]]))
@example(sealed([["c", "", 0, 1]], zlib.compress(b"\0" * 16)))
@example(sealed([["c", "", 0, 1]], zlib.compress(b"\0" * 8)[:-1]))
@example(sealed([["c", "", 0, 1]], zlib.compress(b"\0" * 8) + b"x"))
@example(sealed(b"[" * 100_000))
@example(sealed(b"\xff"))
@example(sealed(b""))
def test_foreign_bytes(foreign: bytes) -> None:
    """Nothing but a PackingError comes of what was never packed."""
    for read in (unpack, unpack_ids, unpack_json):
        with pytest.raises(PackingError):
            read(foreign)


@pytest.mark.parametrize("at", range(len(PACKED)))
def test_truncated(at: int) -> None:
    """A beginning is not taken for all of it."""
    with pytest.raises(PackingError):
        unpack(PACKED[:at])


@settings(max_examples=300)
@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_one_damaged_byte(at: int, flipped: int) -> None:
    """It is noticed wherever it is, in names and numbers of keys too."""
    damaged = bytearray(PACKED)
    damaged[at] ^= flipped
    with pytest.raises(PackingError):
        unpack(bytes(damaged))


@given(ids_lists.filter(bool), st.data())
def test_damaged_numbers_of_keys(ids: list[int], data: st.DataObject) -> None:
    """They are refused, or are what they were; zlib has bits that mean nothing."""
    packed = bytearray(pack_ids(ids))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack_ids(bytes(packed))
    except PackingError:
        return
    assert found == tuple(ids)


def test_negative_numbers_of_keys() -> None:
    """They would be looked up from the end, and be another key."""
    with pytest.raises(PackingError, match="negative"):
        unpack_ids(pack_ids([5, -1]))


def test_half_a_number_of_a_key() -> None:
    """It is not dropped silently."""
    with pytest.raises(PackingError):
        unpack_ids(zlib.compress(b"\0" * 5))


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that grow to megabytes do not grow here."""
    for name in ("_MOST_IDS_BYTES", "_MOST_VALUES_BYTES", "_MOST_JSON_BYTES"):
        assert getattr(packing, name) <= 1 << 25
        monkeypatch.setattr(packing, name, 1 << 16)
    zeros = zlib.compress(b"\0" * (1 << 24), 9)
    spaces = zlib.compress(b" " * (1 << 24), 9)
    bombs = [
        (unpack_ids, zeros),
        (unpack_json, spaces),
        (unpack, sealed([["c", "", 0, 1 << 13]], zeros)),
        (unpack, sealed([["c", "", 0, 1 << 21]], zeros)),
        (unpack, sealed([["c", "", 0, 1 << 12]] * 3, zeros)),
    ]
    tracemalloc.start()
    try:
        for read, bomb in bombs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with pytest.raises(PackingError):
                read(bomb)
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 18
    finally:
        tracemalloc.stop()
