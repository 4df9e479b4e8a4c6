"""What ``obskit-gunicorn check --directory`` says of a running server's exporter."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import trustme

from obskit_gunicorn._doctor import running as asking
from obskit_gunicorn._doctor.running import ask
from obskit_gunicorn._exporter.protocol import network
from tests.support.exporters import server, wait_until_scraped
from tests.support.process import HOST, GunicornProcess, Interpreter, free_port, wait_until
from tests.support.serving import ServeProcess

if TYPE_CHECKING:
    from pathlib import Path

UTC = dt.timezone.utc
DAY = dt.timedelta(days=1)
DIRECTORY = 'multiproc_dir = "metrics"'


def facts(directory: Path, port: int, **more: object) -> dict[str, Any]:
    """Return what an arbiter records of an exporter at a port."""
    return {
        "address": f"0.0.0.0:{port}",
        "path": "/metrics",
        "directory": str(directory),
        "tls": False,
        "client_certificates": False,
        "network": network(),
        **more,
    }


def said(directory: Path, port: int, **more: object) -> list[tuple[bool, str]]:
    """Return what is found at a port; for each thing whether it is a problem."""
    return [(finding.is_problem, finding.text) for finding in ask(facts(directory, port, **more))]


def check(running: GunicornProcess) -> tuple[list[str], list[str]]:
    """Return the problems that the command finds in a server's directory, and what is fine."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "obskit_gunicorn",
            "check",
            "--directory",
            str(running.root / "metrics"),
            "--format",
            "json",
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    found = json.loads(done.stdout)
    texts: tuple[list[str], list[str]] = [], []
    for each in found["findings"]:
        texts[each["level"] == "ok"].append(each["text"])
    assert done.returncode == found["status"] == (1 if texts[0] else 0), done.stderr
    return texts


def test_an_exporter_that_answers_and_one_that_does_not(newest: Interpreter) -> None:
    """The exporter that the arbiter has started is asked, at the address where it listens."""
    with server(newest, DIRECTORY) as running:
        wait_until_scraped(running)
        wait_until(lambda: not check(running)[0], "all is well")
        _, fine = check(running)
        where = f"{HOST}:{running.metrics_port}/metrics"
        assert f"the exporter answers at {where}" in fine
        (pid,) = running.exporter_pids()
        running.send_signal(signal.SIGSTOP, pid)
        try:
            (problem,), _ = check(running)
        finally:
            running.send_signal(signal.SIGCONT, pid)
        assert problem.startswith(f"the exporter cannot be reached at {where}: timed out")
        assert running.stop() == 0


def test_workers_without_their_arbiter(newest: Interpreter) -> None:
    """Where the arbiter was killed and workers hang, nobody replaces them, and it says so."""
    with server(newest, DIRECTORY, environment={"OBSKIT_METRICS_BIND": ""}) as running:
        running.may_leave_processes()
        wait_until(lambda: not check(running)[0], "all is well")
        workers = running.worker_pids()
        for pid in workers:
            running.send_signal(signal.SIGSTOP, pid)
        running.send_signal(signal.SIGKILL)
        running.exit_status()
        try:
            problems, _ = check(running)
        finally:
            for pid in workers:
                running.send_signal(signal.SIGKILL, pid)
        (problem,) = [each for each in problems if "arbiter" in each]
        assert problem.startswith(f"workers hold slots ({len(workers)}) and no arbiter")


def test_without_an_exporter(newest: Interpreter) -> None:
    """A server that wants none has none that could be asked."""
    with server(newest, DIRECTORY, environment={"OBSKIT_METRICS_BIND": ""}) as running:
        wait_until(lambda: not check(running)[0], "all is well")
        _, fine = check(running)
        assert not [line for line in fine if "exporter" in line]
        assert running.stop() == 0


def test_nobody_and_somebody_else(tmp_path: Path) -> None:
    """Neither a refused connection nor a stranger's page is taken for the exporter."""
    port = free_port()
    ((is_problem, text),) = said(tmp_path, port)
    assert is_problem
    assert f"cannot be reached at 0.0.0.0:{port}/metrics: Connection refused" in text
    stranger = http.server.ThreadingHTTPServer((HOST, port), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=stranger.serve_forever)
    thread.start()
    try:
        ((is_problem, text),) = said(tmp_path, port)
    finally:
        stranger.shutdown()
        thread.join()
        stranger.server_close()
    assert is_problem
    assert "somebody else" in text
    other = tmp_path / "other"
    other.mkdir()
    with ServeProcess(other) as served:
        ((is_problem, text),) = said(tmp_path, served.port)
        assert is_problem
        assert "somebody else" in text
        assert said(other, served.port) == [
            (False, f"the exporter answers at 0.0.0.0:{served.port}/metrics")
        ]
        ((is_problem, text),) = said(other, served.port, tls=True)
        assert is_problem
    ((is_problem, text),) = said(tmp_path, port, network="net:[1]")
    assert not is_problem
    assert "was not asked" in text
    assert list(ask({})) == list(ask({"address": 3})) == []


def test_a_unix_socket(tmp_path: Path) -> None:
    """A Unix socket is asked too, in whatever network."""
    path = tmp_path / "m.sock"
    with ServeProcess(tmp_path, bind=f"unix:{path}"):
        found = said(tmp_path, 0, address=f"unix:{path}", network="net:[1]")
    assert found == [(False, f"the exporter answers at unix:{path}/metrics")]


def exposition(started: float, **ends: int) -> str:
    """Return a page with how often workers ended, by reason, and since when that is counted."""
    lines = [f"obskit_gunicorn_generation_start_time_seconds {started}"]
    lines += [
        f'gunicorn_worker_exits_total{{reason="{reason}"}} {count}.0'
        for reason, count in ends.items()
    ]
    return "# HELP x y\n" + "\n".join(lines) + "\n"


def test_how_workers_ended() -> None:
    """Ends that nobody wished are named, and are a problem where there are many in an hour."""
    now = time.time()
    assert list(asking._exits(exposition(now, graceful=7, max_requests=3, killed=0))) == []
    (found,) = asking._exits(exposition(now - 600, killed=61, graceful=3, timeout=2))
    assert found.is_problem
    text = found.text
    assert "61 were killed by a signal and 2 were killed by Gunicorn, because they hung" in text
    (found,) = asking._exits(exposition(now - 86_400, killed=61))
    assert not found.is_problem
    assert list(asking._exits(exposition(0, killed=61))) == []
    assert list(asking._exits("garbage")) == []


def test_clocks() -> None:
    """A clock that differs from this one is a problem; its seconds do not matter."""
    now = time.time()
    assert list(asking._clock(formatdate(now, usegmt=True))) == []
    assert list(asking._clock("")) == list(asking._clock("garbage")) == []
    (found,) = asking._clock(formatdate(now - 7200, usegmt=True))
    assert found.is_problem
    assert "720" in found.text
    assert "behind" in found.text
    (found,) = asking._clock(formatdate(now + 7200, usegmt=True))
    assert "ahead of" in found.text


def test_certificates(tmp_path: Path) -> None:
    """It says until when the certificate that is served is valid, and what is wrong with it."""
    authority = trustme.CA()
    now = dt.datetime.now(UTC)
    file = tmp_path / "tls.pem"
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    directory = tmp_path / "metrics"
    directory.mkdir()

    def write(start: dt.timedelta, end: dt.timedelta) -> None:
        leaf = authority.issue_cert(HOST, not_before=now + start, not_after=now + end)
        file.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())

    write(-DAY, 90 * DAY)
    arguments = ["--certfile", str(file)]
    with ServeProcess(directory, *arguments) as served:
        for start, end, is_problem, text in (
            (-DAY, 90 * DAY, False, "is valid until"),
            (-90 * DAY, DAY, True, "expires on"),
            (-90 * DAY, -DAY, True, "has expired on"),
            (DAY, 90 * DAY, True, "is not valid yet"),
        ):
            write(start, end)
            certificate, page = said(directory, served.port, tls=True)
            assert (certificate[0], text in certificate[1]) == (is_problem, True), certificate
            assert page[0] is False
            assert f"answers at 0.0.0.0:{served.port}/metrics to a client that" in page[1]
    arguments += ["--ca-certs", str(tmp_path / "ca.crt")]
    write(-90 * DAY, -DAY)
    with ServeProcess(directory, *arguments) as served:
        certificate, page = said(directory, served.port, tls=True, client_certificates=True)
        assert certificate[0]
        assert "needs a client's certificate" in page[1]
