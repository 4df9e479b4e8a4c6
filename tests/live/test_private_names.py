"""A prometheus_client that has renamed what it does not promise, and one that is too old.

A copy of the installed one stands in for its next release: one name is another one there, in every
file. The application must serve, its counts must be right, and one line must say what is missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client
import pytest

from tests.support.client import Load
from tests.support.process import GunicornProcess, Interpreter, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    max_requests = 50
"""

USED = {
    "_metric_init": "Counter._metric_init",
    "_value": "Counter._value",
    "_buckets": "Histogram._buckets",
    "_sum": "Histogram._sum",
    "choose_encoder": "exposition.choose_encoder",
    "_multi_process_cleanups": "values._multi_process_cleanups",
    "close_all_multiprocess_files": "values.close_all_multiprocess_files",
    "_path": "MultiProcessCollector._path",
    "_collector_to_names": "CollectorRegistry._collector_to_names",
    "_child_samples": "Gauge._child_samples",
    "_metrics": "Gauge._metrics",
    "_labelnames": "Gauge._labelnames",
}
"""What we use where it is there, and how the log calls it."""

NOT_USED = (
    "MetricWrapperBase",
    "MmapedDict",
    "MmapedValue",
    "MutexValue",
    "ThreadingWSGIServer",
    "_MULTIPROC_MODES",
    "_accumulate_metrics",
    "_f",
    "_file",
    "_lock",
    "_multiprocess_mode",
    "_read_metrics",
    "escape_metric_name",
    "floatToGoString",
    "mmap_key",
)
"""What we do without."""


def next_release(directory: Path, renamed: Iterable[str]) -> None:
    """Write a prometheus_client in which names are other ones."""
    package = directory / "prometheus_client"
    shutil.copytree(Path(prometheus_client.__file__).parent, package)
    pattern = re.compile(rf"\b({'|'.join(renamed)})\b")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(pattern.sub(r"\1_renamed", text), encoding="utf-8")


def serve(interpreter: Interpreter, directory: Path) -> str:
    """Serve under load with the prometheus_client of a directory; return the log."""
    paths = [str(directory), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with GunicornProcess(interpreter, CONFIG, environment=environment, exporter=True) as server:
        with Load(server.port) as load:
            load.wait_for(120)
        assert not load.unknown
        exposed = server.scrape()
        for metrics in (server.metrics(), exposed):
            assert metrics["app_requests_total", frozenset()] == server.tally() == load.answered
            assert metrics["app_max", frozenset()] == 7
        served = {("method", "GET"), ("code", "200")}
        # A request is counted after its answer.
        wait_until(
            lambda: server.scrape()["gunicorn_requests_total", frozenset(served)] >= load.answered,
            "all requests are counted",
        )
        assert server.stop() == 0
        return server.log()


@pytest.mark.parametrize("name", USED)
def test_a_name_that_is_gone_is_one_line(newest: Interpreter, tmp_path: Path, name: str) -> None:
    """Without a name that we use, counts are right, and one error line names it."""
    next_release(tmp_path, [name])
    log = serve(newest, tmp_path)
    lines = [line for line in log.splitlines() if "this release of prometheus-client" in line]
    assert len(lines) == 1, log
    assert "[ERROR]" in lines[0]
    assert USED[name] in lines[0]


def test_names_that_are_not_used(newest: Interpreter, tmp_path: Path) -> None:
    """What else prometheus_client does not promise may go without a word."""
    next_release(tmp_path, NOT_USED)
    log = serve(newest, tmp_path)
    assert "[ERROR]" not in log
    assert "this release of prometheus-client" not in log


OLD = "0.14.1"

OWN_PAGE = """
from prometheus_client import Counter

from obskit_gunicorn.multiprocess import make_wsgi_app

REQUESTS = Counter("app_requests", "Requests.")
metrics = make_wsgi_app()


def application(environ, start_response):
    REQUESTS.inc()
    return metrics(environ, start_response)
"""


@pytest.fixture(name="old_release", scope="module")
def _old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a prometheus_client that is too old, or cut the installed one to what makes it so."""
    directory = tmp_path_factory.mktemp("old")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [*command, "--target", str(directory), f"prometheus-client=={OLD}"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return directory
    shutil.rmtree(directory)
    shutil.copytree(Path(prometheus_client.__file__).parent, directory / "prometheus_client")
    # Every value is made with the help text of its metric after the label values; old ones are not.
    for name, found, left in [
        ("metrics.py", r"(labelvalues|\(b\),\)),\s*self\._documentation", r"\1"),
        ("values.py", r"\bhelp_text, \*\*kwargs", "help_text='', **kwargs"),
    ]:
        path = directory / "prometheus_client" / name
        cut, count = re.subn(found, left, path.read_text(encoding="utf-8"))
        assert count
        path.write_text(cut, encoding="utf-8")
    return directory


@pytest.mark.parametrize("shared", [False, True])
def test_a_release_that_is_too_old(newest: Interpreter, old_release: Path, shared: bool) -> None:
    """The application serves, with a page of each worker's own; one line says what to install."""
    path = os.pathsep.join([str(old_release), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path}
    with GunicornProcess(
        newest, CONFIG, OWN_PAGE, environment=environment, exporter=True, shared=shared
    ) as server:
        assert "\napp_requests_total " in server.get("/").body
        server.kill_a_worker()
        wait_until(lambda: len(server.booted_pids()) >= 3, "another worker has booted")
        assert server.stop() == 0
        log = server.log()
    (line,) = [line for line in log.splitlines() if "there are no metrics" in line]
    assert "is too old; pip install 'prometheus-client>=0.20'" in line
    assert "Traceback" not in log
    assert all("SIGKILL" in line for line in log.splitlines() if "[ERROR]" in line)
