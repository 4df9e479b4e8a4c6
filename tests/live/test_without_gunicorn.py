"""The applications of the examples as developers run them: one process, and no Gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.process import HOST, free_port, get, parse_metrics, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.process import Interpreter

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def running(newest: Interpreter, folder: Path, *command: str) -> Iterator[int]:
    """Run a command of the environment in a folder; give the port that ``{port}`` stands for."""
    port = free_port()
    programs = Path(newest.path).parent
    environment = {
        name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"
    }
    process = subprocess.Popen(
        [newest.path, *(word.format(port=port) for word in command)],
        cwd=folder,
        env={**environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def sample(port: int, name: str, **labels: str) -> float | None:
    """Return a sample of ``/metrics``, once the server answers."""

    def text() -> str:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return get(port, "/metrics").body
        return ""

    metrics = parse_metrics(wait_until(text, "the server answers"))
    return metrics.get((name, frozenset(labels.items())))


def post(port: int, path: str) -> int:
    """Send a POST, and return the status of the answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("POST", path, headers={"Connection": "close", "Content-Length": "0"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("reloading", [False, True])
def test_flask_run(newest: Interpreter, reloading: bool) -> None:
    """``flask run`` counts, and serves its own page; with its reloader and debugger too."""
    command = ("-m", "flask", "--app", "app", *(["--debug"] if reloading else []), "run")
    with running(newest, EXAMPLES / "flask", *command, "--port", "{port}") as port:
        assert sample(port, "shop_orders_total", product="tea") is None
        for _ in range(5):
            assert post(port, "/orders/tea/1") == 200
        assert sample(port, "shop_orders_total", product="tea") == 5


def test_runserver(newest: Interpreter) -> None:
    """Django's ``runserver`` with its reloader counts, and serves its own page."""
    command = ("manage.py", "runserver", "{port}")
    with running(newest, EXAMPLES / "django", *command) as port:
        assert sample(port, "shop_responses_total", view="hello", code="200") is None
        for _ in range(5):
            assert get(port, "/hello/Ada").status == 200
        assert sample(port, "shop_responses_total", view="hello", code="200") == 5


def test_uvicorn_reload(newest: Interpreter, tmp_path: Path) -> None:
    """``uvicorn --reload`` counts; after a reload the new process counts from zero."""
    pytest.importorskip("obskit")  # from Python 3.11 on
    folder = tmp_path / "fastapi"
    shutil.copytree(EXAMPLES / "fastapi", folder)
    command = ("-m", "uvicorn", "--reload", "--port", "{port}", "app:application")
    with running(newest, folder, *command) as port:
        assert sample(port, "shop_orders_total") == 0
        for _ in range(5):
            assert post(port, "/orders") == 200
        assert sample(port, "shop_orders_total") == 5
        with (folder / "app.py").open("a") as file:
            file.write("\n# An edit.\n")
        wait_until(lambda: sample(port, "shop_orders_total") == 0, "it has been loaded anew")
        assert post(port, "/orders") == 200
        assert sample(port, "shop_orders_total") == 1
