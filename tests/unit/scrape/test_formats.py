"""Formats: a header ``Accept`` chooses one of a fixed number, as prometheus_client would."""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, exposition

from obskit_gunicorn._scrape import formats
from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import pack_entry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENMETRICS = "application/openmetrics-text"
HAS_ESCAPING = "escaping" in exposition.choose_encoder(f"{OPENMETRICS};version=1.0.0")[1]
"""Since 0.22 prometheus_client looks at versions and escapings."""
ESCAPINGS = ("allow-utf-8", "underscores", "dots", "values", "unheard-of")
MOST_FORMATS = 1 + 4 + 1 + 2 * 4
"""Text; text 1.0.0 and OpenMetrics 1.0.0 and 2.0.0 by escaping; OpenMetrics as such."""


def _well_formed() -> Iterator[str]:
    """Yield every way to ask that prometheus_client understands."""
    yield from ("", "*/*", "text/html", "text/plain", OPENMETRICS, f" {OPENMETRICS} ; q=1")
    kinds = (("text/plain", ("0.0.4", "1.0.0")), (OPENMETRICS, ("0.0.1", "1.0.0", "2.0.0")))
    for kind, versions in kinds:
        for version in versions:
            yield f"{kind};version={version}"
            yield f"{kind}; q=0.5; version={version}; version=1.0.0"
            for escaping in ESCAPINGS:
                yield f"{kind};version={version};escaping={escaping};q=0.1"
                yield f"{kind}; escaping={escaping}; version={version}"


def _served(accept: str) -> tuple[str, bytes]:
    registry = CollectorRegistry()
    Counter("http_requests", "Requests.", ["path"], registry=registry).labels("/").inc()
    found = formats.negotiated(accept)
    return found.name, found.encode(registry)


def _served_by_them(accept: str) -> tuple[str, bytes]:
    registry = CollectorRegistry()
    Counter("http_requests", "Requests.", ["path"], registry=registry).labels("/").inc()
    encoder, content_type = exposition.choose_encoder(accept)
    return content_type, encoder(registry)


def _without_times(served: tuple[str, bytes]) -> tuple[str, list[bytes]]:
    kind, body = served
    return kind, [line for line in body.splitlines() if b"created" not in line]


def test_their_choice() -> None:
    """Of what prometheus_client knows, the choice is its own, alone and among others."""
    asked = list(_well_formed())
    chooser = random.Random(7)
    asked += [",".join(chooser.sample(asked, 3)) for _ in range(300)]
    for accept in asked:
        assert _without_times(_served(accept)) == _without_times(_served_by_them(accept)), accept


@pytest.mark.skipif(not HAS_ESCAPING, reason="this prometheus_client has one version of each")
@pytest.mark.parametrize(
    ("kind", "version", "nearest"),
    [
        *[(OPENMETRICS, asked, "1.0.0") for asked in ("1.1.0", "1.999.0", "1.0", "1", "01.0.0")],
        *[(OPENMETRICS, asked, "2.0.0") for asked in ("2.1.0", "3.0.0", "999999999.0.0")],
        *[("text/plain", asked, "1.0.0") for asked in ("1.5.0", "2.0.0", "1.0")],
    ],
)
def test_nearest_version(kind: str, version: str, nearest: str) -> None:
    """A version that nobody knows gets the nearest one that there is, which the answer names."""
    found = formats.negotiated(f"{kind};version={version};escaping=dots")
    assert found is formats.negotiated(f"{kind};version={nearest};escaping=dots")
    assert f"version={nearest}" in found.name
    assert version == nearest or f"version={version};" not in found.name


@pytest.mark.parametrize("version", ["latest", "1.0.0x", "-1", "1..0", "9" * 5000, "1.0.0\n2"])
@pytest.mark.parametrize("kind", ["text/plain", OPENMETRICS])
def test_no_version(kind: str, version: str) -> None:
    """What is no version is passed over, and what else is accepted counts."""
    assert formats.negotiated(f"{kind};version={version}") is formats.TEXT
    found = formats.negotiated(f"{kind};version={version},{OPENMETRICS};version=1.0.0")
    assert found is formats.negotiated(f"{OPENMETRICS};version=1.0.0")


def test_fixed_number(tmp_path: Path) -> None:
    """However many ways clients find to ask, there are a few formats, and lines of a few."""
    keys = (json.dumps(["c", "c_total", {"label": str(at)}, "Help."]) for at in range(3))
    body = b"".join(pack_entry(key.encode(), 1.0, 0.0) for key in keys)
    header = (8 + len(body)).to_bytes(4, "little") + b"\0\0\0\0"
    (tmp_path / "counter_slot0.db").write_bytes(header + body)
    snapshot = DirectoryCollector(str(tmp_path)).collect()
    bodies = set()
    names = set()
    for at, kind, escaping in itertools.product(range(300), ("text/plain", OPENMETRICS), ESCAPINGS):
        accept = f"{kind};version={at // 50}.{at}.0;escaping={escaping}{at % 7};secret=s3cret{at}"
        for asked in (accept, accept.replace(f"{escaping}{at % 7}", escaping)):
            found = formats.negotiated(asked)
            names.add(found.name)
            bodies.add(snapshot.rendered(found))
            assert "s3cret" not in found.name
    assert len(names) <= MOST_FORMATS
    assert len(bodies) <= MOST_FORMATS
    (family,) = snapshot._families
    assert set(family._lines) <= names
    assert formats._format.cache_info().currsize <= 3 + 5 * 4
    # Lines that are the same in several formats are there once.
    plain = family.lines(formats.TEXT).prefixes
    assert family.lines(formats.negotiated(OPENMETRICS)).prefixes is plain


def test_names_are_filtered_as_they_do(tmp_path: Path) -> None:
    """A snapshot with only some names has the lines that prometheus_client renders of them."""
    entries = [
        ("counter", ["a.b", "a.b_total", {"x": "1"}]),
        ("counter", ["c", "c_total", {"x_y": "1"}]),
        ("counter", ["c", "c_total", {"x_y": "2"}]),
        ("histogram", ["h", "h_sum", {}]),
        ("histogram", ["h", "h_bucket", {"le": "1.0"}]),
        ("histogram", ["h", "h_bucket", {"le": "+Inf"}]),
        ("gauge_max", ["g", "g", {}]),
    ]
    if not HAS_ESCAPING:
        del entries[0]
    for prefix in {prefix for prefix, _ in entries}:
        found = [json.dumps([*key, "Help."]).encode() for kind, key in entries if kind == prefix]
        body = b"".join(pack_entry(key, 1.5, 0.0) for key in found)
        header = (8 + len(body)).to_bytes(4, "little") + b"\0\0\0\0"
        (tmp_path / f"{prefix}_slot0.db").write_bytes(header + body)
    snapshot = DirectoryCollector(str(tmp_path)).collect()
    known = ["a.b_total", "c_total", "h_sum", "h_bucket", "h_count", "g", "nobody"]
    for accept in _well_formed():
        format_ = formats.negotiated(accept)
        for names in map(frozenset, itertools.combinations(known, 2)):
            registry = CollectorRegistry()
            registry.register(_Collected(list(snapshot.metrics())))
            theirs = format_.encode(registry.restricted_registry(names))
            ours = snapshot.rendered(format_, names)
            assert ours == theirs.removesuffix(b"# EOF\n"), (accept, names)


class _Collected(prometheus_client.registry.Collector):
    def __init__(self, metrics: list[prometheus_client.Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[prometheus_client.Metric]:
        """Return what was collected."""
        return self._metrics

    describe = collect
