"""docs/tutorial.md, as a reader does it: each file written, each command run, each output seen.

Its package is built and installed by the command of the page, its Prometheus is a real one. Only
the ports are others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.missing import find_program, missing
from tests.support.process import HOST, free_port, get, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
PORTS = ("8000", "9764", "9090")
SERVERS = {"gunicorn": "8000", "prometheus": "9090"}
"""Commands that stay in their terminal, and the port at which each answers."""
LANGUAGES = {"python", "yaml", "sh", "text", "promql"}
WAIT_SECONDS = 60.0


class Block(NamedTuple):
    """A piece of the page: its language and its text."""

    language: str
    text: str


def blocks() -> list[Block]:
    """Return the pieces of the page in their order."""
    text = PAGE.read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)]


class Reader:
    """Somebody who does what the page says, in a directory."""

    def __init__(self, directory: Path, wheels: Path, python: str) -> None:
        """Sit down.

        Args:
            directory: Where to begin.
            wheels: Where pip finds the package.
            python: The interpreter that the page calls ``python3``.
        """
        self.directory = directory
        self.ports = {port: free_port() for port in PORTS}
        self._before = ""
        programs = directory / "bin"
        programs.mkdir()
        (programs / "python3").symlink_to(python)
        ours = ("OBSKIT_", "PROMETHEUS_", "PYTHON", "GUNICORN_", "VIRTUAL_ENV")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory),
            "OBSKIT_METRICS_BIND": f"{HOST}:{self.ports['9764']}",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def with_ports(self, text: str) -> str:
        """Return a piece of the page with ports that are free."""
        for port, free in self.ports.items():
            text = re.sub(rf"(?<=:){port}\b", str(free), text)
        return text

    def write(self, text: str) -> None:
        """Write a file, whose name is in its first line."""
        name = re.match(r"# ([\w.]+)\n", text)
        assert name, text
        (self.directory / name[1]).write_text(self.with_ports(text), encoding="utf-8")

    def command(self, text: str) -> list[str]:
        """Return how a command is run."""
        return ["bash", "-euc", self._before + self.with_ports(text)]

    def run(self, text: str) -> str:
        """Run a command, and return what it prints."""
        done = subprocess.run(
            self.command(text),
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, (text, done.stdout)
        return done.stdout

    def install(self, text: str) -> None:
        """Run the first command, which makes the directory and the environment."""
        self.run(text)
        (name,) = re.findall(r"^mkdir (\w+)$", text, re.MULTILINE)
        self.directory /= name
        self._before = ". venv/bin/activate\n"

    def start(self, text: str) -> subprocess.Popen[bytes]:
        """Start a command that stays in its terminal."""
        with (self.directory / f"{text.split(maxsplit=1)[0]}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(f"exec {text}"),
                cwd=self.directory,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self, port: str) -> bool:
        """Return whether a server answers."""
        try:
            return get(self.ports[port], "/").status < 500
        except OSError:
            return False

    def values(self, query: str) -> list[float]:
        """Return the values that Prometheus finds."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": query})
        answer = get(self.ports["9090"], path)
        found = json.loads(answer.body)["data"]["result"]
        return [float(each["value"][1]) for each in found]


def without_times(text: str) -> str:
    """Return an output without the times that promtool prints."""
    return re.sub(r"@\[[\d.]+\]", "@", text)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C, which the whole group of processes gets."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


@pytest.fixture(name="reader")
def _reader(newest: Interpreter, place: Path) -> Reader:
    """Return a reader, for whom the package has been built."""
    for name in ("prometheus", "promtool"):
        find_program(name, "prometheus")
    if not shutil.which("curl"):
        missing("curl is missing")
    wheels = place / "wheels"
    built = subprocess.run(
        [newest.path, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if built.returncode:
        missing(f"the package cannot be built, perhaps without a network: {built.stderr[-800:]}")
    return Reader(place, wheels, newest.path)


@pytest.mark.timeout(600)  # pip, and a Prometheus that has to see something for a minute
def test_tutorial(reader: Reader) -> None:
    """Whoever does what the page says sees what the page says."""
    todo = blocks()
    assert {block.language for block in todo} == LANGUAGES
    first, *rest = todo
    reader.install(first.text)
    with ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}
        for block, after in zip(rest, [*rest[1:], Block("", "")], strict=True):
            name = block.text.split()[0]
            if block.language in {"python", "yaml"}:
                reader.write(block.text)
            elif block.language == "promql":
                wait_until(
                    lambda text=block.text: (  # type: ignore[misc]
                        (found := reader.values(text)) and min(found) > 0
                    ),
                    f"there is something to draw: {block.text}",
                    seconds=WAIT_SECONDS,
                )
            elif block.language == "sh" and name in SERVERS:
                running[name] = reader.start(block.text)
                stack.callback(stop, running[name])
                wait_until(lambda name=name: reader.answers(SERVERS[name]), f"{name} answers")  # type: ignore[misc]
            elif after.language == "text":
                wanted = without_times(after.text)
                wait_until(
                    lambda text=block.text, wanted=wanted: (  # type: ignore[misc]
                        without_times(reader.run(text)) == wanted
                    ),
                    f"{block.text} prints {wanted}",
                    seconds=WAIT_SECONDS,
                )
            elif block.language == "sh":
                reader.run(block.text)
        assert set(running) == set(SERVERS)
        assert list(reader.directory.parent.glob("obskit*")), "there is a private directory"
        stop(running["gunicorn"])
        wait_until(lambda: not reader.answers("9764"), "the exporter ends")
        assert not list(reader.directory.parent.glob("obskit*")), "its directory is removed"
