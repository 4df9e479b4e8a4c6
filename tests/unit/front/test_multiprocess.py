"""Set-up and clean-up of sharing, and the names of a drop-in."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import values as prometheus_values

from obskit_gunicorn import multiprocess
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.fileformat import HEADER_BYTES, pack_entry
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._store.writer import MetricFile
from obskit_gunicorn._values import sharing, values
from tests.support import forks
from tests.support.forks import (
    REPOSITORY,
    Nursery,
    RemoteProcess,
    act,
    join,
    log_lines,
    own_value,
    read,
    read_ours,
    run_python,
    slot,
    wait_until,
)

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_closing = pytest.mark.skipif(
    not hasattr(prometheus_values, "close_all_multiprocess_files"),
    reason="this prometheus_client has no close_all_multiprocess_files",
)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@pytest.fixture(name="holder")
def _holder(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that shares its metrics and has not used any."""
    process = nursery.start()
    process.call(join, directory)
    return process


def only_files(directory: str) -> set[str]:
    """Return the metric files of a directory."""
    return {name for name in os.listdir(directory) if name.endswith(".db")}


class TestImport:
    """What importing the module does, in fresh interpreters."""

    def test_shares_where_the_environment_says(self, directory: str) -> None:
        """A process that imports it shares its metrics without another word."""
        code = """if True:
            import obskit_gunicorn.multiprocess
            from prometheus_client import Counter
            Counter("c", "Help.").inc(3)
        """
        for _ in range(2):
            run_python(code, PROMETHEUS_MULTIPROC_DIR=directory)
        assert only_files(directory) == {"counter_slot0.db"}
        assert read(directory)["c_total"] == 6

    def test_touches_nothing_until_a_metric_is_made(self, directory: str) -> None:
        """Importing takes no slot and makes no file."""
        run_python("import obskit_gunicorn.multiprocess", PROMETHEUS_MULTIPROC_DIR=directory)
        assert os.listdir(directory) == []

    def test_does_nothing_without_the_variable(self) -> None:
        """Without a directory prometheus_client is left as it is."""
        code = """if True:
            import obskit_gunicorn.multiprocess as multiprocess
            from prometheus_client import Counter, values
            counter = Counter("c", "Help.")
            counter.inc()
            assert values.ValueClass is values.MutexValue
            assert not multiprocess.is_multiprocess_mode()
            assert b"c_total 1.0" in multiprocess.generate_latest()
        """
        run_python(code)

    def test_makes_a_missing_directory(self, tmp_path: Path) -> None:
        """A directory that is not there yet is made."""
        code = """if True:
            import obskit_gunicorn.multiprocess
            from prometheus_client import Counter
            Counter("c", "Help.").inc()
        """
        run_python(code, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "deep" / "metrics"))
        assert read(tmp_path / "deep" / "metrics") == {"c_total": 1.0}

    def test_a_file_in_its_place_is_one_line(self, tmp_path: Path) -> None:
        """A directory that cannot be is one line in the log, and metrics count in memory."""
        (tmp_path / "file").write_bytes(b"")
        code = """if True:
            import obskit_gunicorn.multiprocess
            from prometheus_client import Counter
            counter = Counter("c", "Help.")
            for _ in range(5):
                counter.inc()
            print(counter._value.get())
        """
        done = run_python(code, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "file"))
        assert done.stdout == "5.0\n"
        (line,) = done.stderr.splitlines()
        assert "not a directory" in line

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_children_of_multiprocessing(self, directory: str, tmp_path: Path, method: str) -> None:
        """Children of every start method count, once each, also beside their parent's."""
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent("""\
                import multiprocessing, sys
                import obskit_gunicorn.multiprocess
                from prometheus_client import Counter, Gauge

                counter = Counter("c", "Help.")
                gauge = Gauge("g", "Help.", multiprocess_mode="max")

                def work(number):
                    counter.inc(10)
                    gauge.set(number)

                if __name__ == "__main__":
                    context = multiprocessing.get_context(sys.argv[1])
                    counter.inc()
                    children = [context.Process(target=work, args=(n,)) for n in range(4)]
                    for child in children:
                        child.start()
                    for child in children:
                        child.join()
                    assert [child.exitcode for child in children] == [0] * 4
                    counter.inc()
                """)
        )
        done = subprocess.run(
            [sys.executable, str(program), method],
            env={**os.environ, VARIABLE: directory, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert read(directory) == {"c_total": 42.0, "g": 3.0}
        assert all("slot" in name for name in only_files(directory))


_EARLY = """if True:
    import os, sys
    if sys.argv[1] == "mmap":
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[2]
    from prometheus_client import Counter, Gauge, Histogram, Summary

    counter = Counter("c", "Help.")
    counter.note = "precious"
    counter.inc(5)
    labelled = Counter("l", "Help.", ["label"])
    labelled.labels("x").inc(3)
    untouched = Counter("u", "Help.")
    Gauge("g", "Help.", multiprocess_mode="max").set(-4)
    Gauge("r", "Help.", multiprocess_mode="mostrecent").set(8)
    histogram = Histogram("h", "Help.", buckets=(1, 5))
    histogram.observe(3)
    summary = Summary("s", "Help.")
    summary.observe(2)

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[2]
    import obskit_gunicorn.multiprocess
    counter.inc()
    labelled.labels("x").inc()
    labelled.labels("y").inc()
    histogram.observe(0.5)
    summary.observe(2)
    assert counter.note == "precious"
    from prometheus_client import REGISTRY
    assert REGISTRY.get_sample_value("c_total") == 6
"""


class TestTakeOver:
    """Metrics that were made before the value class was installed."""

    @pytest.mark.parametrize("theirs", ["mutex", "mmap"])
    def test_early_metrics_are_taken_over(self, directory: str, theirs: str) -> None:
        """They keep what they have counted, count on in our files, and nothing counts twice."""
        done = run_python(_EARLY, theirs, directory)
        assert done.stderr == ""
        assert all(name.endswith("_slot0.db") for name in only_files(directory))
        expected = {
            "c_total": 6.0,
            'l_total{label="x"}': 4.0,
            'l_total{label="y"}': 1.0,
            "u_total": 0.0,
            "g": -4.0,
            "h_sum": 3.5,
            'h_bucket{le="1.0"}': 1.0,
            'h_bucket{le="5.0"}': 2.0,
            'h_bucket{le="+Inf"}': 2.0,
            "h_count": 2.0,
            "s_sum": 4.0,
            "s_count": 2.0,
        }
        if theirs == "mmap":  # a MutexValue knows no time
            expected["r"] = 8.0
        found = read(directory)
        assert {name: value for name, value in found.items() if name != "r"} == {
            name: value for name, value in expected.items() if name != "r"
        }
        assert found.get("r") == expected.get("r")

    def test_what_cannot_be_taken_over_is_named(self, directory: str) -> None:
        """A value that somebody keeps outside of a metric is named in a warning."""
        code = """if True:
            import os, sys
            from prometheus_client import values
            class Mine:
                def __init__(self):
                    self.value = values.ValueClass("counter", "mine", "mine_total", (), (), "Help.")
            mine = Mine()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
            import logging
            logging.basicConfig(level=logging.WARNING)
            import obskit_gunicorn.multiprocess
            mine.value.inc(1)
        """
        done = run_python(code, directory)
        (line,) = done.stderr.splitlines()
        assert "WARNING" in line
        assert "Mine" in line

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_root_removes_nothing_behind_a_strangers_link(self, tmp_path: Path) -> None:
        """The files of the old values stay where a link of another user leads to them."""
        target, theirs = tmp_path / "target", tmp_path / "theirs"
        target.mkdir()
        theirs.mkdir()
        link = theirs / "link"
        link.symlink_to(target)
        os.chown(theirs, 65534, 65534)
        code = """if True:
            import os, sys
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
            from prometheus_client import Counter
            Counter("c", "Help.").inc()
            from obskit_gunicorn._values import adoption, sharing
            print(os.getpid())
            sharing.install()
        """
        done = run_python(code, str(link))
        assert only_files(str(target)) == {f"counter_{int(done.stdout)}.db"}, done.stderr

    def test_what_other_code_keeps_goes_on_working(self, directory: str) -> None:
        """A value of a file of its own can still be used, in a child too; others are not named."""
        code = """if True:
            import os, sys
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
            from prometheus_client import Counter
            counter, other = Counter("c", "Help."), Counter("d", "Help.")
            keep = counter._value
            counter.inc(5)
            other.inc(7)
            import logging
            logging.basicConfig(level=logging.WARNING)
            import obskit_gunicorn.multiprocess
            keep.inc(1)
            counter.inc(1)
            if os.fork() == 0:
                keep.inc(1)
                os._exit(0)
            sys.exit(os.wait()[1])
        """
        done = run_python(code, directory)
        (line,) = done.stderr.splitlines()
        assert "obskit: c: created before" in line
        found = read_ours(directory)
        assert (found["c_total"], found["d_total"]) == (7.0, 7.0)

    def test_values_of_other_processes_stay(self, directory: str) -> None:
        """Values in files that are not this process's alone go on there, and count as they did."""
        code = """if True:
            import os, sys
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
            from prometheus_client import Counter, values
            values.ValueClass = values.MultiProcessValue(lambda: "shared")
            counter = Counter("c", "Help.")
            counter.inc(5)
            import obskit_gunicorn.multiprocess
            counter.inc(1)
            Counter("d", "Help.").inc(7)
        """
        assert run_python(code, directory).stderr == ""
        assert read_ours(directory) == {"c_total": 6.0, "d_total": 7.0}
        assert "counter_shared.db" in os.listdir(directory)

    def test_what_is_not_safe_is_left_and_said(self, nursery: Nursery, tmp_path: Path) -> None:
        """Values of others in another directory stay there: errors and the gauge say so."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        theirs.mkdir()
        process = nursery.start()
        process.call(_begin, str(ours))
        levels, counted, named = process.call(_move_away, str(theirs))
        assert levels == [logging.WARNING, logging.ERROR, logging.ERROR]
        assert counted == 1
        assert named == str(theirs)
        assert read_ours(theirs) == {"c_total": 5.0}
        assert read_ours(ours) == {"d_total": 1.0}

    def test_installing_again_takes_over_nothing(self, holder: RemoteProcess) -> None:
        """Installing again does not walk the process's objects a second time."""
        holder.call(act, "counter", "c", "inc")
        assert holder.call(sharing.install) == []
        assert holder.call(own_value, "counter", "c") == 1


def _move_away(path: str) -> tuple[list[int], int, str]:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    prometheus_values.ValueClass = prometheus_values.MultiProcessValue(lambda: "w1")  # type: ignore[no-untyped-call]
    act("counter", "c", "inc", 5)
    levels = [level for level, _line in sharing.put_back()]
    act("counter", "d", "inc", 1)
    return levels, values.not_shared(), os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _begin(path: str | None, *, keep: bool = False) -> str | None:
    forks.listen()
    sharing.install()
    sharing.begin(path, keep=keep, user=os.geteuid(), group=os.getegid())
    directory = membership.directory
    return directory.path if directory is not None else None


class TestBegin:
    """An arbiter's beginning, which never raises."""

    def test_begins_once(self, nursery: Nursery, directory: str) -> None:
        """Called again it does nothing and says nothing."""
        arbiter = nursery.start()
        for _ in range(3):
            assert arbiter.call(_begin, directory) == directory
            arbiter.call(act, "counter", "c", "inc")
        assert arbiter.call(slot) == "slot0"
        assert arbiter.call(log_lines) == []
        assert read(directory) == {"c_total": 3.0}

    def test_what_was_counted_before_is_kept(self, nursery: Nursery, directory: str) -> None:
        """What the arbiter counted while it loaded its configuration outlives the wipe."""
        MetricFile(os.path.join(directory, "counter_slot0.db")).release()
        for joins_first in (False, True):
            arbiter = nursery.start()
            if joins_first:
                arbiter.call(join, directory)
            else:
                arbiter.call(sharing.install)
            arbiter.call(act, "counter", "c", "inc", 5)
            arbiter.call(act, "gauge_max", "g", "set", 2)
            arbiter.call(_begin, directory)
            arbiter.call(act, "counter", "c", "inc", 1)
            assert read(directory) == {"c_total": 6.0, "g": 2.0}
            arbiter.kill()

    def test_a_removed_directory_is_made_anew(self, nursery: Nursery, directory: str) -> None:
        """It says so, and the counts of living processes go on in the new one."""
        arbiter = nursery.start()
        arbiter.call(_begin, directory)
        arbiter.call(act, "counter", "c", "inc", 5)
        worker = arbiter.fork()
        worker.call(act, "counter", "c", "inc", 7)
        shutil.rmtree(directory)
        assert arbiter.call(_begin, directory) == directory
        (line,) = arbiter.call(log_lines)
        assert "was removed or cleaned while in use" in line
        worker.call(act, "counter", "new", "inc")
        arbiter.call(act, "counter", "c", "inc")
        worker.call(act, "counter", "c", "inc")
        assert read(directory) == {"c_total": 14.0, "new_total": 1.0}

    def test_a_removed_lease_costs_no_count(self, nursery: Nursery, directory: str) -> None:
        """When only its lease file is gone, the arbiter takes another and wipes nothing."""
        arbiter = nursery.start()
        arbiter.call(_begin, directory)
        arbiter.call(act, "counter", "c", "inc", 5)
        worker = arbiter.fork()
        worker.call(act, "counter", "c", "inc", 7)
        worker.kill()
        os.unlink(os.path.join(directory, "slot0.lease"))
        arbiter.call(_begin, directory)
        arbiter.call(act, "counter", "c", "inc", 1)
        assert read(directory) == {"c_total": 13.0}

    def test_trouble_is_said_once(self, nursery: Nursery, tmp_path: Path) -> None:
        """A directory that cannot be used is one line, however often it is tried."""
        path = tmp_path / "file"
        path.write_bytes(b"")
        arbiter = nursery.start()
        for _ in range(3):
            assert arbiter.call(_begin, str(path)) is None
            arbiter.call(act, "counter", "c", "inc")
        (line,) = arbiter.call(log_lines)
        assert "not a directory" in line
        path.unlink()
        assert arbiter.call(_begin, str(path)) == str(path)
        assert read(path)["c_total"] == 3

    def test_another_directory(self, nursery: Nursery, tmp_path: Path) -> None:
        """A directory that is configured anew takes over, and says so."""
        arbiter = nursery.start()
        paths = [str(tmp_path / name) for name in ("first", "second")]
        arbiter.call(_begin, paths[0])
        arbiter.call(act, "counter", "c", "inc", 5)
        arbiter.call(_begin, paths[1])
        arbiter.call(act, "counter", "c", "inc", 1)
        (line,) = arbiter.call(log_lines)
        assert "is no longer used" in line
        assert read(paths[1])["c_total"] in (1, 6)
        assert read(paths[0])["c_total"] + read(paths[1])["c_total"] in (6, 11)

    def test_lease_of_the_past_is_free(self, nursery: Nursery, tmp_path: Path) -> None:
        """The slot in a directory that is left can be taken by others."""
        arbiter = nursery.start()
        paths = [str(tmp_path / name) for name in ("first", "second")]
        arbiter.call(_begin, paths[0])
        arbiter.call(_begin, paths[1])
        assert SlotDirectory(paths[0]).records() == {"slot0": None}


_ARBITER = """if True:
    import os, sys
    from obskit_gunicorn._store.membership import membership
    from obskit_gunicorn._values import sharing
    path = sys.argv[1] or None
    sharing.install()
    sharing.begin(path, keep=False, user=os.geteuid(), group=os.getegid())
    from prometheus_client import Counter, Gauge
    counter = Counter("c", "Help.")
    counter.inc(5)
    gauge = Gauge("g", "Help.", multiprocess_mode="sum")
    gauge.set(5)
    print(membership.directory.path, flush=True)
"""


class TestEnd:
    """What is left when processes end."""

    def test_a_private_directory_goes(self, tmp_path: Path) -> None:
        """The arbiter removes it at its end, although it has metric files of its own there."""
        runtime = tmp_path / "runtime"
        runtime.mkdir(mode=0o700)
        done = run_python(_ARBITER, "", XDG_RUNTIME_DIR=str(runtime), TMPDIR=str(runtime))
        assert Path(done.stdout.strip()).parent == runtime
        assert os.listdir(runtime) == []

    def test_a_named_directory_stays(self, directory: str) -> None:
        """What an arbiter has counted stays in a directory that the user has named."""
        run_python(_ARBITER, directory)
        assert read(directory) == {"c_total": 5.0, "g": 5.0}
        assert read_ours(directory) == {"c_total": 5.0, "g": 5.0}
        assert SlotDirectory(directory).records() == {"slot0": None}

    def test_the_last_worker_of_a_killed_arbiter(self, tmp_path: Path) -> None:
        """A private directory of a killed arbiter goes with its last worker."""
        runtime = tmp_path / "runtime"
        runtime.mkdir(mode=0o700)
        code = (
            _ARBITER
            + """
    import signal
    arbiter = os.getpid()
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(write_end)
        membership.role = "worker"
        counter.inc()
        os.read(read_end, 1)
        sys.exit(0)
    os.close(read_end)
    os.kill(arbiter, signal.SIGKILL)
"""
        )
        done = run_python(code, "", check=False, XDG_RUNTIME_DIR=str(runtime), TMPDIR=str(runtime))
        assert done.returncode == -signal.SIGKILL
        wait_until(lambda: os.listdir(runtime) == [], "the last worker has tidied up", 30)

    def test_children_do_not_tidy_up(self, tmp_path: Path) -> None:
        """A child that ends by ``sys.exit`` leaves the directory of its living parent alone."""
        runtime = tmp_path / "runtime"
        runtime.mkdir(mode=0o700)
        code = (
            _ARBITER
            + """
    for role in ("process", "worker"):
        pid = os.fork()
        if pid == 0:
            membership.role = role
            counter.inc()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    from prometheus_client.multiprocess import MultiProcessCollector
    families = MultiProcessCollector(None, membership.directory.path).collect()
    print({sample.name: sample.value for family in families for sample in family.samples})
"""
        )
        done = run_python(code, "", XDG_RUNTIME_DIR=str(runtime), TMPDIR=str(runtime))
        assert done.stdout.splitlines()[1] == "{'c_total': 7.0, 'g': 5.0}"
        assert os.listdir(runtime) == []

    @needs_closing
    def test_closing_files_keeps_gauges(self, holder: RemoteProcess, directory: str) -> None:
        """prometheus_client's ``close_all_multiprocess_files`` leaves what readers can see."""
        holder.call(act, "counter", "c", "inc", 5)
        for mode in ("sum", "max", "min", "livesum", "all"):
            holder.call(act, f"gauge_{mode}", f"g_{mode}", "set", 3)
        before = read(directory)
        holder.call(_close_all)
        assert read(directory) == before
        holder.call(act, "gauge_sum", "g_sum", "set", 4)
        assert read(directory)["g_sum"] == 4


def _close_all() -> None:
    prometheus_values.close_all_multiprocess_files()  # type: ignore[no-untyped-call]


class TestTakeLease:
    """A worker that takes its lease before its first metric."""

    def test_takes_and_notes(self, holder: RemoteProcess, directory: str) -> None:
        """The lease is there, with the facts, although no metric was used."""
        holder.call(sharing.take_lease, state="booted", reason="why")
        record = SlotDirectory(directory).records()["slot0"]
        assert record is not None
        assert (record["state"], record["reason"]) == ("booted", "why")
        assert only_files(directory) == set()

    def test_does_nothing_without_a_directory(self, nursery: Nursery) -> None:
        """Without a directory there is nothing to take and nothing to say."""
        process = nursery.start()
        process.call(sharing.take_lease, state="booted")
        assert process.call(slot) is None

    def test_trouble_is_logged(self, holder: RemoteProcess) -> None:
        """What keeps the process from a lease is one line, and no exception."""
        holder.call(_take_lease_without_flock)
        (line,) = holder.call(log_lines)
        assert "flock" in line


def _take_lease_without_flock() -> None:
    with mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "no locks")):
        sharing.take_lease(state="booted")


class TestDeadProcesses:
    """Live gauges of processes that have ended, for readers that know no leases."""

    def test_child_exit(self, nursery: Nursery, directory: str) -> None:
        """The hook removes what ended workers have left, and nothing of living ones."""
        arbiter = nursery.start()
        arbiter.call(_begin, directory)
        workers = [arbiter.fork() for _ in range(2)]
        for worker in workers:
            worker.call(act, "gauge_livesum", "g", "inc", 1)
        workers[0].kill()
        arbiter.call(_child_exit)
        assert read(directory) == {"g": 1.0}

    def test_child_exit_never_waits(self, nursery: Nursery, directory: str) -> None:
        """When somebody holds the directory lock the hook gives up at once."""
        arbiter = nursery.start()
        arbiter.call(_begin, directory)
        with SlotDirectory(directory).locked():
            assert arbiter.call(forks.pauses, _child_exit) == (None, 0)

    def test_child_exit_without_a_directory(self, nursery: Nursery) -> None:
        """A process without a directory has nothing to remove."""
        nursery.start().call(_child_exit)

    def test_mark_process_dead(self, nursery: Nursery, directory: str) -> None:
        """It removes a pid's live gauges as prometheus_client does, and those of free slots."""
        for mode in ("livesum", "sum"):
            MetricFile(os.path.join(directory, f"gauge_{mode}_123.db")).release()
            MetricFile(os.path.join(directory, f"gauge_{mode}_124.db")).release()
        ended, lives = nursery.start(), nursery.start()
        for process in (ended, lives):
            process.call(join, directory)
            process.call(act, "gauge_livesum", "g", "inc", 1)
        ended.kill()
        multiprocess.mark_process_dead(123, directory)
        assert only_files(directory) == {
            "gauge_livesum_124.db",
            "gauge_livesum_slot1.db",
            "gauge_sum_123.db",
            "gauge_sum_124.db",
        }

    def test_mark_process_dead_of_a_living_slot(
        self, holder: RemoteProcess, directory: str
    ) -> None:
        """A slot that is leased keeps its gauges whatever the caller believes."""
        holder.call(act, "gauge_livesum", "g", "inc", 1)
        multiprocess.mark_process_dead("slot0", directory)
        assert read(directory) == {"g": 1.0}

    def test_mark_process_dead_of_the_environment(
        self, holder: RemoteProcess, directory: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a path the directory is that of the environment."""
        holder.call(act, "gauge_livesum", "g", "inc", 1)
        holder.kill()
        monkeypatch.setenv(VARIABLE, directory)
        multiprocess.mark_process_dead(holder.pid)
        assert only_files(directory) == set()


def _child_exit() -> None:
    multiprocess.child_exit(object(), object())  # type: ignore[arg-type]


def entry(key: object, value: float = 1.0) -> bytes:
    """Return an entry of a metric file whose key is this as JSON."""
    return pack_entry(json.dumps(key).encode(), value, 0.0)


GOOD = entry(["good", "good_total", {}, "Help."], 5.0)

STRANGE = {
    "no JSON": pack_entry(b"what is this", 1.0, 0.0),
    "a number": entry(17),
    "a short list": entry(["x", "x_total"]),
    "an object": entry({"a": 1, "b": 2, "c": 3, "d": 4}),
    "an empty name": entry(["", "", {}, "Help."]),
    "a number for a name": entry([1, "x_total", {}, "Help."]),
    "a number for a sample": entry(["x", 2, {}, "Help."]),
    "no labels": entry(["x", "x_total", None, "Help."]),
    "a list of labels": entry(["x", "x_total", ["a"], "Help."]),
    "a label that is a list": entry(["x", "x_total", {"a": [1]}, "Help."]),
    "a label that is null": entry(["x", "x_total", {"a": None}, "Help."]),
    "help that is a number": entry(["x", "x_total", {}, 5]),
    "a name with a line break": entry(["x\ny", "x\ny_total", {}, "Help."]),
    "a name with a space": entry(["x y", "x y", {}, "Help."]),
    "help with a line break": entry(["x", "x_total", {}, "Help\nme\\n."]),
    "a lone surrogate": entry(["x", "x_total", {"a": "\ud800"}, "Help."]),
    "a surrogate in the help": entry(["x", "x_total", {}, "\ud800"]),
    "nested too deep": pack_entry(b"[" * 30_000, 1.0, 0.0),
    "a very long number": pack_entry(b"[" + b"1" * 10_000 + b"]", 1.0, 0.0),
    "a bucket without a bound": entry(["h", "h_bucket", {"le": "much"}, "Help."]),
    "infinite": entry(["x", "x_total", {}, "Help."], float("inf")),
    "not a number": entry(["x", "x_total", {}, "Help."], float("nan")),
}


def write_file(directory: str, name: str, entries: bytes) -> str:
    """Write a metric file with these entries."""
    path = os.path.join(directory, name)
    header = struct.pack("i", HEADER_BYTES + len(entries)) + bytes(4)
    Path(path).write_bytes(header + entries)
    return path


class TestCollector:
    """The collector that takes prometheus_client's place never fails."""

    @pytest.fixture(name="prefix", params=["counter", "histogram", "gauge_max", "gauge_all"])
    def _prefix(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
    def test_strange_entries(self, directory: str, prefix: str, strange: bytes) -> None:
        """An entry that is no metric's costs itself, not the scrape and not its neighbours."""
        write_file(directory, f"{prefix}_slot1.db", strange)
        write_file(directory, "counter_slot2.db", GOOD)
        for _ in range(2):
            assert read_ours(directory)["good_total"] == 5.0
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        merged = multiprocess.MultiProcessCollector.merge(paths)
        assert forks.flatten(merged)["good_total"] == 5.0
        text = multiprocess.setup_multiprocess_registry(directory)
        assert b"\ngood_total 5.0\n" in multiprocess.generate_latest(text)

    def test_samples_that_cannot_be_merged(
        self, directory: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A metric with two types, and a bound that is no number, costs itself, and is named."""
        bucket = entry(["h", "h_bucket", {"le": "1.0"}, "Help."], 1.0)
        odd = entry(["h", "h_bucket", {"le": "x"}, "Help."], 1.0)
        paths = [
            write_file(directory, "histogram_slot0.db", bucket),
            write_file(directory, "summary_slot1.db", odd),
            write_file(directory, "counter_slot2.db", GOOD),
        ]
        assert read_ours(directory) == {"good_total": 5.0}
        caplog.clear()
        merged = multiprocess.MultiProcessCollector.merge(paths)
        assert forks.flatten(merged) == {"good_total": 5.0}
        assert "h is left out: its samples cannot be merged" in caplog.text

    def test_neighbours_in_one_file(self, directory: str) -> None:
        """Strange entries between good ones do not hide those behind them."""
        other = entry(["other", "other_total", {}, "Help."], 6.0)
        harmless = [
            strange
            for name, strange in STRANGE.items()
            if name not in ("infinite", "not a number", "help with a line break")
        ]
        write_file(directory, "counter_slot0.db", GOOD + b"".join(harmless) + other)
        flat = read_ours(directory)
        assert (flat["good_total"], flat["other_total"]) == (5.0, 6.0)

    def test_damaged_headers(self, directory: str) -> None:
        """What can be read of a file whose header lies counts at once, not only when salvaged."""
        path = write_file(directory, "counter_slot0.db", GOOD)
        content = Path(path).read_bytes()
        Path(path).write_bytes(struct.pack("i", 1 << 20) + content[4:])
        assert read_ours(directory) == {"good_total": 5.0}

    def test_a_bad_key_behind_a_lying_header(self, directory: str) -> None:
        """Where the header says nothing of use, only what is beyond doubt counts."""
        other = entry(["other", "other_total", {}, "Help."], 6.0)
        bad = pack_entry(b"what is this", 1.0, 0.0)
        path = write_file(directory, "counter_slot0.db", GOOD + bad + other)
        content = Path(path).read_bytes()
        Path(path).write_bytes(struct.pack("i", 1 << 20) + content[4:])
        assert read_ours(directory) == {"good_total": 5.0}

    def test_a_file_that_is_cut_while_it_is_read(
        self, directory: str, mocker: MockerFixture
    ) -> None:
        """A file whose header lies and that is emptied before the rest is read is left out."""
        path = write_file(directory, "counter_slot0.db", GOOD)
        Path(path).write_bytes(struct.pack("i", 1 << 20) + Path(path).read_bytes()[4:])
        read_at = os.pread
        mocker.patch.object(
            os,
            "pread",
            side_effect=lambda descriptor, size, at: (
                read_at(descriptor, size, at) if size <= HEADER_BYTES else b""
            ),
        )
        assert read_ours(directory) == {}

    def test_files_with_different_keys(self, directory: str) -> None:
        """Files that begin alike and go on differently are told apart at every scrape."""
        first = entry(["m", "m", {"label": "first"}, "Help."], 1.0)
        short = entry(["m", "m", {}, "Help."], 2.0)
        long = entry(["m", "m", {"label": "x" * 100}, "Help."], 4.0)
        contents = [b"", first, short, long, first + short, short + first, first + long]
        contents += [first + short + long, long + short + first]
        for before in contents:
            for after in contents:
                write_file(directory, "counter_slot0.db", before)
                write_file(directory, "counter_slot1.db", after)
                flat = read_ours(directory)
                expected = read(directory)
                assert flat == expected
                write_file(directory, "counter_slot0.db", after + entry(["n", "n", {}, "H"], 1.0))
                assert read_ours(directory) == read(directory)

    def test_files_that_come_and_go(self, nursery: Nursery, directory: str) -> None:
        """Files that are made, replaced and removed while it reads are no error."""
        write_file(directory, "counter_slot99.db", GOOD)
        restless = nursery.start()
        restless.tell(_make_and_remove, directory, 300)
        scrapes = 0
        while not os.path.exists(os.path.join(directory, "done")):
            assert read_ours(directory)["good_total"] == 5.0
            scrapes += 1
        restless.answer()
        assert scrapes > 2

    def test_things_that_are_no_files(self, directory: str) -> None:
        """A directory, a pipe or a dangling link with a metric file's name is left out."""
        write_file(directory, "counter_slot0.db", GOOD)
        os.mkdir(os.path.join(directory, "counter_slot1.db"))
        os.mkfifo(os.path.join(directory, "counter_slot2.db"))
        os.symlink("nowhere", os.path.join(directory, "counter_slot3.db"))
        os.symlink("/dev/zero", os.path.join(directory, "counter_slot4.db"))
        assert read_ours(directory) == {"good_total": 5.0}

    @needs_root
    def test_files_that_may_not_be_read(self, nursery: Nursery) -> None:
        """A file of another user costs its own counts only."""
        with forks.public_directory() as path:
            write_file(str(path), "counter_slot0.db", GOOD)
            Path(write_file(str(path), "counter_slot1.db", GOOD)).chmod(0o600)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert stranger.call(read_ours, str(path)) == {"good_total": 5.0}

    def test_pid_named_files_count(self, holder: RemoteProcess, directory: str) -> None:
        """Files of processes that know no slots are added."""
        holder.call(act, "counter", "good", "inc", 2)
        write_file(
            directory, "counter_4711.db", entry(["good", "good_total", {}, "Help of good."], 5.0)
        )
        assert read_ours(directory) == {"good_total": 7.0}

    @pytest.mark.parametrize("path", ["/nowhere", __file__])
    def test_no_directory_is_a_value_error(self, path: str) -> None:
        """What is no directory is refused as by prometheus_client."""
        with pytest.raises(ValueError, match=VARIABLE):
            multiprocess.MultiProcessCollector(CollectorRegistry(), path)

    def test_a_directory_that_vanishes(self, directory: str) -> None:
        """A registry whose directory is gone exposes nothing of it, and does not fail."""
        registry = multiprocess.setup_multiprocess_registry(directory)
        write_file(directory, "counter_slot0.db", GOOD)
        assert b"good_total 5.0" in multiprocess.generate_latest(registry)
        shutil.rmtree(directory)
        assert b"good_total" not in multiprocess.generate_latest(registry)

    @pytest.mark.parametrize("number", ["null", '"x"', "[]", "1e999"])
    def test_a_spoilt_record(self, holder: RemoteProcess, directory: str, number: str) -> None:
        """A lease's record with strange content costs its own facts, not the scrape."""
        holder.call(act, "counter", "c", "inc")
        Path(directory, "slot0.lease").write_text(f'{{"values_not_shared": {number}}}')
        registry = multiprocess.setup_multiprocess_registry(directory)
        assert b"\nc_total 1.0\n" in multiprocess.generate_latest(registry)


def _make_and_remove(directory: str, rounds: int) -> None:
    for number in range(rounds):
        name = f"gauge_livesum_slot{number % 7}.db"
        path = os.path.join(directory, name)
        file = MetricFile(path)
        for index in range(number % 5):
            key = json.dumps([f"g{number % 3}", f"g{number % 3}", {"i": str(index)}, "Help."])
            file.add(key.encode(), 1.0, 0.0)
        file.release()
        if number % 2:
            os.unlink(path)
        if number % 11 == 0:
            Path(directory, "counter_slot5.db").write_bytes(os.urandom(number))
    Path(directory, "counter_slot5.db").unlink()
    Path(directory, "done").touch()


class TestServing:
    """The names that serve what is shared."""

    @pytest.fixture(name="serving")
    def _serving(self, holder: RemoteProcess) -> RemoteProcess:
        """A process that has counted 3."""
        holder.call(act, "counter", "c", "inc", 3)
        return holder

    def test_generate_latest(self, serving: RemoteProcess) -> None:
        """Without a registry it is what all processes share, with facts about the sharing."""
        text = serving.call(_latest).decode()
        assert "\nc_total 3.0\n" in text
        assert "\nobskit_gunicorn_slots 1.0\n" in text
        assert "\nobskit_gunicorn_slots_leased 1.0\n" in text
        assert "\nobskit_gunicorn_values_not_shared 0.0\n" in text

    def test_values_in_memory_are_counted(self, serving: RemoteProcess) -> None:
        """Values that no scrape can see are shown as a number."""
        text = serving.call(_latest_without_room).decode()
        assert "\nobskit_gunicorn_values_not_shared 2.0\n" in text

    def test_generate_latest_of_a_registry(self, serving: RemoteProcess) -> None:
        """With a registry it is prometheus_client's."""
        assert serving.call(_latest_of_empty_registry) == b""

    def test_wsgi(self, serving: RemoteProcess) -> None:
        """The WSGI application serves what all share."""
        status, body = serving.call(_get_wsgi, "make_wsgi_app")
        assert status.startswith("200")
        assert b"\nc_total 3.0\n" in body

    def test_wsgi_of_a_directory(self, serving: RemoteProcess, directory: str) -> None:
        """One for a directory serves it from any process."""
        status, body = serving.call(_get_wsgi, "make_multiprocess_app", directory)
        assert status.startswith("200")
        assert b"\nc_total 3.0\n" in body

    def test_asgi(self, serving: RemoteProcess) -> None:
        """The ASGI application serves what all share."""
        status, body = serving.call(_get_asgi)
        assert status == 200
        assert b"\nc_total 3.0\n" in body

    def test_mode(self, serving: RemoteProcess, nursery: Nursery) -> None:
        """A process knows whether its metrics are meant to be shared."""
        assert serving.call(multiprocess.is_multiprocess_mode) is True
        assert nursery.start().call(multiprocess.is_multiprocess_mode) is False

    def test_everything_is_a_drop_in(self) -> None:
        """Each name that prometheus_client's module documents is here too."""
        for name in ("MultiProcessCollector", "mark_process_dead"):
            assert name in multiprocess.__all__
        assert all(hasattr(multiprocess, name) for name in multiprocess.__all__)


def _latest() -> bytes:
    return multiprocess.generate_latest()


def _latest_without_room() -> bytes:
    with mock.patch.object(os, "posix_fallocate", side_effect=OSError(errno.ENOSPC, "full")):
        for name in ("g1", "g2"):
            act("gauge_max", name, "set", 1)
        assert values.not_shared() == 2
        return multiprocess.generate_latest()


def _latest_of_empty_registry() -> bytes:
    return multiprocess.generate_latest(CollectorRegistry())


def _get_wsgi(name: str, *arguments: Any) -> tuple[str, bytes]:
    statuses: list[str] = []

    def start_response(status: str, *_: Any) -> None:
        statuses.append(status)

    application = getattr(multiprocess, name)(*arguments)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    body = b"".join(application(environ, start_response))
    return statuses[0], body


def _get_asgi() -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "query_string": b"",
        "headers": [],
    }
    asyncio.run(multiprocess.make_asgi_app()(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent)
    return int(sent[0]["status"]), body
