"""What a host publishes besides what is added up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from prometheus_client import Counter, Info

from obskit_gunicorn._fleet.member import Member, _Host
from obskit_gunicorn._fleet.store import Store
from obskit_gunicorn._scrape.bodies import UnavailableError
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.directory import SlotDirectory
from tests.support import forks
from tests.support.process import HOST, free_port

if TYPE_CHECKING:
    from tests.support.forks import Nursery


def test_what_an_info_says_is_published(nursery: Nursery, directory: str) -> None:
    """With the figures of the host; exemplars are not, for there are none of a sum."""
    SlotDirectory(directory).start_generation(keep=False).lease.release()
    process = nursery.start()
    process.call(forks.join, directory)
    process.call(_say)
    reading = _Host(SharedRegistry(directory), lambda: directory, "host").read()
    (found,) = (family for family in reading.figures if family.name == "build")
    assert [(sample.name, sample.labels) for sample in found.samples] == [
        ("build_info", {"version": "1"})
    ]


def _say() -> None:
    Info("build", "Help.", registry=None).info({"version": "1"})
    Counter("c", "Help.", registry=None).inc(exemplar={"trace_id": "a"})


def test_a_store_that_cannot_be_read_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where nothing is published, as in ``obskit-gunicorn serve --redis``."""
    member = Member(Store(f"redis://{HOST}:{free_port()}/0", "x"), host="web-1", interval=5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(UnavailableError):
                list(member.registry.collect())
        (record,) = caplog.records
        assert "reading failed" in record.getMessage()
        assert "cannot be reached" in record.getMessage()
        monkeypatch.setattr(member._source, "read", lambda: None)
        for _ in range(3):
            member._read()
        assert [each.getMessage().partition(" ")[0] for each in caplog.records] == ["reading"] * 2
        assert caplog.records[1].getMessage().endswith("works again")
