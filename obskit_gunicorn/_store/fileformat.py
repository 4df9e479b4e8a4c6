"""The bytes of a ``.db`` metric file, and the one parser of them.

The format is prometheus_client's (checked against 0.20 to 0.26), so that any reader of its
multiprocess directory reads our files too::

    offset 0   int32    used: how many bytes of the file hold data, including this header
    offset 4   4 bytes  padding; our files have a random number here, so that a reader can tell a
                        file from its replacement even if the inode is reused at once
    offset 8   entries, one after the other, each
               int32    length of the key in bytes
               bytes    the key, UTF-8, then spaces up to a multiple of 8 (at least one)
               double   value
               double   timestamp, Unix seconds; 0 if there is none

Where timestamps are used (gauge mode ``mostrecent``), a reader must not see a new value with an old
timestamp. One store writes both at once only if they lie in one cache line, and processors promise
it only at a multiple of 16. So there the key gets eight more spaces if that is what it takes. They
count as part of the key: the length of the padding follows from the length of the key, for every
reader. JSON may end in spaces, so all read the key as they would without them; a writer that looks
for it leaves them out. Older releases have not done this; their entries go on being used.

Integers and doubles have the byte order of the machine. Entries are only ever appended, and
``used`` grows only after an entry is complete. So a reader sees whole entries at any moment, even
if the writer is killed. A key is the JSON list ``[metric name, sample name, labels, help]``. If a
key occurs twice, a writer continues from the last entry, and a reader adds both, as
prometheus_client does.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from json.encoder import encode_basestring_ascii as _quote
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

HEADER_BYTES = 8

_read_int = struct.Struct("i").unpack_from
pack_int = struct.Struct("i").pack
"""Return a number as it is stored in the file."""
read_pair = struct.Struct("dd").unpack_from
"""Return the value and the timestamp at an offset of a file's content."""
pack_pair = struct.Struct("dd").pack
"""Return a value and its timestamp as they are stored in the file."""

_TEXT = rb'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_KEY = re.compile(
    rb"\[%b, %b, \{(?:%b: %b(?:, %b: %b)*)?\}, %b\]"
    % (_TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT)
)
"""A key as json.dumps writes it, which is how every known writer does."""

_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_([^_]+)\.db")


_PARTS = re.compile(
    rb"\[(%b), %b, (\{(?:%b: %b(?:, %b: %b)*)?\}), %b\]"
    % (_TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT)
)
"""The same, with the metric and the labels as groups."""

_BOUND = re.compile(rb', "le": %b|(?<=\{)"le": %b(?:, )?' % (_TEXT, _TEXT))
"""The bound of a bucket among labels. In a string of JSON its quotes would be escaped."""


class MetricFileName(NamedTuple):
    """The parts of a metric file's name, as in ``gauge_livesum_slot3.db``."""

    prefix: str
    """The metric type, for a gauge with its multiprocess mode: ``counter``, ``gauge_max``."""

    holder: str
    """Who writes the file: the name of a slot, or a pid for writers that do not know slots."""

    @classmethod
    def parse(cls, name: str) -> MetricFileName | None:
        """Return the parts of a file name, or ``None`` if it is not that of a metric file."""
        match = _NAME.fullmatch(name)
        return cls(*match.groups()) if match else None

    @property
    def is_live_gauge(self) -> bool:
        """Whether the file holds gauges that count only while their process is alive."""
        return self.prefix.startswith("gauge_live")

    @property
    def has_timestamps(self) -> bool:
        """Whether the file's timestamps mean something, so that they must be right at any moment.

        True of the gauges of which the one counts that was set last.
        """
        return self.prefix.endswith("mostrecent")

    @property
    def belongs_to_one_holder(self) -> bool:
        """Whether the file's values mean nothing once its holder has ended.

        True of the ``live*`` modes and of mode ``all``, which has one series for each process.
        """
        return self.is_live_gauge or self.prefix == "gauge_all"


def is_slot(name: str) -> bool:
    """Return whether a name is a slot's; holders without slots are named by pid."""
    return name.startswith("slot") and name[4:].isdigit()


DAMAGE_REASONS = ("corrupted", "empty", "foreign", "truncated", "unreadable")


class Damage(NamedTuple):
    """What is wrong with a metric file."""

    reason: str
    """One of :data:`DAMAGE_REASONS`."""

    text: str
    """The same for people."""


def encode_key(
    metric: str, sample: str, label_names: Sequence[str], label_values: Sequence[str], help_: str
) -> bytes:
    """Return the key of a sample; the order of the labels does not matter."""
    try:
        frame, order = _frame(metric, sample, tuple(label_names), help_)
        return (frame % tuple([_quote(label_values[at]) for at in order])).encode()
    except (TypeError, IndexError):  # not all are texts, or there are fewer values than names
        labels = dict(zip(label_names, label_values, strict=False))
        return json.dumps([metric, sample, labels, help_], sort_keys=True).encode()


class LabelSet(NamedTuple):
    """What the keys of a child of a metric have in common: a histogram's are many."""

    metric: bytes
    """The metric, as JSON."""

    labels: bytes
    """The labels as JSON, without the bound of a bucket."""

    @classmethod
    def of(cls, key: bytes, prefix: str) -> LabelSet | None:
        """Return the label set of a key; ``None`` if it is not a metric's key.

        Args:
            key: The key without length and padding.
            prefix: The prefix of its file.
        """
        match = _PARTS.fullmatch(key)
        if match is None:
            try:
                metric, sample, labels, help_text = json.loads(key)
                match = _PARTS.fullmatch(
                    json.dumps([metric, sample, labels, help_text], sort_keys=True).encode()
                )
            except (ValueError, TypeError, RecursionError):
                pass
        if match is None:
            return None
        metric, labels = match.groups()
        return cls(metric, _BOUND.sub(b"", labels) if prefix == "histogram" else labels)

    @classmethod
    def named(cls, metric: str, names: Sequence[str], values: Sequence[str]) -> LabelSet:
        """Return the label set with these labels of a metric."""
        labels = dict(zip(names, values, strict=True))
        return cls(_quote(metric).encode(), json.dumps(labels, sort_keys=True).encode())


def metric_start(metric: str) -> bytes:
    """Return what all keys of a metric begin with, and no key of another one."""
    return f"[{_quote(metric)}, ".encode()


@functools.lru_cache(maxsize=1024)
def _frame(
    metric: str, sample: str, label_names: tuple[str, ...], help_: str
) -> tuple[str, list[int]]:
    """Return the keys of the series of a sample with a gap for each label, and which fills it."""
    places = {name: at for at, name in enumerate(label_names)}
    names = sorted(places)
    parts = [_quote(text).replace("%", "%%") for text in (metric, sample, *names, help_)]
    labels = ", ".join(f"{name}: %s" for name in parts[2:-1])
    return f"[{parts[0]}, {parts[1]}, {{{labels}}}, {parts[-1]}]", [places[name] for name in names]


def pack_entry(key: bytes, value: float, timestamp: float) -> bytes:
    """Return an entry as it is stored in the file."""
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return pack_int(len(key)) + padded + pack_pair(value, timestamp)


def align_key(key: bytes, at: int) -> bytes:
    """Return the key of an entry, with spaces so that value and timestamp are written at once.

    Args:
        key: The key.
        at: The offset at which the entry is to begin.
    """
    value_at = at + len(pack_entry(key, 0.0, 0.0)) - 16
    return key if value_at % 16 == 0 else key + b" " * 8


def check_header(header: bytes, size: int) -> tuple[int, Damage | None]:
    """Return the offset where the entries of a file end, and what is wrong with its header.

    Args:
        header: The first :data:`HEADER_BYTES` of the file, or fewer if it has fewer.
        size: The file's size in bytes.
    """
    if len(header) < HEADER_BYTES:
        reason = "truncated" if header else "empty"
        text = f"{len(header)} bytes are too few for the header"
        return HEADER_BYTES, Damage(reason, text)
    used = _read_int(header, 0)[0] or HEADER_BYTES
    if used < HEADER_BYTES or used % 8 or used > size:
        text = f"the header says {used} bytes are used, the file has {size}"
        return used, Damage("truncated" if used > size else "corrupted", text)
    return used, None


def read_entries(
    data: bytes | bytearray | mmap.mmap, start: int, end: int, *, strict: bool = False
) -> tuple[list[bytes], int, Damage | None]:
    """Find the entries of a metric file, up to the first one whose bounds are invalid.

    Args:
        data: The file's content, ``end`` bytes of it or more.
        start: Where the first entry begins.
        end: Where the last one ends.
        strict: Stop at a key that is not a metric's key, for when ``end`` is a guess.

    Returns:
        Their keys as they are stored in the file, with length and padding (16 bytes follow each);
        the offset after the last entry; and what is wrong there, if anything. Never raises,
        whatever the bytes are.
    """
    keys = []
    at, problem = start, ""
    while at < end:
        if at + 4 > end:
            problem = "is cut off"
            break
        (length,) = _read_int(data, at)
        value_at = at + 4 + length + (8 - (length + 4) % 8)
        if length <= 0 or value_at + 16 > end:
            problem = f"has a key of {length} bytes"
            break
        key = bytes(data[at:value_at])
        if strict and not is_key(key):
            problem = "has a key that is not a metric's"
            break
        keys.append(key)
        at = value_at + 16
    damage = Damage("corrupted", f"the entry at offset {at} {problem}") if problem else None
    return keys, at, damage


def key_text(key: bytes) -> bytes:
    """Return the JSON of a key that is stored with length, padding and spaces."""
    return key[4 : 4 + _read_int(key, 0)[0]].rstrip(b" ")


def metric_of(text: bytes) -> str:
    """Return the name of the metric in the JSON of a key that this process has made."""
    return str(json.loads(text)[0])


def is_key(key: bytes) -> bool:
    """Return whether a key, as it is stored in a file, is a metric's key."""
    text = key_text(key)
    if _KEY.fullmatch(text):
        return True
    # Written differently than by us and prometheus_client.
    try:
        name, sample, labels, help_text = json.loads(text)
        return all(type(text) is str for text in (name, sample, help_text, *labels.values()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
