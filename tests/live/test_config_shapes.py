"""Every shape of configuration file, every way to name one, before and after a SIGHUP."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.checks import check_counts, requests_in, wait_until_load_is_counted
from tests.support.client import Load, reload_under_load
from tests.support.process import HOST, GunicornProcess, get

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.process import Interpreter

IMPORT = "from obskit_gunicorn import ObskitGunicornConfig\n"
HOOKS = """
    def when_ready(self, server):
        super().when_ready(server)
        server.log.info("shape: ready with %s", type(self).__name__)

    def on_reload(self, server):
        super().on_reload(server)
        server.log.info("shape: reloaded with %s", type(self).__name__)
"""
PLAIN = f"""{IMPORT}
class Config(ObskitGunicornConfig):
    workers = 3
{HOOKS}
"""

# Each makes a server with three workers and the two hooks.
SHAPES: dict[str, str] = {
    "plain": PLAIN,
    "another name": PLAIN.replace("class Config(", "class Server("),
    "property that uses a name defined below": f"""{IMPORT}
class Config(ObskitGunicornConfig):
    @property
    def workers(self):
        return WORKERS
{HOOKS}
WORKERS = 3
""",
    "assignment after the class": f"""{IMPORT}
class Config(ObskitGunicornConfig):
    workers = 1
{HOOKS}
Config.workers = 3
""",
    "class decorator": f"""{IMPORT}
def three(cls):
    cls.workers = 3
    return cls

@three
class Config(ObskitGunicornConfig):
    workers = 1
{HOOKS}
""",
    "dataclass": f"""{IMPORT}
from dataclasses import dataclass, field

@dataclass
class Config(ObskitGunicornConfig):
    workers: int = field(default=3)
    raw_env: list = field(default_factory=lambda: ["SHAPE=dataclass"])
{HOOKS}
""",
    "alternatives and a choice": f"""{IMPORT}
class Production(ObskitGunicornConfig):
    workers = 3
{HOOKS}
class Development(ObskitGunicornConfig):
    workers = 1

Config = Production
""",
    "abstract base in the same file": f"""{IMPORT}
class Company(ObskitGunicornConfig):
    @property
    def workers(self):
        return 2 * self.size + 1
{HOOKS}
class Shop(Company):
    size = 1
""",
    "class made in a function": f"""{IMPORT}
def make():
    class Config(ObskitGunicornConfig):
        workers = 3
{HOOKS.replace(chr(10) + "    ", chr(10) + "        ").replace("super()", "super(Config, self)")}
    return Config

Config = make()
""",
    "mixin before the base": f"""{IMPORT}
class Announced:
{HOOKS}
class Config(Announced, ObskitGunicornConfig):
    workers = 3
""",
    "setting of the module beside the class": f"""{IMPORT}
workers = 3

class Config(ObskitGunicornConfig):
    timeout = 20
{HOOKS}
""",
    "exposed": f"""{IMPORT}
from obskit_gunicorn import expose

class Config(ObskitGunicornConfig):
    workers = 3
{HOOKS}
expose(Config, globals())
""",
    "two classes, one exposed": f"""{IMPORT}
from obskit_gunicorn import expose

class Production(ObskitGunicornConfig):
    workers = 3
{HOOKS}
class Development(ObskitGunicornConfig):
    workers = 1

expose(Production, globals())
""",
    "future annotations": f"""from __future__ import annotations
{IMPORT}
class Config(ObskitGunicornConfig):
    workers: int = 3
{HOOKS}
""",
    "subclass of an imported class": """
from company import Config as Base

class Config(Base):
    pass
""",
    "module-level hooks with the defaults imported": """
from obskit_gunicorn import hooks
from obskit_gunicorn.hooks import *

workers = 3

def when_ready(server):
    hooks.when_ready(server)
    server.log.info("shape: ready with hooks")

def on_reload(server):
    hooks.on_reload(server)
    server.log.info("shape: reloaded with hooks")
""",
}
FILES = {"company.py": PLAIN}


@pytest.mark.parametrize("shape", SHAPES)
def test_file_of_any_shape_is_right_before_and_after_sighup(
    interpreter: Interpreter, shape: str
) -> None:
    """Settings and hooks of the class are in force at the start and after a SIGHUP, and counts."""
    with GunicornProcess(interpreter, SHAPES[shape], files=FILES) as server:
        check_three_workers_with_hooks(server)


# Each starts two workers; what it logs with "shape: " is there once at the end.
WITHOUT_A_CLASS: dict[str, str] = {
    "five names": """
from obskit_gunicorn.hooks import on_starting, when_ready, worker_int, on_exit, post_fork
workers = 2
""",
    "one name for another": """
from obskit_gunicorn.hooks import post_fork as ours
workers = 2
def post_fork(server, worker):
    ours(server, worker)
def when_ready(server):
    server.log.info("shape: ready")
""",
    "the names of another exporter": """
from obskit_gunicorn.hooks import (
    default_on_starting, redis_when_ready, default_worker_int, default_on_exit, default_post_fork
)
workers = 2
on_starting = default_on_starting
when_ready = redis_when_ready
worker_int = default_worker_int
on_exit = default_on_exit
post_fork = default_post_fork
""",
    "attributes of the module": """
from obskit_gunicorn import hooks
workers = 2
on_starting = hooks.on_starting
""",
    "functions that call ours": """
from obskit_gunicorn import hooks
workers = 2
def when_ready(server):
    hooks.when_ready(server)
    hooks.when_ready(server)
    server.log.info("shape: ready")
def pre_request(worker, req):
    hooks.pre_request(worker, req)
def post_request(worker, req, environ, resp):
    hooks.post_request(worker, req, environ, resp)
""",
    "the first core overridden": """
from obskit_gunicorn.hooks import *
workers = 2
def nworkers_changed(server, new_value, old_value):
    if old_value is None:
        server.log.info("shape: started")
""",
    "functions shadowed in another file": """
from shadowed import *
workers = 2
""",
    "functions from a helper": """
from helper import install
install(globals())
def when_ready(server):
    server.log.info("shape: ready")
""",
    "an adopted file, and more": """
from adopted import *
def when_ready(server):
    server.log.info("shape: ready")
""",
    "our class under its name": f"""{IMPORT}
workers = 2
Config = ObskitGunicornConfig
""",
    "our class imported as Config": """
from obskit_gunicorn import ObskitGunicornConfig as Config
workers = 2
""",
    "everything of ours beside a class": """
from obskit_gunicorn import *
class Config(ObskitGunicornConfig):
    workers = 2
""",
    "our hooks beside a class": """
from obskit_gunicorn.hooks import *
from obskit_gunicorn import ObskitGunicornConfig
class Config(ObskitGunicornConfig):
    workers = 2
""",
    "a class that repeats what the file says": f"""{IMPORT}
workers = 2
def when_ready(server):
    server.log.info("shape: ready")
class Config(ObskitGunicornConfig):
    workers = workers
    when_ready = staticmethod(when_ready)
""",
}
MODULES = {
    "shadowed.py": """
def when_ready(server):
    server.log.info("shape: ready")
from obskit_gunicorn.hooks import *
""",
    "helper.py": """
from obskit_gunicorn.hooks import post_fork, when_ready
def install(names):
    names["workers"] = 2
    names["post_fork"] = post_fork
""",
    "adopted.py": """
from obskit_gunicorn import adopt
workers = 2
def when_ready(server):
    server.log.info("never called, the other file has its own")
def on_starting(server):
    server.log.info("shape: starting")
adopt(globals())
""",
}


@pytest.mark.parametrize("shape", WITHOUT_A_CLASS)
def test_file_without_a_class_of_its_own_is_whole(interpreter: Interpreter, shape: str) -> None:
    """One name of ours is enough for exact counts, of requests too, before and after a SIGHUP."""
    config = WITHOUT_A_CLASS[shape]
    with GunicornProcess(interpreter, config, files=MODULES) as server:
        load, workers = reload_under_load(server)
        check_counts(server, load)
        wait_until_load_is_counted(server, load, workers)
        # Each scrape and each look for a worker is a request, too; none is counted twice.
        assert requests_in(server.metrics()) < 2 * load.answered + 40
        log = server.log()
        assert log.count("shape: ") == (
            config
            + MODULES["adopted.py"] * ("adopted" in config)
            + MODULES["shadowed.py"] * ("shadowed" in config)
        ).count("shape: ")
        assert ("run, after ours" in log) == ("shadowed" in shape)


def test_module_of_functions_is_whole(interpreter: Interpreter) -> None:
    """So is a module named with ``python:``, which Gunicorn does not run again at a SIGHUP."""
    with GunicornProcess(
        interpreter,
        WITHOUT_A_CLASS["functions that call ours"],
        config_arguments=("-c", "python:company"),
        config_name="company.py",
        environment={"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])},
    ) as server:
        load, _ = reload_under_load(server)
        check_counts(server, load)
        assert server.log().count("shape: ready") == 1


BESIDE = {
    "file": "from obskit_gunicorn.hooks import when_ready\n",
    "class": f"{IMPORT}\nclass Config(ObskitGunicornConfig):\n    workers = 2\n",
    "adopted": "from obskit_gunicorn import adopt\n",
}


@pytest.mark.parametrize("beside", BESIDE)
def test_our_options_may_be_module_level_names(interpreter: Interpreter, beside: str) -> None:
    """They count in a file of functions, and beside a class that does not have them."""
    config = f"{BESIDE[beside]}multiproc_dir = 'here'\nmetrics_requests = False\n"
    if beside == "adopted":
        config += "adopt(globals())\n"
    with GunicornProcess(interpreter, config) as server:
        server.get("/")
        metrics = server.metrics()
        assert metrics["app_requests_total", frozenset()] == 1
        assert not any(name == "gunicorn_requests_total" for name, _ in metrics)
        assert list((server.root / "here").glob("*.db"))


# What is not seen when the file is loaded.
UNSEEN = {
    "import strings": """
when_ready = "obskit_gunicorn.hooks.when_ready"
post_fork = "obskit_gunicorn.hooks.post_fork"
""",
    "in workers alone": """
import obskit_gunicorn.hooks
def post_fork(server, worker):
    obskit_gunicorn.hooks.post_fork(server, worker)
""",
    "in signal context": """
import obskit_gunicorn.hooks
def child_exit(server, worker):
    obskit_gunicorn.hooks.child_exit(server, worker)
""",
}


@pytest.mark.parametrize("shape", UNSEEN)
def test_what_is_not_seen_at_loading_is_one_error_line(
    interpreter: Interpreter, shape: str
) -> None:
    """The server serves, and one line names ``adopt(globals())``, however many workers come."""
    with GunicornProcess(interpreter, f"workers = 2\n{UNSEEN[shape]}") as server:
        old = server.wait_for_workers(2)
        server.send_signal(signal.SIGHUP)
        old |= server.wait_for_workers(2, without=old)
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(2, without=old)
        server.wait_for_log("adopt(globals())")
        assert server.get("/").status == 200
        assert server.stop() == 0
        (line,) = [line for line in server.log().splitlines() if "obskit: " in line]
        assert "there are no metrics" in line


def test_class_that_is_never_derived_from_is_a_line(interpreter: Interpreter) -> None:
    """A file that imports the class and leaves it there is told what to write."""
    with GunicornProcess(interpreter, IMPORT) as server:
        (line,) = [line for line in server.log().splitlines() if "Warning: " in line]
    assert "there are no metrics" in line
    assert "class Config(ObskitGunicornConfig)" in line
    assert "gunicorn.conf.py" in line


WAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "-c file": (("-c", "settings.py"), "settings.py"),
    "-c file:": (("-c", "file:settings.py"), "settings.py"),
    "-c path": (("-c", "./etc/settings.py"), "etc/settings.py"),
    "-c python:": (("-c", "python:company"), "company.py"),
    "-c python: in a package": (("-c", "python:company.web"), "company/web.py"),
    "no -c": ((), "gunicorn.conf.py"),
    "without .py": (("-c", "settings"), "settings"),
    "--config": (("--config=settings.conf.py",), "settings.conf.py"),
}


@pytest.mark.parametrize("way", WAYS)
def test_file_named_in_any_way_is_right_before_and_after_sighup(
    interpreter: Interpreter, way: str
) -> None:
    """However the file is named on the command line, the class in it is published."""
    arguments, name = WAYS[way]
    with GunicornProcess(
        interpreter,
        PLAIN,
        config_arguments=arguments,
        config_name=name,
        # For -c python: the directory must be on the path already.
        environment={"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])},
    ) as server:
        check_three_workers_with_hooks(server)


def check_three_workers_with_hooks(server: GunicornProcess) -> None:
    """Look for what every shape promises."""
    old = server.wait_for_workers(3)
    assert server.log().count("shape: ready with") == 1
    with Load(server.port) as load:
        load.wait_for(30)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("shape: reloaded with")
        server.wait_for_workers(3, without=old)
        load.wait_for(30)
    check_counts(server, load)


def test_default_hooks_need_no_file(interpreter: Interpreter) -> None:
    """``-c python:obskit_gunicorn.hooks`` counts exactly, through a kill and a SIGHUP."""
    with GunicornProcess(
        interpreter,
        "",
        config_arguments=["-c", "python:obskit_gunicorn.hooks"],
        arguments=["--workers", "2"],
    ) as server:
        workers = server.wait_for_workers(2)
        with Load(server.port) as load:
            with load.paused():
                server.send_signal(signal.SIGKILL, min(workers))
            load.wait_for(50)
            workers |= server.wait_for_workers(2, without={min(workers)})
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=workers)
            load.wait_for(50)
        check_counts(server, load)
        assert server.stop() == 0
        assert not server.private_directories()


def test_options_for_an_application_of_ones_own(interpreter: Interpreter) -> None:
    """``as_options`` gives a custom ``BaseApplication`` the same settings, hooks and counts."""
    program = f"""
import sys

from gunicorn.app.base import BaseApplication
from obskit_gunicorn import as_options
{PLAIN}

class Standalone(BaseApplication):
    def load_config(self):
        for name, value in as_options(Config).items():
            self.cfg.set(name, value)
        self.cfg.set("bind", sys.argv[1])

    def load(self):
        from app import application
        return application


if __name__ == "__main__":
    Standalone().run()
"""
    server = GunicornProcess(interpreter, None, files={"standalone.py": program})
    server.command = [interpreter.path, "standalone.py", f"{HOST}:{server.port}"]
    with server:
        check_three_workers_with_hooks(server)


# ------------------------------------------------------------------------------------------------
# What is refused, in words


REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "class merely imported": (
        "from company import Config\n",
        ("Config", "class Config(Config): pass", "SIGHUP"),
    ),
    "class imported with *": (
        "from company import *\n",
        ("Config", "class Config(Config): pass", "SIGHUP"),
    ),
    "two leaf classes": (
        f"""{IMPORT}
class Production(ObskitGunicornConfig):
    workers = 3

class Development(ObskitGunicornConfig):
    workers = 1
""",
        ("Production", "Development", "Config ="),
    ),
    "name in class and module": (
        f"""{IMPORT}
workers = 2

class Config(ObskitGunicornConfig):
    workers = 3
""",
        ("workers", "Config", "2"),
    ),
    "hook in class and, below it, in the module": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    def when_ready(self, server):
        pass

def when_ready(server):
    pass
""",
        ("when_ready", "Config"),
    ),
    "wrong value": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    workers = "many"
""",
        ("Config", "workers", "'many'"),
    ),
    "wrong signature": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    def post_fork(self, worker):
        pass
""",
        ("Config", "post_fork", "(self, server, worker)"),
    ),
    "hook that is no function": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    when_ready = 7
""",
        ("Config", "when_ready", "7", "(self, server)"),
    ),
    "coroutine function as hook": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    async def when_ready(self, server):
        pass
""",
        ("Config", "when_ready", "async"),
    ),
    "instance in the place of a setting": (
        f"""{IMPORT}
class Server(ObskitGunicornConfig):
    workers = 3

config = Server()
""",
        ("config", "Server object", "no instance"),
    ),
    "instance exposed": (
        f"""{IMPORT}
from obskit_gunicorn import expose

class Server(ObskitGunicornConfig):
    workers = 3

# gunicorn.conf.py
expose(Server(), globals())
""",
        ("expose", "Server object", "not an instance", "Write Server in its place, without ()"),
    ),
    "all names that clash": (
        f"""{IMPORT}
workers = 2
timeout = 20

def post_fork(server, worker): pass
on_starting = lambda server: None

class Config(ObskitGunicornConfig):
    workers = 3
    timeout = 20
""",
        (
            "on_starting",
            "post_fork",
            "workers: keep one of the two",
            "write post_fork = staticmethod(post_fork) into the class",
            "write on_starting = staticmethod(on_starting) into the class",
            "adopt(globals())",
        ),
    ),
    "function below adopt": (
        """
from obskit_gunicorn import adopt
adopt(globals())
def post_fork(server, worker): pass
""",
        ("post_fork", "last line"),
    ),
    "adopt beside a class": (
        f"""{IMPORT}
from obskit_gunicorn import adopt
class Config(ObskitGunicornConfig): pass
adopt(globals())
""",
        ("adopt(globals())", "without a configuration class", "Remove adopt"),
    ),
    "wrong signature of a function": (
        """
from obskit_gunicorn.hooks import *
def post_fork(worker): pass
""",
        ("post_fork in", "Write: def post_fork(server, worker): ..."),
    ),
    "coroutine function among functions": (
        """
from obskit_gunicorn.hooks import *
async def when_ready(server): pass
""",
        ("when_ready in", "something plain to call", "async"),
    ),
    "wrong option among functions": (
        """
from obskit_gunicorn.hooks import *
metrics_path = 7
""",
        ("metrics_path in", "is 7"),
    ),
    "property that raises": (
        f"""{IMPORT}
class Config(ObskitGunicornConfig):
    @property
    def workers(self):
        return int("three")
""",
        ("Config", "workers", "ValueError"),
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistake_is_refused_in_words(interpreter: Interpreter, mistake: str) -> None:
    """A wrong file ends the start with what is wrong, where, and how to mend it."""
    config, words = REFUSED[mistake]
    with GunicornProcess(interpreter, config, files=FILES, serving=False) as server:
        assert server.exit_status() == 1
        log = server.log()
        errors = [line for line in log.splitlines() if "Error: " in line]
        assert len(errors) == 1, log
        for word in (*words, "gunicorn.conf.py"):
            assert word in errors[0]
        assert "Traceback" not in log
        assert not server.private_directories()


SUGGESTED = {
    "worker = 4": ("worker", "workers"),
    "works = 4": ("works", "workers"),
    "def on_start(self, server): pass": ("on_start", "on_starting"),
    "def worker_init(self, worker): pass": ("worker_init", "post_worker_init"),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_misspelt_name_of_a_file_gets_a_suggestion(newest: Interpreter, beside: str) -> None:
    """So does a module-level name, among functions and beside a class."""
    config = f"{BESIDE[beside]}def on_start(server): pass\n"
    if beside == "adopted":
        config += "adopt(globals())\n"
    with GunicornProcess(newest, config, arguments=["--check-config"], serving=False) as server:
        assert server.exit_status() == 0, server.log()
        (warning,) = [text for text in server.log().splitlines() if "did you mean" in text]
    assert "on_start in" in warning
    assert "did you mean on_starting?" in warning
    assert "gunicorn.conf.py" in warning


@pytest.mark.parametrize("line", SUGGESTED)
def test_misspelt_name_gets_a_suggestion(newest: Interpreter, line: str) -> None:
    """A name that Gunicorn would ignore in silence is warned of, with the one that was meant."""
    wrong, right = SUGGESTED[line]
    config = f"{IMPORT}\nclass Config(ObskitGunicornConfig):\n    {line}\n"
    with GunicornProcess(newest, config) as server:
        warnings = [text for text in server.log().splitlines() if "did you mean" in text]
        assert len(warnings) == 1
        assert wrong in warnings[0]
        assert right in warnings[0].partition("did you mean")[2]
        assert "gunicorn.conf.py" in warnings[0]


# ------------------------------------------------------------------------------------------------
# SIGHUP with another file


def test_setting_and_override_removed_from_the_file_are_gone(interpreter: Interpreter) -> None:
    """After a SIGHUP nothing of what the file no longer says is left."""
    config = f"""{IMPORT}
class Config(ObskitGunicornConfig):
    workers = 3

    def pre_request(self, worker, req):
        worker.log.info("the override of pre_request ran")
"""
    with GunicornProcess(interpreter, config) as server:
        old = server.wait_for_workers(3)
        assert "the override of pre_request ran" in server.log()
        rewrite(server, f"{IMPORT}\nclass Config(ObskitGunicornConfig):\n    pass\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(1, without=old)
        before = server.log().count("the override of pre_request ran")
        with Load(server.port) as load:
            load.wait_for(20)
        assert server.log().count("the override of pre_request ran") == before
        check_counts(server, load)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("from company import Config\n", id="imported class"),
        pytest.param(PLAIN.replace("workers = 3", "workers = 'many'"), id="wrong value"),
        pytest.param(
            PLAIN.replace("workers = 3", "workers = 'many'")
            + "from obskit_gunicorn import expose\nexpose(Config, globals())\n",
            id="wrong value, exposed",
        ),
        pytest.param(
            "from obskit_gunicorn import adopt\nasync def when_ready(server): pass\n"
            "adopt(globals())\n",
            id="wrong function, adopted",
        ),
    ],
)
def test_wrong_file_at_sighup_leaves_the_one_before_in_force(
    interpreter: Interpreter, wrong: str
) -> None:
    """A SIGHUP with a file that would end a start keeps settings and service, and says so."""
    with GunicornProcess(interpreter, PLAIN, files=FILES) as server:
        workers = server.wait_for_workers(3)
        with Load(server.port) as load:
            load.wait_for(20)
            rewrite(server, wrong)
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("the previous one stays in use")
            workers |= server.wait_for_workers(3, without=workers)
            load.wait_for(20)
            rewrite(server, PLAIN.replace("workers = 3", "workers = 2"))
            server.send_signal(signal.SIGHUP)
            server.wait_for_workers(2, without=workers)
            load.wait_for(20)
        check_counts(server, load)


def test_changed_directory_is_taken_at_sighup(interpreter: Interpreter, place: Path) -> None:
    """A SIGHUP with another ``multiproc_dir`` moves to it, whatever we have exported."""
    config = PLAIN.replace("workers = 3", "workers = 3\n    multiproc_dir = {path!r}")
    with GunicornProcess(interpreter, config.format(path=str(place / "first"))) as server:
        old = server.wait_for_workers(3)
        with Load(server.port) as load:
            load.wait_for(20)
        rewrite(server, config.format(path=str(place / "second")))
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(3, without=old)
        with Load(server.port) as load:
            load.wait_for(20)
        assert server.metric("app_requests_total") == load.answered
        assert list((place / "second").glob("counter_*.db"))


# ------------------------------------------------------------------------------------------------
# Looking only


@pytest.mark.parametrize("option", ["--check-config", "--print-config"])
@pytest.mark.parametrize("preload", [False, True])
def test_looking_at_the_configuration_touches_nothing(
    interpreter: Interpreter, option: str, preload: bool, place: Path
) -> None:
    """``--check-config`` and ``--print-config`` leave metrics of an earlier run as they are."""
    app = (
        "from prometheus_client import Counter, Gauge\n"
        "Counter('early', 'At import.').inc()\n"
        "Gauge('early_level', 'At import.', multiprocess_mode='livesum').set(3)\n"
        "def application(environ, start_response): raise SystemExit\n"
    )
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(place / "metrics")}
    arguments = ["--preload"] if preload else []
    with GunicornProcess(interpreter, PLAIN, environment=environment) as server:
        server.get("/")
    before = snapshot(place)
    assert any(name.endswith(".db") for name in before)
    with GunicornProcess(
        interpreter,
        PLAIN,
        app,
        arguments=[*arguments, option],
        environment=environment,
        serving=False,
    ) as look:
        assert look.exit_status() == 0, look.log()
        if option == "--print-config":
            settings = [line.split() for line in look.log().splitlines() if "=" in line]
            assert ["workers", "=", "3"] in settings
            assert any(line[0] == "when_ready" and "Config" in line[2] for line in settings)
    assert snapshot(place) == before


@pytest.mark.parametrize("option", ["--check-config", "--print-config"])
def test_looking_at_the_configuration_makes_no_directory(
    interpreter: Interpreter, option: str, place: Path
) -> None:
    """Neither a private directory nor a missing one is made."""
    for environment in ({}, {"PROMETHEUS_MULTIPROC_DIR": str(place / "metrics")}):
        with GunicornProcess(
            interpreter, PLAIN, arguments=[option], environment=environment, serving=False
        ) as look:
            assert look.exit_status() == 0, look.log()
            assert not look.private_directories()
    assert not list(place.iterdir())


def test_command_line_and_environment_keep_their_precedence(interpreter: Interpreter) -> None:
    """``GUNICORN_CMD_ARGS`` wins over the class, and the command line over both."""
    with GunicornProcess(
        interpreter,
        PLAIN,
        environment={"GUNICORN_CMD_ARGS": "--workers 1 --timeout 77"},
        arguments=["--workers", "2"],
    ) as server:
        server.wait_for_workers(2)
        assert get(server.port, "/pid").status == 200


# ------------------------------------------------------------------------------------------------


def rewrite(server: GunicornProcess, config: str) -> None:
    """Replace the configuration file, at once and with another time stamp."""
    path = server.root / "gunicorn.conf.py"
    other = path.with_suffix(".new")
    other.write_text(config)
    other.replace(path)


def snapshot(place: Path) -> Mapping[str, tuple[bytes, int, int]]:
    """Return content, time of change and inode of everything below a directory."""
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.stat()
        with contextlib.suppress(IsADirectoryError):
            content = path.read_bytes()
            found[str(path.relative_to(place))] = (content, status.st_mtime_ns, status.st_ino)
    return found
