"""Rendered text that is kept while its values stay, in blocks of lines.

Most values do not change from one scrape to the next. So the lines of a family are rendered block
by block, and a block whose values are those of the last time is used again, as text and compressed.
Blocks are never changed, only replaced: any number of threads may render at once.
"""

from __future__ import annotations

import struct
import zlib
from itertools import chain
from typing import TYPE_CHECKING

from obskit_gunicorn._scrape.formats import written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LINES = 256
_LEVEL = 1
"""A tenth of the default level's time for a few per cent more bytes."""

_UNIT_BYTES = 16_384
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\4\xff"


class Block:
    """Some lines of an exposition.

    Attributes:
        text: The lines, each with its line break.
        values: Their values.
        size: About how long the text is, whatever the values are.
    """

    __slots__ = ("size", "text", "values")

    def __init__(self, text: bytes, values: Sequence[float] = (), size: int | None = None) -> None:
        """Keep a text."""
        self.text, self.values = text, values
        self.size = len(text) if size is None else size


class Notes:
    """What follows the values of some lines, such as exemplars. Never changed.

    Attributes:
        by_block: Line and text of each, by the number of the block.
    """

    __slots__ = ("by_block",)

    def __init__(self, texts: Iterable[tuple[int, str]] = ()) -> None:
        """Keep the text of each line."""
        self.by_block: dict[int, list[tuple[int, str]]] = {}
        for line, text in sorted(texts):
            self.by_block.setdefault(line // _LINES, []).append((line % _LINES, text))


class KeptLines:
    """The lines of a family in a format, as they were rendered last.

    Attributes:
        prefixes: The text before each value, beginning with a line break.
    """

    __slots__ = ("_blocks", "_last", "_noted", "prefixes")

    def __init__(self, prefixes: list[str], before: KeptLines | None = None) -> None:
        """Create the lines.

        Args:
            prefixes: The text before each value, beginning with a line break.
            before: Lines that these begin with.
        """
        self.prefixes = prefixes
        count = -(-len(prefixes) // _LINES)
        kept = [] if before is None else before._blocks[: len(before.prefixes) // _LINES]
        self._blocks: list[Block | None] = kept + [None] * (count - len(kept))
        self._last: tuple[Sequence[float], list[Block]] = ((), [])
        self._noted: dict[int, tuple[Block, list[tuple[int, str]], Block]] = {}

    def rendered(self, values: Sequence[float], notes: Notes | None = None) -> list[Block]:
        """Return the lines with these values, which are never changed.

        Args:
            values: The values.
            notes: What follows some of them; blocks without any are those of all other formats.
        """
        blocks = self._plain(values)
        if notes is None or not notes.by_block:
            return blocks
        blocks, before, noted = blocks[:], self._noted, {}
        for number, texts in notes.by_block.items():
            plain = blocks[number]
            known = before.get(number)
            if known is None or known[0] is not plain or known[1] != texts:
                known = plain, texts, self._with_notes(number * _LINES, plain, texts)
            noted[number] = known
            blocks[number] = known[2]
        self._noted = noted
        return blocks

    def _plain(self, values: Sequence[float]) -> list[Block]:
        known, blocks = self._last
        if known is values:
            return blocks
        blocks = []
        for number, block in enumerate(self._blocks):
            at = number * _LINES
            part = values[at : at + _LINES]
            if block is None or block.values != part:
                block = self._blocks[number] = self._rendered(at, part)  # noqa: PLW2901
            blocks.append(block)
        self._last = values, blocks
        return blocks

    def _with_notes(self, at: int, plain: Block, notes: list[tuple[int, str]]) -> Block:
        texts = written(plain.values)
        for line, text in notes:
            texts[line] += text
        prefixes = self.prefixes[at : at + _LINES]
        lines = chain.from_iterable(zip(prefixes, texts, strict=True))
        return Block(f"{''.join(lines)[1:]}\n".encode(), plain.values, plain.size)

    def _rendered(self, at: int, values: Sequence[float]) -> Block:
        prefixes = self.prefixes[at : at + _LINES]
        lines = chain.from_iterable(zip(prefixes, written(values), strict=True))
        return Block(f"{''.join(lines)[1:]}\n".encode(), values, sum(map(len, prefixes)))


class Zipped:
    """The compressed form of an exposition, of which what stays the same is kept. Not thread-safe.

    It is one gzip stream, for there are readers that stop at the end of the first one. Between two
    units the compression begins anew (a full flush), so that each can be used again.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: dict[tuple[Block, ...], bytes] = {}

    def packed(self, blocks: Iterable[Block], rest: bytes) -> bytes:
        """Return a text, compressed.

        Args:
            blocks: The blocks that it begins with.
            rest: What follows them, which is not kept.
        """
        kept: dict[tuple[Block, ...], bytes] = {}
        crc = length = 0
        unit: list[Block] = []
        size = 0
        # By sizes that do not depend on the values, or one more digit would move all that follow.
        for block in blocks:
            crc = zlib.crc32(block.text, crc)
            length += len(block.text)
            unit.append(block)
            size += block.size
            if size >= _UNIT_BYTES:
                key = tuple(unit)
                kept[key] = self._kept.get(key) or _deflated(key)
                unit, size = [], 0
        self._kept = kept
        last = b"".join([*(block.text for block in unit), rest])
        crc = zlib.crc32(rest, crc)
        length += len(rest)
        deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        end = deflate.compress(last) + deflate.flush()
        tail = struct.pack("<II", crc, length & 0xFFFFFFFF)
        return b"".join([_GZIP_HEAD, *kept.values(), end, tail])


def _deflated(blocks: Iterable[Block]) -> bytes:
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    text = b"".join([block.text for block in blocks])
    return deflate.compress(text) + deflate.flush(zlib.Z_FULL_FLUSH)
