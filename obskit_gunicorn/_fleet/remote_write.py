"""The bytes of Prometheus's remote write 1.0: protocol buffers, written by hand.

The three messages that are needed do not change any more, so they are worth no dependency::

    WriteRequest   = { repeated TimeSeries = 1, repeated MetricMetadata = 3 }
    TimeSeries     = { repeated Label = 1 { name = 1, value = 2 }, repeated Sample = 2 }
    Sample         = { double value = 1, int64 timestamp = 2 }
    MetricMetadata = { enum type = 1, metric_family_name = 2, help = 4, unit = 5 }
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TIMES = range(1 << 35, 1 << 42)
"""The times that can be sent, in ms: 1971 to 2109. Each takes six bytes, so that all that precedes
a value, lengths included, is the same at each push."""

ZERO = struct.pack("<d", 0.0)
STALE = struct.pack("<Q", 0x7FF0000000000002)
"""The value that ends a series: a NaN that Prometheus has chosen for it."""

_NAN = struct.pack("<Q", 0x7FF8000000000001)
_SAMPLE_BYTES = 1 + 8 + 1 + 6
_TYPES = {
    "counter": 1,
    "gauge": 2,
    "histogram": 3,
    "gaugehistogram": 4,
    "summary": 5,
    "info": 6,
    "stateset": 7,
}
_SUFFIXES = {"counter": "_total", "info": "_info"}


def number(value: float) -> bytes:
    """Return the bytes of a value; those of a NaN are never those of a stale marker."""
    return struct.pack("<d", value) if value == value else _NAN  # noqa: PLR0124


def identity(name: str, labels: Mapping[str, str], target: Mapping[str, str]) -> bytes:
    """Return the bytes of the labels of a series: the same for the same series.

    As at a scrape, a label that the target has too is renamed, and an empty one does not exist.

    Args:
        name: The name of the metric.
        labels: The labels of the sample.
        target: The labels of all that is sent.
    """
    own = {key: str(value) for key, value in labels.items() if value != ""}
    for taken in target:
        value = own.pop(taken, None)
        if value is not None:
            while taken in own or taken in target:
                taken = f"exported_{taken}"  # noqa: PLW2901
            own[taken] = value
    own.update(target)
    own["__name__"] = name
    return b"".join(
        _field(1, _text(1, key) + _text(2, value)) for key, value in sorted(own.items())
    )


def head(labels: bytes) -> bytes:
    """Return all of a series with one sample that precedes the value.

    Args:
        labels: Its :func:`identity`.
    """
    sample = b"\x12" + _varint(_SAMPLE_BYTES)
    return b"\x0a" + _varint(len(labels) + len(sample) + _SAMPLE_BYTES) + labels + sample + b"\x09"


def tail(time_ms: int) -> bytes:
    """Return what follows the value: a time among :data:`TIMES`."""
    return b"\x10" + _varint(time_ms)


def request(points: Iterable[tuple[bytes, bytes]], time_ms: int) -> bytes:
    """Return a request.

    Args:
        points: For each series its :func:`head` and the bytes of its value.
        time_ms: The time of all values.
    """
    end = tail(time_ms)
    return b"".join([part for before, value in points for part in (before, value, end)])


def metadata(families: Iterable[tuple[str, str, str, str]]) -> bytes:
    """Return a request that says what metrics are, and has no samples.

    Args:
        families: Name, type, help text and unit of each, as prometheus_client has them.
    """
    return b"".join(
        _field(
            3,
            b"\x08"
            + _varint(_TYPES.get(kind, 0))
            + _text(2, name + _SUFFIXES.get(kind, ""))
            + _text(4, documentation)
            + _text(5, unit),
        )
        for name, kind, documentation, unit in families
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, data: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(data)) + data


def _text(tag: int, text: str) -> bytes:
    return _field(tag, text.encode(errors="replace"))
