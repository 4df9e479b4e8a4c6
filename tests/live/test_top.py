"""``obskit-gunicorn top``, and the tables of ``inspect``, on a real terminal."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.exporters import server, wait_until_scraped
from tests.support.forks import Nursery, act, join
from tests.support.process import HOST, GunicornProcess, free_port, interpreters
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.live

COMMAND = (sys.executable, "-m", "obskit_gunicorn")
_leases: list[Any] = []


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[GunicornProcess]:
    with server(interpreters()[-1]) as running:
        wait_until_scraped(running)
        yield running


def _source(running: GunicornProcess, kind: str) -> str:
    if kind == "url":
        return f"http://{HOST}:{running.metrics_port}"
    return str(running.metrics_directory)


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("kind", ["url", "directory"])
def test_on_a_terminal(running: GunicornProcess, kind: str) -> None:
    """It shows the workers, goes on by itself, sorts as it is told, and leaves all as it was."""
    running.get("/")
    with Terminal(["top", _source(running, kind)]) as terminal:
        text = terminal.wait_for("CPU%▼")
        for pid in running.worker_pids():
            assert str(pid) in text
        for _ in range(3):
            running.get("/")
        terminal.wait_for(r"Requests/s [1-9]")
        terminal.press("p")
        text = terminal.wait_for(r"PID▲[\s\S]*quit")
        pids = [int(pid) for pid in re.findall(r"slot\d+ +(\d+) ", text.rpartition("PID▲")[2])]
        assert pids[:2] == sorted(running.worker_pids())
        terminal.press("p")
        terminal.wait_for("PID▼")
        terminal.press("\x1b[C")
        terminal.wait_for("STATE▲")
        terminal.press("i")
        terminal.wait_for("STATE▼")
        terminal.press("q")
        assert terminal.status() == 0
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.raw


def test_more_workers_than_lines(nursery: Nursery, directory: str) -> None:
    """What does not fit is scrolled to."""
    nursery.start().call(_hold_workers, directory, 60)
    with Terminal(["top", directory], rows=20) as terminal:
        terminal.wait_for("CPU%▼")
        terminal.press("s")
        text = terminal.wait_for(r"SLOT▲[\s\S]*q:quit")
        assert "slot0 " in text
        terminal.press("\x1b[6~" * 9)
        assert "slot59" in terminal.wait_for(r"slot59[\s\S]*-60 of 60")
        terminal.press("q")
        assert terminal.status() == 0


def _hold_workers(directory: str, count: int) -> None:
    """Hold as many slots as so many workers."""
    from obskit_gunicorn._store.directory import SlotDirectory

    for _ in range(count):
        lease = SlotDirectory(directory).acquire("worker")
        lease.note(state="booted")
        _leases.append(lease)


@pytest.mark.parametrize("how", ["\x03", "q", signal.SIGTERM])
def test_every_end_restores_the_terminal(running: GunicornProcess, how: Any) -> None:
    """Ctrl-C, q and SIGTERM end it with status 0."""
    with Terminal(["top", _source(running, "url")]) as terminal:
        terminal.wait_for("CPU%")
        terminal.press(how) if isinstance(how, str) else terminal.signal(how)
        assert terminal.status() == 0
        assert terminal.is_as_before()


def test_a_server_that_ends(nursery: Nursery, tmp_path: Path) -> None:
    """The last figures stay, with a line that says why there are no newer ones."""
    path = tmp_path / "metrics"
    path.mkdir()
    nursery.start().call(_hold_workers, str(path), 1)
    with Terminal(["top", str(path)], columns=200) as terminal:
        terminal.wait_for("slot0")
        path.rename(tmp_path / "elsewhere")
        terminal.wait_for("is not there any more")
        terminal.press("q")
        assert terminal.status() == 0


@pytest.mark.parametrize("kind", ["url", "directory"])
def test_without_a_terminal(running: GunicornProcess, kind: str) -> None:
    """Into a pipe it prints one picture, in plain text."""
    done = _run(["top", _source(running, kind)])
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for pid in running.worker_pids():
        assert str(pid) in done.stdout


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_of_ascii(running: GunicornProcess, is_terminal: bool) -> None:
    """What it cannot show is a question mark, and no end."""
    arguments = ["top", _source(running, "url")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    if is_terminal:
        with Terminal(arguments, environment={"PYTHONIOENCODING": "ascii"}) as terminal:
            terminal.wait_for(r"CPU%\?")
            terminal.press("q")
            assert terminal.status() == 0
        return
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, timeout=60, check=True, env=environment
    )
    assert b"CPU%?" in done.stdout


@pytest.mark.parametrize("url", ["http://[::1", "HTTP://127.0.0.1:1"])
def test_no_url(url: str) -> None:
    """What is no URL, or is written in another way, is one line."""
    done = _run(["top", url])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is no URL" in line or "refused" in line


def test_an_interrupt_while_it_waits() -> None:
    """Ctrl-C ends it without a traceback, also before there is anything to be shown."""
    with socket.create_server((HOST, free_port())) as silent:
        command = [*COMMAND, "top", f"http://{HOST}:{silent.getsockname()[1]}"]
        # Whoever runs the tests in the background, as with nohup, lets them ignore it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        signal.signal(signal.SIGINT, before)
        with process:
            silent.settimeout(30)
            with silent.accept()[0] as client:
                assert client.recv(3) == b"GET"  # before that it may not have begun to wait
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + signal.SIGINT, "")


def test_nobody_answers() -> None:
    """One line says why there is nothing."""
    done = _run(["top", f"http://{HOST}:{free_port()}"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "Connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "does not answer with a status"),
        (b"[]", "a format that this release does not know"),
        (b'{"version": 2}', "a format that this release does not know"),
        (b'{"version": 1}', "something that is no status"),
        (
            json.dumps({"version": 1, "servers": "\x1b[2J", "requests": [], "workers": 3}).encode(),
            "something that is no status",
        ),
    ],
)
def test_somebody_else_answers(answer: bytes, said: str) -> None:
    """What is not a status is said to be none, whatever it is."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer((HOST, free_port()), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            done = _run(["top", f"http://{HOST}:{other.server_port}"])
        finally:
            other.shutdown()
            thread.join()
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_inspect_on_a_terminal(nursery: Nursery, directory: str) -> None:
    """On a terminal there are tables; no name in a file commands the terminal."""
    process = nursery.start()
    process.call(join, directory)
    for number in range(3):
        process.call(act, "counter", "wide", "inc", 1, labels={"who": str(number)})
    process.call(_note, "\x1b[2Jowned")
    for arguments in (["inspect", directory], ["inspect", "--series", directory]):
        with Terminal(arguments) as terminal:
            assert terminal.status() == 0
            assert re.search(r"│ wide +│ +3 │ \S*who", terminal.raw)
            assert ("slot0" in terminal.raw) == ("--series" not in arguments)
            assert "\x1b[2J" not in terminal.raw
    plain = _run(["inspect", "--series", directory])
    assert plain.stdout == (
        "metrics    the largest, over all files\n  wide has 3 series: its label who has 3 values\n"
    )
    found = json.loads(_run(["inspect", "--series", "--format", "json", directory]).stdout)
    expected = [{"name": "wide", "series": 3, "label": "who", "label_values": 3}]
    assert found == {"directory": directory, "metrics": expected}


def _note(state: str) -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(state=state)
