"""Broken set-ups, each explained by ``obskit-gunicorn check`` and by the log of a real start."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.support import no_flock
from tests.support.databases import HASH, PASSWORD, USER, Database
from tests.support.process import (
    HOST,
    GunicornProcess,
    Interpreter,
    can_run,
    free_port,
    on_a_volume,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOBODY = 65534
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 2
"""

PLAIN_APP = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def check(server: GunicornProcess, *, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what ``check`` says of the command that starts a server, with its status."""
    at = server.command.index(str(Path(server.interpreter.path).parent / "gunicorn"))
    command = [
        *server.command[:at],
        *("-m", "obskit_gunicorn", "check", "--format", "json"),
        *(server.command[at + 1 :] if arguments is None else arguments),
    ]
    done = subprocess.run(
        command,
        cwd=server.root,
        env=server.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == found["status"], done.stderr
    return found


def problems(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is not right."""
    return [each for each in found["findings"] if each["level"] != "ok"]


def check_both(server: GunicornProcess, part: str, status: int, text: str, advice: str) -> None:
    """Check that a problem is explained by the command, in its part, and by the log.

    Args:
        server: The server, which has been started.
        part: The part.
        status: The exit status of the command.
        text: A pattern for what is wrong.
        advice: A pattern for what to do.
    """
    found = check(server)
    assert found["status"] == status, found
    (problem,) = [each for each in problems(found) if re.search(text, each["text"])]
    assert problem["part"] == part
    assert re.search(advice, problem["advice"]), problem

    def is_logged() -> bool:
        return any(
            re.search(text, line) and re.search(advice, line) for line in server.log().splitlines()
        )

    wait_until(is_logged, f"the log says {text} and {advice}")


# ------------------------------------------------------------------------------------------------
# Ten set-ups that newcomers come with


@needs_root
def test_wrong_uid(interpreter: Interpreter, place: Path) -> None:
    """A directory that the workers' user may not write to."""
    if not can_run(interpreter, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {interpreter.path}")
    (place / "notes").write_text("so it is not given to somebody else")
    config = f"{CONFIG}    user = group = {NOBODY}\n"
    environment = {VARIABLE: str(place)}
    with GunicornProcess(interpreter, config, environment=environment) as server:
        text = f"{re.escape(str(place))}: .*Permission denied"
        check_both(server, "directory", 1, text, f"make it writable for uid {NOBODY}")
    assert os.listdir(place) == ["notes"]


@needs_root
def test_read_only_directory(interpreter: Interpreter, place: Path) -> None:
    """A directory on a file system that is mounted read-only."""
    prefix = on_a_volume(VARIABLE, "ro")
    environment = {VARIABLE: str(place)}
    with GunicornProcess(interpreter, CONFIG, environment=environment, prefix=prefix) as server:
        check_both(server, "directory", 1, "Read-only file system", "make it writable")


def test_file_in_the_directorys_place(interpreter: Interpreter, place: Path) -> None:
    """A file where the directory should be."""
    path = place / "metrics"
    path.write_text("mine")
    with GunicornProcess(interpreter, CONFIG, environment={VARIABLE: str(path)}) as server:
        check_both(server, "directory", 1, str(path), "it is not a directory: remove it")
    assert path.read_text() == "mine"


def test_no_flock(interpreter: Interpreter) -> None:
    """A directory where files cannot be locked."""
    if platform.machine() not in no_flock._FLOCK:
        pytest.skip("the number of flock is not known here")
    prefix = [sys.executable, no_flock.__file__]
    with GunicornProcess(interpreter, CONFIG, shared=True, prefix=prefix) as server:
        advice = "the file system has no flock: use a local one"
        check_both(server, "directory", 1, "No locks available", advice)


@needs_root
def test_tiny_full_volume(interpreter: Interpreter, place: Path) -> None:
    """A tmpfs on which there is no room left."""
    unshare = on_a_volume(VARIABLE, "size=64k")
    fill = f'head -c 64k /dev/zero > "${VARIABLE}/ballast"; exec "$0" "$@"'
    unshare[-1] = unshare[-1].replace('exec "$0" "$@"', fill)
    environment = {VARIABLE: str(place)}
    with GunicornProcess(interpreter, CONFIG, environment=environment, prefix=unshare) as server:
        text = "No space left on device"
        check_both(server, "volume", 1, text, "the volume is full: give it more room")
        (small,) = [each for each in problems(check(server)) if "only 0 bytes" in each["text"]]
        assert "--shm-size" in small["advice"]


def test_busy_port(interpreter: Interpreter) -> None:
    """An exporter's address at which somebody else listens."""
    with socket.socket() as taken:
        server = GunicornProcess(interpreter, CONFIG, exporter=True)
        taken.bind((HOST, server.metrics_port))
        taken.listen()
        with server:
            text = (
                f"cannot listen at {HOST}:{server.metrics_port}: Address already in use, "
                f"by process {os.getpid()} "
            )
            check_both(server, "exporter", 1, text, "free the address, or choose another one")


def test_typo_in_a_setting(interpreter: Interpreter) -> None:
    """A setting with a name that is nearly right."""
    with GunicornProcess(interpreter, f"{CONFIG}    time_out = 4\n") as server:
        text = "Config.time_out in .*: Gunicorn does not know and ignores it"
        check_both(server, "configuration", 1, text, "did you mean timeout")


def test_wrong_signature_of_a_hook(interpreter: Interpreter) -> None:
    """A hook that cannot be called as Gunicorn does."""
    config = f"{CONFIG}\n    def post_fork(self, server):\n        pass\n"
    with GunicornProcess(interpreter, config, serving=False) as server:
        assert server.exit_status() == 1
        text = r"Config.post_fork in .* is 'post_fork\(server\)'; expected a method"
        check_both(server, "configuration", 2, text, r"def post_fork\(self, server, worker\)")


def test_application_imported_too_early(interpreter: Interpreter) -> None:
    """An application that the configuration imports."""
    with GunicornProcess(interpreter, f"import app\n{CONFIG}") as server:
        text = "the application app is imported by the configuration"
        check_both(server, "application", 1, text, "do not import it there")
    with GunicornProcess(interpreter, f"import app\n{CONFIG}    preload_app = True\n") as server:
        assert check(server)["status"] == 0
        assert "is imported by the configuration" not in server.log()


@pytest.fixture
def without_client(newest: Interpreter, place: Path) -> Interpreter:
    """Return an interpreter with a Gunicorn and with us, and without prometheus-client."""
    code = (
        "import gunicorn, os, packaging, obskit_gunicorn;"
        "[print(os.path.dirname(each.__file__)) for each in (gunicorn, packaging, obskit_gunicorn)]"
    )
    done = subprocess.run([newest.path, "-c", code], capture_output=True, text=True, check=True)
    packages = [Path(line) for line in done.stdout.split()]
    home = place / "venv"
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    for package in [*packages, *packages[0].parent.glob("gunicorn-*.dist-info")]:
        (site / package.name).symlink_to(package)
    script = home / "bin" / "gunicorn"
    script.write_text("from gunicorn.app.wsgiapp import run\nrun()\n")
    return Interpreter(str(home / "bin" / "python"), newest.version)


def test_without_prometheus_client(without_client: Interpreter) -> None:
    """An environment that lacks prometheus-client."""
    with GunicornProcess(without_client, CONFIG, PLAIN_APP) as server:
        text = "there are no metrics: prometheus-client is not installed"
        check_both(server, "versions", 1, text, "pip install prometheus-client")


# ------------------------------------------------------------------------------------------------
# What is right


def texts(found: dict[str, Any], part: str) -> list[str]:
    """Return what is said of a part."""
    return [each["text"] for each in found["findings"] if each["part"] == part]


@pytest.mark.parametrize("shared", [False, True])
def test_a_good_set_up(interpreter: Interpreter, shared: bool) -> None:
    """All is right before the start and while the server runs, and nothing is left behind."""
    with GunicornProcess(interpreter, CONFIG, shared=shared, exporter=True) as server:
        wait_until(lambda: not problems(check(server)), "all is well")
        found = check(server)
        (where,) = [line for line in texts(found, "exporter") if "is used by" in line]
        assert f"the server that runs here (pid {server.arbiter_pid})" in where
        assert texts(found, "configuration")[0].startswith("class Config in ")
        assert found["version"] == 1
        if shared:
            assert "2 of 2 workers have booted and hold a lease" in texts(found, "processes")
            assert not list(server.metrics_directory.glob("*check*"))
        server.stop()
        if shared:
            assert not problems(check(server))
        before = sorted(server.root.rglob("*"))
        found = check(server)
        assert not problems(found)
        assert f"{HOST}:{server.metrics_port} is free" in texts(found, "exporter")
        assert sorted(server.root.rglob("*")) == before


FORMS: dict[str, Callable[[GunicornProcess], tuple[list[str], dict[str, str]]]] = {
    "default": lambda _: ([], {}),
    "file": lambda server: (["-c", f"file:{server.root}/gunicorn.conf.py"], {}),
    "module": lambda _: (["-c", "python:settings"], {}),
    "environment": lambda _: ([], {"GUNICORN_CMD_ARGS": "-c python:settings --workers 7"}),
    "concurrency": lambda _: (["-c", "bare.py"], {"WEB_CONCURRENCY": "7"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_configuration_is_found_as_gunicorn_finds_it(
    interpreter: Interpreter, form: str
) -> None:
    """Each way to name a configuration means what it means to Gunicorn."""
    files = {"settings.py": CONFIG, "bare.py": CONFIG.replace("workers = 2", "pass")}
    with GunicornProcess(interpreter, CONFIG, files=files) as server:
        arguments, environment = FORMS[form](server)
        server.environment.update(environment)
        found = check(server, arguments=[*arguments, "app:application"])
        assert not problems(found)
        count = 7 if form in ("environment", "concurrency") else 2
        assert f"{count} sync workers" in texts(found, "configuration")[1]


def test_without_an_application(newest: Interpreter) -> None:
    """A configuration can be looked at alone."""
    with GunicornProcess(newest, CONFIG) as server:
        found = check(server, arguments=[])
        assert not problems(found)
        assert "no application is named" in texts(found, "application")[0]


# ------------------------------------------------------------------------------------------------
# What else is wrong


def test_a_configuration_that_does_not_want_us(newest: Interpreter) -> None:
    """It says that there are no metrics, and how to have some."""
    with GunicornProcess(newest, "workers = 2\n", PLAIN_APP) as server:
        (problem,) = problems(check(server))
        assert "there are no metrics" in problem["text"]
        assert "adopt(globals())" in problem["advice"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("import os\nos._exit(3)\n", "it ended by itself"),
        ("raise ValueError('mine')\n", r"gunicorn.conf.py, line 1: ValueError: mine"),
        ("workers = = 2\n", r"gunicorn.conf.py, line 1: SyntaxError"),
        ("workers = 'four'\n", "ValueError"),
        (f"{CONFIG}    metrics_buckets = (2, 1)\n", "Config.metrics_buckets in .* expected upper"),
        ("import os\nos.kill(os.getpid(), 9)\n", "it was ended by signal 9"),
        ("print('x')\nraise SystemExit('no key')\n", "gunicorn.conf.py, line 2: .*Exit: no key"),
    ],
)
def test_a_configuration_that_cannot_be_loaded(newest: Interpreter, config: str, text: str) -> None:
    """Whatever it does, it does to a process of its own; the status says that nothing starts."""
    with GunicornProcess(newest, config, PLAIN_APP, serving=False) as server:
        server.exit_status()
        found = check(server)
        assert found["status"] == 2
        (problem,) = problems(found)
        assert problem["part"] == "configuration"
        assert re.search(text, problem["text"]), problem
        assert problem["advice"]


def test_wrong_arguments(newest: Interpreter) -> None:
    """What Gunicorn does not accept stops it, and the command says so."""
    with GunicornProcess(newest, CONFIG) as server:
        for arguments, text in (
            (["--nonsense"], "unrecognized arguments: --nonsense"),
            (["-c", "missing.py", "app:application"], "missing.py"),
            (["-k", "missing.Worker", "app:application"], "worker class missing.Worker cannot be"),
            (["-b", "host:port", "app:application"], "bind is ['host:port']: 'port' is not a"),
            (["--certfile", "no.pem", "app:application"], "certfile is 'no.pem', which is not"),
            (["--keyfile", "no.pem", "app:application"], "keyfile is 'no.pem', which is not"),
            (["--pid", "no/pid", "app:application"], "pidfile is 'no/pid', whose directory is not"),
            (["-k", "misssing", "app:application"], "ImportError: Entry point"),
            (["-w", "four"], "invalid"),
        ):
            found = check(server, arguments=arguments)
            assert found["status"] == 2
            assert problems(found)[0]["part"] == "configuration"
            assert text in problems(found)[0]["text"]


def test_a_number_of_workers_that_is_none(newest: Interpreter) -> None:
    """Gunicorn reads the variable while it is imported, and so before any configuration."""
    with GunicornProcess(newest, CONFIG) as server:
        server.environment["WEB_CONCURRENCY"] = "three"
        found = check(server)
        assert found["status"] == 2
        (problem,) = problems(found)
        assert problem["text"] == "WEB_CONCURRENCY is 'three'; expected a whole number"


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os\nos._exit(0)", "it ended by itself"),
    ],
)
def test_an_application_that_cannot_be_imported(newest: Interpreter, app: str, text: str) -> None:
    """It says why; no worker would boot."""
    with GunicornProcess(newest, CONFIG, app, serving=False) as server:
        server.may_leave_processes()  # it forks workers until it is stopped, or has ended
        found = check(server)
        assert found["status"] == 2
        (problem,) = problems(found)
        assert problem["part"] == "application"
        assert text in problem["text"]


UNSHOWN_APP = f"""
from prometheus_client import Counter, Enum, Gauge, Info
Counter("fine", "Help.").inc()
Info("build", "Help.").info({{"v": "1"}})
Enum("mood", "Help.", states=["good"])
Gauge("depth", "Help.").set_function(lambda: 5)
{PLAIN_APP}
"""


def test_metrics_that_cannot_be_shown(newest: Interpreter) -> None:
    """They are named by the command as by the log; what files can hold is not."""
    with GunicornProcess(newest, CONFIG, UNSHOWN_APP, exporter=True) as server:
        text = r"not shown, because files cannot hold them: depth \(set_function; shown as 0\)"
        check_both(server, "metrics", 1, text, "with metrics_collectors")


def test_routes_that_nothing_says(newest: Interpreter) -> None:
    """An application of no framework that is known has none; of one that is, it is named."""
    config = f"{CONFIG}    metrics_routes = True\n"
    with GunicornProcess(newest, config, PLAIN_APP, exporter=True) as server:
        check_both(server, "metrics", 1, "no framework was found", "obskit_gunicorn.route")
        (server.root / "app.py").write_text("import flask\napplication = flask.Flask(__name__)\n")
        found = check(server)
        assert problems(found) == []
        assert "requests are counted by the routes of Flask" in texts(found, "metrics")


HOOKS = """
from obskit_gunicorn import ObskitGunicornConfig

class Mixin:
    def post_fork(self, server, worker):
        pass

class Company(ObskitGunicornConfig):
    def post_fork(self, server, worker):
        super().post_fork(server, worker)

    def pre_fork(self, server, worker):
        super().pre_fork(server, worker)

class Config(Mixin, Company):
    def pre_fork(self, server, worker):
        super().pre_fork(server, worker)

    def when_ready(self, server):
        pass
"""


def test_hooks_and_whether_they_chain(newest: Interpreter) -> None:
    """What is overridden is named; a method that is never reached is a warning."""
    with GunicornProcess(newest, HOOKS) as server:
        found = check(server)
        (problem,) = problems(found)
        assert problem["text"] == (
            "Mixin.post_fork does not call super(): Company.post_fork never runs"
        )
        assert problem["advice"] == "begin it with super().post_fork(server, worker)"
        fine = texts(found, "hooks")
        assert "Config.pre_fork > Company.pre_fork calls super()" in fine
        assert any(line.startswith("Config.when_ready does not call super()") for line in fine)
    functions = f"from obskit_gunicorn.hooks import when_ready\n{POST_FORK}"
    with GunicornProcess(newest, functions) as server:
        assert texts(check(server), "hooks") == ["post_fork runs after ours"]


DECORATED = """
import functools
from obskit_gunicorn import ObskitGunicornConfig

def timed(hook):
    def timed_hook(self, *arguments):
        return hook(self, *arguments)
    return timed_hook

def named(name):
    return lambda self, *arguments: getattr(super(Config, self), name)(*arguments)

class Company(ObskitGunicornConfig):
    def post_fork(self, server, worker):
        super().post_fork(server, worker)
    pre_fork = post_worker_init = when_ready = post_fork

class Config(Company):
    @timed
    def post_fork(self, server, worker):
        super().post_fork(server, worker)

    def post_worker_init(self, worker):
        self._helper(worker)

    def _helper(self, worker):
        super().post_worker_init(worker)

    pre_fork = named("pre_fork")
    when_ready = timed(lambda self, server: None)
"""


def test_hooks_that_were_made_by_decorators(newest: Interpreter) -> None:
    """A method that is called by another one, or in a decorator, is not said to be missed."""
    with GunicornProcess(newest, DECORATED, serving=False) as server:
        server.may_leave_processes()
        found = [each["text"] for each in check(server)["findings"] if each["part"] == "hooks"]
        assert [text for text in found if "never runs" in text] == [
            "Config.when_ready does not call super(): Company.when_ready never runs"
        ]


def test_variables(newest: Interpreter) -> None:
    """What wins, what has no effect, and what was meant for us is said; values may be secrets."""
    with GunicornProcess(newest, CONFIG) as server:
        server.environment.update(
            {"OBSKIT_METRICS_PORT": "9100", "WEB_CONCURRENCY": "7", "OBSKIT_METRICS_KEEP": "true"}
        )
        found = check(server)
        (problem,) = problems(found)
        assert problem["part"] == "environment"
        assert problem["advice"] == "did you mean OBSKIT_METRICS_BIND=0.0.0.0:9100?"
        said = "\n".join(texts(found, "environment"))
        assert "OBSKIT_METRICS_KEEP, OBSKIT_METRICS_BIND: set here, and wins" in said
        assert "WEB_CONCURRENCY=7 has no effect: workers is set to 2" in said
        assert "OBSKIT_METRICS_BIND is empty, so there is no exporter" in said


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "[::1]"])
def test_the_address_of_the_application(newest: Interpreter, bind: str) -> None:
    """The exporter cannot listen where Gunicorn does itself, though that is free before a start."""
    port = free_port()
    config = f'{CONFIG}    bind = "127.0.0.1:{port}"\n    metrics_bind = "{bind}:{port}"\n'
    with GunicornProcess(newest, config, exporter=True) as server:
        arguments = ["-c", server.command[server.command.index("-c") + 1], "app:application"]
        server.environment.pop("OBSKIT_METRICS_BIND", None)
        found = problems(check(server, arguments=arguments))
        if ":" in bind:
            assert found == []
            return
        (problem,) = found
        assert problem["part"] == "exporter"
        assert "already in use, by the application itself" in problem["text"]


def test_the_socket_of_the_application(newest: Interpreter, place: Path) -> None:
    """Nor where Gunicorn's Unix socket will be, by whatever path."""
    (place / "link").symlink_to(place)
    config = f'{CONFIG}    bind = "unix:{place}/s"\n    metrics_bind = "unix:{place}/link/s"\n'
    with GunicornProcess(newest, config) as server:
        arguments = ["-c", server.command[server.command.index("-c") + 1], "app:application"]
        server.environment.pop("OBSKIT_METRICS_BIND", None)
        (problem,) = problems(check(server, arguments=arguments))
        assert "already in use, by the application itself" in problem["text"]


ASGI_2_APP = """
def application(scope):
    async def answer(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
    return answer
"""


def test_an_application_that_is_not_of_its_worker_class(newest: Interpreter) -> None:
    """An application whose requests its worker class cannot show is named, as in the log."""
    config = f'{CONFIG}    worker_class = "uvicorn_worker.UvicornWorker"\n'
    with GunicornProcess(newest, config, ASGI_2_APP, exporter=True) as server:
        text = "requests are not counted: .* is not an ASGI 3 application"
        check_both(server, "metrics", 1, text, "choose a worker class")


def test_a_configuration_that_ignores_its_children(newest: Interpreter) -> None:
    """The command waits for processes of its own whatever the configuration does with signals."""
    config = f"import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{CONFIG}"
    with GunicornProcess(newest, config) as server:
        server.environment["WEB_CONCURRENCY"] = " 2 "
        found = check(server)
        assert problems(found) == []
        assert "WEB_CONCURRENCY is set here, and used" in texts(found, "environment")


def test_the_address_of_another_server(newest: Interpreter) -> None:
    """A server with the same address as this one is somebody else, though it is one of ours."""
    with GunicornProcess(newest, CONFIG, exporter=True) as other:
        wait_until(lambda: not problems(check(other)), "all is well")
        server = GunicornProcess(newest, CONFIG, exporter=True)
        server.environment["OBSKIT_METRICS_BIND"] = f"{HOST}:{other.metrics_port}"
        server.environment["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
        server.environment["XDG_RUNTIME_DIR"] = str(other.run)  # where its directory is found
        with server:
            taken, inside = problems(check(server))
            assert "Address already in use" in taken["text"]
            assert f"process {other.arbiter_pid} " in taken["text"]
            assert "Prometheus is outside" in inside["text"]
            assert f'metrics_bind = "0.0.0.0:{other.metrics_port}"' in inside["advice"]


@pytest.mark.parametrize("bind", ["unix:{}/m.sock", "unix:{}/taken", "unix:{}/missing/m.sock"])
def test_a_unix_socket(newest: Interpreter, place: Path, bind: str) -> None:
    """It is tried without being made; a file in its place stays."""
    (place / "taken").write_text("mine")
    server = GunicornProcess(newest, CONFIG)
    server.environment["OBSKIT_METRICS_BIND"] = bind.format(place)
    with server:
        server.environment["XDG_RUNTIME_DIR"] = str(place)
        if bind.endswith("}/m.sock"):
            wait_until((place / "m.sock").exists, "the exporter listens")
            server.stop()
        found = problems(check(server))
        words = {"m.sock": "", "taken": "not a socket", "missing/m.sock": "No such file"}
        text = words[bind.partition("/")[2]]
        assert [text in each["text"] for each in found] == [True] * bool(text)
    assert sorted(each.name for each in place.iterdir()) == ["taken"]


@needs_root
def test_a_certificate(newest: Interpreter, place: Path) -> None:
    """It is read with the rights of who serves it."""
    if not can_run(newest, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {newest.path}")
    leaf = trustme.CA().issue_cert(HOST)
    file = place / "tls.pem"
    file.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    config = f"{CONFIG}    user = group = {NOBODY}\n    metrics_certfile = {str(file)!r}\n"
    with GunicornProcess(newest, config, exporter=True) as server:
        file.chmod(0o644)
        assert any("is valid until" in line for line in texts(check(server), "exporter"))
        file.chmod(0o600)
        (problem,) = problems(check(server))
        assert f"{file} cannot be used by uid {NOBODY}: [Errno 13]" in problem["text"]


def test_who_may_ask(newest: Interpreter, place: Path) -> None:
    """Files that others may read, that hold little or wrong lines, and secrets in the clear."""
    token, users = place / "token", place / "users"
    token.write_text("short\n")
    users.write_text(f"prometheus:{HASH}\nother:s3cret\n")
    token.chmod(0o644)
    users.chmod(0o606)
    config = f"{CONFIG}    metrics_bearer_token_file = {str(token)!r}\n"
    config += f"    metrics_auth_file = {str(users)!r}\n"
    server = GunicornProcess(newest, config, exporter=True)
    found = check(server)
    assert "s3cret" not in json.dumps(found)
    said = [f"{each['text']}: {each['advice']}" for each in problems(found)]
    for text, words in zip(
        said,
        (
            f"{token} holds a token of 5 characters, which can be guessed: make one with",
            f"{token} can be read by every user of this machine: chmod o-rwx {token}",
            f"{users}: line 2 is no user:hash with a hash of bcrypt: write it with `htpasswd -B`",
            f"{users} can be changed by every user of this machine: chmod o-rwx {users}",
        ),
        strict=True,
    ):
        assert text.startswith(words)
    token.write_text("a-token-of-some-length")
    users.write_text(f"prometheus:{HASH}\n")
    for file in (token, users):
        file.chmod(0o600)
    server.environment["OBSKIT_METRICS_BIND"] = "192.0.2.1:9764"  # nobody's
    taken, clear = problems(check(server))
    assert "cannot listen" in taken["text"]
    assert "cross the network to 192.0.2.1:9764 in the clear" in clear["text"]
    assert "metrics_certfile" in clear["advice"]
    server.environment["OBSKIT_METRICS_BIND"] = f"{HOST}:{server.metrics_port}"
    library = server.root / "bcrypt.py"
    library.write_text("raise ImportError\n")
    (problem,) = problems(check(server))
    assert "the package bcrypt is missing" in problem["text"]
    assert problem["advice"] == 'pip install "obskit-gunicorn[auth]"'
    library.unlink()
    with server:
        wait_until(lambda: not problems(check(server)), "all is well")
        assert any("is used by the exporter" in each for each in texts(check(server), "exporter"))


@needs_root
@pytest.mark.parametrize("setting", ["user", "group"])
def test_a_user_that_nobody_here_may_become(newest: Interpreter, setting: str) -> None:
    """Without root's rights Gunicorn ends at its start if its workers are to have another user."""
    if not can_run(newest, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {newest.path}")
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    config = f"{CONFIG}    {setting} = 33\n"
    with GunicornProcess(newest, config, PLAIN_APP, serving=False, prefix=prefix) as server:
        assert server.exit_status() != 0
        found = check(server)
        assert found["status"] == 2
        (problem,) = [each for each in problems(found) if each["stops"]]
        assert problem["part"] == "configuration"
        assert "cannot have workers as uid" in problem["text"]
    with GunicornProcess(newest, config) as server:
        assert problems(check(server)) == []


@needs_root
def test_secrets_of_root(newest: Interpreter, place: Path) -> None:
    """A file that the exporter's user may not read is handed over; after a change by a SIGHUP."""
    if not can_run(newest, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {newest.path}")
    token = place / "token"
    token.write_text("a-token-of-some-length")
    config = f"{CONFIG}    user = group = {NOBODY}\n"
    config += f"    metrics_bearer_token_file = {str(token)!r}\n"
    server = GunicornProcess(newest, config, exporter=True)
    token.chmod(0o600)
    found = check(server)
    assert not problems(found)
    (said,) = [each for each in found["findings"] if str(token) in each["text"]]
    assert "is handed over by the arbiter" in said["text"]
    assert "SIGHUP" in said["advice"]
    os.chown(token, NOBODY, NOBODY)
    assert f"{token} can be read by uid {NOBODY}; a renewed one is used at once" in texts(
        check(server), "exporter"
    )


COLLECTORS = """
from prometheus_client import Info

build = Info("build", "Help.", registry=None)
nothing = 3
"""


def test_collectors(newest: Interpreter) -> None:
    """What the exporter will import is imported, and what it cannot is named."""
    names = ["shown:build", "shown:nothing", "shown:missing", "hidden:build"]
    config = f"{CONFIG}    metrics_collectors = {names}\n"
    with GunicornProcess(newest, config, files={"shown.py": COLLECTORS}, exporter=True) as server:
        found = check(server)
        said = [each["text"] for each in problems(found)]
        for text, words in zip(
            said, ("has no method collect()", "AttributeError", "No module named"), strict=True
        ):
            assert words in text
        assert any("shown:build can be imported" in text for text in texts(found, "exporter"))


POST_FORK = "def post_fork(server, worker):\n    pass\n"


@needs_root
def test_a_directory_of_root_is_given_to_the_user(newest: Interpreter, place: Path) -> None:
    """What the server would do at its start is foreseen, and not done."""
    if not can_run(newest, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {newest.path}")
    config = f"{CONFIG}    user = group = {NOBODY}\n    multiproc_dir = {str(place)!r}\n"
    server = GunicornProcess(newest, config, exporter=True)
    found = check(server)
    assert not problems(found)
    assert f"{place} is given to uid {NOBODY} at the start" in texts(found, "directory")
    assert (place.stat().st_uid, os.listdir(place)) == (0, [])
    with server:
        assert place.stat().st_uid == NOBODY
        wait_until(lambda: not problems(check(server)), "all is well")


@needs_root
def test_an_interpreter_that_the_user_may_not_run(
    newest: Interpreter, without_client: Interpreter, place: Path
) -> None:
    """The exporter runs as the workers' user, who must be able to run the interpreter."""
    code = "import prometheus_client, os; print(os.path.dirname(prometheus_client.__file__))"
    done = subprocess.run([newest.path, "-c", code], capture_output=True, text=True, check=True)
    (site,) = (place / "venv").glob("lib/python*/site-packages")
    (site / "prometheus_client").symlink_to(done.stdout.strip())
    (place / "venv").chmod(0o700)
    config = f"{CONFIG}    user = group = {NOBODY}\n"
    # The arbiter is root, and workers are forked: only the exporter needs the interpreter.
    with GunicornProcess(without_client, config, PLAIN_APP, exporter=True) as server:
        text, log = "the exporter cannot be started: .*Permission denied", server.log
        found = check(server)
        (problem,) = [each for each in problems(found) if re.search(text, each["text"])]
        assert f"let uid {NOBODY} read and run the interpreter" in problem["advice"]
        wait_until(lambda: re.search(text, log()), "the log says so")


@pytest.mark.parametrize("kind", ["prometheus", "victoria-metrics"])
def test_an_endpoint_and_a_store(newest: Interpreter, place: Path, kind: str) -> None:
    """What the configuration names is asked: whether it answers, and takes these credentials."""
    database = Database(kind, place, asks_password=True)
    config = f"{CONFIG}    metrics_push = {database.url!r}\n"
    config += f'    metrics_redis = "redis://{HOST}:{free_port()}/0"\n'
    server = GunicornProcess(newest, config, exporter=True)
    with database.running(), server:
        store, push = problems(check(server))
        assert (store["part"], push["part"]) == ("store", "push")
        assert "it cannot be reached" in store["text"]
        assert "it answers 401" in push["text"]
        server.environment["OBSKIT_METRICS_PUSH_USER"] = USER
        server.environment["OBSKIT_METRICS_PUSH_PASSWORD"] = PASSWORD
        found = check(server)
        assert [each["part"] for each in problems(found)] == ["store"]
        assert texts(found, "push") == [f"{database.url} accepts what is pushed"]
