"""``obskit-gunicorn serve``: what it serves, its flags, its signals, and the directory it reads."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics import parser

from obskit_gunicorn._exporter import server
from tests.support import forks
from tests.support.forks import NOBODY, Nursery, RemoteProcess, act, join
from tests.support.process import HOST, Metrics, free_port, parse_metrics, wait_until
from tests.support.serving import WAITS, Page, ServeProcess, ask, may_run

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PAGES = ("/", "/metrics", "/-/healthy", "/-/ready", "/-/status")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(name="nursery", scope="module")
def _nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        nursery.load(sys.modules[__name__])
        yield nursery
        nursery.forget_all()


@pytest.fixture(name="directory", scope="module")
def _directory(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiprocess directory in which one process has counted, and lives."""
    path = tmp_path_factory.mktemp("metrics")
    _count(nursery.start(), path)
    return path


@pytest.fixture(name="served", scope="module")
def _served(directory: Path) -> Iterator[ServeProcess]:
    """A server that tests ask and do not hurt."""
    with ServeProcess(directory) as served:
        yield served


def _count(process: RemoteProcess, path: Path) -> None:
    process.call(join, str(path))
    process.call(act, "counter", "hits", "inc", 3)
    process.call(act, "gauge_livesum", "level", "set", 5)
    process.call(act, "histogram", "took_seconds", "observe", 0.3)


def _boot() -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(role="worker", state="booted")


# ------------------------------------------------------------------------------------------------
# What it serves


def parse_openmetrics(text: str) -> Metrics:
    """Return the samples of an exposition in the OpenMetrics format."""
    families: Any = parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def check(page: Page, status: int, *, method: str = "GET") -> None:
    """Check what every answer must be."""
    assert page.status == status
    assert page.headers["content-type"].startswith(
        ("text/", "application/openmetrics-text", "application/json")
    )
    assert "date" in page.headers
    if method == "HEAD":
        assert page.body == b""
    else:
        assert int(page.headers["content-length"]) == len(page.body)
    for hop in ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"):
        assert hop not in page.headers


def test_pages(served: ServeProcess) -> None:
    """There is the exposition, both probes, and a page that links to them."""
    page = served.get()
    check(page, 200)
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    metrics = parse_metrics(page.text)
    assert metrics["hits_total", frozenset()] == 3
    assert metrics["level", frozenset()] == 5
    check(served.get("/-/healthy"), 200)
    links = served.get("/")
    check(links, 200)
    assert links.headers["content-type"] == "text/html; charset=utf-8"
    for path in PAGES[1:]:
        assert f'href="{path}"' in links.text


@pytest.mark.parametrize("path", PAGES)
def test_head(served: ServeProcess, path: str) -> None:
    """HEAD has the headers of GET, with the length of what GET would send, and no body."""
    ours: dict[str, dict[str, Any]] = {}
    for method in ("GET", "HEAD"):
        page = served.get(path, method=method)
        check(page, page.status, method=method)
        ours[method] = {**page.headers, "date": "", "status": page.status}
        length = int(ours[method].pop("content-length"))
        # How long a scrape took has more digits or fewer.
        assert abs(length - len(served.get(path).body)) < 20
    assert ours["HEAD"] == ours["GET"]


@pytest.mark.parametrize("path", PAGES)
def test_other_methods(served: ServeProcess, path: str) -> None:
    """OPTIONS says what is allowed, and so does the answer to what is not."""
    page = served.get(path, method="OPTIONS")
    assert (page.status, page.body) == (200, b"")
    assert page.headers["allow"] == "GET, HEAD, OPTIONS"
    assert page.headers["content-length"] == "0"
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW", "get"):
        page = served.get(path, method=method)
        check(page, 405)
        assert page.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metric", "/metrics/", "/favicon.ico", "/%00", "/%ff", "/-/"])
def test_nothing_there(served: ServeProcess, path: str, method: str) -> None:
    """Anywhere else there is nothing, and the answer says what there is."""
    page = served.get(path, method=method)
    check(page, 404, method=method)
    if method != "HEAD":
        for known in PAGES:
            assert known in page.text


def test_gzip(served: ServeProcess) -> None:
    """It is compressed for those who ask for that, and for nobody else."""
    for asked in ("gzip", "deflate, gzip;q=0.5", "GZIP", "identity;q=0, gzip"):
        page = served.get(headers={"Accept-Encoding": asked})
        check(page, 200)
        assert page.headers["content-encoding"] == "gzip"
        assert b"hits_total 3.0\n" in gzip.decompress(page.body)
    for asked in ("", "identity", "gzip;q=0", "gzip; q=0.000", "br", "*;q=0"):
        page = served.get(headers={"Accept-Encoding": asked})
        check(page, 200)
        assert "content-encoding" not in page.headers
        assert b"hits_total 3.0\n" in page.body


def test_openmetrics(served: ServeProcess) -> None:
    """Prometheus's own Accept header gets OpenMetrics, with the same numbers and an end."""
    page = served.get(headers={"Accept": PROMETHEUS_ACCEPTS})
    check(page, 200)
    assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert page.text.endswith("\n# EOF\n")
    metrics = parse_openmetrics(page.text)
    assert metrics["hits_total", frozenset()] == 3
    assert metrics["took_seconds_count", frozenset()] == 1


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "text/html",
        ";",
        ",,,",
        "text/plain;version=x.y",
        "application/openmetrics-text;version=latest",
        "application/openmetrics-text;version=",
        "application/openmetrics-text;version=1.0.0;escaping=\xff",
        "application/openmetrics-text;version=0.0.1",
        "text/plain;version=1.0.0;escaping=values",
        "a" * 5000,
        "text/plain," * 2000,
    ],
)
def test_odd_accept_headers(served: ServeProcess, accept: str) -> None:
    """Whatever is asked for, some format of the numbers is the answer."""
    page = served.get(headers={"Accept": accept})
    check(page, 200)
    assert b"hits_total 3.0\n" in page.body


@pytest.mark.parametrize("accept", ["", PROMETHEUS_ACCEPTS])
def test_names(served: ServeProcess, accept: str) -> None:
    """``name[]`` chooses samples."""
    query = "name[]=hits_total&name%5B%5D=level&name[]=nowhere&x=y"
    text = served.get(f"/metrics?{query}", headers={"Accept": accept}).text
    samples = {line.split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    assert samples == {"hits_total", "level"}
    assert served.get("/metrics?name[]=nowhere").body == b""


def test_ways_to_ask(served: ServeProcess) -> None:
    """Absolute URIs, percent-encoding, repeated slashes and long queries find the page."""
    for target in (
        "/metrics?",
        "/metrics?a=b&&&=;%",
        "/%6d%65trics",
        "//metrics",
        f"/metrics?{'x' * 60000}",
        f"/metrics?{'name[]=a&' * 3000}name[]=hits_total",
        f"http://{served.bind}/metrics",
        "HTTP://user@somewhere.example/metrics?name[]=hits_total",
    ):
        answer = served.exchange(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n"), (target, answer[:200])
        assert b"hits_total 3.0\n" in answer
    for target in (f"http://{served.bind}", "http://x?y"):
        answer = served.exchange(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b'href="/metrics"' in answer
    answer = served.exchange(b"GET /metrics\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    answer = served.exchange(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\na=b")
    assert answer.startswith(b"HTTP/1.0 405 ")


def test_another_path(directory: Path) -> None:
    """The exposition may be anywhere, also where a path is not ASCII."""
    with ServeProcess(directory, "--path", "/mätrics/ü&<x>") as served:
        quoted = "/m%C3%A4trics/%C3%BC%26%3Cx%3E"
        assert "hits_total 3.0\n" in served.get(quoted).text
        assert f'href="{quoted}"' in served.get("/").text
        assert "/mätrics/ü&<x>" in served.get("/metrics").text
        assert served.get("/metrics").status == 404
        raw = "GET /mätrics/ü&<x> HTTP/1.0\r\n\r\n".encode()
        assert served.exchange(raw).startswith(b"HTTP/1.0 200 OK")


def test_ready(nursery: Nursery, tmp_path: Path) -> None:
    """It is ready while a worker that has booted holds its lease, and healthy always."""
    with ServeProcess(tmp_path) as served:
        assert served.get("/-/ready").status == 503
        worker = nursery.start()
        _count(worker, tmp_path)
        assert served.get("/-/ready").status == 503
        worker.call(_boot)
        assert served.get("/-/ready").status == 200
        worker.kill()
        wait_until(lambda: served.get("/-/ready").status == 503, "nobody is ready")
        assert served.get("/-/healthy").status == 200


def test_error_in_a_scrape(directory: Path) -> None:
    """What goes wrong inside is a 500 with or without a body, and the log says why."""
    sabotage = (
        "from obskit_gunicorn._scrape import collector\n"
        "from prometheus_client.core import GaugeMetricFamily\n"
        "class Breaks:\n"
        "    def collect(self):\n"
        "        collector.DirectoryCollector.collect = None\n"
        "        collector.DirectoryCollector.records = None\n"
        "        return []\n"
    )
    with ServeProcess(
        directory,
        "--collectors",
        "sabotage:Breaks",
        files={"sabotage.py": sabotage},
        tracebacks=True,
    ) as served:
        assert served.get().status == 200
        for path in ("/metrics", "/-/ready"):
            for method in ("GET", "HEAD"):
                page = served.get(path, method=method)
                check(page, 500, method=method)
            assert "log" in served.get(path).text
            assert f"a request for {path} has failed" in served.log()
        assert "TypeError: 'NoneType' object is not callable" in served.log()
        assert served.get("/-/healthy").status == 200


# ------------------------------------------------------------------------------------------------
# Collectors of the user's

GUESTS = """
import sys, time
from prometheus_client import Counter, Enum, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily

calls = Counter("g_calls", "Calls.")
took = Histogram("g_took_seconds", "Time.")
level = Gauge("g_level", "A gauge of a mode.", multiprocess_mode="livesum")
level.set(4)
depth = Gauge("g_depth", "A function.")
depth.set_function(lambda: 7)
info = Info("g_build", "Info.")
info.info({"commit": "abc"})
state = Enum("g_state", "Enum.", states=["up", "down"])


class Counts:
    def collect(self):
        calls.inc()
        took.observe(1)
        return [*calls.collect(), *took.collect(), *level.collect()]


class Hangs:
    def collect(self):
        time.sleep(1000)


class Leaves:
    def collect(self):
        sys.exit(3)


class Takes:
    def collect(self):
        return [GaugeMetricFamily("hits", "Taken.", 99)]
"""


@pytest.mark.parametrize("variable", ["", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_collectors(directory: Path, variable: str) -> None:
    """They run in the server, from its working directory, and share nothing through files."""
    before = sorted(os.listdir(directory))
    names = ["Counts", "depth", "info", "state", "Leaves", "Takes"]
    failing = [("mine:Leaves", "error")]
    if not variable:
        names.append("Hangs")
        failing.append(("mine:Hangs", "timeout"))
    environment = {"OBSKIT_METRICS_COLLECTORS": " , ".join(f"mine:{name}" for name in names)}
    if variable:
        environment[variable] = str(directory)
    with ServeProcess(
        directory, files={"mine.py": GUESTS}, environment=environment, tracebacks=True
    ) as served:
        for count in (1, 2, 3):
            metrics = served.scrape()
            assert metrics["g_calls_total", frozenset()] == count
            assert metrics["g_took_seconds_sum", frozenset()] == count
            assert metrics["g_level", frozenset()] == 4
            assert metrics["g_depth", frozenset()] == 7
            assert metrics["g_build_info", frozenset({("commit", "abc")})] == 1
            assert metrics["g_state", frozenset({("g_state", "up")})] == 1
            assert metrics["hits_total", frozenset()] == 3
            name = "obskit_gunicorn_collector_failures_total"
            for collector, reason in failing:
                labels = frozenset({("collector", collector), ("reason", reason)})
                assert metrics[name, labels] == count
        log = served.log()
        for collector, _ in failing:
            assert log.count(f"{collector} is left out") == 1
        assert log.count("hits is exposed once") == 1
        openmetrics = served.get(headers={"Accept": PROMETHEUS_ACCEPTS}).text
        assert parse_openmetrics(openmetrics)["g_level", frozenset()] == 4
    assert sorted(os.listdir(directory)) == before


def test_a_hanging_collector_delays_nobody_else(directory: Path) -> None:
    """While scrapes wait for a collector, probes are answered."""
    arguments = ("--collectors", "waits:Waits")
    with ServeProcess(directory, *arguments, files={"waits.py": WAITS}) as served:
        assert served.get().status == 200
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                client = stack.enter_context(served.connect())
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: served.threads() > 20, "scrapes wait")
            for _ in range(5):
                assert served.get("/-/healthy").status == 200
                served.get("/-/ready")
            assert served.threads() > 20  # they wait still
            (served.root / "end").touch()
        served.wait_until_idle(threads=3)


def test_a_hanging_collector_is_given_up(directory: Path) -> None:
    """A scrape has what others say, and later ones do not wait for it again."""
    with ServeProcess(directory, "--collectors", "mine:Hangs", files={"mine.py": GUESTS}) as served:
        assert served.metric("hits_total") == 3
        assert "mine:Hangs is left out" in served.log()
        for _ in range(5):
            assert served.metric("hits_total") == 3
        served.wait_until_idle(threads=3)


# ------------------------------------------------------------------------------------------------
# Addresses


def unix_get(path: Path, page: str = "/metrics") -> Page:
    """Ask for a page at a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(str(path))
    return ask(connection, page)


def test_unix_socket(directory: Path, place: Path) -> None:
    """It serves at a Unix socket, replaces one that a killed server has left, and removes its own.

    One at which somebody listens is busy.
    """
    path = place / "m.sock"
    first = ServeProcess(directory, bind=f"unix:{path}")
    with first:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert b"hits_total 3.0\n" in unix_get(path).body
        with ServeProcess(directory, bind=f"unix:{path}", serving=False) as second:
            assert second.wait() == 1
            assert f"cannot listen at unix:{path}" in second.log()
        assert unix_get(path, "/-/healthy").status == 200
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert path.exists()
    with ServeProcess(directory, bind=f"unix:{path}") as third:
        check(unix_get(path), 200)
        assert third.stop() == 0
    assert not path.exists()


def test_relative_unix_socket(directory: Path) -> None:
    """A relative path is taken from the working directory."""
    with ServeProcess(directory, bind="unix:m.sock") as served:
        assert unix_get(served.root / "m.sock", "/-/healthy").status == 200


@pytest.mark.parametrize("family", ["localhost", "[::1]", "[::]"])
def test_other_hosts(directory: Path, family: str) -> None:
    """Names and IPv6 addresses will do."""
    port = free_port()
    client = HOST if family in ("localhost", "[::]") else "::1"
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            if family != "localhost":
                pytest.skip("needs IPv6 on the loopback interface")
    with ServeProcess(directory, bind=f"{family}:{port}"):
        connection = http.client.HTTPConnection(client, port, timeout=10)
        check(ask(connection, "/metrics"), 200)


def test_busy_address(directory: Path, served: ServeProcess) -> None:
    """An address that is taken is status 1 and one line."""
    with ServeProcess(directory, bind=served.bind, serving=False) as second:
        assert second.wait() == 1
        (line,) = second.log().splitlines()
        assert f"cannot listen at {served.bind}" in line
        assert "in use" in line


# ------------------------------------------------------------------------------------------------
# Flags


def run(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command until it ends; return its status and what it has written."""
    done = subprocess.run(
        [sys.executable, "-m", "obskit_gunicorn", "serve", *arguments],
        env={"PATH": os.environ["PATH"], **(environment or {})},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--bind", "9764"], "--bind"),
        (["--bind", ""], "--bind"),
        (["--bind", "host:http"], "--bind"),
        (["--bind", "a..b:1"], "--bind"),
        (["--bind"], "--bind"),
        (["--path", "metrics"], "--path"),
        (["--path", "/"], "--path"),
        (["--certfile", "/nowhere"], "--certfile"),
        (["--certfile", "/"], "--certfile"),
        (["--keyfile", __file__], "--keyfile"),
        (["--ca-certs", __file__], "--ca-certs"),
        (["--certfile", __file__, "--ca-certs", "/nowhere"], "--ca-certs"),
        (["--collectors", "mine.depth"], "--collectors"),
        (["--directory", "/nowhere"], "--directory"),
        (["--directory", __file__], "--directory"),
        (["--directory", ""], "--directory"),
        (["--dance"], "--dance"),
        (["somewhere"], "somewhere"),
    ],
)
def test_wrong_flags(tmp_path: Path, arguments: list[str], flag: str) -> None:
    """A wrong flag is status 2, and the last line names the flag and what it must be."""
    status, text = run("--directory", str(tmp_path), *arguments)
    assert status == 2
    error = text.splitlines()[-1]
    assert flag in error
    assert "metrics_" not in error
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OBSKIT_METRICS_BIND", "9764"),
        ("OBSKIT_METRICS_BIND", ""),
        ("OBSKIT_METRICS_PATH", "metrics"),
        ("OBSKIT_METRICS_CERTFILE", "/nowhere"),
        ("OBSKIT_METRICS_COLLECTORS", "mine.depth"),
        ("PROMETHEUS_MULTIPROC_DIR", "/nowhere"),
    ],
)
def test_wrong_variables(tmp_path: Path, variable: str, value: str) -> None:
    """So is a wrong variable, which is named; a flag that is right wins over it."""
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), variable: value}
    status, text = run(environment=environment)
    assert status == 2
    error = text.splitlines()[-1]
    if value:
        assert (variable if "METRICS" in variable else value) in error
    assert "Traceback" not in text


def test_flags_win(directory: Path) -> None:
    """A flag wins over its variable, and a variable over the default."""
    environment = {
        "OBSKIT_METRICS_BIND": "wrong",
        "OBSKIT_METRICS_PATH": "/elsewhere",
        "OBSKIT_METRICS_COLLECTORS": "wrong",
        "PROMETHEUS_MULTIPROC_DIR": "/nowhere",
    }
    with ServeProcess(directory, "--collectors", "", environment=environment) as served:
        assert served.get("/elsewhere").status == 200
        assert served.get("/metrics").status == 404


def test_without_flags(directory: Path) -> None:
    """Everything may come from the environment."""
    port = free_port()
    environment = {
        "OBSKIT_METRICS_BIND": f"{HOST}:{port}",
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
    }
    served = ServeProcess(directory, environment=environment)
    served.port = port
    served.command = served.command[: served.command.index("--directory")]
    with served:
        assert served.metric("hits_total") == 3


def test_help() -> None:
    """The help names each flag with its variable, and what signals do."""
    status, text = run("--help")
    assert status == 0
    for flag in ("bind", "path", "certfile", "keyfile", "ca-certs", "collectors"):
        assert f"--{flag} " in text
        assert f"$OBSKIT_METRICS_{flag.upper().replace('-', '_')}" in " ".join(text.split())
    for word in ("--directory", "$PROMETHEUS_MULTIPROC_DIR", "SIGTERM", "SIGHUP"):
        assert word in text


def test_as_a_command(directory: Path) -> None:
    """The command of the package is the same program."""
    command = Path(sys.executable).parent / "obskit-gunicorn"
    if not command.exists():
        pytest.skip("the package is not installed here")
    served = ServeProcess(directory)
    served.command[:3] = [str(command)]
    with served:
        assert served.metric("hits_total") == 3


# ------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends(directory: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end it with status 0, soon, whatever clients hang on to it."""
    with ServeProcess(directory) as served, served.connect() as silent, served.connect() as slow:
        slow.sendall(b"GET /met")
        assert served.get("/-/healthy").status == 200
        started = time.monotonic()
        assert served.stop(number) == 0
        assert time.monotonic() - started < server.REQUEST_SECONDS  # when those would be cut off
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""


def test_finishes_what_it_has_begun(directory: Path) -> None:
    """A scrape that is being made when it is told to end is answered in full."""
    slow = (
        "import time\nfrom prometheus_client.core import GaugeMetricFamily\n"
        "class Slow:\n"
        "    def collect(self):\n"
        "        print('collecting', flush=True)\n"
        "        time.sleep(1)\n"
        "        return [GaugeMetricFamily('slow', 'Slow.', 1)]\n"
    )
    with (
        ServeProcess(directory, "--collectors", "slow:Slow", files={"slow.py": slow}) as served,
        served.connect() as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(lambda: "collecting" in served.log(), "the scrape has begun")
        served.process.send_signal(signal.SIGTERM)
        answer = b""
        while chunk := client.recv(1 << 16):
            answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        assert b"\nslow 1.0\n" in body
        assert served.wait() == 0


def test_sighup(directory: Path) -> None:
    """SIGHUP ends nothing: what asks for a reload shall not cost the metrics."""
    with ServeProcess(directory) as served:
        served.process.send_signal(signal.SIGHUP)
        for _ in range(3):
            assert served.metric("hits_total") == 3
        assert served.process.poll() is None


# ------------------------------------------------------------------------------------------------
# The directory


def test_directory_made_anew(nursery: Nursery, tmp_path: Path) -> None:
    """A removed directory shows as unusable, still counts, and is read again when it is back."""
    path = tmp_path / "metrics"
    path.mkdir()
    process = nursery.start()
    _count(process, path)
    with ServeProcess(path) as served:
        for total in (3, 6):
            assert served.metric("hits_total") == total
            assert served.metric("obskit_gunicorn_directory_usable") == 1
            process.kill()
            shutil.rmtree(path)
            metrics = served.scrape()
            assert metrics["hits_total", frozenset()] == total  # it keeps the removed files open
            assert metrics["obskit_gunicorn_directory_usable", frozenset()] == 0
            assert served.get("/-/healthy").status == 200
            served.get("/-/ready")
            path.mkdir()
            assert served.metric("obskit_gunicorn_directory_usable") == 1
            process = nursery.start()
            _count(process, path)


@needs_root
@pytest.mark.parametrize("way", ["mount", "user", "root without capabilities"])
def test_read_only_directory(nursery: Nursery, way: str) -> None:
    """Where it may not write, leases are read right: live gauges and readiness follow them.

    Another user reads through the group of the directory, as with Kubernetes' fsGroup.
    """
    group = 4711
    with forks.public_directory() as path:
        os.chown(path, NOBODY, group)
        path.chmod(0o2755)
        worker = nursery.start()
        worker.call(forks.become_nobody)
        _count(worker, path)
        worker.call(_boot)
        if way == "mount":
            script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
            prefix = ["unshare", "--mount", "sh", "-c", script, str(path)]
            if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
                pytest.skip("mounting is not allowed here")
            served = ServeProcess(path, prefix=prefix)
        elif way == "user":
            if not may_run(group):
                pytest.skip("another user may not run this interpreter")
            served = ServeProcess(path, user=group)
        else:
            drop = ["--bounding-set=-all", "--inh-caps=-all"]
            served = ServeProcess(path, prefix=["setpriv", f"--groups={group}", *drop])
        with served:
            metrics = served.scrape()
            assert metrics["hits_total", frozenset()] == 3
            assert metrics["level", frozenset()] == 5
            assert metrics["obskit_gunicorn_slots_leased", frozenset()] == 1
            assert served.get("/-/ready").status == 200
            worker.kill()
            wait_until(lambda: served.get("/-/ready").status == 503, "nobody is ready")
            metrics = served.scrape()
            assert metrics["hits_total", frozenset()] == 3
            assert metrics.get(("level", frozenset()), 0) == 0
            assert metrics["obskit_gunicorn_slots", frozenset()] == 1
            assert metrics["obskit_gunicorn_slots_leased", frozenset()] == 0
            # Reading has left nothing that keeps a writer out.
            second = nursery.start()
            second.call(forks.become_nobody)
            _count(second, path)
            assert served.metric("hits_total") == 6
            assert served.metric("obskit_gunicorn_slots") == 1
            second.kill()
