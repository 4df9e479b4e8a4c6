"""What Gunicorn's own metrics say, compared with what a scripted client and scripted faults did."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from obskit_gunicorn._gunicorn.exits import REASONS
from tests.support import apps
from tests.support.metrics_page import documented
from tests.support.process import (
    HOST,
    GunicornProcess,
    Interpreter,
    Metrics,
    free_port,
    get,
    wait_until,
)
from tests.support.releases import has_class

if TYPE_CHECKING:
    from collections.abc import Callable

UVICORN = "uvicorn_worker.UvicornWorker"

WSGI = (
    apps.COUNTED
    + """

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise ZeroDivisionError("on purpose")
    if path == "/late":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return late()
    if path == "/backend":
        start_response("200 OK", [("Content-Type", "text/plain")])
        raise FileNotFoundError(2, "a backend is gone")
    if path == "/first":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return first()
    if path == "/read":
        environ["wsgi.input"].read()
    if path == "/none":
        start_response("204 No Content", [])
        return []
    if path == "/block":
        block(float(parameter(environ["QUERY_STRING"], "1")))
    if path == "/sleep":
        time.sleep(float(parameter(environ["QUERY_STRING"], "1")))
    status = "404 Not Found" if path == "/missing" else "200 OK"
    body = str(os.getpid()).encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def first():
    raise ConnectionRefusedError(111, "a backend is gone")
    yield b""


def late():
    yield b"a beginning"
    raise ZeroDivisionError("in the middle")
"""
)

ASGI = (
    apps.COUNTED
    + """
import asyncio
import sys


"""
    + apps.LIFESPAN
    + """    path = scope["path"]
    if path == "/raise":
        raise ZeroDivisionError("on purpose")
    if path == "/leave":
        asyncio.get_running_loop().call_later(0.2, sys.exit, 0)
    if path == "/block":
        block(float(parameter(scope["query_string"].decode(), "1")))
    if path == "/sleep":
        await asyncio.sleep(float(parameter(scope["query_string"].decode(), "1")))
    status = {"/missing": 404, "/none": 204}.get(path, 200)
    body = b"" if status == 204 else str(os.getpid()).encode()
    headers = [(b"content-type", b"text/plain")]
    if status != 204 and path != "/late":
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if path == "/late":
        await send({"type": "http.response.body", "body": b"a beginning", "more_body": True})
        raise ZeroDivisionError("in the middle")
    await send({"type": "http.response.body", "body": body})
"""
)

APPLICATIONS = {"sync": WSGI, "gthread": WSGI, "gevent": WSGI, "asgi": ASGI, UVICORN: ASGI}

NO_EXITS = dict.fromkeys([(reason,) for reason in REASONS], 0.0)

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    threads = 3 if worker_class == "gthread" else 1
    worker_connections = 50
    {settings}
"""


@pytest.fixture(name="worker_class", params=APPLICATIONS)
def _worker_class(request: pytest.FixtureRequest, interpreter: Interpreter) -> str:
    name = str(request.param)
    if not has_class(interpreter, name):
        pytest.skip("this Gunicorn has no asgi worker")
    return name


def server(interpreter: Interpreter, worker_class: str, settings: str = "") -> GunicornProcess:
    """Return a server with an exporter."""
    config = CONFIG.format(worker_class=worker_class, settings=settings)
    return GunicornProcess(interpreter, config, app=APPLICATIONS[worker_class], exporter=True)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return one sample, 0 if there is none."""
    return metrics.get((name, frozenset(labels.items())), 0.0)


def by_label(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels, in the order of their names."""
    return {
        tuple(text for _label, text in sorted(labels)): number
        for (sample, labels), number in metrics.items()
        if sample == name
    }


def wait_for(running: GunicornProcess, condition: Callable[[Metrics], bool], text: str) -> Metrics:
    """Scrape until a condition is true of the exposition, and return it."""
    found: Metrics = {}

    def holds() -> bool:
        nonlocal found
        try:
            found = running.scrape()
        except OSError:
            return False
        return condition(found)

    try:
        wait_until(holds, text)
    except AssertionError:
        print({key: number for key, number in found.items() if key[0].startswith("gunicorn_")})
        raise
    return found


def wait_until_counted(running: GunicornProcess) -> None:
    """Wait until both workers serve, and the one request that found that out is counted."""
    wait_for(
        running,
        lambda m: (
            value(m, "gunicorn_workers_ready") == 2
            and value(m, "gunicorn_requests_total", method="GET", code="200") == 1
        ),
        "the first request is counted",
    )


def send(running: GunicornProcess, method: str, path: str) -> None:
    """Send one request; whether it is answered is the server's affair."""
    connection = http.client.HTTPConnection(HOST, running.port, timeout=10)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request(method, path, headers={"Connection": "close"})
        connection.getresponse().read()
    connection.close()


@pytest.mark.releases_differ
def test_requests(interpreter: Interpreter, worker_class: str) -> None:
    """Each request is counted once, by its method and the code that its client got."""
    with server(interpreter, worker_class) as running:
        wait_until_counted(running)
        script = [
            *[("GET", "/")] * 5,
            *[("POST", "/")] * 3,
            *[("GET", "/missing")] * 2,
            ("DELETE", "/none"),
            ("BREW", "/"),
            *[("GET", "/raise")] * 2,
            ("GET", "/late"),
        ]
        for method, path in script:
            send(running, method, path)
        expected = {
            ("200", "GET"): 5 + 1 + 1,
            ("200", "POST"): 3,
            ("404", "GET"): 2,
            ("204", "DELETE"): 1,
            ("200", "other"): 1,
            ("500", "GET"): 2,
        }
        found = wait_for(
            running,
            lambda m: sum(by_label(m, "gunicorn_requests_total").values()) >= len(script) + 1,
            "all are counted",
        )
        assert by_label(found, "gunicorn_requests_total") == expected
        counts = by_label(found, "gunicorn_request_duration_seconds_count")
        assert counts == {("DELETE",): 1, ("GET",): 11, ("POST",): 3, ("other",): 1}
        assert value(found, "gunicorn_requests_in_progress") == 0


def test_in_progress_and_capacity(interpreter: Interpreter, worker_class: str) -> None:
    """Requests that are being answered are shown as such, out of as many as there is room for."""
    with server(interpreter, worker_class) as running:
        capacity = {"sync": 2, "gthread": 6, "gevent": 100, "asgi": 100}.get(worker_class)
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        assert found.get(("gunicorn_capacity", frozenset())) == capacity
        with pytest.raises(TimeoutError):
            get(running.port, "/sleep?s=3", timeout=0.3)
        wait_for(running, lambda m: value(m, "gunicorn_requests_in_progress") == 1, "one request")
        wait_for(running, lambda m: value(m, "gunicorn_requests_in_progress") == 0, "none")
        (labels,) = by_label(found, "gunicorn_info")
        assert labels[1] == ".".join(map(str, interpreter.version))
        assert value(found, "gunicorn_workers") == 2


def test_streaming_is_counted_to_its_last_byte(interpreter: Interpreter) -> None:
    """A response is in progress, and its duration runs, until it has been sent."""
    app = WSGI.replace(
        '    yield b"a beginning"\n    raise',
        '    yield b"1"\n    time.sleep(0.6)\n    return\n    raise',
    )
    config = CONFIG.format(worker_class="gthread", settings="")
    with GunicornProcess(interpreter, config, app=app, exporter=True) as running:
        send(running, "GET", "/late")
        found = wait_for(
            running,
            lambda m: value(m, "gunicorn_request_duration_seconds_sum", method="GET") > 0.5,
            "a long one",
        )
        assert value(found, "gunicorn_requests_in_progress") == 0


@pytest.mark.releases_differ
def test_workers_that_end(interpreter: Interpreter, worker_class: str) -> None:
    """Boots and ends are counted one by one, each with its reason."""
    settings = "timeout = 3\n    graceful_timeout = 1"
    with server(interpreter, worker_class, settings) as running:
        workers = running.wait_for_workers(2)
        found = wait_for(
            running, lambda m: value(m, "gunicorn_worker_boots_total") == 2, "two boots"
        )
        assert by_label(found, "gunicorn_worker_exits_total") == NO_EXITS
        assert found["gunicorn_reloads_total", frozenset()] == 0
        running.send_signal(signal.SIGKILL, min(workers))
        running.wait_for_workers(2, without={min(workers)})
        wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_exits_total", reason="killed") == 1,
            "a kill is counted",
        )
        before = running.wait_for_workers(2)
        wait_for(running, lambda m: value(m, "gunicorn_worker_boots_total") == 3, "three boots")
        with running.log_path.open("a") as log:
            log.write("-- now a time-out\n")
        if worker_class != "gthread":
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(running.port, "/block?s=20", timeout=0.5)
        else:  # its main thread is never busy
            running.send_signal(signal.SIGSTOP, max(workers))  # the one that is no new one
        wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_exits_total", reason="timeout") == 1,
            "a time-out is counted",
        )
        now = running.wait_for_workers(2)
        assert len(now - before) == 1
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "both serve")
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=now)
        wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_worker_boots_total") == 6
                and value(m, "gunicorn_worker_boot_seconds_count") == 6
                and value(m, "gunicorn_reloads_total") == 1
            ),
            "a reload is counted",
        )
        if worker_class != UVICORN or interpreter.version >= (24,):
            found = wait_for(
                running,
                lambda m: value(m, "gunicorn_worker_exits_total", reason="graceful") == 2,
                "both old ones left gracefully",
            )
            assert by_label(found, "gunicorn_worker_exits_total") == {
                **NO_EXITS,
                ("killed",): 1,
                ("timeout",): 1,
                ("graceful",): 2,
            }


@pytest.mark.releases_differ
def test_recycled_workers(interpreter: Interpreter, worker_class: str) -> None:
    """A worker that has served its number of requests is counted as such, and as nothing else."""
    with server(interpreter, worker_class, "max_requests = 4") as running:
        for _ in range(16):
            send(running, "GET", "/")
        found = wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_exits_total", reason="max_requests") >= 1,
            "an end is counted",
        )
        exits = by_label(found, "gunicorn_worker_exits_total")
        assert {reason for reason, count in exits.items() if count} == {("max_requests",)}
        found = wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_worker_boots_total")
                == 2 + value(m, "gunicorn_worker_exits_total", reason="max_requests")
            ),
            "each end has its boot",
        )


def test_figures_of_processes(newest: Interpreter) -> None:
    """CPU, memory, descriptors, threads and start time of each process, by slot."""
    with server(newest, "gthread") as running:
        running.wait_for_workers(2)
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        for name in (
            "cpu_seconds_total",
            "resident_memory_bytes",
            "proportional_memory_bytes",
            "open_fds",
            "max_fds",
            "threads",
            "start_time_seconds",
        ):
            figures = by_label(found, f"gunicorn_process_{name}")
            roles = sorted(role for role, _slot in figures)
            assert roles == ["arbiter", "exporter", "worker", "worker"]
            assert all(figure > 0 for figure in figures.values()) or name == "cpu_seconds_total"
            assert {slot for _role, slot in figures} == {"", "slot0", "slot1", "slot2"}


def test_listen_backlog(newest: Interpreter) -> None:
    """Connections that no worker accepts are shown as waiting, out of as many as may wait."""
    with server(newest, "sync", "workers = 1\n    backlog = 7") as running:
        address = f"{HOST}:{running.port}"
        found = wait_for(
            running, lambda m: value(m, "gunicorn_listen_backlog_limit", address=address) == 7, "7"
        )
        assert value(found, "gunicorn_listen_backlog", address=address) == 0
        with pytest.raises(TimeoutError):
            get(running.port, "/sleep?s=3", timeout=0.2)
        waiting = [socket.create_connection((HOST, running.port)) for _ in range(3)]
        wait_for(
            running, lambda m: value(m, "gunicorn_listen_backlog", address=address) >= 3, "three"
        )
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("host", ["", "localhost", "[0:0:0:0:0:0:0:1]"])
def test_listen_backlog_of_other_spellings(newest: Interpreter, host: str) -> None:
    """However an address is spelt, its backlog is there, under the kernel's spelling."""
    port = free_port()
    config = CONFIG.format(worker_class="sync", settings="pass")
    with GunicornProcess(
        newest, config, app=WSGI, exporter=True, arguments=["--bind", f"{host}:{port}"]
    ) as running:
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        texts = {text for (text,) in by_label(found, "gunicorn_listen_backlog")}
        (own,) = [text for text in texts if text.endswith(f":{port}")]
        assert own in (f"0.0.0.0:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"[::]:{port}")


def test_listen_backlog_of_a_shared_port(newest: Interpreter) -> None:
    """Workers with a socket each at one port have their queues added up."""
    settings = "reuse_port = True\n    backlog = 7"
    with server(newest, "sync", settings) as running:
        address = f"{HOST}:{running.port}"
        wait_for(
            running,
            lambda m: value(m, "gunicorn_listen_backlog_limit", address=address) == 14,
            "twice seven",
        )
        workers = running.wait_for_workers(2)
        for pid in workers:
            running.send_signal(signal.SIGSTOP, pid)
        # As many as one queue holds: the kernel may give all of them to one worker.
        waiting = [socket.create_connection((HOST, running.port)) for _ in range(8)]
        wait_for(
            running, lambda m: value(m, "gunicorn_listen_backlog", address=address) == 8, "eight"
        )
        for pid in workers:
            running.send_signal(signal.SIGCONT, pid)
        for connection in waiting:
            connection.close()


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_errors_before_the_headers(interpreter: Interpreter, worker_class: str) -> None:
    """What a client got no answer to, because the application failed, is 500 and no 200."""
    with server(interpreter, worker_class) as running:
        wait_until_counted(running)
        for path in ("/backend", "/first", "/backend"):
            send(running, "GET", path)
        wait_for(
            running,
            lambda m: value(m, "gunicorn_requests_total", method="GET", code="500") == 3,
            "three errors",
        )
        wait_until_idle(running)


@pytest.mark.releases_differ
def test_malformed_body(interpreter: Interpreter) -> None:
    """A client that sends nonsense is at fault itself, and one that goes half-way has gone."""
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(interpreter, "gthread") as running:
        wait_until_counted(running)
        for body in (b"ZZ\r\n", b"5\r\nab"):
            with socket.create_connection((HOST, running.port)) as client:
                client.sendall(head + body)
                client.shutdown(socket.SHUT_WR)
                client.settimeout(10)
                with contextlib.suppress(OSError):
                    client.recv(1000)
        wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_requests_total", method="POST", code="400") == 1
                and value(m, "gunicorn_requests_total", method="POST", code="499") == 1
            ),
            "one of each",
        )
        found = by_label(running.scrape(), "gunicorn_requests_total")
        assert set(found) == {("200", "GET"), ("400", "POST"), ("499", "POST")}


def test_client_that_does_not_wait(newest: Interpreter) -> None:
    """A request that Gunicorn cancels because its client has gone is no error of the server's."""
    settings = "asgi_disconnect_grace_period = 1"
    with server(newest, "asgi", settings) as running:
        wait_until_counted(running)
        with pytest.raises(TimeoutError):
            get(running.port, "/sleep?s=8", timeout=0.3)
        wait_for(
            running,
            lambda m: value(m, "gunicorn_requests_total", method="GET", code="499") == 1,
            "it is counted",
        )
        wait_until_idle(running)


@pytest.mark.parametrize("kind", ["asgi", UVICORN])
def test_worker_that_leaves_by_itself(newest: Interpreter, kind: str) -> None:
    """A worker that the application ends in order was not recycled."""
    with server(newest, kind) as running:
        wait_until_counted(running)
        send(running, "GET", "/leave")
        found = wait_for(running, lambda m: value(m, "gunicorn_worker_boots_total") == 3, "another")
        exits = by_label(found, "gunicorn_worker_exits_total")
        assert exits == {**NO_EXITS, ("graceful",): 1}


def wait_until_idle(running: GunicornProcess) -> None:
    """Wait until no request is in progress."""
    wait_for(
        running, lambda m: value(m, "gunicorn_requests_in_progress") == 0, "no request is left"
    )


@pytest.mark.releases_differ
@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGSEGV)"])
@pytest.mark.parametrize("has_lease", [False, True])
def test_workers_that_die_while_they_boot(
    interpreter: Interpreter, end: str, has_lease: bool
) -> None:
    """Death before a worker is ready is one of booting, whether it had a metric already or not."""
    dies = f"import signal\nif os.path.exists('fatal'):\n    {end}\n"
    app = WSGI + dies if has_lease else "import os\n" + dies + WSGI
    config = CONFIG.format(worker_class="sync", settings="pass")
    with GunicornProcess(interpreter, config, app=app, exporter=True) as running:
        wait_until_counted(running)
        (running.root / "fatal").touch()
        old = running.wait_for_workers(2)
        running.send_signal(signal.SIGTERM, min(old))
        wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_exits_total", reason="boot_error") >= 2,
            "deaths are counted",
        )
        (running.root / "fatal").unlink()
        running.wait_for_workers(2)
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        exits = by_label(found, "gunicorn_worker_exits_total")
        assert {reason for (reason,), count in exits.items() if count} == {"boot_error", "graceful"}


def test_without_requests(interpreter: Interpreter, worker_class: str) -> None:
    """Turned off, there is no trace of request metrics: no series, no hook, no wrapper."""
    with server(interpreter, worker_class, "metrics_requests = False") as running:
        send(running, "GET", "/")
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        assert not [key for key in found if key[0].startswith("gunicorn_request")]


@pytest.mark.releases_differ
def test_overridden_hooks_without_super(interpreter: Interpreter, worker_class: str) -> None:
    """Hooks that are overridden and forget super() lose no figure."""
    hooks = "\n".join(
        f"    def {name}(self, *args): pass"
        for name in ("post_fork", "post_worker_init", "worker_exit", "child_exit", "on_reload")
    )
    settings = (
        "pass\n"
        + hooks
        + "\n    def pre_request(self, worker, req): pass"
        + "\n    def post_request(self, worker, req, environ, resp): pass"
    )
    with server(interpreter, worker_class, settings) as running:
        workers = running.wait_for_workers(2)
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        wait_until_counted(running)
        for _ in range(5):
            send(running, "GET", "/")
        wait_for(
            running,
            lambda m: value(m, "gunicorn_requests_total", method="GET", code="200") == 6,
            "the requests are counted",
        )
        running.send_signal(signal.SIGKILL, min(workers))
        running.wait_for_workers(2, without={min(workers)})
        running.send_signal(signal.SIGHUP)
        wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_requests_total", method="GET", code="200") == 6
                and value(m, "gunicorn_worker_exits_total", reason="killed") == 1
                and value(m, "gunicorn_reloads_total") == 1
            ),
            "all is counted",
        )


def test_every_metric_is_documented(newest: Interpreter) -> None:
    """What is exposed is what the page of metrics lists: names, types and labels."""
    collector = """
class Failing:
    def collect(self):
        raise ZeroDivisionError
"""
    settings = """metrics_collectors = ["failing:Failing"]
    metrics_routes = True

    def on_reload(self, server):
        raise ZeroDivisionError"""
    config = CONFIG.format(worker_class="sync", settings=settings)
    with GunicornProcess(
        newest, config, app=WSGI, exporter=True, files={"failing.py": collector}
    ) as running:
        wait_until_counted(running)
        before = running.wait_for_workers(2)
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=before)
        wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_worker_exits_total", reason="graceful") == 2
                and value(m, "gunicorn_workers_ready") == 2
                and value(m, "gunicorn_requests_in_progress") == 0
                and value(m, "gunicorn_connections") == 0
                and value(m, "gunicorn_hook_failures_total", hook="on_reload") == 1
            ),
            "the reload is counted",
        )
        text = get(running.metrics_port, "/metrics").body
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(("gunicorn_", "obskit_gunicorn_", "process_", "python_")):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = (family.type, labels - {"le"})
    expected = {
        name: (kind, set(labels))
        for name, (kind, labels) in documented().items()
        # See tests/unit/docs/test_fleet_page.py.
        if not name.startswith(("obskit_gunicorn_fleet_", "obskit_gunicorn_push_"))
        # See tests/live/test_websockets.py.
        and not name.startswith("gunicorn_websockets_")
    }
    del expected["obskit_gunicorn_certificate_expiry_time_seconds"]  # see test_serve_tls.py
    del expected["obskit_gunicorn_series_over_budget"]  # see test_series.py
    assert found == expected
