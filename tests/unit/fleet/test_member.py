"""What a host publishes besides what is added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Info

from obskit_gunicorn._fleet.member import _Host
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.directory import SlotDirectory
from tests.support import forks

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
