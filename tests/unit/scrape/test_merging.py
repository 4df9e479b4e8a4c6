"""A collector that goes on shows what a new one does, whatever has grown, come or gone."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._scrape.formats import negotiated
from obskit_gunicorn._store.fileformat import HEADER_BYTES, pack_entry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPENMETRICS = negotiated("application/openmetrics-text;version=1.0.0")
BOUNDS = ("1.0", "2.0", "+Inf")
PREFIXES = ("counter", "gauge_max", "gauge_sum", "histogram", "summary")


def keys_of(prefix: str, metric: int, child: int) -> list[bytes]:
    """Return the keys of a child of a metric, in the order in which a process makes them."""
    kind = prefix.partition("_")[0]
    name, labels = f"{prefix}_{metric}", {"child": str(child)}
    samples: list[tuple[str, dict[str, str]]] = [(name, labels)]
    if kind == "counter":
        samples = [(f"{name}_total", labels)]
    elif kind == "summary":
        samples = [(f"{name}_count", labels), (f"{name}_sum", labels)]
    elif kind == "histogram":
        samples = [(f"{name}_bucket", {**labels, "le": bound}) for bound in BOUNDS]
        samples.append((f"{name}_sum", labels))
    return [
        json.dumps([name, sample, pairs, "Help."], sort_keys=True).encode()
        for sample, pairs in samples
    ]


class Files:
    """Metric files that grow."""

    def __init__(self, directory: str) -> None:
        """There are none yet."""
        self.directory = directory
        self.keys: dict[str, list[bytes]] = {}

    def write(self, name: str, keys: Sequence[bytes], value: float) -> None:
        """Have a file begin with the keys that it has, and go on with those that it has not."""
        known = self.keys.setdefault(name, [])
        known += [key for key in dict.fromkeys(keys) if key not in known]
        body = b"".join(
            pack_entry(key, value + at, float(at + 1)) for at, key in enumerate(known, start=1)
        )
        path = os.path.join(self.directory, name)
        header = struct.pack("i", HEADER_BYTES + len(body)) + name.encode()[-4:]
        mode = "r+b" if os.path.exists(path) else "xb"
        with open(path, mode) as file:
            file.write(header + body)

    def remove(self, name: str) -> None:
        """Remove a file."""
        if self.keys.pop(name, None) is not None:
            os.unlink(os.path.join(self.directory, name))


steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(PREFIXES),
            st.integers(0, 3),  # the slot
            st.lists(
                st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 4)),
                max_size=6,
            ),
            st.integers(0, 9),
        ),
        st.tuples(st.sampled_from(PREFIXES), st.integers(0, 3)),
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_goes_on_as_a_new_one_begins(steps: list[tuple[object, ...]]) -> None:
    """Every sample is the same, each family comes once, in both formats."""
    directory = tempfile.mkdtemp()
    try:
        files, collector = Files(directory), DirectoryCollector(directory)
        before = collector.collect()
        for prefix, slot, *written in steps:
            name = f"{prefix}_slot{slot}.db"
            if written:
                children, value = written
                # Of some children only the first keys: the process is just making them.
                keys = [
                    key
                    for metric, child, count in children  # type: ignore[attr-defined]
                    for key in keys_of(str(prefix), metric, child)[:count]
                ]
                files.write(name, keys, float(value))  # type: ignore[arg-type]
            else:
                files.remove(name)
            snapshot = collector.collect()
            fresh = DirectoryCollector(directory).collect()
            for format_ in (None, OPENMETRICS):
                ours, theirs = (
                    each.text() if format_ is None else each.rendered(format_)
                    for each in (snapshot, fresh)
                )
                assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
            names = [
                family.name for family in text_string_to_metric_families(snapshot.text().decode())
            ]
            assert len(names) == len(set(names))
            before.text()  # what was read earlier can still be shown
            before = snapshot
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_negative_zero(tmp_path: Path, workers: int) -> None:
    """Sums of -0.0 are 0.0, as prometheus_client's are."""
    for worker in range(workers):
        (key,) = keys_of("gauge_sum", 0, 0)
        entry = pack_entry(key, -0.0, 0.0)
        header = struct.pack("i", HEADER_BYTES + len(entry)) + bytes([worker + 1] * 4)
        (tmp_path / f"gauge_sum_slot{worker}.db").write_bytes(header + entry)
    text = DirectoryCollector(str(tmp_path)).collect().text()
    assert text.endswith(b" 0.0\n")
    assert b"-0.0" not in text


def test_replaced_file_with_the_same_values(tmp_path: Path) -> None:
    """A file that another one has replaced is read by its own keys, although no value differs."""
    one, other = (keys_of("gauge_sum", 0, child)[0] for child in range(2))

    def write(slot: int, keys: Sequence[bytes], number: bytes) -> None:
        values = zip(keys, (1.0, 2.0), strict=True)
        body = b"".join(pack_entry(key, value, 0.0) for key, value in values)
        header = struct.pack("i", HEADER_BYTES + len(body)) + number
        path = tmp_path / f"gauge_sum_slot{slot}.db"
        path.with_suffix(".new").write_bytes(header + body)
        path.with_suffix(".new").rename(path)

    write(0, (one, other), b"1234")
    write(1, (one, other), b"5678")
    collector = DirectoryCollector(str(tmp_path))
    assert b'{child="0"} 2.0\n' in collector.collect().text()
    write(0, (other, one), b"9012")
    text = collector.collect().text()
    assert text.count(b" 3.0\n") == 2
