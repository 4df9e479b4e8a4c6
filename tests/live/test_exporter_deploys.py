"""The exporter beside what people do to a server: deploy, log, kill, stop, start twice."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import obskit_gunicorn
from tests.support.client import Watch
from tests.support.exporters import (
    is_free,
    server,
    wait_for_another_exporter,
    wait_until_scraped,
)
from tests.support.process import HOST, GunicornProcess, Interpreter, get, wait_until

NO_LABELS: frozenset[tuple[str, str]] = frozenset()
COLLECTOR = """
from prometheus_client.core import GaugeMetricFamily


class Guest:
    def collect(self):
        yield GaugeMetricFamily("guest_release", "Which one.", {release})
"""
FAILING = """
class Guest:
    def collect(self):
        raise ValueError("boom")
"""


def exporter_pid(running: GunicornProcess) -> int:
    """Return the only exporter."""
    wait_until(lambda: len(running.exporter_pids()) == 1, "there is one exporter")
    return running.exporter_pids().pop()


def starts(running: GunicornProcess, reason: str) -> float:
    """Return how often the exporter was started for a reason."""
    return running.scrape()["gunicorn_exporter_starts_total", frozenset({("reason", reason)})]


def released(root: Path, release: str, *, broken: bool = False) -> None:
    """Make a release with a copy of the package, and let the link point to it."""
    folder = root / "releases" / release
    source = Path(obskit_gunicorn.__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    version = folder / source.name / "_version.py"
    version.write_text(version.read_text().replace('__version__ = "', f'__version__ = "{release}.'))
    if broken:
        (folder / source.name / "_exporter" / "program.py").write_text(
            "raise RuntimeError('broken')"
        )
    (folder / "guest.py").write_text(COLLECTOR.format(release=release))
    link = root / "new"
    link.symlink_to(folder)
    link.rename(root / "current")


def test_deploy_by_symlink(newest: Interpreter, place: Path) -> None:
    """A reload brings the new release without a gap; until that can run, the old one serves.

    If that ends too, clients are refused at once.
    """
    released(place, "1")
    settings = 'metrics_collectors = ["guest:Guest"]'
    where = {"PYTHONPATH": str(place / "current")}
    with server(newest, settings, environment=where) as running:
        wait_until_scraped(running)
        assert running.scrape()["guest_release", NO_LABELS] == 1
        released(place, "2")
        with Watch(running, port=running.metrics_port) as watch:
            running.send_signal(signal.SIGHUP)
            wait_until(lambda: running.scrape()["guest_release", NO_LABELS] == 2, "it is new")
            watch.wait_for_scrapes(5)
        assert watch.refused == 0
        running.wait_for_log("the arbiter runs obskit-gunicorn 1.")
        wait_until(lambda: starts(running, "reload") == 1, "it is counted")

        released(place, "3", broken=True)
        pid = exporter_pid(running)
        with Watch(running, port=running.metrics_port) as watch:
            running.send_signal(signal.SIGHUP)
            running.wait_for_log("the exporter cannot run: RuntimeError: broken")
            running.send_signal(signal.SIGTTIN)
            running.wait_for_log("before it serves (exit status 0); the previous one serves at")
            watch.wait_for_scrapes(5)
        assert watch.refused == 0
        assert running.scrape()["guest_release", NO_LABELS] == 2
        assert exporter_pid(running) == pid
        running.send_signal(signal.SIGKILL, pid)
        wait_until(lambda: is_free(running.metrics_port), "clients are refused")
        assert running.get("/").status == 200
        released(place, "4")
        running.send_signal(signal.SIGHUP)
        wait_until_scraped(running)
        assert running.scrape()["guest_release", NO_LABELS] == 4
        assert running.stop() == 0


def test_reload_without_a_change(newest: Interpreter) -> None:
    """A SIGHUP that changes neither code nor options leaves the exporter alone."""
    with server(newest) as running:
        wait_until_scraped(running)
        pid, workers = exporter_pid(running), running.wait_for_workers(2)
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=workers)
        assert exporter_pid(running) == pid
        assert running.stop() == 0


def test_descriptors_that_do_not_block(newest: Interpreter) -> None:
    """What the exporter inherits may not block, as after a patch by eventlet; it stays."""
    settings = """
def when_ready(self, server):
    from obskit_gunicorn._gunicorn.supervisor import supervisor
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
    supervisor.exporter._theirs.setblocking(False)
    os.set_blocking(2, False)
"""
    with server(newest, settings) as running:
        wait_until_scraped(running)
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        pid = wait_for_another_exporter(running, pid)
        for _ in range(10):
            time.sleep(0.15)  # what is tested is that it stays
            assert get(running.metrics_port, "/-/healthy").status == 200
        assert exporter_pid(running) == pid
        status = Path(f"/proc/{pid}/status").read_text()
        assert "SigBlk:\t0000000000000000" in status
        running.wait_for_log("has ended (SIGKILL")
        assert running.stop() == 0


LOGGING = """
logconfig_dict = {
    "version": 1,
    "formatters": {"mine": {"format": "MINE %(levelname)s %(message)s"}},
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": "app.log", "formatter": "mine"}
    },
    "loggers": {"gunicorn.error": {"handlers": ["file"], "propagate": False}},
    "root": {"handlers": ["file"], "level": "INFO"},
}
metrics_collectors = ["guest:Guest"]
"""


def test_logs_where_gunicorn_logs(newest: Interpreter) -> None:
    """Lines and tracebacks go through a logconfig, from a daemon too, and follow a rotation."""
    files = {"guest.py": FAILING}
    with server(newest, LOGGING, files=files, daemon=True) as running:
        log = running.root / "app.log"
        wait_until_scraped(running)
        running.scrape()
        wait_until(lambda: "MINE ERROR obskit exporter: metrics_coll" in log.read_text(), "a line")
        assert "ValueError: boom" in log.read_text()
        log.rename(running.root / "app.log.1")
        running.send_signal(signal.SIGUSR1)
        running.send_signal(signal.SIGKILL, exporter_pid(running))
        wait_until(lambda: log.exists() and "has ended (SIGKILL" in log.read_text(), "another")
        running.stop()


def test_rotated_while_it_runs(newest: Interpreter) -> None:
    """A file of a logconfig that was rotated away is opened anew, without any signal."""
    guest = FAILING.replace('"boom"', 'open("boom").read()')
    with server(newest, LOGGING, files={"guest.py": guest, "boom": "boom"}) as running:
        log = running.root / "app.log"
        wait_until_scraped(running)
        running.scrape()
        wait_until(lambda: "ValueError: boom" in log.read_text(), "a line")
        log.rename(running.root / "app.log.1")
        (running.root / "guest.py").write_text("import time\n\n\ntime.sleep(60)\n")
        running.send_signal(signal.SIGKILL, exporter_pid(running))
        wait_until(lambda: log.exists() and "has ended" in log.read_text(), "a line of the new one")
        log.rename(running.root / "app.log.2")
        running.scrape()
        wait_until(lambda: log.exists() and "longer than" in log.read_text(), "it is followed")
        assert running.stop() == 0


def test_killed_again_and_again(newest: Interpreter) -> None:
    """Ends leave a line at once and a count, and the process has a name of its own."""
    with server(newest, serving=True) as running:
        wait_until_scraped(running)
        for number in range(2):
            pid = exporter_pid(running)
            running.send_signal(signal.SIGKILL, pid)
            pid = wait_for_another_exporter(running, pid)
            if not number:
                running.wait_for_log("has ended (SIGKILL, perhaps out of memory)")
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")
        assert command == "gunicorn: metrics exporter [app:application]"
        assert starts(running, "start") == 1
        running.send_signal(signal.SIGTTIN)
        wait_until(lambda: starts(running, "killed") == 2, "the next fork counts them")
        assert starts(running, "ended") == starts(running, "reload") == 0
        assert running.stop() == 0


def test_arbiter_waits_for_the_last_answer(newest: Interpreter) -> None:
    """A scrape that is under way when the server stops is answered before the arbiter ends."""
    slow = 'open("asked", "w").close(); __import__("time").sleep(1.5); return []'
    guest = FAILING.replace('raise ValueError("boom")', slow)
    with server(
        newest, 'metrics_collectors = ["guest:Guest"]', files={"guest.py": guest}
    ) as running:
        wait_until_scraped(running)
        running.wait_for_workers(2)
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(get(running.metrics_port, "/metrics").status)
        )
        asked = running.root / "asked"
        asked.unlink(missing_ok=True)  # an earlier scrape has asked too
        thread.start()
        wait_until(asked.exists, "the scrape is under way")
        running.send_signal(signal.SIGTERM)
        assert running.exit_status() == 0
        assert running.exporter_pids() == set()
        thread.join(5)
        assert answers == [200]


def test_no_resource_warnings(newest: Interpreter) -> None:
    """Python's development mode has nothing to say of us, from the start to the end."""
    environment = {"PYTHONDEVMODE": "1"}
    with server(newest, environment=environment, shared=True) as running:
        wait_until_scraped(running)
        workers = running.wait_for_workers(2)
        pid = exporter_pid(running)
        running.send_signal(signal.SIGKILL, pid)
        pid = wait_for_another_exporter(running, pid)
        running.scrape()
        config = running.root / "gunicorn.conf.py"
        config.write_text(config.read_text() + '\n    metrics_path = "/moved"\n')
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: get(running.metrics_port, "/moved").status == 200, "it has moved")
        running.wait_for_workers(2, without=workers)
        assert running.stop() == 0
        running.wait_until_gone()
        assert "ResourceWarning" not in running.log()


def test_default_address_beside_others(newest: Interpreter) -> None:
    """Beside an OpenTelemetry exporter and a copy of itself a service with the default runs."""
    with socket.socket() as otel:
        otel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_free(9464):
            otel.bind((HOST, 9464))
            otel.listen()
        first, second = server(newest), server(newest)
        for each in (first, second):
            del each.environment["OBSKIT_METRICS_BIND"]
        with first, second:
            assert first.get("/").status == second.get("/").status == 200
            second.wait_for_log("cannot listen at 127.0.0.1:9764: Address already in use, by ")
