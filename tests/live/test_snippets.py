"""The commands of the pages are run, and print what the pages show; see ``tests/support/pages.py``.

The examples and the tutorial, each a story of its own, have tests of their own. Of the other pages
those that have an application and the command that starts it are followed in their order; the
commands of all others are run beside one server of a shop. Ports, and the places of files, are
other ones than on the page.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import signal
import struct
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._fleet.publisher import Publisher, Reading
from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import Store
from obskit_gunicorn._scrape.source import Part
from tests.live.test_examples import serving, wait_until_ready
from tests.live.test_overrides import connects
from tests.support.pages import ROOT, Block, all_blocks, commands, has_its_own_test, rule_of
from tests.support.process import HOST, GunicornProcess, free_port, get, wait_until
from tests.support.shop import SHOP
from tests.support.stores import binary, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.process import Interpreter
    from tests.support.stores import StoreServer

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 1
    loglevel = "debug"
"""
BLOCKS = [block for block in all_blocks() if not has_its_own_test(block.page)]
FIRST_LINE = re.compile(r"\A# ([\w/.]+\.py)\n")


def stories() -> dict[str, list[Block]]:
    """Return the blocks of each page that has an application and starts it."""
    found = {}
    for page in {block.page: None for block in BLOCKS}:
        blocks = [block for block in BLOCKS if block.page == page]
        modules = {name[1] for block in blocks if (name := FIRST_LINE.match(block.text))}
        starts = re.findall(r"^gunicorn (\w+):app$", "\n".join(b.text for b in blocks), re.M)
        if any(f"{name}.py" in modules for name in starts):
            found[page] = blocks
    return found


class Desk:
    """Where commands are typed: beside a server, with its ports in place of those of the pages.

    Attributes:
        server: The server.
        ports: The port for each that pages have.
    """

    def __init__(self, server: GunicornProcess, store: StoreServer | None = None) -> None:
        """Sit down beside a server."""
        self.server = server
        self.ports = {
            "8000": server.port,
            "9764": server.metrics_port,
            "9765": free_port(),
            "6379": store.port if store else free_port(),
        }

    def translate(self, command: str) -> str:
        """Return a command with the ports and places that are meant."""
        command = re.sub(
            r"(?<=127\.0\.0\.1:)(\d{4})\b",
            lambda found: str(self.ports.get(found[1], found[1])),
            command,
        )
        command = command.replace("/var/log/gunicorn.log", str(self.server.log_path))
        command = re.sub(r"(?<= )docs/", f"{ROOT}/docs/", command)
        return re.sub(r"(?<= )/metrics$", "$PROMETHEUS_MULTIPROC_DIR", command)

    def type(self, command: str) -> str:
        """Run a command, and return what it prints."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-euc", self.translate(command)],
            cwd=self.server.root,
            env=self.server.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode <= (" check" in command), (
            command,
            done.stdout,
        )  # 1: it has a warning
        return done.stdout

    @contextlib.contextmanager
    def start(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command that stays in its terminal, and end it with Ctrl-C."""
        with self.server.log_path.open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec env {self.translate(command)}"],
                cwd=self.server.root,
                env=self.server.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[StoreServer]:
    yield from running(tmp_path / "store")


def answers(port: int, path: str = "/-/ready") -> bool:
    """Return whether a server answers a page with success."""
    with contextlib.suppress(OSError):
        return get(port, path).status == 200
    return False


def masked(text: str) -> str:
    """Return a text without its numbers, dates and the widths that follow from them."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "DATE", text)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)*", "N", text))


def of_kind(*kinds: str) -> list[tuple[Block, str]]:
    """Return the commands of some kinds that are no part of a story, with their blocks."""
    told = stories()
    return [
        (block, command.text)
        for block in BLOCKS
        if block.language == "sh" and block.page not in told
        for command in commands(block.text)
        if command.kind in kinds
    ]


def test_pages(newest: Interpreter) -> None:
    """A page with an application of its own shows what one sees who does what it says."""
    assert stories()
    for blocks in stories().values():
        files: dict[str, str] = {}
        for block in blocks:
            if name := FIRST_LINE.match(block.text):
                files.setdefault(name[1], block.text)
        config = files.pop("gunicorn.conf.py")
        (start,) = {
            command.text
            for block in blocks
            if block.language == "sh"
            for command in commands(block.text)
            if command.kind == "gunicorn"
        }
        program, *arguments = start.split()
        with serving(newest, config, files, *arguments, program=program) as server:
            wait_until(partial(answers, server.metrics_port), "the workers are ready")
            desk = Desk(server)
            for block in blocks:
                kinds = {command.kind for command in commands(block.text)}
                if block.language == "sh" and kinds <= {"asks", "watches"}:
                    said = desk.type("\n".join(one.text for one in commands(block.text)))
                    assert not block.shows or masked(said) == masked(block.shows), block.name
            assert server.stop() == 0


def test_commands(newest: Interpreter, store: StoreServer, tmp_path: Path) -> None:
    """Every command that asks a server prints something, and what its page shows."""
    environment = {"OBSKIT_METRICS_REDIS": store.url, "OBSKIT_METRICS_REDIS_NAME": "shop"}
    environment["OBSKIT_METRICS_HOST"] = "web-1"
    environment["OBSKIT_METRICS_REDIS_INTERVAL"] = "1"
    # A command finds a private directory by itself only if there is no other server.
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "metrics")
    environment["OBSKIT_METRICS_PUSH"] = f"http://{HOST}:{free_port()}/"  # so that it has a status
    with serving(newest, CONFIG, SHOP, "shop:app", environment=environment) as server:
        desk = Desk(server, store)
        wait_until(partial(answers, server.metrics_port), "the worker is ready")
        desk.type("curl -s -X POST http://127.0.0.1:8000/")
        publish_as_others(store.url, tmp_path)
        wait_until(lambda: answers(server.metrics_port, "/metrics/fleet"), "it is published")
        asked = of_kind("asks", "watches")
        assert asked
        for block, command in asked:
            if watched := re.fullmatch(r"watch -n1 '(.*)'", command):
                command = watched[1]  # noqa: PLW2901 - what is repeated, once
            if "check -c" in command:
                # The port is taken, by the server that is looked at; before a start it is not.
                command = f"OBSKIT_METRICS_BIND=127.0.0.1:{free_port()} {command}"  # noqa: PLW2901
            rule = rule_of(block._replace(language="text", text=block.shows, before="sh"))
            if block.shows and rule is not None and rule.kind == "shown":
                wait_until(
                    lambda block=block, command=command: (  # type: ignore[misc]
                        masked(desk.type(command)) == masked(block.shows)
                    ),
                    f"{block.name} shows what it says: {block.shows} and not {desk.type(command)}",
                )
            else:
                assert desk.type(command), block.name
        for block, command in of_kind("starts"):
            program = command.split()[0]
            if program == "valkey-server":
                (server.root / program).symlink_to(binary("valkey-8"))
                port = free_port()
                command = f"./{command} --port {port}"  # noqa: PLW2901
            else:
                port = desk.ports["9765"]
            with desk.start(command):
                wait_until(partial(connects, port), f"{block.name}: {command} answers")
        for block in BLOCKS:
            if (rule := rule_of(block)) and rule.kind == "status":
                shown = names(json.loads(block.text))
                wait_until(
                    lambda shown=shown: (  # type: ignore[misc]
                        shown <= names(json.loads(get(server.metrics_port, "/-/status").body))
                    ),
                    f"the status has all that {block.name} shows",
                )
        assert server.stop() == 0


def publish_as_others(url: str, folder: Path) -> None:
    """Leave in a store what two other hosts have published: one is silent now, one has ended."""
    text = json.dumps(["shop_orders", "shop_orders_total", {}, "Orders taken."]).encode()
    text += b" " * (-(len(text) + 4) % 8)
    part = Part("counter", "", (struct.pack("i", len(text)) + text,), [1.0])
    store = Store(url, "shop")
    for host in ("web-0", "web-2"):
        (folder / host).mkdir()
        read = partial(Reading, str(folder / host), host, [part], ())
        publisher = Publisher(store, read, host=host, interval=0.1, returns=False)
        publisher.publish(ended=host == "web-0")
    clock = itertools.count()
    source = FleetSource(store, grace_seconds=0, clock=lambda: float(next(clock)))
    wait_until(
        lambda: not any(host.ended for host in source.read().hosts),
        "the one that has ended is added up",
    )
    store.close()


def names(value: Any, path: str = "") -> set[str]:
    """Return the path of each name in an object, without labels' values, which are names too."""
    if path in {".requests.total", ".workers.exits"}:
        return set()
    if isinstance(value, dict):
        return {f"{path}.{name}" for name in value}.union(
            *(names(each, f"{path}.{name}") for name, each in value.items())
        )
    if isinstance(value, list):
        return set().union(*(names(each, f"{path}[]") for each in value))
    return set()


@pytest.mark.parametrize(("block", "command"), of_kind("gunicorn"), ids=lambda each: str(each)[:0])
def test_starts(newest: Interpreter, store: StoreServer, block: Block, command: str) -> None:
    """A command that starts Gunicorn does, with the address and the store that it names."""
    words = [word.replace("$REDIS_URL", store.url) for word in shlex.split(command)]
    environment = dict(word.split("=", 1) for word in words if "=" in word)
    program, *arguments = [word for word in words if "=" not in word]
    address = f"{HOST}:{free_port()}"
    if "OBSKIT_METRICS_BIND" in environment:
        environment["OBSKIT_METRICS_BIND"] = address
    with serving(
        newest, CONFIG, SHOP, *arguments, program=program, environment=environment
    ) as server:
        port = server.environment["OBSKIT_METRICS_BIND"].rpartition(":")[2]
        wait_until(partial(answers, int(port)), f"{block.name} has a metrics server")
        if "OBSKIT_METRICS_REDIS" in environment:
            wait_until(partial(answers, int(port), "/metrics/fleet"), "it is in the store")


def test_program(newest: Interpreter) -> None:
    """A program that is a server serves, and its metrics are shown."""
    for block in BLOCKS:
        if (rule := rule_of(block)) and rule.kind == "program":
            port = free_port()
            text = re.sub(rf"(?<={HOST}:)8000", str(port), block.text)
            files = {**SHOP, "server.py": text}
            with serving(newest, None, files, "server.py", program="python") as server:
                # Both: a SIGTERM that comes while Gunicorn boots a worker is lost on that.
                wait_until_ready(server, 2)
                assert answers(port, "/")


def test_user_of_a_store(store: StoreServer) -> None:
    """A store accepts the line that makes a user."""
    client = store.client()
    for block in BLOCKS:
        if (rule := rule_of(block)) and rule.kind == "user of a store":
            for line in block.text.splitlines():
                assert client.execute_command(*line.split())
