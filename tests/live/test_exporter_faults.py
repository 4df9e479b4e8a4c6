"""The exporter under faults: its own, its collectors', and those of all who kill and fork."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import apps
from tests.support.client import Load, Watch
from tests.support.exporters import (
    CONFIG,
    descriptors,
    is_free,
    is_scraped,
    scrape_socket,
    server,
    wait_for_another_exporter,
    wait_until_scraped,
)
from tests.support.process import (
    HOST,
    GunicornProcess,
    Interpreter,
    can_run,
    free_port,
    get,
    on_a_volume,
    wait_until,
)

NOBODY = 65534
NO_LABELS: frozenset[tuple[str, str]] = frozenset()
STATUS_IN_LOG = "exited with code"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def exporter_pid(running: GunicornProcess) -> int:
    """Return the only exporter."""
    wait_until(lambda: len(running.exporter_pids()) == 1, "there is one exporter")
    return running.exporter_pids().pop()


def check_unharmed(running: GunicornProcess, workers: set[int]) -> None:
    """The application answers, no worker was replaced, and Gunicorn has seen no exit status."""
    assert running.get("/").status == 200
    assert running.booted_pids() == workers
    assert workers <= running.worker_pids()
    assert STATUS_IN_LOG not in running.log()


def booted_workers(running: GunicornProcess) -> set[int]:
    """Return the two workers; children of the arbiter that are no workers yet do not count."""
    wait_until(
        lambda: len(running.booted_pids() & running.worker_pids()) == 2, "there are two workers"
    )
    return running.booted_pids() & running.worker_pids()


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


# ------------------------------------------------------------------------------------------------
# 1. Exporters that fail

GUEST = """
import ctypes, os, pathlib, sys, time

exec(pathlib.Path("how").read_text())


class Guest:
    def collect(self):
        return []
"""

LETHAL = ["os._exit(3)", "os._exit(4)", "os.abort()", "ctypes.CDLL(None)._exit(3)"]
"""What ends the process of a collector; 3 and 4 halt Gunicorn if they are taken for a worker's."""

HARMLESS = ["raise RuntimeError('no')", "sys.exit(3)", "time.sleep(10)", "while True: pass"]


@pytest.mark.releases_differ
def test_collectors_that_end_the_exporter(interpreter: Interpreter) -> None:
    """Whatever a collector does at its import, Gunicorn never sees it, and the exporter is back."""
    settings = 'metrics_collectors = ["guest:Guest"]'
    with server(interpreter, settings, files={"guest.py": GUEST, "how": ""}) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        for how in LETHAL:
            pid = exporter_pid(running)
            (running.root / "how").write_text(how)
            with pytest.raises((OSError, http.client.HTTPException)):
                running.scrape()
            wait_until(lambda pid=pid: is_gone(pid), f"{how} ends it")  # type: ignore[misc]
            wait_for_another_exporter(running, pid)
            check_unharmed(running, workers)
        assert running.stop() == 0


def test_collectors_that_fail_or_hang(newest: Interpreter) -> None:
    """A collector that cannot be imported, or not in time, is left out; all the rest is served."""
    settings = 'metrics_collectors = ["guest:Guest"]'
    with server(newest, settings, files={"guest.py": GUEST, "how": ""}) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        pid = exporter_pid(running)
        for how in HARMLESS:
            (running.root / "how").write_text(how)
            assert running.scrape()["obskit_gunicorn_slots_leased", NO_LABELS] == 3
            assert exporter_pid(running) == pid
            if how.startswith("time"):  # it does not end while it hangs: another one
                running.send_signal(signal.SIGKILL, pid)
                pid = wait_for_another_exporter(running, pid)
        check_unharmed(running, workers)
        assert running.log().count("left out of scrapes") <= 4
        # It is still looping.
        assert running.stop() == 0


@pytest.mark.releases_differ
def test_interpreter_that_cannot_run(interpreter: Interpreter) -> None:
    """A program that ends at once is started a few times and said once, and each fork tries again.

    An upgrade of Python under a running server does that.
    """
    program = "#!/bin/sh\necho . >> starts\nexit 3\n"
    with server(
        interpreter,
        'sys.executable = os.path.abspath("broken")',
        files={"broken": program, "starts": ""},
        serving=False,
    ) as running:
        (running.root / "broken").chmod(0o755)
        running.wait_until_serving()
        workers = booted_workers(running)
        starts = running.root / "starts"
        time_over = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > time_over, "time has passed")
        check_unharmed(running, workers)
        assert 1 <= len(starts.read_text().split()) <= 8
        before = len(starts.read_text().split())
        running.send_signal(signal.SIGKILL, workers.pop())
        booted_workers(running)
        wait_until(lambda: len(starts.read_text().split()) > before, "a fork tries again")
        assert len(starts.read_text().split()) <= before + 3
        assert running.log().count("cannot be started: it ends before it serves") == 1
        (running.root / "broken").write_text(
            '#!/bin/sh\nexec "$REAL" "$@"\n'.replace("$REAL", running.interpreter.path)
        )
        running.send_signal(signal.SIGHUP)
        wait_until_scraped(running)
        assert running.stop() == 0


def test_missing_interpreter(newest: Interpreter) -> None:
    """An interpreter whose file is not there is replaced by the one that runs."""
    with server(newest, 'sys.executable = "/nowhere/python"') as running:
        wait_until_scraped(running)
        check_unharmed(running, booted_workers(running))
        assert running.stop() == 0


@pytest.mark.releases_differ
def test_crash_loop(interpreter: Interpreter) -> None:
    """Killed again and again, it comes back ever more slowly, and few lines tell of it."""
    with server(interpreter) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        killed: set[int] = set()
        deadline = time.monotonic() + 4

        def over() -> bool:
            for pid in running.exporter_pids() - killed:
                if is_scraped(running.metrics_port):
                    killed.add(pid)
                    running.send_signal(signal.SIGKILL, pid)
            return time.monotonic() > deadline

        wait_until(over, "time has passed")
        assert 3 <= len(killed) <= 5
        running.send_signal(signal.SIGKILL, workers.pop())  # the next fork is when it is told
        running.wait_for_workers(2)
        wait_until_scraped(running)
        assert 1 <= running.log().count("has ended (SIGKILL") <= 4
        assert running.stop() == 0


SHADOW = """
import sys
if sys.orig_argv[1] == "-I":
    with open({mark!r}, "a") as file:
        file.write(__name__ + "\\n")
    raise ImportError("a module of the application's")
import importlib, os
here = os.path.dirname(os.path.abspath(__file__))
path = sys.path[:]
sys.path[:] = [entry for entry in path if os.path.abspath(entry) != here]
del sys.modules[__name__]
importlib.import_module(__name__)
sys.path[:] = path
"""


def test_shadowing_modules(newest: Interpreter, place: Path) -> None:
    """What stands beside the application or in PYTHONPATH hides no module of Python's own."""
    mark = place / "imported"
    names = sorted(
        name
        for name in sys.stdlib_module_names - set(sys.builtin_module_names)
        if not name.startswith("_") and name not in ("antigravity", "this", "idlelib")
    )
    # A package that hides another one cannot lend it its submodules.
    packages = {name for name in names if hasattr(sys.modules.get(name), "__path__")}
    shadow = SHADOW.format(mark=str(mark))
    files = {f"{name}.py": shadow for name in names if name not in packages}
    files["hidden/sitecustomize.py"] = shadow
    files["hidden/usercustomize.py"] = shadow
    with server(
        newest,
        "logger_class = 'gunicorn.glogging.Logger'",
        files=files,
        environment={
            "PYTHONPATH": os.pathsep.join(["hidden", *filter(None, [os.environ.get("PYTHONPATH")])])
        },
    ) as running:
        wait_until_scraped(running)
        running.get("/")
        assert running.scrape()["app_requests_total", NO_LABELS] == 1
        for path in ("/", "/nowhere", "/-/ready"):
            get(running.metrics_port, path)
        assert not mark.exists() or mark.read_text() == ""
        assert running.stop() == 0


# ------------------------------------------------------------------------------------------------
# 3. Killed arbiters


def test_killed_arbiter_and_its_successor(interpreter: Interpreter) -> None:
    """It serves for orphans, a revived one too; the next server has the address right after it."""
    with server(interpreter, 'timeout = 30\nworker_class = "gthread"') as first:
        wait_until_scraped(first)
        first.wait_for_workers(2)
        pid = exporter_pid(first)
        first.send_signal(signal.SIGKILL, pid)
        wait_for_another_exporter(first, pid)
        first.get("/")
        with pytest.raises(TimeoutError):
            get(first.port, "/block?s=2", timeout=0.2)
        arbiter = first.arbiter_pid
        workers = first.worker_pids()
        first.send_signal(signal.SIGKILL, arbiter)
        second = server(interpreter)
        second.metrics_port = first.metrics_port
        second.environment["OBSKIT_METRICS_BIND"] = f"{HOST}:{first.metrics_port}"
        with second:
            assert any(not is_gone(worker) for worker in workers)
            assert first.scrape()["app_requests_total", NO_LABELS] == 1
            wait_until(lambda: all(map(is_gone, workers)), "orphans end")
            second.get("/")
            second.get("/")
            wait_until(lambda: not first.exporter_pids(), "their exporter ends")
            wait_until(
                lambda: (
                    is_scraped(second.metrics_port)
                    and second.scrape().get(("app_requests_total", NO_LABELS)) == 2
                ),
                "the second is scraped",
            )
            assert second.log().count("cannot listen at") == 1
            assert second.stop() == 0


@pytest.mark.parametrize("victims", ["arbiter and exporter", "all"])
def test_killed_together(interpreter: Interpreter, victims: str) -> None:
    """Nothing is left after a SIGKILL of arbiter and exporter, or of everybody."""
    with server(interpreter, "timeout = 2") as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        arbiter = running.arbiter_pid
        for pid in (arbiter, exporter_pid(running), *(workers if victims == "all" else ())):
            running.send_signal(signal.SIGKILL, pid)
        wait_until(lambda: all(map(is_gone, workers)), "workers end")
        wait_until(lambda: not running.exporter_pids(), "no exporter is left")
        wait_until(lambda: is_free(running.metrics_port), "the port is free")
        running.wait_until_gone()


def test_busy_address_and_no_lease(newest: Interpreter, place: Path) -> None:
    """An exporter that is waiting for its address ends with its server, whatever it was told."""
    (place / "file").write_text("no directory")
    with server(newest) as first:
        wait_until_scraped(first)
        second = server(newest, environment={"PROMETHEUS_MULTIPROC_DIR": str(place / "file")})
        second.environment["OBSKIT_METRICS_BIND"] = f"{HOST}:{first.metrics_port}"
        with second:
            second.wait_for_workers(2)
            wait_until(second.exporter_pids, "it has an exporter")
            second.send_signal(signal.SIGTERM)
            wait_until(lambda: not second.exporter_pids(), "it has ended")
            second.wait_until_gone()
        assert first.stop() == 0


# ------------------------------------------------------------------------------------------------
# 4. Upgrades


def upgrade(running: GunicornProcess) -> None:
    """Replace the arbiter by SIGUSR2 and SIGTERM."""
    old = running.arbiter_pid
    running.send_signal(signal.SIGUSR2)
    new = wait_until(running.upgraded_arbiter_pid, "there is a new arbiter")
    wait_until(lambda: running.exporter_pids(new), "it has an exporter")
    # Not all of them need be workers: the application may have children of its own.
    wait_until(lambda: len(running.worker_pids(new)) >= 2, "it has workers")
    running.send_signal(signal.SIGTERM, old)
    wait_until(lambda: is_gone(old), "the old arbiter has ended")
    if running.launcher is not None:
        running.launcher.poll()
    wait_until(
        lambda: running.pid_path.exists() and int(running.pid_path.read_text()) == new,
        "the pidfile names the new one",
    )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kinds(pid: int) -> list[str]:
    """Return what a process has open, without numbers, and without Gunicorn's file per worker."""
    targets = [target for target in descriptors(pid).values() if "wgunicorn-" not in target]
    return sorted(re.sub(r"[\d./]+|slot\d+", "#", target) for target in targets)


def settled(pid: int) -> list[str]:
    """Return what a process has open once that has not changed for half a second."""
    seen, since = kinds(pid), time.monotonic()

    def is_settled() -> bool:
        nonlocal seen, since
        now = kinds(pid)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() > since + 0.5

    wait_until(is_settled, "what it has open does not change")
    return seen


def quiet(interpreter: Interpreter) -> dict[str, Any]:
    """Return what keeps Gunicorn's control thread away, whose descriptors come and go."""
    return {"arguments": ["--no-control-socket"]} if interpreter.version >= (25,) else {}


def run_upgrades(running: GunicornProcess, rounds: int) -> None:
    """Upgrade again and again, and compare what is there at the end with the beginning."""
    running.wait_for_workers(2)
    upgrade(running)  # the first arbiter was not started by another one
    arbiter_had = settled(running.arbiter_pid)
    (worker_had, _) = [kinds(pid) for pid in sorted(running.worker_pids())]
    files = sorted(path.name for path in running.root.iterdir())
    for _ in range(rounds):
        upgrade(running)
    wait_until(lambda: len(running.processes()) == 4, "four processes are left")
    wait_until(lambda: kinds(running.arbiter_pid) == arbiter_had, "the arbiter has what it had")
    for worker in running.worker_pids():
        wait_until(lambda pid=worker: kinds(pid) == worker_had, "workers have what they had")  # type: ignore[misc]
    assert sorted(path.name for path in running.root.iterdir()) == files
    assert len(running.private_directories()) == 1


ROUNDS = [pytest.param(3, id="few"), pytest.param(100, id="hundred", marks=pytest.mark.load)]


@pytest.mark.releases_differ
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_many_upgrades(interpreter: Interpreter, rounds: int) -> None:
    """Upgrades refuse no scrape, lose no count, and leave nothing behind."""
    with server(interpreter, **quiet(interpreter)) as running:
        wait_until_scraped(running)
        with Watch(running, port=running.metrics_port) as watch:
            for _ in range(20):
                running.get("/")
            run_upgrades(running, rounds)
            watch.wait_for_scrapes(5)
        assert watch.refused == 0
        assert watch.wrong == []
        assert running.scrape()["app_requests_total", NO_LABELS] == running.tally() == 20
        running.stop()
        wait_until(lambda: is_free(running.metrics_port), "the port is free")
        assert running.private_directories() == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_many_upgrades_at_a_socket(newest: Interpreter, place: Path, rounds: int) -> None:
    """A Unix socket goes from arbiter to arbiter, and its file goes with the last one."""
    path = place / "metrics.sock"
    environment = {"OBSKIT_METRICS_BIND": f"unix:{path}"}
    with server(newest, environment=environment, **quiet(newest)) as running:
        wait_until(path.exists, "the socket is there")
        inode = path.stat().st_ino
        running.get("/")
        run_upgrades(running, rounds)
        assert path.stat().st_ino == inode
        assert scrape_socket(path)["app_requests_total", NO_LABELS] == 1
        running.stop()
        assert not path.exists()
        assert running.private_directories() == []


# ------------------------------------------------------------------------------------------------
# 5. What it inherits, and what inherits from it

SCRUBBED = {
    "WEB_CONCURRENCY": "2",
    "NOTIFY_SOCKET": "/nowhere/notify",
    "LISTEN_NOTHING": "1",
    "WATCHDOG_USEC": "1",
    "GUNICORN_CMD_ARGS": "--log-level=debug",
    "OBSKIT_METRICS_KEEP": "no",
}


@pytest.mark.releases_differ
def test_inheritance(interpreter: Interpreter) -> None:
    """Beside what it reads it has five descriptors, the application's variables, its session."""
    with server(
        interpreter,
        'raw_env = ["FROM_RAW_ENV=1"]',
        environment={**SCRUBBED, "FROM_OUTSIDE": "1"},
        shared=True,
    ) as running:
        wait_until_scraped(running)
        upgrade(running)  # an arbiter that was started by another one has more variables
        pid = exporter_pid(running)
        wait_until_scraped(running)
        running.scrape()

        def others() -> dict[int, str]:
            """Return what it has open besides the metric files and leases that it keeps open."""
            kept = str(running.metrics_directory)
            return {at: what for at, what in descriptors(pid).items() if not what.startswith(kept)}

        wait_until(lambda: len(others()) == 5, "no scrape is going on")
        opened = others()
        sockets = {number for number, what in opened.items() if what.startswith("socket:")}
        assert opened.keys() - sockets == {0, 1, 2}
        assert opened[0] == "/dev/null"
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        names = {variable.partition("=")[0] for variable in environment}
        assert {"FROM_RAW_ENV", "FROM_OUTSIDE", "HOME"} <= names
        pattern = (
            "GUNICORN_|LISTEN_|NOTIFY_|WATCHDOG_|WEB_CONC|OBSKIT_(?!TEST|EXPORTER_)|PROMETHEUS_"
        )
        assert not [name for name in names if re.match(pattern, name, re.IGNORECASE)]
        assert os.getsid(pid) == pid
        listening = {opened[number] for number in sockets}
        for worker in running.worker_pids():
            assert not listening & set(descriptors(worker).values())
        running.stop()
        assert STATUS_IN_LOG not in running.log()


@needs_root
def test_runs_as_the_applications_user(interpreter: Interpreter, place: Path) -> None:
    """Under root it has the uid, gid and groups of the workers, not the arbiter's."""
    if not can_run(interpreter, NOBODY):
        pytest.skip(f"uid {NOBODY} may not run {interpreter.path}")
    settings = f"user = {NOBODY}\ngroup = {NOBODY}"
    place.chmod(0o777)
    tally = {apps.TALLY_VARIABLE: str(place / "tally")}
    with server(interpreter, settings, environment=tally) as running:
        wait_until_scraped(running)
        (worker, _) = running.wait_for_workers(2)

        def ids(pid: int) -> list[str]:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return [line for line in lines if line.startswith(("Uid:", "Gid:", "CapEff:"))]

        pid = exporter_pid(running)
        wait_until(lambda: str(NOBODY) in ids(worker)[0], "the worker has dropped root")
        assert ids(pid) == ids(worker)
        running.send_signal(signal.SIGKILL, pid)
        assert ids(wait_for_another_exporter(running, pid)) == ids(worker)
        running.get("/")
        assert running.scrape()["app_requests_total", NO_LABELS] == 1
        assert running.stop() == 0


CHILDREN = """
import multiprocessing, os, signal, subprocess, sys, time


def wait():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(300)
    os._exit(0)


def children(name):
    if os.fork() == 0:
        wait()
    multiprocessing.get_context("fork").Process(target=wait).start()
    multiprocessing.process._children.clear()  # nobody waits for them
    subprocess.Popen(["sleep", "300"], close_fds=False)
    with open("children-" + name, "w") as file:
        file.write("3")
"""

FORKING = {
    "worker": """
def post_worker_init(self, worker):
        if worker.age == 1: __import__("children").children("worker")
""",
    "when_ready": """
def when_ready(self, server):
        __import__("children").children("when_ready")
""",
    "pre_fork": """
def pre_fork(self, server, worker):
        if worker.age == 1: __import__("children").children("pre_fork")
""",
    "preload": "preload_app = True",
    "guest": 'metrics_collectors = ["guest:Guest"]',
}


@pytest.mark.parametrize("where", FORKING)
def test_children_that_stay(interpreter: Interpreter, where: str) -> None:
    """Processes that the application has started keep neither exporter nor port when it ends."""
    settings = FORKING[where]
    app = apps.WSGI
    if where == "preload":
        # In an arbiter that another one has started, the socket is there before the application.
        app = "import os\nfrom children import children\nchildren('preload')\n" + app
    guest = "import children\nchildren.children('guest')\n" + "class Guest:\n    collect = list\n"
    with server(
        interpreter, settings, app=app, files={"children.py": CHILDREN, "guest.py": guest}
    ) as running:
        wait_until_scraped(running)
        running.may_leave_processes()
        if where == "preload":
            upgrade(running)
        running.scrape()
        wait_until((running.root / f"children-{where}").exists, "there are children")
        wait_until(running.worker_pids, "there are workers")
        arbiter = running.arbiter_pid
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: is_gone(arbiter), "the arbiter ends")
        assert running.private_directories() == []
        wait_until(lambda: is_free(running.metrics_port), "the port is free")
        left = running.processes()
        assert len(left) >= 3
        assert not {process.pid for process in left if "multiprocessing" in _command(process.pid)}
        for process in left:
            assert not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            running.send_signal(signal.SIGKILL, process.pid)
        running.wait_until_gone()


# ------------------------------------------------------------------------------------------------
# 6. Reloads and other ways to run


@pytest.mark.releases_differ
def test_reloads(interpreter: Interpreter) -> None:
    """A SIGHUP brings changed options into force; a wrong one changes nothing; nothing leaks."""
    with server(
        interpreter,
        'metrics_path = "/one"',
        files={"guest.py": "class Guest:\n    def collect(self):\n        return []\n"},
        **quiet(interpreter),
    ) as running:
        wait_until_scraped(running)
        running.wait_for_workers(2)
        config = running.root / "gunicorn.conf.py"

        def change(before: str, after: str) -> None:
            config.write_text(config.read_text().replace(before, after))
            running.send_signal(signal.SIGHUP)

        def status(path: str) -> int:
            return get(running.metrics_port, path).status

        with Watch(running, port=running.metrics_port) as watch:
            assert status("/one") == 200
            change('"/one"', '"/two"')
            wait_until(lambda: (status("/one"), status("/two")) == (404, 200), "it has moved")
            change('"/two"', '"/metrics"\n    metrics_collectors = ["guest:Guest"]')
            wait_until(
                lambda: "guest:Guest" in get(running.metrics_port, "/metrics").body,
                "the collector is asked",
            )
            good = config.read_text()
            change('"/metrics"', '"no path"')
            running.wait_for_log("no path")
            wait_until(lambda: status("/metrics") == 200, "it goes on")
            config.write_text(good)
            wait_until(lambda: len(running.processes()) == 4, "the workers before have ended")
            workers = booted_workers(running)
            had = settled(running.arbiter_pid)
            pid = exporter_pid(running)
            for number in range(2):
                change("workers = 2", f"workers = 2\n    keepalive = {number + 1}")
                workers = running.wait_for_workers(2, without=workers)
            wait_until(lambda: len(running.processes()) == 4, "four processes are left")
            assert exporter_pid(running) != pid  # it may have new collectors
            wait_until(lambda: kinds(running.arbiter_pid) == had, f"nothing but {had} is open")
            for number in range(2):
                change('"/metrics"', f'"/{number}"')
                wait_until(lambda n=number: status(f"/{n}") == 200, "it has moved")  # type: ignore[misc]
                change(f'"/{number}"', '"/metrics"')
                wait_until(lambda: status("/metrics") == 200, "it has moved back")
            wait_until(lambda: len(running.processes()) == 4, "four processes are left")
            wait_until(lambda: kinds(running.arbiter_pid) == had, f"nothing but {had} is open")
            assert watch.refused == 0
        assert running.stop() == 0


def certificate(directory: Path, name: str) -> tuple[str, str]:
    """Make a certificate for 127.0.0.1 that signs itself, and return its files."""
    cert, key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
    subprocess.run(
        (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN={name} -addext subjectAltName=IP:{HOST} -keyout {key} -out {cert}"
        ).split(),
        check=True,
        capture_output=True,
        timeout=30,
    )
    return cert, key


def test_reload_with_certificates(newest: Interpreter, place: Path) -> None:
    """A SIGHUP turns TLS on and off, at the same socket."""
    import ssl

    cert, key = certificate(place, "one")
    with server(newest, 'metrics_path = "/metrics"') as running:
        wait_until_scraped(running)
        config = running.root / "gunicorn.conf.py"
        plain = config.read_text()
        config.write_text(
            plain + f"    metrics_certfile = {cert!r}\n    metrics_keyfile = {key!r}\n"
        )
        running.send_signal(signal.SIGHUP)

        def has_certificate() -> bool:
            try:
                found = ssl.get_server_certificate((HOST, running.metrics_port), timeout=5)
            except OSError:
                return False
            return found.strip() == Path(cert).read_text().strip()

        wait_until(has_certificate, "it has the certificate")
        config.write_text(plain)
        running.send_signal(signal.SIGHUP)
        wait_until_scraped(running)
        wait_until(lambda: len(running.exporter_pids()) == 1, "one exporter is left")
        assert running.stop() == 0


def test_reload_to_an_overlapping_address(newest: Interpreter) -> None:
    """An address that only the exporter itself still holds is listened at a little later."""
    port = free_port()
    described = server(newest, f'metrics_bind = "0.0.0.0:{port}"')
    del described.environment["OBSKIT_METRICS_BIND"]
    described.metrics_port = port
    with described as running:
        wait_until_scraped(running)
        pid = exporter_pid(running)
        config = running.root / "gunicorn.conf.py"
        config.write_text(config.read_text().replace("0.0.0.0", HOST))
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: running.exporter_pids() - {pid}, "there is another one")
        pid = wait_for_another_exporter(running, pid)
        # The arbiter has the socket that this one has bound: options change, the address stays.
        config.write_text(config.read_text() + '    metrics_path = "/moved"\n')
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: get(port, "/moved").status == 200, "it has moved")
        assert running.log().count("cannot listen at") <= 1
        assert running.stop() == 0
        wait_until(lambda: is_free(port), "the port is free")


WAYS: dict[str, Any] = {
    "daemon": {"daemon": True},
    "preload": {"arguments": ["--preload"]},
    "reuse-port": {"arguments": ["--reuse-port"]},
    "log-file": {"arguments": ["--error-logfile", "error.log"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_run(interpreter: Interpreter, way: str) -> None:
    """It serves a daemon, a preloaded application, a shared port, and comes back there too."""
    with server(interpreter, **WAYS[way]) as running:
        wait_until_scraped(running)
        running.get("/")
        assert running.scrape()["app_requests_total", NO_LABELS] == 1
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        wait_for_another_exporter(running, pid)
        running.stop()
        running.wait_until_gone()
        wait_until(lambda: is_free(running.metrics_port), "the port is free")
        assert STATUS_IN_LOG not in running.log()


GATES = {
    "on_starting": ("def on_starting(self, server):\n    return False", "not starting"),
    "when_ready": ("def when_ready(self, server):\n    return False", "not starting"),
    "raises": ("def when_ready(self, server):\n    raise RuntimeError('gate')", "gate"),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_start_that_is_refused(newest: Interpreter, place: Path, gate: str, kind: str) -> None:
    """A hook that ends the start leaves no exporter, port or socket file."""
    settings, says = GATES[gate]
    path = place / "metrics.sock"
    described = server(newest, settings, serving=False)
    if kind == "unix":
        described.environment["OBSKIT_METRICS_BIND"] = f"unix:{path}"
    with described as running:
        assert running.exit_status() != 0
        running.wait_until_gone()
        assert says in running.log()
        wait_until(lambda: is_free(running.metrics_port), "the port is free")
        assert not path.exists()


OVERRIDES = """
def when_ready(self, server):
    pass

def pre_fork(self, server, worker):
    pass

def on_reload(self, server):
    raise RuntimeError("mine")

def post_worker_init(self, worker):
    pass
"""


def test_overrides_without_super(interpreter: Interpreter) -> None:
    """Hooks that forget ``super()`` or raise lose nothing of the exporter."""
    with server(interpreter, OVERRIDES) as running:
        wait_until_scraped(running)
        wait_until(lambda: get(running.metrics_port, "/-/ready").status == 200, "it is ready")
        workers = running.wait_for_workers(2)
        config = running.root / "gunicorn.conf.py"
        config.write_text(config.read_text() + '\n    metrics_path = "/moved"\n')
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: get(running.metrics_port, "/moved").status == 200, "it has moved")
        running.wait_for_workers(2, without=workers)
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        wait_for_another_exporter(running, pid)
        assert running.stop() == 0


HANDLERS = {
    "chained": """
before = signal.getsignal(signal.SIGCHLD)
signal.signal(signal.SIGCHLD, lambda number, frame: before(number, frame))
""",
    "replaced": "signal.signal(signal.SIGCHLD, lambda number, frame: None)",
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
}


@pytest.mark.releases_differ
@pytest.mark.parametrize("kind", HANDLERS)
def test_own_handler_of_children(interpreter: Interpreter, kind: str) -> None:
    """A SIGCHLD handler of the application's in the arbiter breaks nothing, at a reload neither.

    The exporter is back with the next fork at the latest.
    """
    body = HANDLERS[kind].strip().replace("\n", "\n        ")
    settings = f"def when_ready(self, server):\n        {body}"
    with server(interpreter, settings) as running:
        wait_until_scraped(running)
        booted_workers(running)
        config = running.root / "gunicorn.conf.py"
        config.write_text(config.read_text() + '\n    metrics_path = "/moved"\n')
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: get(running.metrics_port, "/moved").status == 200, "it has moved")
        wait_until(lambda: len(running.booted_pids()) >= 4, "there are new workers")
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        if kind != "chained":
            wait_until(lambda: is_gone(pid), "it has ended")
            for number in range(3):  # a Gunicorn that is not told of workers' ends forks later
                running.send_signal(signal.SIGTTIN)
                running.wait_for_log("signal: ttin", count=number + 1)
        wait_for_another_exporter(running, pid)
        assert running.get("/").status == 200
        running.send_signal(signal.SIGTERM)
        running.wait_until_gone()


# ------------------------------------------------------------------------------------------------
# 7. No room


def check_metrics_in_memory(running: GunicornProcess) -> None:
    """The service is ready without shared metrics, and the exporter says that they are missing."""
    wait_until_scraped(running)
    for _ in range(10):
        assert running.get("/").status == 200

    def is_ready() -> bool:
        return get(running.metrics_port, "/-/ready").status == 200

    wait_until(is_ready, "it is ready")
    found = running.scrape()
    assert any(name.startswith("obskit_gunicorn_") for name, _ in found)
    pid = exporter_pid(running)
    running.send_signal(signal.SIGKILL, pid)
    wait_for_another_exporter(running, pid)
    wait_until(is_ready, "another one knows it too")


@needs_root
@pytest.mark.parametrize("options", ["size=4k,nr_inodes=2", "size=24k"])
def test_full_volume(newest: Interpreter, place: Path, options: str) -> None:
    """A volume without room takes neither the service nor its readiness down."""
    with mounted(newest, place, options) as running:
        check_metrics_in_memory(running)
        assert running.stop() == 0


@needs_root
def test_reload_on_a_full_volume(newest: Interpreter, place: Path) -> None:
    """Workers that find no room any more are ready, for the sidecar too, and are seen later."""
    with mounted(newest, place, "size=128k") as running:
        wait_until_scraped(running)
        old = running.wait_for_workers(2)
        enter = ["nsenter", "--target", str(running.arbiter_pid), "--mount"]
        filler = place / "filler"
        command = [*enter, "dd", "if=/dev/zero", f"of={filler}", "bs=4096"]
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        assert b"No space left" in done.stderr
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=old)
        for _ in range(10):
            assert running.get("/").status == 200

        port = free_port()
        program = [running.interpreter.path, "-m", "obskit_gunicorn", "serve"]
        arguments = ["--directory", str(place), "--bind", f"{HOST}:{port}"]
        sidecar = subprocess.Popen([*enter, *program, *arguments])
        try:
            wait_until(lambda: is_scraped(port), "the sidecar answers")
            for each in (running.metrics_port, port):
                wait_until(
                    lambda each=each: get(each, "/-/ready").status == 200,  # type: ignore[misc]
                    "it is ready",
                )
        finally:
            sidecar.terminate()
            assert sidecar.wait(20) == 0

        # More than the filler had: the old workers' files stay, and each worker has a slot anew.
        larger = [*enter, "mount", "-o", "remount,size=16m", str(place)]
        subprocess.run(larger, timeout=20, check=True)

        with Load(running.port):
            wait_until(
                lambda: running.scrape()["gunicorn_workers_ready", NO_LABELS] == 2,
                "the workers are seen",
            )
        assert running.stop() == 0


def mounted(interpreter: Interpreter, place: Path, options: str) -> GunicornProcess:
    """Return a server whose metrics directory is a file system of its own."""
    variable = "PROMETHEUS_MULTIPROC_DIR"
    return server(
        interpreter,
        environment={variable: str(place)},
        prefix=on_a_volume(variable, options),
    )


def test_unusable_directory(interpreter: Interpreter, place: Path) -> None:
    """A file in the directory's place takes neither the service nor its readiness down."""
    (place / "file").write_text("no directory")
    with server(
        interpreter, environment={"PROMETHEUS_MULTIPROC_DIR": str(place / "file")}
    ) as running:
        check_metrics_in_memory(running)
        assert running.stop() == 0


PATCHED = "import gevent.monkey\n\ngevent.monkey.patch_all()\n"


@pytest.mark.releases_differ
@pytest.mark.parametrize("place_of_patch", ["configuration", "preloaded application"])
def test_patched_arbiter(interpreter: Interpreter, place_of_patch: str) -> None:
    """An arbiter that gevent has patched starts its exporter once, and brings it back.

    From Gunicorn 24 on such an arbiter learns of no child's end, not even of a worker's: there the
    next fork brings it back.
    """
    config, app = CONFIG.format(settings='worker_class = "gevent"'), apps.WSGI
    if place_of_patch == "configuration":
        config = PATCHED + config
    else:
        config, app = config + "    preload_app = True\n", PATCHED + app
    with GunicornProcess(interpreter, config, app, exporter=True) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        if interpreter.version < (24,):
            pid = wait_for_another_exporter(running, pid)
            check_unharmed(running, workers)
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=workers)
        if interpreter.version < (24,):
            assert exporter_pid(running) == pid
        else:
            wait_for_another_exporter(running, pid)
        assert running.get("/").status == 200
        assert "exporter cannot" not in running.log()
        assert running.stop() == 0


def test_interpreter_that_is_gone(interpreter: Interpreter) -> None:
    """An interpreter that is removed under a running server does not keep the exporter away."""
    settings = """
def when_ready(self, server):
    sys.executable = "/nonexistent/python"
"""
    with server(interpreter, settings) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        wait_for_another_exporter(running, pid)
        check_unharmed(running, workers)
        assert running.stop() == 0
