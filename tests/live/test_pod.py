"""The manifests of k8s/ run for real: read-only root, uid 10001, Gunicorn as PID 1, a sidecar.

The application and the container that reads beside it are those of the manifests: their users,
volumes, mounts, variables and commands. Only the application's files are the tests' own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import obskit_gunicorn
from tests.support import apps
from tests.support.checks import total_as_others_read_it
from tests.support.client import Load
from tests.support.manifests import BASE, DEMO, SIDECAR, pod_spec, render
from tests.support.pod import Pod, sandbox_problem
from tests.support.process import (
    HOST,
    Interpreter,
    Metrics,
    metric_files,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.pod import Container

HTTP, METRICS = 8000, 9764
TALLY = {apps.TALLY_VARIABLE: "/tmp/tally"}

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    graceful_timeout = 5
    {settings}
"""

FACTS = """
import json
import os
from pathlib import Path

def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    os.unlink(path)
    return ""

status = Path("/proc/self/status").read_text()
print(json.dumps({
    "pid": os.getpid(),
    "ids": [os.getuid(), os.getgid(), *os.getgroups()],
    "status": dict(line.split(":\\t", 1) for line in status.splitlines()),
    "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
    "refused": {path: refused(path) for path in ("/x", "/app/x", "/usr/x", "/metrics/x", "/tmp/x")},
    "metrics": oct(os.stat("/metrics").st_mode),
    "bytes": os.statvfs("/metrics").f_blocks * os.statvfs("/metrics").f_frsize,
}))
"""

COLLECT = (
    "from obskit_gunicorn.multiprocess import generate_latest; print(generate_latest().decode())"
)

READ_ON = """
import time
from obskit_gunicorn.multiprocess import generate_latest

while True:
    generate_latest()
    time.sleep(0.001)
"""


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    """Skip where pods cannot be made; but where root runs the tests in CI, that is a failure."""
    problem = sandbox_problem()
    if problem and os.environ.get("CI") and os.geteuid() == 0:
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


@functools.cache
def spec_of(directory: Path) -> dict[str, Any]:
    """Return what a kustomization says of its pods."""
    return pod_spec(render(directory))


def pod_with(
    interpreter: Interpreter, settings: str = "", *, directory: Path = SIDECAR, app: str = apps.WSGI
) -> Pod:
    """Return the pod of a kustomization, with a test's application in it."""
    files = {"app.py": app, "gunicorn.conf.py": CONFIG.format(settings=settings)}
    return Pod(interpreter, spec_of(directory), files)


def start(pod: Pod, name: str = "app", port: int = HTTP) -> Container:
    """Start the application and wait until it answers."""
    environment = dict(TALLY)
    if port != HTTP:
        environment["GUNICORN_CMD_ARGS"] = f"--bind=0.0.0.0:{port}"
    container = pod.start(name, environment=environment)
    container.wait_until_answers(port, "/pid")
    return container


def tally(pod: Pod) -> int:
    """Return how many requests the application has counted, by its own bookkeeping."""
    try:
        return (pod.volume("tmp") / "tally").stat().st_size
    except FileNotFoundError:
        return 0


def wait_for_workers(pod: Pod, count: int) -> None:
    """Wait until so many workers have booted.

    A worker that gets a SIGTERM earlier may overlook it; Gunicorn then waits out its timeout.
    """

    def booted() -> int:
        texts = [path.read_text() for path in pod.volume("metrics").glob("*.lease")]
        records = [json.loads(text) for text in texts if text]
        return sum((each["role"], each["state"]) == ("worker", "booted") for each in records)

    wait_until(lambda: booted() == count, f"{count} workers have booted")


def collected_beside(pod: Pod) -> Metrics:
    """Return the metrics as the sidecar's container reads them."""
    return parse_metrics(
        pod.run("exporter", "env", "PROMETHEUS_MULTIPROC_DIR=/metrics", "python", "-c", COLLECT)
    )


def total(metrics: Metrics) -> float:
    """Return the requests counted; 0 if there are none."""
    return metrics.get(("app_requests_total", frozenset()), 0.0)


def inspected_beside(pod: Pod) -> dict[str, Any]:
    """Return what ``obskit-gunicorn inspect`` says in the sidecar's container."""
    found: dict[str, Any] = json.loads(
        pod.run("exporter", "obskit-gunicorn", "inspect", "--format", "json", "/metrics")
    )
    return found


def wait_until_in_progress(read: Callable[[], Metrics], count: int) -> None:
    """Wait until so many requests are being answered."""
    key = ("gunicorn_requests_in_progress", frozenset[tuple[str, str]]())
    wait_until(lambda: read().get(key) == count, f"{count} requests are being answered")


class PodLoad(Load):
    """Load on a server in a pod."""

    def __init__(self, pod: Pod, port: int = HTTP) -> None:
        """Prepare the threads; entering the context starts them."""
        super().__init__(port)
        self._pod = pod

    def _send(self) -> None:
        try:
            sock = self._pod.connect(self._port, timeout=20)
        except OSError:
            return
        connection = http.client.HTTPConnection(HOST, self._port)
        connection.sock = sock
        outcome = ""
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                outcome = f"status {response.status}"
        except (OSError, http.client.HTTPException) as error:
            outcome = repr(error)
        finally:
            connection.close()
        with self._lock:
            if outcome:
                self.unknown.append(outcome)
            else:
                self.answered += 1


# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["app", "exporter"])
def test_the_sandbox_is_what_the_manifests_say(newest: Interpreter, name: str) -> None:
    """PID 1 has the manifest's user, no right, and nowhere to write but its volumes."""
    with pod_with(newest) as pod:
        facts = json.loads(pod.run(name, "python", "-c", FACTS))
    assert facts["pid"] == 1
    assert facts["processes"] == [1]
    assert facts["ids"] == [10001, 10001, 10001]
    assert facts["status"]["NoNewPrivs"] == "1"
    for kind in ("CapEff", "CapPrm", "CapInh", "CapBnd"):
        assert int(facts["status"][kind], 16) == 0
    writable = {"app": {"/metrics/x", "/tmp/x"}, "exporter": set()}[name]
    assert {path for path, problem in facts["refused"].items() if not problem} == writable
    assert facts["metrics"] == "0o42777"
    assert facts["bytes"] == 64 * 1024**2


def test_what_a_volume_would_hide(newest: Interpreter, tmp_path: Path) -> None:
    """A checkout below /tmp is there in a container that has a volume at /tmp."""
    command = [newest.path, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(command, check=True, timeout=60)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    shutil.copytree(Path(obskit_gunicorn.__file__).parent, packages / "obskit_gunicorn")
    inside = Interpreter(str(tmp_path / "venv/bin/python"), newest.version)
    assert tmp_path.is_relative_to("/tmp")
    with pod_with(inside) as pod:
        code = "import obskit_gunicorn; print(obskit_gunicorn.__file__)"
        assert pod.run("app", "python", "-c", code).startswith(str(packages))
        assert json.loads(pod.run("app", "python", "-c", FACTS))["refused"]["/tmp/x"] == ""


@pytest.mark.parametrize("directory", [BASE, SIDECAR], ids=lambda path: path.name)
def test_the_demo_runs_as_its_manifest_says(newest: Interpreter, directory: Path) -> None:
    """The demo serves with the command and variables of its manifest, and stops by itself."""
    files = {name: (DEMO / name).read_text() for name in ("app.py", "gunicorn.conf.py")}
    with Pod(newest, spec_of(directory), files) as pod:
        container = pod.start("app")
        container.wait_until_answers(HTTP, "/")
        for number in range(20):
            assert container.get(HTTP, f"/hello/{number}").status == 200
        wait_for_workers(pod, 4)
        container.send_signal(signal.SIGTERM)
        assert container.exit_status() == 0
        families = pod.run("app", "python", "-c", COLLECT)
        labels = frozenset({("path", "/hello/{name}"), ("code", "200")})
        assert parse_metrics(families)["demo_requests_total", labels] == 20
        assert "Traceback" not in container.log()
        assert "[ERROR]" not in container.log()


@pytest.mark.parametrize("settings", ["", "preload_app = True", "max_requests = 25"])
def test_counts_are_exact_through_a_graceful_stop(interpreter: Interpreter, settings: str) -> None:
    """A SIGTERM under load loses no request, and what was counted can be read after the end."""
    with pod_with(interpreter, settings) as pod:
        container = start(pod)
        with PodLoad(pod) as load:
            load.wait_for(100)
            container.send_signal(signal.SIGTERM)
            assert container.exit_status() == 0
        counted = tally(pod)
        assert load.answered <= counted <= load.answered + len(load.unknown)
        assert total(collected_beside(pod)) == counted
        assert total_as_others_read_it(pod.volume("metrics")) == counted


def test_a_restarted_container_begins_anew(interpreter: Interpreter) -> None:
    """After a SIGKILL of PID 1 the same volume shows the new container's requests and no others."""
    with pod_with(interpreter) as pod:
        first = start(pod)
        with PodLoad(pod) as load:
            load.wait_for(100)
        before = inspected_beside(pod)
        first.send_signal(signal.SIGKILL)
        assert first.exit_status() != 0
        assert not first.pids()

        # Nobody is there, and what they have counted still is.
        between = inspected_beside(pod)
        assert not any(between["slots"].values())
        assert total(collected_beside(pod)) == tally(pod) == load.answered
        assert ("app_livesum", frozenset()) not in collected_beside(pod)

        second = start(pod)
        generation = inspected_beside(pod)["generation"]
        assert generation["started"] > before["generation"]["started"]
        assert total(collected_beside(pod)) == total(
            parse_metrics(second.get(HTTP, "/metrics").body)
        )
        assert total(collected_beside(pod)) == 0
        with PodLoad(pod) as more:
            more.wait_for(50)
        assert total(collected_beside(pod)) == more.answered == tally(pod) - load.answered
        files = metric_files(pod.volume("metrics"))
        assert max(map(len, files.values())) <= 3


def test_another_container_sees_the_leases(newest: Interpreter) -> None:
    """Where the application's pids mean nothing its leases are seen, as long as it lives."""
    with pod_with(newest) as pod:
        container = start(pod)
        wait_until(
            lambda: sum(map(bool, inspected_beside(pod)["slots"].values())) == 3,
            "arbiter and workers hold their leases",
        )
        held = [record for record in inspected_beside(pod)["slots"].values() if record]
        assert sorted(record["role"] for record in held) == ["arbiter", "worker", "worker"]
        (arbiter,) = (record for record in held if record["role"] == "arbiter")
        assert arbiter["pid"] == 1
        assert arbiter["pid_namespace"] == os.readlink(f"/proc/{container.pid}/ns/pid")
        container.send_signal(signal.SIGKILL)
        container.exit_status()
        assert not any(inspected_beside(pod)["slots"].values())


def test_another_container_reads_the_same_numbers(interpreter: Interpreter) -> None:
    """Through its read-only mount the sidecar's container reads what the workers' own page says."""
    with pod_with(interpreter, "max_requests = 30") as pod:
        container = start(pod)
        seen = [0.0]
        with PodLoad(pod) as load:
            for _ in range(5):
                load.wait_for(40)
                seen.append(total(collected_beside(pod)))
                assert seen[-2] + 40 <= seen[-1] <= tally(pod) + 1
        beside = collected_beside(pod)
        own = parse_metrics(container.get(HTTP, "/metrics").body)
        assert total(beside) == load.answered == tally(pod)
        applications = {key for key in own if key[0].startswith("app_")}
        assert {key for key in beside if key[0].startswith("app_")} == applications
        steady = {key for key in applications if "live" not in key[0] and key[0] != "app_all"}
        assert {key: beside[key] for key in steady} == {key: own[key] for key in steady}


def test_reading_beside_never_keeps_a_generation_from_beginning(newest: Interpreter) -> None:
    """A container that reads all the time holds nothing: a restart begins anew beside it."""
    with pod_with(newest) as pod:
        pod.start("exporter", ["python", "-c", READ_ON], {"PROMETHEUS_MULTIPROC_DIR": "/metrics"})
        for _ in range(3):
            already = tally(pod)
            container = start(pod)
            with PodLoad(pod) as load:
                load.wait_for(30)
            assert total(collected_beside(pod)) == load.answered == tally(pod) - already
            container.send_signal(signal.SIGKILL)
            container.exit_status()


def test_two_applications_share_a_volume(newest: Interpreter) -> None:
    """Totals are those of both, whose pids are the same, and outlive the restart of one of them."""
    with pod_with(newest, app=apps.WSGI) as pod:
        first, second = start(pod), start(pod, port=HTTP + 1)
        with PodLoad(pod) as load, PodLoad(pod, HTTP + 1) as other:
            load.wait_for(50)
            other.wait_for(50)
        counted = load.answered + other.answered
        assert total(collected_beside(pod)) == counted == tally(pod)
        first.send_signal(signal.SIGKILL)
        first.exit_status()
        start(pod)
        with PodLoad(pod) as load:
            load.wait_for(30)
        assert total(collected_beside(pod)) == counted + load.answered == tally(pod)
        second.send_signal(signal.SIGTERM)
        assert second.exit_status() == 0


def test_a_full_volume_costs_no_request(newest: Interpreter) -> None:
    """When the volume is full the application goes on without an error, and says why once."""
    spec = copy.deepcopy(spec_of(SIDECAR))
    spec["volumes"][0]["emptyDir"]["sizeLimit"] = "32Ki"
    files = {"app.py": apps.WSGI, "gunicorn.conf.py": CONFIG.format(settings="")}
    with Pod(newest, spec, files) as pod:
        container = start(pod)
        with PodLoad(pod) as load:
            load.wait_for(100)
        assert not load.unknown
        assert container.get(HTTP, "/metrics").status == 200
        assert "sizeLimit" in container.log()
        container.send_signal(signal.SIGTERM)
        assert container.exit_status() == 0


def test_a_busy_stop_ends_within_the_graceful_timeout(newest: Interpreter) -> None:
    """PID 1 gets the SIGTERM, waits for a request no longer than it may, and ends with status 0."""
    with pod_with(newest) as pod:
        container = start(pod)
        wait_until_in_progress(lambda: collected_beside(pod), 0)
        with pod.connect(HTTP) as sock:
            sock.sendall(b"GET /block?s=60 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until_in_progress(lambda: collected_beside(pod), 1)
            container.send_signal(signal.SIGTERM)
            assert container.exit_status() == 0  # within half a minute
            assert not container.pids()


# ------------------------------------------------------------------------------------------------
# The exporter, beside the workers and in the sidecar


@pytest.fixture(name="exporter", params=[BASE, SIDECAR], ids=lambda path: path.name)
def _exporter(request: pytest.FixtureRequest) -> Path:
    """The kustomization that says where the exporter runs."""
    directory: Path = request.param
    return directory


def start_exporter(pod: Pod) -> str:
    """Start the sidecar where there is one, and return the container that has the exporter."""
    if "initContainers" not in pod.spec:
        return "app"
    pod.start("exporter").wait_until_answers(METRICS, "/-/healthy")
    return "exporter"


def test_the_exporter_counts_exactly(newest: Interpreter, exporter: Path) -> None:
    """The metrics port shows every request of all workers, also of those that were replaced."""
    with pod_with(newest, "max_requests = 30", directory=exporter) as pod:
        start_exporter(pod)
        container = start(pod)
        container.wait_until_answers(METRICS, "/metrics")
        with PodLoad(pod) as load:
            load.wait_for(150)
        assert not load.unknown
        scraped = parse_metrics(pod.get(METRICS, "/metrics").body)
        assert total(scraped) == load.answered == tally(pod)
        container.send_signal(signal.SIGTERM)
        assert container.exit_status() == 0


def test_probes_answer_while_every_worker_is_busy(newest: Interpreter, exporter: Path) -> None:
    """With all workers held up, every probe of the manifest and a scrape are answered at once."""
    with pod_with(newest, directory=exporter) as pod:
        name = start_exporter(pod)
        start(pod).wait_until_answers(METRICS, "/-/ready")
        wait_for_workers(pod, 2)
        with contextlib.ExitStack() as held_up:
            for _ in range(6):
                sock = held_up.enter_context(pod.connect(HTTP))
                sock.sendall(b"GET /block?s=60 HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises(OSError, match="timed out"):
                pod.get(HTTP, "/pid", timeout=1)
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                # Within the seconds of the manifest, once, which is enough for the kubelet.
                wait_until(lambda kind=kind: pod.probe(name, kind), f"{kind} is answered")  # type: ignore[misc]
            assert pod.get(METRICS, "/metrics").status == 200
            with pytest.raises(OSError, match="timed out"):
                pod.get(HTTP, "/pid", timeout=1)


def test_the_exporter_answers_through_the_drain(newest: Interpreter, exporter: Path) -> None:
    """While the last request is finished it still answers; then it ends, or the sidecar says no."""
    with pod_with(newest, directory=exporter) as pod:
        name = start_exporter(pod)
        container = start(pod)
        container.wait_until_answers(METRICS, "/-/ready")
        wait_for_workers(pod, 2)

        def scrape() -> Metrics:
            return parse_metrics(pod.get(METRICS, "/metrics").body)

        wait_until_in_progress(scrape, 0)
        with pod.connect(HTTP) as sock:
            sock.sendall(b"GET /sleep?s=3 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until_in_progress(scrape, 1)
            container.send_signal(signal.SIGTERM)
            for _ in range(10):
                assert pod.get(METRICS, "/metrics").status == 200
                time.sleep(0.1)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert container.exit_status() == 0
        assert not container.pids()
        assert not pod.probe(name, "readinessProbe")
        assert pod.probe(name, "livenessProbe") == (name == "exporter")


def test_the_sidecar_comes_first_and_outlives_restarts(newest: Interpreter) -> None:
    """It starts before the application, which is ready when a worker is, again after a restart."""
    with pod_with(newest) as pod:
        sidecar = pod.start("exporter")
        wait_until(lambda: pod.probe("exporter", "startupProbe"), "the sidecar has started")
        assert not pod.probe("exporter", "readinessProbe")
        for _ in range(2):
            already = tally(pod)
            container = start(pod)
            wait_until(lambda: pod.probe("exporter", "readinessProbe"), "a worker has booted")
            with PodLoad(pod) as load:
                load.wait_for(50)
            scraped = parse_metrics(sidecar.get(METRICS, "/metrics").body)
            assert total(scraped) == load.answered == tally(pod) - already
            container.send_signal(signal.SIGKILL)
            container.exit_status()
            wait_until(lambda: not pod.probe("exporter", "readinessProbe"), "no worker is there")
            assert pod.probe("exporter", "livenessProbe")
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.exit_status() == 0
        assert "Traceback" not in sidecar.log()
