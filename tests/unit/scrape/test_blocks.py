"""Kept blocks: the text is that of a rendering anew, and the compressed form one gzip stream."""

from __future__ import annotations

import gzip
import math
import random
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obskit_gunicorn._scrape import blocks
from obskit_gunicorn._scrape.blocks import Block, KeptLines, Zipped
from obskit_gunicorn._scrape.formats import go_float

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

NUMBERS = st.one_of(
    st.floats(), st.sampled_from([0.0, 1.0, 999999.0, 1e6, 1e16, 1e22, math.nan, math.inf])
).map(lambda number: number + 0.0)


def prefixes(count: int) -> list[str]:
    """Return the text before so many values."""
    return [f'\napp_requests_total{{path="/item/{number}"}} ' for number in range(count)]


def rendered(lines: KeptLines, values: list[float]) -> bytes:
    """Return the text of all blocks."""
    return b"".join(block.text for block in lines.rendered(values))


def anew(before: list[str], values: list[float]) -> bytes:
    """Return the same, line by line."""
    lines = [f"{each[1:]}{go_float(value)}\n" for each, value in zip(before, values, strict=True)]
    return "".join(lines).encode()


@given(st.lists(st.dictionaries(st.integers(0, 699), NUMBERS, max_size=8), max_size=6))
def test_same_text(changes: list[dict[int, float]]) -> None:
    """Whatever changes from one rendering to the next."""
    before = prefixes(700)
    lines = KeptLines(before)
    values = [0.0] * 700
    assert rendered(lines, values) == anew(before, values)
    for change in changes:
        values = values[:]  # what was rendered is never changed
        for at, value in change.items():
            values[at] = value
        assert rendered(lines, values) == anew(before, values)
        assert rendered(lines, values) == anew(before, values)


def test_what_is_kept() -> None:
    """A block is another object only if one of its values has changed."""
    lines = KeptLines(prefixes(600))
    values = [float(number) for number in range(600)]
    first = lines.rendered(values)
    assert len(first) == 3
    assert lines.rendered(values) is first
    assert lines.rendered(values[:]) == first
    changed = values[:]
    changed[300] = 7.0
    second = lines.rendered(changed)
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert first[1].text.count(b" 300.0\n") == 1


@pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 600])
@pytest.mark.parametrize("added", [1, 255, 256, 257, 1000])
def test_lines_that_go_on(count: int, added: int) -> None:
    """Whole blocks of the lines before are kept, and no text is that of before."""
    every = prefixes(count + added)
    values = [float(number) for number in range(count + added)]
    before = KeptLines(every[:count])
    first = before.rendered(values[:count])
    lines = KeptLines(every, before)
    assert rendered(lines, values) == anew(every, values)
    kept = [a is b for a, b in zip(first, lines.rendered(values), strict=False)]
    assert kept == [True] * (count // 256) + [False] * (count % 256 > 0)
    assert rendered(before, values[:count]) == anew(every[:count], values[:count])


def many(count: int) -> list[Block]:
    """Return blocks of several sizes."""
    rng = random.Random(count)
    return [
        Block("".join(f"m{rng.randrange(99)} {n}\n" for _ in range(rng.randrange(900))).encode())
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 40])
@pytest.mark.parametrize("rest", [b"", b"# EOF\n", b"x" * 100_000])
def test_one_stream(tmp_path: Path, count: int, rest: bytes) -> None:
    """Every reader takes it, also one that stops at the end of the first stream."""
    found = many(count)
    text = b"".join(block.text for block in found) + rest
    zipped = Zipped()
    for _ in range(2):
        packed = zipped.packed(found, rest)
        assert gzip.decompress(packed) == text
        one = zlib.decompressobj(16 + zlib.MAX_WBITS)
        assert one.decompress(packed) + one.flush() == text
        assert one.eof
        assert one.unused_data == b""
    (tmp_path / "metrics.gz").write_bytes(packed)
    subprocess.run(["gzip", "-t", "metrics.gz"], cwd=tmp_path, check=True)
    assert len(packed) < 100 + len(gzip.compress(text, 1)) * 1.2


def test_units_are_compressed_once(mocker: MockerFixture) -> None:
    """What stays is not compressed again, though values in front of it have more digits now."""
    compress = mocker.spy(blocks, "_deflated")
    lines = KeptLines(prefixes(5_000))
    values = [1.0] * 5_000
    zipped = Zipped()
    zipped.packed(lines.rendered(values), b"")
    units = compress.call_count
    assert units > 5
    zipped.packed(lines.rendered(values), b"more")
    assert compress.call_count == units
    for at in (0, 2_600):
        values = values[:]
        values[at] = 123456.789
        before = compress.call_count
        found = lines.rendered(values)
        packed = zipped.packed(found, b"")
        assert compress.call_count == before + 1
        assert gzip.decompress(packed) == anew(prefixes(5_000), values)
    assert len(zipped._kept) == units
    zipped.packed([], b"")
    assert zipped._kept == {}
