"""A key that stands twice in a file: reader and writer agree, prometheus_client is the judge."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from obskit_gunicorn._scrape.collector import DirectoryCollector, MultiProcessCollector
from obskit_gunicorn._store.fileformat import HEADER_BYTES, encode_key, pack_entry
from obskit_gunicorn._store.writer import MetricFile

if TYPE_CHECKING:
    from prometheus_client.core import Metric

KEY = encode_key("hits", "hits_total", (), (), "Help.")
OTHER = encode_key("misses", "misses_total", (), (), "Help.")


@pytest.fixture(name="path")
def _path(directory: str) -> str:
    """A file in which one key stands twice, with 5 and 7, and another one between them."""
    entries = pack_entry(KEY, 5.0, 0.0) + pack_entry(OTHER, 1.0, 0.0) + pack_entry(KEY, 7.0, 0.0)
    header = struct.pack("i", HEADER_BYTES + len(entries)) + b"good"
    path = Path(directory, "counter_slot0.db")
    path.write_bytes((header + entries).ljust(4096, b"\0"))
    return str(path)


def values(families: object) -> dict[str, float]:
    """Return each sample's value."""
    found: list[tuple[str, float]] = [
        (sample.name, sample.value)
        for family in families  # type: ignore[attr-defined]
        for sample in family.samples
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def check(path: str, expected: dict[str, float]) -> None:
    """Compare all collectors."""
    assert values(TheirCollector.merge([path])) == expected  # type: ignore[no-untyped-call]
    assert values(MultiProcessCollector.merge([path])) == expected
    collector = DirectoryCollector(str(Path(path).parent))
    for _ in range(2):
        assert values(collector.collect().metrics()) == expected
    assert not collector.skipped


def test_both_entries_count(path: str) -> None:
    """A reader adds up both."""
    check(path, {"hits_total": 12.0, "misses_total": 1.0})


def test_a_writer_continues_with_the_last_one(path: str) -> None:
    """The next holder of the slot finds nothing damaged, and what it counts is read."""
    file = MetricFile(path)
    assert file.salvaged is None
    index = file.find(KEY)
    assert index is not None
    assert file.read(index) == (7.0, 0.0)
    file.cells[index] = 100.0
    file.release()
    check(path, {"hits_total": 105.0, "misses_total": 1.0})


def test_beside_a_file_in_order(path: str) -> None:
    """Files with and without the repeated key are added up key by key."""
    other = path.replace("slot0", "slot1")
    file = MetricFile(other)
    file.add(OTHER, 2.0, 0.0)
    file.add(KEY, 3.0, 0.0)
    file.release()
    collector = DirectoryCollector(str(Path(path).parent))
    theirs = TheirCollector.merge([path, other])  # type: ignore[no-untyped-call]
    assert values(collector.collect().metrics()) == values(theirs)
    assert values(theirs) == {"hits_total": 15.0, "misses_total": 3.0}


def test_both_zeros_as_a_bound(directory: str) -> None:
    """A bucket's bound is written with the sign that it has, whatever other label sets have."""
    path = str(Path(directory, "histogram_7.db"))
    file = MetricFile(path)
    for labels, bound in (({"a": "1"}, "-0.0"), ({}, "0")):
        names, texts = list(labels), list(labels.values())
        file.add(encode_key("h", "h_sum", names, texts, "Help."), 1.0, 0.0)
        key = encode_key("h", "h_bucket", [*names, "le"], [*texts, bound], "Help.")
        file.add(key, 1.0, 0.0)
    file.release()
    theirs: list[Metric] = list(TheirCollector.merge([path]))  # type: ignore[no-untyped-call]
    ours = list(DirectoryCollector(directory).collect().metrics())
    # Before 0.24 their order is another one.
    ((here,), (there,)) = ours, theirs
    assert sorted(here.samples, key=str) == sorted(there.samples, key=str)
    assert {sample.labels.get("le") for sample in ours[0].samples} == {None, "-0.0", "0.0"}
