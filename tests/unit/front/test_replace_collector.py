"""prometheus_client's own collector class, changed on request; always in another process."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.forks import Nursery, act, join, read, run_python

DAMAGED = struct.pack("=i", 4096) + bytes(4) + b"\x40\0\0\0no key"
"""Says that it is longer than it is; prometheus_client cannot read past that."""

_REPLACE = """
from obskit_gunicorn.multiprocess import replace_collector
replace_collector()
"""
_SHOW = """
import sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
sys.stdout.write(generate_latest(registry).decode())
"""


@pytest.fixture(name="metrics")
def _metrics(nursery: Nursery, directory: str) -> str:
    """A directory in which two processes share metrics of every kind; both have ended."""
    processes = [nursery.start() for _ in range(2)]
    for number, process in enumerate(processes, start=1):
        process.call(join, directory)
        process.call(act, "counter", "c", "inc", number)
        process.call(act, "counter", "l", "inc", 3, labels={"x": "y"})
        process.call(act, "histogram", "h", "observe", number)
        process.call(act, "summary", "s", "observe", number)
        for mode in ("all", "sum", "max", "min", "mostrecent"):
            process.call(act, f"gauge_{mode}", f"g_{mode}", "set", number)
    for process in processes:
        process.kill()
    return directory


def program(*parts: str, directory: str) -> str:
    """Run a program of these parts in a fresh interpreter, and return what it prints."""
    return run_python("\n".join(parts), PROMETHEUS_MULTIPROC_DIR=directory).stdout


def damage(directory: str) -> None:
    """Put files into a directory that nobody can read."""
    (Path(directory) / "counter_slot98.db").write_bytes(b"\xff" * 100)
    (Path(directory) / "counter_slot99.db").write_bytes(DAMAGED)
    (Path(directory) / "histogram_12345.db").write_bytes(b"\0")


class TestSame:
    """What is collected from good files is what prometheus_client's methods collect."""

    def test_text(self, metrics: str) -> None:
        """A registry with their collector renders the same lines with and without the call."""
        theirs = program(_SHOW, directory=metrics)
        ours = program(_REPLACE, _SHOW, directory=metrics)
        assert "c_total 3.0" in theirs
        assert sorted(ours.splitlines()) == sorted(theirs.splitlines())

    def test_merge(self, metrics: str) -> None:
        """So does the merge of named files, accumulated or not."""
        merge = """if True:
            import glob, os
            from prometheus_client.multiprocess import MultiProcessCollector
            files = sorted(glob.glob(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "*.db")))
            assert files
            for accumulate in (True, False):
                for family in MultiProcessCollector.merge(files, accumulate):
                    for sample in family.samples:
                        print(family.name, family.type, family.documentation, sample)
        """
        theirs = program(merge, directory=metrics)
        assert program(_REPLACE, merge, directory=metrics) == theirs
        assert "h_bucket" in theirs

    def test_our_own_collector_goes_on(self, metrics: str) -> None:
        """Ours, which uses parts of their class, collects and merges as before."""
        own = """if True:
            import glob, os
            from obskit_gunicorn.multiprocess import MultiProcessCollector, generate_latest
            collector = MultiProcessCollector(None)
            print(list(collector.collect()))
            print(list(collector.merge(sorted(glob.glob(collector._path + "/*.db")))))
            for line in generate_latest().decode().splitlines():
                if "scrape_duration" not in line and "available_bytes" not in line:
                    print(line)
        """
        before = program(own, directory=metrics)
        assert program(_REPLACE, own, directory=metrics) == before
        assert "c_total 3.0" in before


class TestDamage:
    """Files that cannot be read."""

    def test_fails_theirs_and_not_ours(self, metrics: str) -> None:
        """Without the call a damaged file fails the scrape, with it the rest is there."""
        before = read(metrics)
        damage(metrics)
        done = run_python(_SHOW, check=False, PROMETHEUS_MULTIPROC_DIR=metrics)
        assert done.returncode != 0
        assert "generate_latest" in done.stderr
        text = program(_REPLACE, _SHOW, directory=metrics)
        samples = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(samples) == len(before)
        assert "c_total 3.0" in samples

    def test_merge(self, metrics: str) -> None:
        """A merge of named files goes on too, beside a file that is gone."""
        damage(metrics)
        merge = """if True:
            import glob, os
            from prometheus_client.multiprocess import MultiProcessCollector
            files = glob.glob(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "*.db"))
            merged = MultiProcessCollector.merge([*files, "counter_1.db"])
            print(*[s.value for f in merged for s in f.samples if s.name == "c_total"])
        """
        assert program(_REPLACE, merge, directory=metrics) == "3.0\n"

    def test_one_line_in_the_log(self, metrics: str) -> None:
        """A damaged file is one line in the log, however often it is scraped."""
        damage(metrics)
        done = run_python(
            "import logging; logging.basicConfig(level=logging.WARNING)" + _REPLACE + 3 * _SHOW,
            PROMETHEUS_MULTIPROC_DIR=metrics,
        )
        assert done.stderr.count("counter_slot99.db") == 1


class TestWhen:
    """What was there before the call."""

    @pytest.mark.parametrize(
        "early",
        [
            "from prometheus_client.multiprocess import MultiProcessCollector as Theirs",
            "import prometheus_client.multiprocess as m; Theirs = m.MultiProcessCollector",
            "import obskit_gunicorn\n"
            "from prometheus_client.multiprocess import MultiProcessCollector as Theirs",
        ],
        ids=["name", "module", "ours first"],
    )
    def test_imported_earlier(self, metrics: str, early: str) -> None:
        """Names that were imported, and collectors that were made, before the call collect."""
        damage(metrics)
        code = """if True:
            from prometheus_client import CollectorRegistry, generate_latest
            registry = CollectorRegistry()
            made_early = Theirs(registry)
            import obskit_gunicorn
            obskit_gunicorn.replace_collector()
            for collector in (made_early, Theirs(None)):
                samples = [sample for found in collector.collect() for sample in found.samples]
                print(*[sample.value for sample in samples if sample.name == "c_total"])
            assert b"c_total 3.0" in generate_latest(registry)
        """
        assert program(early, code, directory=metrics) == "3.0\n3.0\n"

    def test_not_asked_for(self, directory: str) -> None:
        """Importing all of us leaves their class as it is; asking keeps it the same class."""
        code = """if True:
            from prometheus_client import multiprocess
            theirs = multiprocess.MultiProcessCollector
            before = dict(vars(theirs))
            import obskit_gunicorn.multiprocess, obskit_gunicorn.hooks
            assert dict(vars(theirs)) == before
            obskit_gunicorn.replace_collector()
            assert multiprocess.MultiProcessCollector is theirs
            changed = {name for name in before if vars(theirs)[name] is not before[name]}
            assert changed == {"collect", "merge"}
            assert vars(theirs).keys() == before.keys()
        """
        program(code, directory=directory)

    def test_again(self, metrics: str) -> None:
        """Asking again changes nothing."""
        once = program(_REPLACE, _SHOW, directory=metrics)
        assert program(_REPLACE, _REPLACE, _SHOW, _REPLACE, _SHOW, directory=metrics) == 2 * once

    def test_before_and_after_a_fork(self, metrics: str) -> None:
        """A child has what its parent asked for, and a child that asks changes only itself."""
        damage(metrics)
        code = """if True:
            import os, sys
            from obskit_gunicorn import replace_collector
            from prometheus_client.multiprocess import MultiProcessCollector

            def collects():
                try:
                    return bool(list(MultiProcessCollector(None).collect()))
                except Exception:
                    return False

            def child(work):
                pid = os.fork()
                if pid == 0:
                    os._exit(work())
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

            def ask():
                replace_collector()
                return collects()

            print(collects(), child(collects), child(ask), collects())
            replace_collector()
            print(collects(), child(collects), child(ask))
        """
        assert program(code, directory=metrics) == "False 0 1 False\nTrue 1 1\n"


class TestDifferences:
    """Where the result is not prometheus_client's."""

    def test_live_gauges_of_leased_slots_only(self, nursery: Nursery, directory: str) -> None:
        """A live gauge counts while its slot is leased."""
        processes = [nursery.start() for _ in range(2)]
        for process in processes:
            process.call(join, directory)
            process.call(act, "gauge_livesum", "g", "set", 4)
        assert "g 8.0" in program(_REPLACE, _SHOW, directory=directory)
        processes[0].kill()
        assert "g 4.0" in program(_REPLACE, _SHOW, directory=directory)
        assert "g 8.0" in program(_SHOW, directory=directory)

    def test_their_check_of_the_directory_stays(self, tmp_path: Path) -> None:
        """Making a collector without a directory raises what it raises without the call."""
        code = """if True:
            from prometheus_client.multiprocess import MultiProcessCollector
            try:
                MultiProcessCollector(None, sys.argv[1])
            except ValueError as error:
                print(error)
        """
        asks = ["import sys" + _REPLACE + code, "import sys\n" + code]
        with_it, without = (run_python(ask, tmp_path / "none").stdout for ask in asks)
        assert with_it == without != ""

    def test_a_directory_that_has_gone(self, directory: str) -> None:
        """A collector whose directory was removed collects nothing, as without the call."""
        code = """if True:
            import os
            from prometheus_client.multiprocess import MultiProcessCollector
            collector = MultiProcessCollector(None)
            os.rmdir(collector._path)
            print(list(collector.collect()))
            open(collector._path, "w").close()
            print(list(collector.collect()))
        """
        assert program(_REPLACE, code, directory=directory) == "[]\n[]\n"

    def test_subclasses(self, metrics: str) -> None:
        """A subclass that overrides collect() or merge() keeps its way through the files."""
        code = """if True:
            from prometheus_client.multiprocess import MultiProcessCollector

            class Counters(MultiProcessCollector):
                def collect(self):
                    return [family for family in super().collect() if family.type == "counter"]

            class Some(MultiProcessCollector):
                @staticmethod
                def merge(files, accumulate=True):
                    files = [path for path in files if "gauge" in path]
                    return MultiProcessCollector.merge(files, accumulate)

            for kind in (Counters, Some):
                print({family.type for family in kind(None).collect()})
        """
        assert program(_REPLACE, code, directory=metrics) == "{'counter'}\n{'gauge'}\n"
