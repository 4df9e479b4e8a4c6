"""The status that the live page and ``top`` show, read from real directories."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from obskit_gunicorn._exporter.live_page import render
from obskit_gunicorn._exporter.pages import Pages
from obskit_gunicorn._exporter.status import STATUS_VERSION, StatusReader, number, quantile
from obskit_gunicorn._gunicorn.options import exporter_options, read_options
from obskit_gunicorn.config import ObskitGunicornConfig
from tests.support.forks import Nursery, act, join
from tests.support.process import HOST, free_port

DOCUMENTED = Path(__file__).parents[3] / "docs" / "page.md"
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[31m"


def _be_worker() -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(role="worker", state="booted")


def _count(directory: str) -> None:
    join(directory)
    _be_worker()
    for code, amount in (("200", 3), ("204", 1), ("500", 2)):
        labels = {"method": "GET", "code": code}
        act("counter", "gunicorn_requests", "inc", amount, labels=labels)
    for seconds in (1.3, 1.3, 1.3, 2.7):
        act("histogram", "gunicorn_request_duration_seconds", "observe", seconds)


def _fields(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(_fields, value.values()))
    return set[str]().union(*map(_fields, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.5, 1.5), (0.25, 1.0), (0.9, 2.0), (0.05, 0.2), (1.0, 2.0)],
)
def test_quantiles(share: float, expected: float) -> None:
    """Inside a bucket it is linear, and beyond the last bound it is that bound."""
    buckets = [(1.0, 5.0), (2.0, 15.0), (math.inf, 20.0)]
    found = quantile(share, buckets)
    assert found == pytest.approx(expected)


def test_no_quantile_without_requests() -> None:
    """Nothing was observed, so there is nothing to say."""
    assert quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]) is None


def test_numbers_for_json() -> None:
    """What JSON cannot hold is unknown; whole numbers stay whole."""
    assert [number(each) for each in (math.inf, math.nan, 3.0, 0.5)] == [None, None, 3, 0.5]


def test_figures(nursery: Nursery, directory: str) -> None:
    """Requests are added up by class, over all workers, and shown for each of them."""
    processes = [nursery.start() for _ in range(2)]
    for process in processes:
        process.call(_count, directory)
    status = StatusReader(lambda: directory).read()
    assert status["version"] == STATUS_VERSION
    assert status["requests"]["total"] == {"2xx": 8, "5xx": 4}
    assert status["requests"]["duration"]["count"] == 8
    assert 1 < status["requests"]["duration"]["p50"] < 2
    assert 2 < status["requests"]["duration"]["p99"] < 5
    rows = status["workers"]["list"]
    assert {row["pid"] for row in rows} == {process.pid for process in processes}
    for row in rows:
        assert (row["state"], row["requests"]) == ("booted", 6)
        assert 0 < row["age_seconds"] < 3600
        assert row["memory_bytes"] > 1 << 20
        assert row["cpu_seconds"] >= 0
    processes[0].kill()
    later = StatusReader(lambda: directory).read()
    assert [row["pid"] for row in later["workers"]["list"]] == [processes[1].pid]
    assert later["requests"]["total"] == {"2xx": 8, "5xx": 4}


def test_largest_metrics(nursery: Nursery, directory: str) -> None:
    """The metrics with most series come first, with the label that makes them."""
    process = nursery.start()
    process.call(join, directory)
    reader = StatusReader(lambda: directory)
    for many in (20, 1500, 1600):  # small ones are looked through, large ones when they grow
        for at in range(many):
            process.tell(act, "counter", "wide", "inc", 1, labels={"who": str(at), "what": "x"})
            process.answer()
        (first, *_) = reader.read()["metrics"]
        expected = {"name": "wide", "series": many, "label": "who", "label_values": many}
        assert first == expected == reader.read()["metrics"][0]


@pytest.mark.parametrize("path", [None, "/nowhere/at/all"])
def test_no_directory(path: str | None) -> None:
    """Without a directory there are figures too, and none is made up."""
    status = StatusReader(lambda: path).read()
    assert status["directory"]["usable"] is False
    assert status["requests"]["duration"] is None
    assert status["workers"]["list"] == []
    json.dumps(status, allow_nan=False)
    assert "No worker holds a slot." in render(status, ["/metrics"])


def test_every_field_is_documented(nursery: Nursery, directory: str) -> None:
    """The page of the format has every field, and its example is what is read."""
    nursery.start().call(_count, directory)
    page = DOCUMENTED.read_text(encoding="utf-8")
    example = json.loads(page.partition("```json\n")[2].partition("```")[0])
    status = StatusReader(lambda: directory).read()
    assert list(example) == list(status)
    for name in ("requests", "workers", "directory"):
        assert set(example[name]) == set(status[name])
    assert set(example["workers"]["list"][0]) == set(status["workers"]["list"][0])
    assert set(example["metrics"][0]) == set(status["metrics"][0])
    table = page.partition("| field | meaning |")[2]
    given = {"2xx", "5xx", "killed", "timeout", "corrupted", "empty"}  # classes and reasons
    for name in _fields(example) - given:
        assert f"`{name}`" in table, name


def test_those_who_ask_together_share(nursery: Nursery, directory: str) -> None:
    """However many ask at once, the directory is read a few times."""
    nursery.start().call(_count, directory)
    read = []
    gate = threading.Event()

    def path() -> str:
        read.append(1)
        gate.wait(30)
        return directory

    reader = StatusReader(path)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(reader.read())) for _ in range(20)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert all(answer["requests"]["total"] for answer in answers)
    assert len(read) < 20


def test_fleet(directory: str) -> None:
    """With a store there is what this process knows of it, and nobody asks the store."""
    with socket.create_server((HOST, free_port())) as store:
        store.setblocking(False)
        environment = {
            "OBSKIT_METRICS_REDIS": f"redis://127.0.0.1:{store.getsockname()[1]}/0",
            "OBSKIT_METRICS_REDIS_NAME": "shop",
            "OBSKIT_METRICS_HOST": "web-1",
        }
        read = read_options(ObskitGunicornConfig(), environment, source="a test", base="/")
        options = exporter_options(read)
        assert options is not None
        pages = Pages(directory, options)
        environ = {"PATH_INFO": "/-/status", "REQUEST_METHOD": "GET"}
        (body,) = pages(environ, lambda *_: None)
        assert json.loads(body)["fleet"] == {
            "name": "shop",
            "host": "web-1",
            "interval_seconds": 5.0,
            "store_up": None,
            "published_seconds_ago": None,
            "conflicts": 0,
        }
        with pytest.raises(BlockingIOError):
            store.accept()
        (page,) = pages({**environ, "PATH_INFO": "/"}, lambda *_: None)
        assert b"shop" in page


def test_hostile_names_are_text(nursery: Nursery, tmp_path: Path) -> None:
    """Whatever a path or a label contains is text on the page."""
    directory = tmp_path / "a<script>b"
    directory.mkdir()
    process = nursery.start()
    process.call(_count, str(directory))
    process.call(_note_hostile)
    status = StatusReader(lambda: str(directory)).read()
    status["metrics"].append({"name": HOSTILE, "series": 1, "label": HOSTILE, "label_values": 1})
    status["workers"]["exits"][HOSTILE] = 1
    status["listeners"].append({"address": HOSTILE, "waiting": 1, "limit": None, "accepted": 1})
    status["servers"].append({"version": HOSTILE, "python": HOSTILE, "worker_class": HOSTILE})
    status["fleet"] = {"name": HOSTILE, "host": HOSTILE, "store_up": None}
    text = render(status, ["/metrics", f"/{HOSTILE}"])
    assert text.count("<script") == 1  # ours
    assert "<img" not in text
    assert text.count("&lt;script&gt;") > 8
    assert os.fsencode(directory).decode().replace("<script>", "&lt;script&gt;") in text


def _note_hostile() -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(state=HOSTILE)
