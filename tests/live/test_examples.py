"""The examples do what their READMEs show: commands are run, and outputs compared.

In a README the first block of commands installs and starts the server. Of those after it, one that
is followed by a block of text is asked until it prints that, for some counts come a moment after
the answer; one that is followed by none is run once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.live.test_overrides import connects
from tests.support.missing import find_program
from tests.support.openmetrics import OPENMETRICS, exemplars
from tests.support.process import HOST, GunicornProcess, free_port, wait_until
from tests.support.stores import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.process import Interpreter
    from tests.support.stores import StoreServer

EXAMPLES = Path(__file__).parents[2] / "examples"
FROM_README = (
    "base_application",
    "company_base",
    "django",
    "fastapi",
    "flask",
    "gevent",
    "own_collector",
)

OWN_PAGE = """
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest

ORDERS = Counter("shop_orders", "Orders taken.")

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
    if environ["PATH_INFO"] == "/metrics":
        return [generate_latest()]
    ORDERS.inc()
    return [b"taken"]
"""
"""An application that serves prometheus_client's default registry."""

SHOP = """
import os

def say(text):
    descriptor = os.open("said", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)

def open_database_pool(): say("opened")
def warm_up(): say("warm")
def report(hook, error): say(f"{hook}:{error}")
"""


class Block(NamedTuple):
    """A block of a README.

    Attributes:
        commands: What to type.
        shown: What that prints, if the README shows it.
    """

    commands: str
    shown: str | None


def blocks(example: str) -> list[Block]:
    """Return what a README says to type."""
    return read_blocks((EXAMPLES / example / "README.md").read_text())


def read_blocks(text: str) -> list[Block]:
    """Return the commands of a page, each with what it shows."""
    found = re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.+?)```)?", text, re.DOTALL)
    assert sum(bool(shown) for _, shown in found) == text.count("```text") > 0
    return [Block(commands, shown or None) for commands, shown in found]


class Example:
    """An example that runs.

    Attributes:
        server: Its server.
        blocks: The blocks of its README that are left.
    """

    def __init__(self, server: GunicornProcess, left: list[Block]) -> None:
        """Describe an example whose server has been started."""
        self.server = server
        self.blocks = left

    def type(self, commands: str) -> str:
        """Run commands of the README, with the ports of this server; return what they print."""
        ports = {"8000": self.server.port, "9764": self.server.metrics_port}
        commands = re.sub(r"(?<=127\.0\.0\.1:)(8000|9764)", lambda it: str(ports[it[0]]), commands)
        return subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=self.server.root,
            env=self.server.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def shows(self, block: Block) -> bool:
        """Return whether commands print what the README shows."""
        return self.type(block.commands) == block.shown

    def follow(self) -> None:
        """Do what the rest of the README says, and see what it shows, and goes on to show."""
        shown = [block for block in self.blocks if block.shown is not None]
        for block in self.blocks:
            if block not in shown:
                self.type(block.commands)
                continue
            with contextlib.suppress(AssertionError):
                wait_until(partial(self.shows, block), "it is as shown")
            assert self.type(block.commands) == block.shown
        for block in shown:
            assert self.type(block.commands) == block.shown
        assert not [line for line in self.server.log().splitlines() if "Traceback" in line]


@contextlib.contextmanager
def started(
    interpreter: Interpreter, name: str, environment: dict[str, str] | None = None
) -> Iterator[Example]:
    """Start the server of an example as its README says, and do not wait."""
    install, *left = blocks(name)
    install_line, start_line = install.commands.splitlines()
    assert install_line.startswith("pip install ../..")
    folder = EXAMPLES / name
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
    config = files.pop("gunicorn.conf.py", None)
    program, *arguments = [word for word in shlex.split(start_line) if "=" not in word]
    with serving(
        interpreter, config, files, *arguments, program=program, environment=environment
    ) as server:
        yield Example(server, left)


@contextlib.contextmanager
def serving(
    interpreter: Interpreter,
    config: str | None,
    files: dict[str, str],
    *arguments: str,
    program: str = "gunicorn",
    environment: dict[str, str] | None = None,
) -> Iterator[GunicornProcess]:
    """Start a server by a program of the environment, with nothing but what a page shows."""
    find_program("curl", "curl")
    files = dict(files)
    server = GunicornProcess(
        interpreter,
        config,
        files.pop("app.py", ""),
        files=files,
        exporter=True,
        serving=False,
    )
    programs = Path(interpreter.path).parent
    server.environment |= {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "BIND": f"{HOST}:{server.port}",
        "GUNICORN_CMD_ARGS": f"--bind {HOST}:{server.port} --graceful-timeout 2",
        "PYTEST_ADDOPTS": "-p no:cloudcoil -p no:cacheprovider",  # as in pyproject.toml
        **(environment or {}),
    }
    server.command = [str(programs / program), *arguments]
    with server:
        yield server


def python_blocks(page: str, heading: str) -> dict[str, str]:
    """Return the pieces of Python of a part of a page, by the file that their first line names."""
    text = "\n" + (EXAMPLES.parent / page).read_text()
    text = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return {
        name: code for code, name in re.findall(r"```python\n(# (\S+)\n.*?)```", text, re.DOTALL)
    }


def wait_until_ready(server: GunicornProcess, workers: int) -> None:
    """Wait until all workers of a server count requests."""
    ready = ("gunicorn_workers_ready", frozenset[tuple[str, str]]())

    def is_ready() -> bool:
        assert server.launcher is not None
        assert server.launcher.poll() is None, "the server has ended"
        with contextlib.suppress(OSError):
            return server.scrape().get(ready) == workers
        return False

    wait_until(is_ready, f"{workers} workers are ready")


@pytest.mark.parametrize("name", FROM_README)
def test_readme(newest: Interpreter, name: str) -> None:
    """The server starts with the command of the README, and the pages are those it shows."""
    if name == "fastapi":
        pytest.importorskip("obskit")  # from Python 3.11 on
    with started(newest, name) as example:
        workers = 3 if name in {"company_base", "flask"} else 2
        wait_until_ready(example.server, workers)
        example.follow()


QUICK_START = "## In five minutes"
ORDERS = ("shop_orders_total", frozenset[tuple[str, str]]())


def test_quick_start(newest: Interpreter) -> None:
    """The two files of the README, as they are, show what it says, in each way that it names."""
    files = python_blocks("README.md", QUICK_START)
    text = (EXAMPLES.parent / "README.md").read_text().partition(f"\n{QUICK_START}\n")[2]
    install, start, look = read_blocks(text.partition("\n## ")[0])
    assert 'pip install ".[cli]"\n' in install.commands
    assert start.commands == "gunicorn myapp:app\n"
    config = files.pop("gunicorn.conf.py")
    with serving(newest, config, files, "myapp:app") as server:
        wait_until_ready(server, 4)
        example = Example(server, [])
        requests, question = look.commands.splitlines()
        answers = example.type(requests)
        wait_until(lambda: answers + example.type(question) == look.shown, "it is as shown")
        (loop,) = re.findall(r"`(while curl .*? done)`", text)
        asked = server.scrape()
        with beside(example, f"sh -c '{loop.replace('8000', str(server.port))}'"):
            wait_until(lambda: server.scrape()[ORDERS] > asked[ORDERS] + 1, "it moves")
        assert "<title>" in example.type("curl -s http://127.0.0.1:9764/")
        top = example.type(f"obskit-gunicorn top {server.metrics_directory}")
        assert "4 ready of 4" in top  # once, because this is no terminal


def test_first_steps_with_fastapi(newest: Interpreter) -> None:
    """The page's application, under the line that the README has for it, shows all workers."""
    config = python_blocks("README.md", QUICK_START)["gunicorn.conf.py"]
    config = config.replace("# worker_class", "worker_class")
    app = python_blocks("docs/first-steps.md", "## Frameworks")["app.py"]
    with serving(newest, config, {"app.py": app}, "app:app") as server:
        wait_until_ready(server, 4)
        example = Example(server, [])
        example.type("for i in $(seq 10); do curl -s -X POST http://127.0.0.1:8000/orders; done")
        for _ in range(8):
            shown = example.type("curl -sL http://127.0.0.1:8000/metrics | grep ^shop_orders_total")
            assert shown == "shop_orders_total 10.0\n"


def test_first_steps_with_the_default_registry(newest: Interpreter) -> None:
    """With the page's one call an application's page of the default registry shows all workers."""
    steps = python_blocks("docs/first-steps.md", "## I already have a `/metrics`")
    with serving(newest, steps["gunicorn.conf.py"], {"app.py": OWN_PAGE}, "app:app") as server:
        wait_until_ready(server, 4)
        example = Example(server, [])
        example.type("for i in $(seq 10); do curl -s http://127.0.0.1:8000/; done")
        for _ in range(8):
            shown = example.type("curl -s http://127.0.0.1:8000/metrics | grep ^shop_orders_total")
            assert shown == "shop_orders_total 10.0\n"


def test_configuration_page(newest: Interpreter) -> None:
    """The class of the page does what it says: hooks are called, and a failing one is reported."""
    config = python_blocks("docs/configuration.md", "## A class")["gunicorn.conf.py"]
    config += "\n    def on_reload(self, server):\n        raise ValueError('mine')\n"
    with serving(newest, config, {"app.py": OWN_PAGE, "shop.py": SHOP}, "app:app") as server:
        workers = 2 * (os.cpu_count() or 1) + 1
        wait_until_ready(server, workers)
        said = server.root / "said"
        assert sorted(said.read_text().split()) == [*["opened"] * workers, "warm"]
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: "on_reload:mine" in said.read_text().split(), "it is reported")
        server.wait_for_log("Config.on_reload raised; the server continues")
    config = config.replace("return warm_up()", "return False")
    with serving(newest, config, {"app.py": OWN_PAGE, "shop.py": SHOP}, "app:app") as server:
        assert server.exit_status() != 0
        assert server.log().count("Config.when_ready returned False: not starting") == 1


def test_configuration_page_with_functions(newest: Interpreter) -> None:
    """The file of functions of the page is adopted: its hook is called, and workers counted."""
    config = python_blocks("docs/configuration.md", "## A file of functions")["gunicorn.conf.py"]
    with serving(newest, config, {"app.py": OWN_PAGE, "shop.py": SHOP}, "app:app") as server:
        wait_until_ready(server, 4)
        assert (server.root / "said").read_text().split() == ["opened"] * 4


def test_every_example_is_listed_and_run() -> None:
    """Each folder has a README with a test here, and the page of examples names it."""
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()} - {"__pycache__"}
    tested = {"celery", "opentelemetry", "readiness_gate", *FROM_README}
    assert folders - {"demo"} == tested
    page = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+)\]\(\1\)", page, re.MULTILINE)) == folders


@contextlib.contextmanager
def beside(example: Example, commands: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run what a README has in a terminal of its own; its output is in the server's log."""
    with example.server.log_path.open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec env {commands}"],
            cwd=example.server.root,
            env=example.server.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        # Celery may wait for ever for a lock that a child of its own has had when it ended; see
        # _help_stuff_finish in billiard's pool.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreServer]:
    """A Redis of this test's own."""
    yield from running(tmp_path)


def test_celery(newest: Interpreter, store: StoreServer) -> None:
    """What Celery's children count, one task each, outlives them and a restart of Gunicorn.

    With a Redis, as the README says it can be had: a folder loses messages on a busy machine.
    """
    with started(newest, "celery", {"CELERY_BROKER_URL": store.url}) as example:
        server = example.server
        wait_until_ready(server, 2)
        commands = example.blocks.pop(0).commands
        assert "celery --app tasks worker" in commands
        with beside(example, commands):
            server.wait_for_log(" ready.")
            example.follow()
            assert server.log().count(" succeeded in ") == 21
            server.send_signal(signal.SIGTERM)
            assert server.exit_status() == 0
            server.start()
            wait_until_ready(server, 2)
            assert example.shows(example.blocks[-1])


def test_opentelemetry(newest: Interpreter) -> None:
    """Counts are exact, and so are spans: two for each request, in one trace, none of scrapes."""
    with started(newest, "opentelemetry") as example:
        wait_until_ready(example.server, 2)
        example.follow()
        request = urllib.request.Request(
            f"http://{HOST}:{example.server.metrics_port}/metrics", headers={"Accept": OPENMETRICS}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            shown = exemplars(response.read().decode())
        assert example.server.stop() == 0
        spans = re.findall(r"trace (\w{32}) span (.+)", example.server.log())
        inner = {trace for trace, name in spans if name == "pack"}
        outer = {trace for trace, name in spans if name.startswith("GET")}
        assert len(inner) == 10
        assert inner == outer
        assert len(spans) == 20
        assert shown
        assert {labels["trace_id"] for labels in shown.values()} <= outer


def test_readiness_gate_waits_for_the_service(interpreter: Interpreter) -> None:
    """No worker starts and no port is open before the service answers; then all is as shown."""
    needed = free_port()
    gate = {"GATE_ADDRESS": f"{HOST}:{needed}", "GATE_SECONDS": "25"}
    with started(interpreter, "readiness_gate", gate) as example:
        server = example.server
        wait_until(lambda: "Starting gunicorn" in server.log(), "the arbiter is there")
        never(lambda: connects(server.port) or bool(server.worker_pids()), seconds=0.7)
        commands = example.blocks.pop(0).commands
        assert " 5432\n" in commands
        with beside(example, commands.replace("5432", str(needed))):
            wait_until_ready(server, 2)
            example.follow()
        assert server.stop() == 0


def test_readiness_gate_gives_up(interpreter: Interpreter) -> None:
    """The start ends in time if the service never answers."""
    gate = {"GATE_ADDRESS": f"{HOST}:{free_port()}", "GATE_SECONDS": "1"}
    with started(interpreter, "readiness_gate", gate) as example:
        assert example.server.exit_status() == 1
        assert "did not answer within 1 seconds" in example.server.log()
        assert not connects(example.server.port)


def never(condition: Any, *, seconds: float) -> None:
    """Fail if a condition comes true within some time."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()

    def came_true() -> bool:
        assert over.is_set() or not condition()
        return over.is_set()

    try:
        wait_until(came_true, "the time is over", seconds=seconds + 10)
    finally:
        timer.cancel()
