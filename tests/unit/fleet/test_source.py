"""What is shown of a store in which somebody has written nonsense."""

from __future__ import annotations

import json
import struct
from array import array
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._fleet.packing import PackedPart, pack, pack_ids
from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import Store
from tests.support import stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stores import StoreServer

FACTS = {"host": "web-1", "interval": 5.0, "returns": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    """Return a store."""
    yield from stores.running(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(server: StoreServer, request: pytest.FixtureRequest) -> Store:
    """Return a name of its own in the store."""
    return Store(server.url, str(abs(hash(request.node.name))))


def write(store: Store, data: bytes, *, facts: str = json.dumps(FACTS), ended: bool = True) -> None:
    """Publish anything."""
    entry = store.enter("one")
    told = {"ended": ended, "facts": facts, "data": data, "base": b"", "figures": b""}
    assert store.publish(entry.epoch, "one", 1, **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        pack([PackedPart("counter", "", pack_ids([0, 1]), array("d", [1.0]))]),
        pack([PackedPart("counter", "", pack_ids([0]), array("d", [1.0, 2.0]))]),
        pack([PackedPart("gauge_all", "slot1", pack_ids([0]), array("d", [1.0]))]),
        pack([PackedPart("counter", "", pack_ids([7]), array("d", [1.0]))]),
    ],
    ids=["no parts", "too few", "too many", "half a pair", "unknown key"],
)
def test_host_that_cannot_be_read(store: Store, data: bytes) -> None:
    """It is left out and counted; the others are shown, at each scrape."""
    store.numbers_of([(b"a" * 12, b"counter\0x"), (b"b" * 12, b"counter\0y")], deadline=1e9)
    write(store, data)
    source = FleetSource(store, grace_seconds=0.0)
    for _ in range(3):
        reading = source.read()
        (gauge,) = (g for g in reading.gauges() if g.name.endswith("unreadable_hosts"))
        assert gauge.samples[0].value == 1
        assert reading.snapshot.series_count() == 0
        assert list(reading.others()) == []


@pytest.mark.parametrize("facts", ["nonsense", "[]", "7", "{}", '{"interval": "often"}'])
def test_facts_of_another_kind(store: Store, facts: str) -> None:
    """What a host says about itself may be anything."""
    write(store, pack([]), facts=facts, ended=False)
    reading = FleetSource(store).read()
    assert len(list(reading.gauges())) >= 3
    assert list(reading.others()) == []


def key(name: str, text: str) -> bytes:
    """Return the key of a counter, as in metric files."""
    data = json.dumps([name, f"{name}_total", {}, text]).encode()
    data += b" " * (-(len(data) + 4) % 8)
    return struct.pack("i", len(data)) + data


@pytest.mark.parametrize("other", ["counter", "gauge_livesum"])
def test_a_metric_that_a_deploy_has_changed(store: Store, other: str) -> None:
    """A counter with another help, or now a gauge, on some hosts is shown with all others."""
    keys = [
        b"counter\0" + key("orders", "Orders."),
        other.encode() + b"\0" + key("orders", "Orders that were taken."),
        b"counter\0" + key("visits", "Visits."),
    ]
    store.numbers_of([(bytes([at]) * 12, each) for at, each in enumerate(keys)], deadline=1e9)
    one = PackedPart("counter", "", pack_ids([0, 2]), array("d", [1.0, 5.0]))
    two = PackedPart(other, "", pack_ids([1]), array("d", [2.0]))
    write(store, pack([one, two]), ended=False)
    found = FleetSource(store).read().snapshot
    samples = {sample.name: sample.value for metric in found.metrics() for sample in metric.samples}
    assert samples["visits_total"] == 5
    assert samples["orders_total"] == (3 if other == "counter" else 2)  # one type is shown
