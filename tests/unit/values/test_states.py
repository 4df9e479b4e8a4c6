"""Infos and Enums of real processes: what any of them has set last is shown."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Enum, Info
from prometheus_client import generate_latest as their_generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as their_openmetrics

from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._values import values
from obskit_gunicorn._values.budget import Budget
from tests.support import forks
from tests.support.forks import (
    Nursery,
    RemoteProcess,
    act,
    join,
    log_lines,
    mount_small,
    read,
    read_ours,
    run_python,
    slot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STATES = ("open", "shut")
_metrics: dict[str, Any] = {}


@pytest.fixture(name="holder")
def _holder(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that shares its metrics and has not used any."""
    process = nursery.start()
    process.call(join, directory)
    return process


def metric(name: str, labels: Mapping[str, str] | None = None) -> Any:
    """Return an Info ``build`` or ``labelled``, or an Enum ``door`` or ``doors``."""
    found = _metrics.get(name)
    if found is None:
        registry = None if name == "build" else CollectorRegistry()
        if name in ("build", "labelled"):
            names = ["host", "zone"] if name == "labelled" else []
            found = Info(name, "Help.", names, registry=registry)
        else:
            names = ["of"] if name == "doors" else []
            found = Enum(name, "Help.", names, states=STATES, registry=registry)
        _metrics[name] = found
    return found.labels(**labels) if labels else found


def tell(name: str, said: Any, labels: Mapping[str, str] | None = None) -> None:
    """Let one say something; ``None`` only makes it."""
    made = metric(name, labels)
    if said is not None:
        (made.info if name in ("build", "labelled") else made.state)(said)


def remove(name: str, *values: str) -> None:
    """Remove one of its series."""
    metric(name).remove(*values)


def clear(name: str) -> None:
    """Remove all of them."""
    metric(name).clear()


def shown(directory: str) -> set[str]:
    """Return the series that are shown, those that are 0 left out."""
    return {name for name, value in read_ours(directory).items() if value}


def test_what_any_process_has_set_last(nursery: Nursery, directory: str) -> None:
    """Also if that has ended, and if another one is made that nobody has set."""
    one, two = nursery.start(), nursery.start()
    for process in (one, two):
        process.call(join, directory)
    one.call(tell, "build", {"version": "1"})
    two.call(tell, "build", {"version": "2", "commit": 'a"\\\n☃\0'})
    two.call(tell, "door", "shut")
    one.call(tell, "door", "open")
    one.call(tell, "door", "open")
    expected = {'build_info{commit="a"\\\n☃\0",version="2"}', 'door{door="open"}'}
    assert shown(directory) == expected
    one.kill()
    two.kill()
    third = nursery.start()
    third.call(join, directory)
    third.call(tell, "build", None)
    third.call(tell, "door", None)
    assert third.call(slot) == "slot0"
    assert shown(directory) == expected
    third.call(tell, "build", {"version": "3"})
    assert shown(directory) == {'build_info{version="3"}', 'door{door="open"}'}


def test_what_nobody_has_set(holder: RemoteProcess, directory: str) -> None:
    """It is shown as prometheus_client shows it: without labels, or in its first state."""
    holder.call(tell, "build", None)
    holder.call(tell, "door", None)
    assert read_ours(directory) == {
        "build_info": 1.0,
        'door{door="open"}': 1.0,
        'door{door="shut"}': 0.0,
    }


def test_other_readers_do_not_see_it(holder: RemoteProcess, directory: str) -> None:
    """prometheus_client's collector would add it up."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(act, "counter", "c", "inc", 1)
    assert read(directory) == {"c_total": 1.0}
    mode = Path(directory, "slot0.states").stat().st_mode
    assert mode == Path(directory, "counter_slot0.db").stat().st_mode  # for the same readers


def test_children_are_noticed_and_removed(nursery: Nursery, directory: str) -> None:
    """By any process, whoever has set them; one that is used again says what it says then."""
    one, two = nursery.start(), nursery.start()
    for number, process in enumerate((one, two)):
        process.call(join, directory)
        process.call(tell, "doors", "shut", {"of": f"car{number}"})
    one.call(tell, "doors", None, {"of": "house"})
    assert shown(directory) == {
        'doors{doors="shut",of="car0"}',
        'doors{doors="shut",of="car1"}',
        'doors{doors="open",of="house"}',
    }
    two.call(tell, "doors", None, {"of": "car0"})
    two.call(remove, "doors", "car0")
    assert shown(directory) == {'doors{doors="shut",of="car1"}', 'doors{doors="open",of="house"}'}
    one.call(clear, "doors")
    assert shown(directory) == set()
    one.call(tell, "doors", None, {"of": "car0"})
    two.call(tell, "doors", "shut", {"of": "car1"})
    assert shown(directory) == {'doors{doors="open",of="car0"}', 'doors{doors="shut",of="car1"}'}


def test_removal_by_some_labels(holder: RemoteProcess, directory: str) -> None:
    """Of all series that have these labels, and no others."""
    if not hasattr(Info, "remove_by_labels"):
        pytest.skip("this prometheus_client has no remove_by_labels")
    for host in "ab":
        for zone in "xy":
            holder.call(tell, "labelled", {"v": "1"}, {"host": host, "zone": zone})
    holder.call(_remove_by_labels, {"zone": "x"})
    assert shown(directory) == {
        'labelled_info{host="a",v="1",zone="y"}',
        'labelled_info{host="b",v="1",zone="y"}',
    }
    holder.call(_remove_by_labels, {})
    assert len(shown(directory)) == 2


def _remove_by_labels(labels: dict[str, str]) -> None:
    metric("labelled").remove_by_labels(labels)


def test_a_forked_child_says_only_its_own(holder: RemoteProcess, directory: str) -> None:
    """What it inherits is its parent's; what it sets is shown after that."""
    holder.call(tell, "build", {"version": "parent"})
    child = holder.fork()
    assert child.call(slot) is None
    child.call(tell, "door", "shut")
    holder.call(tell, "build", {"version": "parent again"})
    assert shown(directory) == {'build_info{version="parent again"}', 'door{door="shut"}'}
    child.call(tell, "build", {"version": "child"})
    assert shown(directory) == {'build_info{version="child"}', 'door{door="shut"}'}


def test_made_before_there_is_a_directory(nursery: Nursery, directory: str) -> None:
    """Before our class is installed as well, and what it says then is shown."""
    process = nursery.start()
    process.call(tell, "build", {"version": "early"})
    process.call(tell, "doors", "shut", {"of": "car"})
    process.call(tell, "door", None)
    process.call(join, directory)
    assert shown(directory) == {
        'build_info{version="early"}',
        'doors{doors="shut",of="car"}',
        'door{door="open"}',
    }
    process.call(tell, "build", {"version": "late"})
    assert 'build_info{version="late"}' in shown(directory)


def test_made_before_the_package_is_imported(directory: str) -> None:
    """As an application does it that imports us last."""
    code = (
        "from prometheus_client import Enum, Info\n"
        "build = Info('build', 'Help.'); build.info({'version': 'early'})\n"
        "doors = Enum('doors', 'Help.', ['of'], states=['open', 'shut'])\n"
        "doors.labels('car').state('shut'); doors.labels('house')\n"
        "import obskit_gunicorn.multiprocess\n"
    )
    run_python(code, PROMETHEUS_MULTIPROC_DIR=directory)
    assert shown(directory) == {
        'build_info{version="early"}',
        'doors{doors="shut",of="car"}',
        'doors{doors="open",of="house"}',
    }


def test_a_generation_begins_without(holder: RemoteProcess, directory: str) -> None:
    """A wipe takes away what was said before."""
    holder.call(tell, "build", {"version": "1"})
    holder.kill()
    SlotDirectory(directory).start_generation(keep=False).lease.release()
    assert shown(directory) == set()
    assert "slot0.states" not in os.listdir(directory)


def test_a_directory_that_is_cleared(holder: RemoteProcess, directory: str) -> None:
    """What a process has said it says again in its new place."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(act, "counter", "c", "inc", 1)
    for name in os.listdir(directory):
        os.unlink(Path(directory, name))
    holder.call(_keep_place)
    assert shown(directory) == {'build_info{version="1"}', "c_total"}


def test_a_removed_file_is_made_again(holder: RemoteProcess, directory: str) -> None:
    """At a heartbeat, with all that the process has said."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(tell, "door", "shut")
    os.unlink(Path(directory, "slot0.states"))
    holder.call(_keep_place)
    assert shown(directory) == {'build_info{version="1"}', 'door{door="shut"}'}
    assert holder.call(slot) == "slot0"


def _keep_place() -> None:
    from obskit_gunicorn._values import values

    values._look_at = 0.0
    values.keep_place()


def test_files_that_are_closed_are_opened_again(holder: RemoteProcess, directory: str) -> None:
    """And what was said before is there still."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(_close)
    holder.call(tell, "door", "shut")
    assert shown(directory) == {'build_info{version="1"}', 'door{door="shut"}'}


def _close() -> None:
    from obskit_gunicorn._values import values

    values.close_files()


def test_descriptors_that_were_closed(holder: RemoteProcess, directory: str) -> None:
    """An application may close all of them: nothing raises, and the file is opened again."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(forks.close_descriptors)
    holder.call(tell, "build", {"version": "2"})
    holder.call(_wait_no_longer)
    holder.call(tell, "door", "shut")
    assert shown(directory) == {'build_info{version="2"}', 'door{door="shut"}'}


def _wait_no_longer() -> None:
    from obskit_gunicorn._values import states

    states._retry_at = 0.0


def test_what_cannot_be_exposed(
    holder: RemoteProcess, directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs itself, not the scrape, and one line names it; numbers become text."""
    holder.call(tell, "build", {"version": "1"})
    holder.call(tell, "build", {"version": "\ud800"})
    holder.call(tell, "build", {"version": "\ud801"})
    (line,) = holder.call(log_lines)
    assert "what build says is left out" in line
    assert shown(directory) == {'build_info{version="1"}'}
    holder.call(tell, "build", {"version": 2})
    assert shown(directory) == {'build_info{version="2"}'}
    holder.call(tell, "build", {"__name": "x"})
    holder.call(tell, "door", "shut")
    with caplog.at_level(logging.WARNING, logger="obskit_gunicorn"):
        assert shown(directory) == {'door{door="shut"}'}
        assert shown(directory) == {'door{door="shut"}'}
    assert ["build" in line for line in caplog.messages] == [True]


def test_a_name_that_is_taken(
    holder: RemoteProcess, directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric with numbers keeps it; the exposition has no name twice."""
    holder.call(tell, "door", "shut")
    assert shown(directory) == {'door{door="shut"}'}
    holder.call(act, "gauge_max", "door", "set", 3)
    with caplog.at_level(logging.WARNING, logger="obskit_gunicorn"):
        assert read_ours(directory) == {"door": 3.0}
    (line,) = caplog.messages
    assert "another metric has its name" in line


def test_errors_stay_prometheus_clients(holder: RemoteProcess, directory: str) -> None:
    """And what is refused changes nothing."""
    holder.call(tell, "door", "shut")
    assert holder.call(_refusals) == ["ValueError", "ValueError", "ValueError"]
    assert shown(directory) == {'door{door="shut"}'}


def _refusals() -> list[str]:
    calls: tuple[Callable[[], None], ...] = (
        lambda: tell("door", "ajar"),
        lambda: tell("doors", "open"),
        lambda: tell("labelled", {"host": "b"}, {"host": "a", "zone": "x"}),
    )
    names = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            names.append(type(error).__name__)
    metric("labelled").clear()
    return names


@needs_root
def test_a_full_volume(nursery: Nursery, directory: str) -> None:
    """One line, nothing raises, and with room it is shown."""
    process = nursery.start()
    process.call(mount_small, directory, 200)
    process.call(join, directory)
    process.call(act, "counter", "c", "inc", 1)
    ballast = process.call(forks.fill_volume, directory)
    for number in range(3):
        process.call(tell, "build", {"version": str(number)})
    (line,) = process.call(log_lines)
    assert "is not shown for now" in line
    assert "the volume is full" in line
    process.call(os.unlink, ballast)
    process.call(_try_again)
    assert process.call(shown, directory) == {'build_info{version="2"}', "c_total"}


def _try_again() -> None:
    from obskit_gunicorn._values import states

    states._retry_at = 0.0
    _keep_place()


def test_a_stranger_has_the_name(holder: RemoteProcess, directory: str) -> None:
    """One line; counting goes on, and the scrape leaves it out."""
    Path(directory, "slot0.states").mkdir()
    Path(directory, "slot7.states").write_text("something else")
    Path(directory, "notes.states").write_text("of somebody else")
    holder.call(tell, "build", {"version": "1"})
    holder.call(act, "counter", "c", "inc", 1)
    (line,) = holder.call(log_lines)
    assert "is not shown for now" in line
    assert shown(directory) == {"c_total"}


def test_threads(holder: RemoteProcess, directory: str) -> None:
    """What a process shows is what its object says when all threads are done."""
    assert holder.call(_from_threads, directory) == []


def _from_threads(directory: str) -> list[tuple[str, set[str]]]:
    """Return what the object said and what was shown, where they differ."""
    build, different = metric("build"), []
    sys.setswitchinterval(1e-6)
    for _ in range(100):
        start = threading.Barrier(4)

        def run(name: str, start: threading.Barrier = start) -> None:
            start.wait()
            for number in range(3):
                build.info({"version": f"{name}{number}"})

        threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = f'build_info{{version="{build._value["version"]}"}}'
        if shown(directory) != {said}:
            different.append((said, shown(directory)))
    return different


def test_as_in_one_process(nursery: Nursery, directory: str) -> None:
    """All text formats show what prometheus_client shows of the same metrics in one process."""
    from obskit_gunicorn._scrape.formats import TEXT, negotiated
    from obskit_gunicorn._scrape.registry import Exposition, SharedRegistry

    process = nursery.start()
    process.call(join, directory)
    texts = process.call(_in_one_process)
    openmetrics = negotiated("application/openmetrics-text;version=1.0.0")
    for format_, expected in zip((TEXT, openmetrics), texts, strict=True):
        text = Exposition(SharedRegistry(directory)).rendered(format_).decode()
        ours = {line for line in text.splitlines() if "gunicorn_" not in line}
        assert ours == set(expected.splitlines())


def _in_one_process() -> list[str]:
    registry = CollectorRegistry()
    Info("a", "Help \\ and\nmore.", registry=registry).info({"b": 'x"\\\ny', "a": "☃"})
    info = Info("b", "", ["z", "a"], registry=registry)
    info.labels("1", "2").info({"m": "n"})
    info.labels("3", "4")
    enum = Enum("c", "Help.", ["of"], states=["x", "y", "z"], registry=registry, namespace="n")
    enum.labels("1").state("y")
    enum.labels("2")
    openmetrics: bytes = their_openmetrics(registry)  # type: ignore[no-untyped-call]
    return [their_generate_latest(registry).decode(), openmetrics.decode()]


def test_removal_of_what_only_others_have(nursery: Nursery, directory: str) -> None:
    """Under all releases of prometheus_client, of which older ones raise a KeyError."""
    one, two = nursery.start(), nursery.start()
    for process in (one, two):
        process.call(join, directory)
    one.call(tell, "doors", "shut", {"of": "car"})
    two.call(remove, "doors", "car")
    assert shown(directory) == set()


def _limit() -> None:
    values.limit(Budget({"*": 2, "doors": 3}))


def _tell_many(name: str, said: Any, label: str, first: int, end: int) -> int:
    for number in range(first, end):
        zone = {} if label == "of" else {"zone": "z"}
        tell(name, said, {label: str(number), **zone})
    return len(metric(name)._metrics)


def test_a_budget(nursery: Nursery, directory: str) -> None:
    """Series that strangers make are bounded; what has no place is said as that of all of them."""
    one, two = nursery.start(), nursery.start()
    for process in (one, two):
        process.call(_limit)
        process.call(join, directory)
    assert one.call(_tell_many, "doors", "shut", "of", 0, 300) < 100
    assert two.call(_tell_many, "doors", "open", "of", 2, 300) < 100
    one.call(_tell_many, "labelled", {"v": "1"}, "host", 0, 300)
    two.call(_tell_many, "labelled", {"v": "2"}, "host", 300, 301)
    assert shown(directory) == {
        'doors{doors="shut",of="0"}',
        'doors{doors="shut",of="1"}',
        'doors{doors="open",of="2"}',
        'doors{doors="open",of="__other__"}',
        'labelled_info{host="0",v="1",zone="z"}',
        'labelled_info{host="1",v="1",zone="z"}',
        'labelled_info{host="__other__",v="2",zone="__other__"}',
    }
    lines = [line for line in one.call(log_lines) if "budget" in line]
    assert len(lines) == 2
    assert "doors has used up its budget: it has 3 label sets" in lines[0]
    assert "its label 'host' makes more" in lines[1]
    assert not [line for line in two.call(log_lines) if "budget" in line]
    two.call(remove, "doors", "2")
    one.call(clear, "labelled")
    one.call(tell, "doors", "shut", {"of": "299"})
    assert shown(directory) == {
        'doors{doors="shut",of="0"}',
        'doors{doors="shut",of="1"}',
        'doors{doors="shut",of="__other__"}',
    }


def _steps(action: Callable[..., object], *arguments: Any) -> int:
    """Return how many lines of code run in a call."""
    steps = 0

    def count(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    sys.settrace(count)
    try:
        action(*arguments)
    finally:
        sys.settrace(None)
    return steps


def _steps_of_one() -> tuple[int, int]:
    tell("doors", "shut", {"of": "1"})
    said = _steps(tell, "doors", "open", {"of": "1"})
    return said, _steps(remove, "doors", "1")


def test_many_cost_no_more_than_few(holder: RemoteProcess) -> None:
    """To say one thing does not depend on how many others were said, nor does to remove one."""
    holder.call(_tell_many, "doors", "shut", "of", 0, 10)
    holder.call(_steps_of_one)  # the first time imports and compiles what it needs
    few = holder.call(_steps_of_one)
    holder.call(_tell_many, "doors", "shut", "of", 0, 500)
    many = holder.call(_steps_of_one)
    assert many == pytest.approx(few, abs=50)
