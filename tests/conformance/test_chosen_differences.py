"""What differs from prometheus_client on purpose: one class for each row of the table in the docs.

The first test of a class shows what prometheus_client does, so that a difference that it gives up
one day does not stay in the table; the others show what is done here.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Info
from prometheus_client import values as prometheus_values
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from obskit_gunicorn._store.fileformat import pack_entry
from obskit_gunicorn.multiprocess import MultiProcessCollector, generate_latest, make_wsgi_app
from tests.support import forks
from tests.support.forks import (
    REPOSITORY,
    Nursery,
    RemoteProcess,
    act,
    join,
    own_value,
    read,
    read_ours,
    slot,
)

pytestmark = pytest.mark.conformance


@pytest.fixture(name="theirs")
def _theirs(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that uses prometheus_client's own value class."""
    process = nursery.start()
    process.call(_join_theirs, directory)
    return process


@pytest.fixture(name="ours")
def _ours(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that uses ours."""
    process = nursery.start()
    process.call(join, directory)
    return process


class TestModeAll:
    """Gauge mode ``all``: one series per slot, not one per process there ever was."""

    def test_theirs(self, nursery: Nursery, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client goes on showing every process that has ended."""
        second = nursery.start()
        second.call(_join_theirs, directory)
        for value, process in enumerate((theirs, second), start=1):
            process.call(act, "gauge", "g", "set", value)
            process.kill()
        assert read(directory) == {
            f'g{{pid="{theirs.pid}"}}': 1.0,
            f'g{{pid="{second.pid}"}}': 2.0,
        }

    def test_the_last_holder_is_shown(
        self, nursery: Nursery, ours: RemoteProcess, directory: str
    ) -> None:
        """A slot shows its last holder until another one takes it."""
        ours.call(act, "gauge", "g", "set", 1)
        ours.kill()
        assert read(directory) == read_ours(directory) == {'g{pid="slot0"}': 1.0}
        second = nursery.start()
        second.call(join, directory)
        second.call(act, "gauge", "g", "set", 2)
        assert read(directory) == read_ours(directory) == {'g{pid="slot0"}': 2.0}

    def test_the_next_holder_need_not_use_it(
        self, nursery: Nursery, ours: RemoteProcess, directory: str
    ) -> None:
        """A holder that never uses the gauge takes the last one's series away all the same."""
        ours.call(act, "gauge", "g", "set", 1)
        ours.kill()
        second = nursery.start()
        second.call(join, directory)
        second.call(act, "counter", "c", "inc")
        assert second.call(slot) == "slot0"
        assert read(directory) == read_ours(directory) == {"c_total": 1.0}


class TestLiveGauges:
    """Live gauges count while their slot is leased, whether anybody is told of the end or not."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client counts an ended process until somebody calls mark_process_dead."""
        theirs.call(act, "gauge_livesum", "g", "inc", 3)
        theirs.kill()
        assert read(directory) == {"g": 3.0}

    @pytest.mark.parametrize("end", ["kill", "end"])
    def test_ends_with_its_process(self, ours: RemoteProcess, directory: str, end: str) -> None:
        """Our collector leaves out what an ended process had in flight, without being told."""
        ours.call(act, "gauge_livesum", "g", "inc", 3)
        assert read_ours(directory) == {"g": 3.0}
        getattr(ours, end)()
        assert read_ours(directory) == {}

    def test_ends_before_the_next_holder(
        self, nursery: Nursery, ours: RemoteProcess, directory: str
    ) -> None:
        """The next holder of the slot starts from nothing, for every reader."""
        ours.call(act, "gauge_livesum", "g", "inc", 3)
        ours.kill()
        second = nursery.start()
        second.call(join, directory)
        second.call(act, "gauge_livesum", "g", "inc", 1)
        assert read(directory) == read_ours(directory) == {"g": 1.0}

    def test_pid_named_files_are_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """Of processes that know no slots it cannot be told; they count as with theirs."""
        theirs.call(act, "gauge_livesum", "g", "inc", 3)
        theirs.kill()
        assert read_ours(directory) == {"g": 3.0}


class TestPreloadedSeries:
    """A child writes the series that it uses, not a zero for every series of its parent."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client's child writes zeros, which a minimum then shows."""
        theirs.call(act, "gauge_min", "coldest", "set", 20)
        theirs.call(act, "counter", "c", "inc")
        child = theirs.fork()
        child.call(act, "counter", "c", "inc")
        assert read(directory) == {"coldest": 0.0, "c_total": 2.0}

    def test_zeros_are_not_copied(self, ours: RemoteProcess, directory: str) -> None:
        """What a child does not use stays what its parent has set."""
        ours.call(act, "gauge_min", "coldest", "set", 20)
        ours.call(act, "gauge", "each", "set", 5)
        ours.call(act, "counter", "c", "inc")
        child = ours.fork()
        child.call(act, "counter", "c", "inc")
        assert (
            read(directory)
            == read_ours(directory)
            == {"coldest": 20.0, 'each{pid="slot0"}': 5.0, "c_total": 2.0}
        )
        child.call(act, "gauge_min", "coldest", "set", 15)
        assert read(directory)["coldest"] == 15.0


class TestDamagedFiles:
    """A damaged file costs its unreadable part, not the scrape."""

    @pytest.fixture(name="damaged", params=["cut", "key", "length", "empty"])
    def _damaged(self, request: pytest.FixtureRequest, ours: RemoteProcess, directory: str) -> str:
        """A directory with a damaged file of a free slot, and a whole one."""
        ours.call(act, "counter", "c", "inc", 5)
        ours.call(act, "gauge_max", "whole", "set", 7)
        ours.kill()
        path = Path(directory, "counter_slot0.db")
        content = path.read_bytes()
        damages = {
            "cut": struct.pack("i", 1 << 20) + content[4:30],
            "key": content[:14] + b"\xff" + content[15:],
            "length": content[:8] + struct.pack("i", 1 << 30) + content[12:],
            "empty": b"",
        }
        path.write_bytes(damages[request.param])
        return directory

    def test_theirs(self, damaged: str) -> None:
        """prometheus_client's collector raises at every scrape."""
        with pytest.raises((struct.error, RuntimeError, UnicodeDecodeError)):
            read(damaged)

    def test_the_rest_counts(self, damaged: str) -> None:
        """Our collector gives what the other files hold."""
        assert read_ours(damaged) == {"whole": 7.0}

    def test_what_is_readable_counts(self, ours: RemoteProcess, directory: str) -> None:
        """Entries in front of the damage count."""
        ours.call(act, "counter", "a", "inc", 5)
        ours.call(act, "counter", "b", "inc", 6)
        ours.kill()
        path = Path(directory, "counter_slot0.db")
        content = path.read_bytes()
        path.write_bytes(content.replace(b'"b_total"', b'"b_tot\xff\xfe"'))
        assert read_ours(directory) == {"a_total": 5.0}

    def test_a_foreign_file_is_none_of_ours(self, ours: RemoteProcess, directory: str) -> None:
        """Another program's ``.db`` file does not disturb our collector."""
        ours.call(act, "counter", "c", "inc")
        Path(directory, "sqlite.db").write_bytes(b"SQLite format 3\0" * 10)
        assert read_ours(directory) == {"c_total": 1.0}
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is theirs to choose
            read(directory)


class TestUnusableDirectory:
    """A metric call does not raise because of the directory."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client's metric calls raise."""
        os.rmdir(directory)
        with pytest.raises(forks.RemoteError, match="FileNotFoundError"):
            theirs.call(act, "counter", "c", "inc")

    def test_counts_in_memory(self, ours: RemoteProcess, directory: str) -> None:
        """Ours count on in memory."""
        os.rmdir(directory)
        for _ in range(3):
            ours.call(act, "counter", "c", "inc")
        assert ours.call(own_value, "counter", "c") == 3


class TestTwins:
    """Two metrics of one name in one process share one number."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client's overwrite each other."""
        theirs.call(_count_with_twins)
        assert read(directory) == {"c_total": 3.0}

    def test_share_their_number(self, ours: RemoteProcess, directory: str) -> None:
        """Ours add up."""
        ours.call(_count_with_twins)
        assert read(directory) == {"c_total": 5.0}


class TestHelp:
    """Help text that differs between writers: any of them, and the one shown before stays."""

    @staticmethod
    def _write(directory: str) -> None:
        for holder, text in (("30", "New."), ("40", "Old.")):
            key = json.dumps(["m", f"m{holder}_total", {}, text]).encode()
            body = pack_entry(key, 1.0, 0.0)
            header = struct.pack("i", 8 + len(body)) + bytes(4)
            Path(directory, f"counter_{holder}.db").write_bytes(header + body)

    def test_theirs(self, directory: str) -> None:
        """Theirs is that of the file which is read first."""
        self._write(directory)
        for holder, text in (("30", "New."), ("40", "Old.")):
            paths = [os.path.join(directory, f"counter_{holder}.db")]
            paths += [os.path.join(directory, name) for name in os.listdir(directory)]
            theirs: Any = TheirCollector
            (family,) = theirs.merge(paths)
            assert family.documentation == text

    def test_ours(self, directory: str) -> None:
        """Ours is that of the first file by name, and goes with it."""
        self._write(directory)
        assert b"# HELP m_total New.\n" in _exposition(directory)
        os.unlink(os.path.join(directory, "counter_30.db"))
        assert b"# HELP m_total Old.\n" in _exposition(directory)


class TestHead:
    """HEAD is answered as GET, without the body."""

    def test_theirs(self) -> None:
        """prometheus_client refuses it, or sends the body, which depends on its release."""
        status, body = _head(prometheus_client.make_wsgi_app(CollectorRegistry()))
        assert status.startswith(("405", "200"))
        assert status.startswith("405") or body == b""

    def test_ours(self) -> None:
        """Ours has the headers only."""
        assert _head(make_wsgi_app(CollectorRegistry())) == ("200 OK", b"")


class TestOwnPidLabel:
    """A gauge that shows processes and has a label ``pid`` itself gives each sample once."""

    @staticmethod
    def _write(directory: str) -> None:
        body = b"".join(
            pack_entry(json.dumps(["g", "g", {"pid": own}, "Help."]).encode(), 1.0, 0.0)
            for own in ("1", "2")
        )
        header = struct.pack("i", 8 + len(body)) + bytes(4)
        Path(directory, "gauge_all_7.db").write_bytes(header + body)

    def test_theirs(self, directory: str) -> None:
        """Theirs is there twice, which Prometheus refuses."""
        self._write(directory)
        registry = CollectorRegistry()
        theirs: Any = TheirCollector
        theirs(registry, directory)
        assert prometheus_client.generate_latest(registry).count(b'g{pid="7"}') == 2

    def test_ours(self, directory: str) -> None:
        """Ours is there once."""
        self._write(directory)
        assert _exposition(directory).count(b'g{pid="7"}') == 1


class TestRemoval:
    """Label sets are removed for all processes, and not only for the one that removes them."""

    _X, _Y = {"label": "x"}, {"label": "y"}

    def _count(self, process: RemoteProcess) -> None:
        for labels in (self._X, self._Y):
            process.call(act, "counter", "c", "inc", 2, labels=labels)

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client warns, and goes on showing what was removed."""
        self._count(theirs)
        (warning,) = theirs.call(_remove_x)
        assert "not been implemented" in warning
        assert read(directory) == {'c_total{label="x"}': 2.0, 'c_total{label="y"}': 2.0}

    def test_ours(self, nursery: Nursery, ours: RemoteProcess, directory: str) -> None:
        """What all processes have counted is gone; theirs of the same directory shows it still."""
        second = nursery.start()
        second.call(join, directory)
        for process in (ours, second):
            self._count(process)
        assert ours.call(_remove_x) == []
        assert read_ours(directory) == {'c_total{label="y"}': 4.0}
        assert read(directory) == {'c_total{label="x"}': 4.0, 'c_total{label="y"}': 4.0}
        second.call(act, "counter", "c", "inc", 1, labels=self._X)
        assert read_ours(directory) == {'c_total{label="x"}': 1.0, 'c_total{label="y"}': 4.0}


class TestOrder:
    """Our collector reads the files in a fixed order, so that rounding does not come and go."""

    def test_a_total_does_not_depend_on_the_listing(self, nursery: Nursery, directory: str) -> None:
        """The exposition is the same text each time, whatever order the directory has."""
        for value in (0.1, 0.2, 0.3, 1e9, 7e-9):
            process = nursery.start()
            process.call(join, directory)
            process.call(act, "counter", "c", "inc", value)
        first = _exposition(directory)
        for name in sorted(os.listdir(directory), reverse=True):
            if name.endswith(".db"):
                path = os.path.join(directory, name)
                os.rename(path, path + ".moved")
                os.rename(path + ".moved", path)
        assert _exposition(directory) == first


class TestExemplars:
    """Exemplars: kept, and shown in OpenMetrics."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client drops them where there are several processes."""
        theirs.call(_count_with_exemplar)
        assert _openmetrics(TheirCollector, directory).count(" # {") == 0

    def test_ours(self, ours: RemoteProcess, directory: str) -> None:
        """The drop-in shows them."""
        ours.call(_count_with_exemplar)
        text = _openmetrics(MultiProcessCollector, directory)
        assert 'c_total 1.0 # {trace_id="a"} 1.0 ' in text


class TestInfoAndEnum:
    """Info and Enum: what any process has set last."""

    def test_theirs(self, theirs: RemoteProcess, directory: str) -> None:
        """prometheus_client shows none where there are several processes."""
        theirs.call(_say)
        assert read(directory) == {}

    def test_ours(self, ours: RemoteProcess, directory: str) -> None:
        """The drop-in shows them, and its collector still does not."""
        ours.call(_say)
        assert read(directory) == {}
        assert read_ours(directory) == {
            'build_info{version="1"}': 1.0,
            'door{door="open"}': 0.0,
            'door{door="shut"}': 1.0,
        }


def _count_with_exemplar() -> None:
    Counter("c", "Help.", registry=None).inc(exemplar={"trace_id": "a"})


def _say() -> None:
    Info("build", "Help.", registry=None).info({"version": "1"})
    Enum("door", "Help.", states=["open", "shut"], registry=None).state("shut")


def _openmetrics(collector: Any, directory: str) -> str:
    registry = CollectorRegistry()
    collector(registry, directory)
    text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    return text.decode()


def test_every_row_has_a_class() -> None:
    """The table in the docs has a row for each class of this module that is in it, and no more."""
    text = (REPOSITORY / "docs" / "how-it-works.md").read_text()
    table = text.partition("## What differs from prometheus_client")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    starts = (
        ("gauge mode `all`", TestModeAll),
        ("gauges `live*`", TestLiveGauges),
        ("series of a preloaded application", TestPreloadedSeries),
        ("a damaged file", TestDamagedFiles),
        ("the directory cannot be used", TestUnusableDirectory),
        ("`remove()`, `remove_by_labels()`, `clear()`", TestRemoval),
        ("the same metric made twice", TestTwins),
        ("help text that differs", TestHelp),
        ("HEAD", TestHead),
        ("a label `pid` of one's own", TestOwnPidLabel),
        ("exemplars", TestExemplars),
        ("Info and Enum", TestInfoAndEnum),
    )
    unknown = [row for row in rows if not any(row.startswith(f"| {text}") for text, _ in starts)]
    assert unknown == [], "write a class for each new row"
    assert len(rows) == len(starts)


# What the processes do.


def _join_theirs(path: str) -> None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    prometheus_values.ValueClass = prometheus_values.MultiProcessValue()  # type: ignore[no-untyped-call]


def _remove_x() -> list[str]:
    """Remove a label set; return what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        forks._metrics["counter", "c"].remove("x")
    return [str(each.message) for each in caught]


def _count_with_twins() -> None:
    twins = [Counter("c", "Help.", registry=None) for _ in range(2)]
    twins[0].inc(2)
    twins[1].inc(3)


def _head(application: Any) -> tuple[str, bytes]:
    seen: list[str] = []
    environ = {"REQUEST_METHOD": "HEAD", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    body = application(environ, lambda status, _headers: seen.append(status))
    return seen[0], b"".join(body)


def _exposition(directory: str) -> bytes:
    registry = CollectorRegistry()
    collector: Any = MultiProcessCollector
    collector(registry, directory)
    return generate_latest(registry)
