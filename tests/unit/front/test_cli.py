"""The command ``obskit-gunicorn``."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from obskit_gunicorn import __version__
from obskit_gunicorn._store import private
from obskit_gunicorn._store.directory import PROTOCOL, SlotDirectory
from obskit_gunicorn.cli import main
from tests.support import forks
from tests.support.forks import NOBODY, Nursery, act, join, run_python

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(name="served")
def _served(nursery: Nursery, directory: str) -> str:
    """A directory with two slots, one of which is free, and some files."""
    for amount in (1, 2):
        process = nursery.start()
        process.call(join, directory)
        process.call(act, "counter", "c", "inc", amount)
        process.call(act, "gauge_max", "g", "set", amount)
    nursery.started[0].kill()
    return directory


@pytest.fixture(name="output")
def _output(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed since the last call, as text."""
    return lambda: capsys.readouterr().out


class TestInspect:
    """``obskit-gunicorn inspect``."""

    def test_shows_slots_and_files(self, served: str, output: Any, nursery: Nursery) -> None:
        """Each slot is shown with its holder, each file with its size and entries."""
        assert main(["inspect", served]) == 0
        text = output()
        assert f"directory  {served}" in text
        assert "slots      2, 1 leased" in text
        assert "slot0      free" in text
        assert f"slot1      leased: process, pid {nursery.started[1].pid}\n" in text
        assert "files      4, 16384 bytes" in text
        assert "no arbiter has been here" in text

    def test_as_json(self, served: str, output: Any, nursery: Nursery) -> None:
        """The same for programs."""
        SlotDirectory(served).start_generation(keep=True)[0].release()
        assert main(["inspect", served, "--format", "json"]) == 0
        facts = json.loads(output())
        assert facts["directory"] == served
        assert facts["generation"]["protocol"] == PROTOCOL
        assert facts["slots"]["slot0"] is None
        assert facts["slots"]["slot1"]["pid"] == nursery.started[1].pid
        assert {file["name"] for file in facts["files"]} == {
            f"{prefix}_slot{number}.db" for prefix in ("counter", "gauge_max") for number in (0, 1)
        }
        assert {(file["entries"], file["damage"]) for file in facts["files"]} == {(1, None)}

    def test_shows_damage(self, served: str, output: Any) -> None:
        """A damaged file is shown with what is wrong with it."""
        path = Path(served, "counter_slot0.db")
        path.write_bytes(struct.pack("i", 1 << 20) + path.read_bytes()[4:])
        assert main(["inspect", served]) == 0
        assert "damaged: the header says 1048576 bytes are used" in output()

    def test_changes_nothing(self, served: str) -> None:
        """Looking leaves every file as it is."""
        before = {path: path.read_bytes() for path in Path(served).iterdir()}
        assert main(["inspect", served]) == 0
        assert {path: path.read_bytes() for path in Path(served).iterdir()} == before

    def test_an_empty_directory(self, directory: str, output: Any) -> None:
        """A directory that nobody has used yet is shown as such."""
        assert main(["inspect", directory]) == 0
        assert "slots      0, 0 leased" in output()
        assert os.listdir(directory) == []

    def test_what_is_no_file(self, served: str, output: Any) -> None:
        """Something that has a metric file's name and is none is shown, and is no crash."""
        os.mkdir(os.path.join(served, "counter_slot9.db"))
        os.mkfifo(os.path.join(served, "counter_slot8.db"))
        assert main(["inspect", served]) == 0
        assert "not a regular file" in output()

    @needs_root
    def test_what_may_not_be_read(self, nursery: Nursery) -> None:
        """A file of another user is shown with the reason, and is no crash."""
        with forks.public_directory() as path:
            owner = nursery.start()
            owner.call(join, str(path))
            owner.call(act, "counter", "c", "inc")
            (path / "counter_slot0.db").chmod(0o600)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert "Permission denied" in stranger.call(_printed, ["inspect", str(path)])


class TestCheck:
    """``obskit-gunicorn check --directory``."""

    def test_a_good_directory(self, served: str, output: Any) -> None:
        """A directory without problems is fine, and nothing is left in it."""
        before = sorted(os.listdir(served))
        assert main(["check", "--directory", served]) == 0
        lines = output().splitlines()
        assert all(line.startswith(("ok ", "   ")) for line in lines)
        for words in ("can be read: 4 metric files", "locked", "are free on the volume", "leased"):
            assert any(words in line for line in lines), words
        assert sorted(os.listdir(served)) == before

    def test_a_name_that_cannot_be_written(self, directory: str) -> None:
        """A directory whose name is no text, or not of this terminal's letters."""
        for name, encoding in ((b"\xff", "utf-8"), ("\u00e9".encode(), "ascii")):
            path = os.path.join(os.fsencode(directory), name)
            os.mkdir(path)
            done = subprocess.run(
                [sys.executable, "-m", "obskit_gunicorn", "check", "--directory", path],
                env={**os.environ, "PYTHONIOENCODING": encoding},
                capture_output=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert b"metrics/\\" in done.stdout.splitlines()[0]

    def test_a_damaged_file(self, served: str, output: Any) -> None:
        """A damaged file is a problem."""
        Path(served, "counter_slot0.db").write_bytes(b"xyz")
        assert main(["check", "--directory", served]) == 1
        assert "counter_slot0.db: 3 bytes are too few" in output()

    def test_what_was_damaged(self, served: str, output: Any) -> None:
        """What was kept of a damaged file asks to be looked at."""
        Path(served, "counter_slot0.db.damaged").write_bytes(b"xyz")
        assert main(["check", "--directory", served]) == 1
        assert "counter_slot0.db.damaged" in output()

    def test_a_writer_without_slots(self, served: str, output: Any) -> None:
        """A pid-named file says what its process must do."""
        os.rename(os.path.join(served, "counter_slot0.db"), os.path.join(served, "counter_4711.db"))
        assert main(["check", "--directory", served]) == 1
        assert "import obskit_gunicorn.multiprocess" in output()

    def test_values_that_are_not_shared(
        self, nursery: Nursery, directory: str, output: Any
    ) -> None:
        """A process that keeps values in memory is a problem."""
        process = nursery.start()
        process.call(join, directory)
        process.call(act, "counter", "c", "inc")
        process.call(_note_unshared)
        assert main(["check", "--directory", directory]) == 1
        assert "slot0 (leased: process, pid" in output()

    def test_as_json(self, served: str, output: Any) -> None:
        """The same for programs."""
        Path(served, "counter_slot0.db").write_bytes(b"xyz")
        assert main(["check", "--directory", served, "--format", "json"]) == 1
        facts = json.loads(output())
        assert facts["directory"] == served
        assert (facts["version"], facts["status"]) == (1, 1)
        (problem,) = [each for each in facts["findings"] if each["level"] != "ok"]
        assert problem["part"] == "files"
        assert "3 bytes are too few" in problem["text"]
        assert problem["advice"] == "its next holder keeps what can be read"
        fine = [each["text"] for each in facts["findings"] if each["level"] == "ok"]
        assert f"{served} can be read: 4 metric files" in fine

    def test_what_is_no_file(self, served: str, output: Any) -> None:
        """Something that has a metric file's name and is none is a problem, and is no crash."""
        os.mkdir(os.path.join(served, "counter_slot9.db"))
        assert main(["check", "--directory", served]) == 1
        assert "counter_slot9.db" in output()

    @needs_root
    def test_a_directory_that_cannot_be_written(self, nursery: Nursery) -> None:
        """It says what to do."""
        with forks.public_directory() as path:
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            text = stranger.call(_printed, ["check", "--directory", str(path)])
            assert f"make it writable for uid {NOBODY}" in text

    @needs_root
    def test_a_reader_of_a_directory_in_use(self, nursery: Nursery) -> None:
        """A sidecar that may read and not write finds a healthy directory healthy."""
        with forks.public_directory() as path:
            owner = nursery.start()
            owner.call(_begin, str(path))
            stranger = nursery.start()
            stranger.call(forks.become_group_member)
            text = stranger.call(_printed, ["check", "--directory", str(path)])
            assert "error " not in text
            assert "warning " not in text
            assert "may read here and not write, as a sidecar may" in text
            assert "mode 0755" in text

    @needs_root
    @pytest.mark.parametrize("command", ["check --directory", "inspect"])
    def test_a_directory_that_may_not_be_read(self, nursery: Nursery, command: str) -> None:
        """It says whose the directory is, and who asks, and is no crash."""
        with forks.public_directory() as path:
            path.chmod(0o700)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            text = stranger.call(_printed, [*command.split(), str(path)])
            assert "Permission denied" in text
            assert f"belongs to 0 (root):0 (root), mode 0700; this is uid {NOBODY}" in text

    def test_a_label_with_too_many_values(
        self, nursery: Nursery, directory: str, output: Any
    ) -> None:
        """The metric and the label that make the series are named."""
        process = nursery.start()
        process.call(join, directory)
        process.call(_explode, 10_000)
        process.kill()
        assert main(["check", "--directory", directory]) == 1
        line = "big has 20,000 series: its label path has 10,000 values"
        text = output()
        assert re.search(f"^warning +files +{re.escape(line)}\n +give it fewer values", text, re.M)
        assert main(["inspect", directory]) == 0
        assert line in output()

    def test_workers_that_are_missing(self, nursery: Nursery, directory: str, output: Any) -> None:
        """Workers that the arbiter is asked for and that have no lease are a problem."""
        arbiter = nursery.start()
        arbiter.call(_begin, directory)
        arbiter.call(_note, workers=3)
        worker = nursery.start()
        worker.call(join, directory)
        worker.call(act, "counter", "c", "inc")
        worker.call(_note, role="worker", state="booted")
        assert main(["check", "--directory", directory]) == 1
        assert re.search("^warning .* 1 of 3 workers have booted and hold a lease", output(), re.M)

    @needs_root
    def test_a_full_volume(self, nursery: Nursery, directory: str) -> None:
        """It says what to do."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 16)
        process.call(forks.fill_volume, directory)
        assert "more room" in process.call(_printed, ["check", "--directory", directory])

    def test_without_flock(self, nursery: Nursery, directory: str) -> None:
        """Where two can hold one lock it says so."""
        process = nursery.start()
        process.call(_break_flock)
        text = process.call(_printed, ["check", "--directory", directory])
        assert "two processes can hold one lock" in text


class TestUse:
    """The command line itself."""

    def test_directory_of_the_environment(
        self, served: str, output: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an argument the directory is that of the environment."""
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", served)
        assert main(["inspect"]) == 0
        assert served in output()

    @pytest.mark.parametrize("arguments", [[], ["inspect"], ["inspect", "/nowhere"], ["dance"]])
    def test_wrong_use(
        self,
        arguments: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Wrong use is status 2 and says what was expected."""
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        monkeypatch.setattr(private, "find", list)  # another server may run on this machine
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: obskit-gunicorn" in capsys.readouterr().err

    def test_no_server_runs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where no directory is named and none is found, it says what that may mean."""
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        monkeypatch.setattr(private, "find", list)
        for command, has_other in (("inspect", False), ("top", True)):
            with pytest.raises(SystemExit):
                main([command])
            said = capsys.readouterr().err
            assert "There is no private one that this user may read" in said
            assert ("or the exporter's address" in said) is has_other

    def test_a_closed_pipe(self, served: str) -> None:
        """Whoever reads the output may stop reading."""
        command = f"{sys.executable} -m obskit_gunicorn inspect {served} | true"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=forks.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_private_directory_of_this_machine(
        self, nursery: Nursery, tmp_path: Path, output: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an argument a private directory is found; several are named."""
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        found: list[str] = []
        monkeypatch.setattr(private, "find", lambda: found)
        found.append(str(tmp_path))
        assert main(["inspect"]) == 0
        assert f"directory  {tmp_path}\n" in output()
        found.append("/dev/shm/obskit-gunicorn-0-another")
        with pytest.raises(SystemExit):
            main(["inspect"])

    def test_as_a_module(self, directory: str) -> None:
        """``python -m obskit_gunicorn`` is the same command, with the same status."""
        for path, status in ((directory, 0), ("/nowhere", 2)):
            done = subprocess.run(
                [sys.executable, "-m", "obskit_gunicorn", "check", "--directory", path],
                cwd=forks.REPOSITORY,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == status, done.stderr

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It says which release it is."""
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"obskit-gunicorn {__version__}\n"

    def test_does_not_need_prometheus_client(self, directory: str) -> None:
        """The command works beside an application whose environment lacks it."""
        code = (
            "import sys; sys.modules['prometheus_client'] = None; "
            "from obskit_gunicorn.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        assert "ok  " in run_python(code, "check", "--directory", directory).stdout


def _printed(arguments: list[str]) -> str:
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(arguments)
    return printed.getvalue()


def _note_unshared() -> None:
    _note(values_not_shared=3)


def _note(**facts: object) -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(**facts)


def _begin(path: str) -> None:
    from obskit_gunicorn._store.membership import membership

    membership.begin(path, keep=False, user=os.geteuid(), group=os.getegid())


def _explode(count: int) -> None:
    from prometheus_client import Summary

    summary = Summary("big", "Help.", ["path", "method"])
    for number in range(count):
        summary.labels(f"/item/{number}", "GET")


def _break_flock() -> None:
    import fcntl

    fcntl.flock = lambda *_: None
