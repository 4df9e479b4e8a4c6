"""Exemplars of real processes: which one a scrape shows, and what becomes of them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn import _prometheus
from obskit_gunicorn._store.directory import SlotDirectory
from tests.support import forks
from tests.support.forks import (
    Nursery,
    RemoteProcess,
    act,
    join,
    log_lines,
    metric,
    mount_small,
    read,
    slot,
)
from tests.support.openmetrics import OPENMETRICS, exemplars

if TYPE_CHECKING:
    from collections.abc import Mapping

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(name="holder")
def _holder(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that shares its metrics and has not used any."""
    process = nursery.start()
    process.call(join, directory)
    return process


def count(exemplar: dict[str, Any] | None, name: str = "c") -> None:
    """Add one to a counter."""
    metric("counter", name).inc(exemplar=exemplar)


def observe(number: float, exemplar: dict[str, Any] | None, label: str = "") -> None:
    """Add an observation to a histogram."""
    metric("histogram", "h", {"n": label}).observe(number, exemplar=exemplar)


def page(directory: str, accept: str = OPENMETRICS) -> str:
    """Return an exposition of a directory, of a process that has read it before or not."""
    from obskit_gunicorn._scrape.formats import negotiated
    from obskit_gunicorn._scrape.registry import Exposition, SharedRegistry

    return Exposition(SharedRegistry(directory)).rendered(negotiated(accept)).decode()


def shown(directory: str) -> dict[str, dict[str, str]]:
    """Return the exemplars that a scrape shows."""
    return exemplars(page(directory))


def trace(text: object) -> dict[str, str]:
    """Return the labels of an exemplar."""
    return {"trace_id": str(text)}


def test_the_newest_of_any_process(nursery: Nursery, directory: str) -> None:
    """Of each bucket and counter the one that was observed last, ended processes included."""
    one, two = nursery.start(), nursery.start()
    for process in (one, two):
        process.call(join, directory)
    one.call(count, trace(1))
    one.call(observe, 1.5, trace("one"))
    two.call(observe, 1.7, trace("two"))
    two.call(observe, 100, trace("large"))
    one.call(observe, 1.5, trace("of another"), "other")
    expected = {
        'h_bucket{le="2.0",n="other"}': trace("of another"),
        "c_total": trace(1),
        'h_bucket{le="2.0",n=""}': trace("two"),
        'h_bucket{le="+Inf",n=""}': trace("large"),
    }
    assert shown(directory) == expected
    one.kill()
    two.kill()
    assert shown(directory) == expected
    third = nursery.start()
    third.call(join, directory)
    third.call(observe, 1.1, trace("three"))
    assert third.call(slot) == "slot0"
    assert shown(directory) == expected | {'h_bucket{le="2.0",n=""}': trace("three")}


def remove(label: str) -> None:
    """Remove a label set of a histogram."""
    forks._metrics["histogram", "h"].remove(label)


def test_they_go_with_the_label_set(nursery: Nursery, directory: str) -> None:
    """Who removes a label set removes its exemplars, those of other processes too."""
    one, two = nursery.start(), nursery.start()
    for process in (one, two):
        process.call(join, directory)
        process.call(observe, 1.5, trace("before"), "gone")
        process.call(observe, 1.5, trace("kept"), "stays")
    two.call(remove, "gone")
    kept = {'h_bucket{le="2.0",n="stays"}': trace("kept")}
    assert shown(directory) == kept
    two.call(observe, 100, trace("after"), "gone")
    one.call(observe, 100, None, "gone")  # shown again, without what it had
    after = kept | {'h_bucket{le="+Inf",n="gone"}': trace("after")}
    assert shown(directory) == after
    one.kill()
    two.kill()
    assert shown(directory) == after


def test_only_openmetrics_shows_them(holder: RemoteProcess, directory: str) -> None:
    """The text format does not, and no reader of metric files notices the file."""
    holder.call(count, trace(1))
    assert "\nc_total 1.0\n" in page(directory, "")
    assert "trace_id" not in page(directory, "")
    assert read(directory) == {"c_total": 1.0}
    assert sorted(os.listdir(directory)) == [
        "counter_slot0.col",
        "counter_slot0.db",
        "slot0.exemplars",
        "slot0.lease",
        "slots.generation",
        "slots.lock",
    ]
    mode = Path(directory, "slot0.exemplars").stat().st_mode
    assert mode == Path(directory, "counter_slot0.db").stat().st_mode  # for the same readers


def test_who_uses_none_has_no_file(holder: RemoteProcess, directory: str) -> None:
    """It is made at the first exemplar; an empty one is none, as with prometheus_client."""
    holder.call(count, None)
    holder.call(count, {})
    assert "slot0.exemplars" not in os.listdir(directory)


def test_a_forked_child_has_its_own(holder: RemoteProcess, directory: str) -> None:
    """It writes beside its parent, never into its parent's file."""
    holder.call(count, trace("parent"))
    child = holder.fork()
    child.call(count, trace("child"))
    assert shown(directory) == {"c_total": trace("child")}
    assert child.call(slot) == "slot1"
    holder.call(count, trace("parent again"))
    assert shown(directory) == {"c_total": trace("parent again")}
    holder.kill()
    child.call(count, trace("child again"))
    assert shown(directory) == {"c_total": trace("child again")}


def test_files_that_are_closed_are_opened_again(holder: RemoteProcess, directory: str) -> None:
    """And the exemplars before are there still."""
    holder.call(count, trace(1), "a")
    holder.call(_close)
    holder.call(count, trace(2), "b")
    assert shown(directory) == {"a_total": trace(1), "b_total": trace(2)}


def _close() -> None:
    from obskit_gunicorn._values import values

    values.close_files()


def test_descriptors_that_were_closed(holder: RemoteProcess, directory: str) -> None:
    """An application may close all of them: exemplars go on, for they are written to memory."""
    holder.call(count, trace(1))
    holder.call(forks.close_descriptors)
    for number in range(40):  # more than the file has room for
        holder.call(observe, 1.5, trace(number), str(number))
    holder.call(count, trace(2))
    assert shown(directory)["c_total"] == trace(2)


@pytest.mark.parametrize(
    "unfit", [{"a": "\ud800"}, {"a": "x\0"}, {"a": b"x"}, {"a b": "x"}, {"a": ["x"]}]
)
def test_what_cannot_be_exposed(
    holder: RemoteProcess, directory: str, unfit: dict[str, Any]
) -> None:
    """It costs the exemplar, not the count and not the scrape; one line names the metric."""
    if "a b" in unfit and not _prometheus.escapes_names():
        pytest.skip("this prometheus_client refuses it at the call")
    holder.call(count, trace(1))
    holder.call(count, unfit)
    holder.call(count, unfit)
    assert shown(directory) == {"c_total": trace(1)}
    assert read(directory) == {"c_total": 3.0}
    (line,) = holder.call(log_lines)
    assert "an exemplar of c is left out" in line


def test_too_long_is_refused_at_the_call(holder: RemoteProcess) -> None:
    """By prometheus_client itself, whose error it stays."""
    assert "exceeding the limit of 128" in holder.call(_refused)


def _refused() -> str:
    try:
        count({"a": "x" * 128})
    except ValueError as error:
        return str(error)
    return ""


def test_a_wipe_takes_them_along(holder: RemoteProcess, directory: str) -> None:
    """A new generation begins without."""
    holder.call(count, trace(1))
    holder.kill()
    SlotDirectory(directory).start_generation(keep=False).lease.release()
    assert "slot0.exemplars" not in os.listdir(directory)


def test_a_removed_file_is_made_again(holder: RemoteProcess, directory: str) -> None:
    """At a heartbeat that finds it removed; the metric files stay where they are."""
    holder.call(count, trace(1))
    os.unlink(Path(directory, "slot0.exemplars"))
    assert shown(directory) == {}
    holder.call(_keep_place)
    holder.call(count, trace(2))
    assert shown(directory) == {"c_total": trace(2)}
    assert holder.call(slot) == "slot0"
    assert holder.call(log_lines) == []


def _keep_place() -> None:
    from obskit_gunicorn._values import values

    values._look_at = 0.0
    values.keep_place()


def test_a_directory_that_is_cleared(holder: RemoteProcess, directory: str) -> None:
    """The process goes on in another slot, with another file."""
    holder.call(count, trace(1))
    for name in os.listdir(directory):
        os.unlink(Path(directory, name))
    holder.call(_keep_place)
    holder.call(count, trace(2))
    assert shown(directory) == {"c_total": trace(2)}
    assert read(directory) == {"c_total": 2.0}


def test_a_stranger_has_the_name(holder: RemoteProcess, directory: str) -> None:
    """One line, tried again later, and counting goes on; the scrape leaves it out in words."""
    Path(directory, "slot0.exemplars").mkdir()
    Path(directory, "slot7.exemplars").write_text("something else")
    Path(directory, "notes.exemplars").write_text("of somebody else")
    for number in range(3):
        holder.call(count, trace(number))
    (line,) = holder.call(log_lines)
    assert "exemplars are not shown for now" in line
    assert "slot0.exemplars" in line
    assert shown(directory) == {}
    text = page(directory)
    assert 'obskit_gunicorn_files_skipped{reason="foreign"} 2.0' in text
    assert read(directory) == {"c_total": 3.0}
    Path(directory, "slot0.exemplars").rmdir()
    holder.call(_try_again)
    holder.call(count, trace(9))
    assert shown(directory) == {"c_total": trace(9)}


def _try_again() -> None:
    from obskit_gunicorn._values import values

    values._exemplars_at = 0.0


def test_what_is_skipped_is_said_once(
    holder: RemoteProcess, directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the collector's usual line."""
    holder.call(count, None)
    Path(directory, "slot0.exemplars").write_text("something else")
    with caplog.at_level(logging.WARNING, logger="obskit_gunicorn"):
        for _ in range(2):
            assert shown(directory) == {}
    (line,) = caplog.messages
    assert line.startswith("obskit: the unreadable part of ")
    assert "slot0.exemplars is left out of scrapes" in line
    holder.call(count, trace(1))
    assert shown(directory) == {"c_total": trace(1)}
    (line,) = holder.call(log_lines)
    assert "was damaged" in line


@needs_root
def test_a_full_volume(nursery: Nursery, directory: str) -> None:
    """One line, nothing raises, counts are shared; with room they are kept again."""
    process = nursery.start()
    process.call(mount_small, directory, 200)
    process.call(join, directory)
    process.call(count, None)
    ballast = process.call(forks.fill_volume, directory)
    for number in range(3):
        process.call(count, trace(number))
    assert process.call(read, directory) == {"c_total": 4.0}
    (line,) = process.call(log_lines)
    assert "exemplars are not shown for now" in line
    assert "the volume is full" in line
    process.call(os.unlink, ballast)
    process.call(_try_again)
    process.call(count, trace("room"))
    assert process.call(shown, directory) == {"c_total": trace("room")}


@needs_root
def test_they_give_way_to_counts(nursery: Nursery, directory: str) -> None:
    """A metric file that finds no room gets theirs, and they do not take it back soon."""
    process = nursery.start()
    process.call(mount_small, directory, 200)
    process.call(join, directory)
    process.call(count, trace(1))
    ballast = process.call(forks.fill_volume, directory)
    for number in range(60):
        process.call(act, "counter", "d", "inc", 1, labels={"n": f"{number:0100}"})
    found = process.call(read, directory)
    assert sum(found.values()) == 61.0
    assert "slot0.exemplars" not in process.call(os.listdir, directory)
    process.call(os.unlink, ballast)
    process.call(count, trace(2))
    (line,) = process.call(log_lines)
    assert "exemplars are not shown for now" in line
    assert "slot0.exemplars" not in process.call(os.listdir, directory)
    process.call(_close)
    process.call(_try_again)
    process.call(count, trace(3))
    assert process.call(shown, directory) == {"c_total": trace(3)}


def test_what_did_not_change_is_not_rendered_again(holder: RemoteProcess, directory: str) -> None:
    """A new exemplar renders the lines around it anew, and no others, in OpenMetrics only."""
    from obskit_gunicorn._scrape.collector import DirectoryCollector
    from obskit_gunicorn._scrape.formats import TEXT, negotiated

    for number in range(300):
        holder.call(observe, 1.5, trace(number), f"{number:03}")
    collector, format_ = DirectoryCollector(directory), negotiated(OPENMETRICS)
    before, text_before = collector.collect().blocks(format_), collector.collect().blocks(TEXT)
    assert [*map(id, collector.collect().blocks(format_))] == [*map(id, before)]
    holder.call(_only_exemplar, "123", trace("new"))
    after = collector.collect().blocks(format_)
    changed = [at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert len(before) > 5
    assert len(changed) == 1
    assert b'trace_id="new"' in after[changed[0]].text
    assert [*map(id, collector.collect().blocks(TEXT))] == [*map(id, text_before)]


def _only_exemplar(label: str, labels: Mapping[str, str]) -> None:
    from prometheus_client.samples import Exemplar

    bucket = metric("histogram", "h", {"n": label})._buckets[1]
    bucket.set_exemplar(Exemplar(dict(labels), 1.5, time.time()))
