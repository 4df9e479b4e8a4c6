"""prometheus_client's default registry, made to answer for all; always in another process."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from obskit_gunicorn._scrape import witness
from obskit_gunicorn._values import sharing
from obskit_gunicorn.multiprocess import MultiProcessCollector, replace_registry
from tests.support import forks
from tests.support.forks import RemoteProcess, flatten, log_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from tests.support.forks import Nursery

_made: dict[str, Any] = {}


def _begin(path: str) -> None:
    forks.listen()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    sharing.install()
    sharing.begin(path, keep=False, user=os.geteuid(), group=os.getegid())


def _count(name: str, amount: float = 1) -> None:
    if name not in _made:
        _made[name] = Counter(name, "Help.")
    _made[name].inc(amount)


def _collect() -> dict[str, float]:
    return flatten(REGISTRY.collect())


def _page(*names: str) -> str:
    registry = REGISTRY.restricted_registry(names) if names else REGISTRY
    return generate_latest(registry).decode()


class _Others:
    """A collector whose family has the name of a metric that is shared."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("a", "Help.", 100)
        yield CounterMetricFamily("other", "Help.", 1)


class _Silent(MultiProcessCollector):
    def describe(self) -> list[Metric]:
        return []


class _SilentTheirs(TheirCollector):
    def describe(self) -> list[Metric]:
        return []


def _register_more(path: str) -> None:
    Info("build", "Help.").info({"version": "1"})
    gauge = Gauge("depth", "Help.", ["queue"])
    gauge.labels("a").set_function(lambda: 5)
    gauge.labels("b").set(7)
    for collector in (_Others(), _Silent(None, path), _SilentTheirs(None, path)):  # type: ignore[no-untyped-call]
        REGISTRY.register(collector)
    REGISTRY.set_target_info({"env": "test"})


@pytest.fixture(name="worker")
def _worker(nursery: Nursery, directory: str) -> RemoteProcess:
    """One of two workers that have counted, 1 and 2; the registry is replaced."""
    arbiter = nursery.start()
    arbiter.call(_begin, directory)
    arbiter.call(replace_registry)
    workers = [arbiter.fork(), arbiter.fork()]
    for amount, worker in enumerate(workers, start=1):
        worker.call(_count, "a", amount)
    workers[1].call(_count, "only_there")
    return workers[0]


def test_all_workers(worker: RemoteProcess) -> None:
    """Shared metrics are those of all workers, also one that this worker has not registered."""
    found = worker.call(_collect)
    assert (found["a_total"], found["only_there_total"]) == (3, 1)
    assert not [name for name in found if name.startswith(("process_", "python_gc_"))]


def test_every_family_once(worker: RemoteProcess, directory: str) -> None:
    """What files cannot hold is this worker's; a name that is taken is left out, and said."""
    worker.call(_register_more, directory)
    found = worker.call(_collect)
    assert found["a_total"] == 3
    assert found["other_total"] == 1
    assert found['build_info{version="1"}'] == 1
    assert found['target_info{env="test"}'] == 1
    assert [value for name, value in found.items() if 'queue="a"' in name] == [5]
    assert [value for name, value in found.items() if 'queue="b"' in name] == [7]
    heads = [line for line in worker.call(_page).splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert [line for line in worker.call(log_lines) if "a is exposed once" in line]


def test_chosen_names(worker: RemoteProcess, directory: str) -> None:
    """A scrape of chosen names shows these alone, whatever they come from."""
    worker.call(_register_more, directory)
    text = worker.call(_page, "a_total", "build_info", "other_total")
    names = {line.split("{")[0].split()[0] for line in text.splitlines() if line[0] != "#"}
    assert names == {"a_total", "build_info", "other_total"}
    assert "\na_total 3.0\n" in text


def test_a_directory_that_has_gone(worker: RemoteProcess, directory: str) -> None:
    """Without the directory the registry shows what this worker has, as without the call."""
    shutil.rmtree(directory)
    found = worker.call(_collect)
    assert found["a_total"] == 1
    assert "only_there_total" not in found


def test_outside_of_a_server(nursery: Nursery, directory: str) -> None:
    """In a process of no server the registry is what it was, also once metrics are shared."""
    process = nursery.start()
    process.call(replace_registry)
    process.call(_count, "a", 2)
    assert process.call(_collect)["a_total"] == 2
    assert "process_cpu_seconds_total" in process.call(_collect)
    process.call(forks.join, directory)
    assert "process_cpu_seconds_total" in process.call(_collect)
    assert "\na_total 2.0\n" in process.call(_page, "a_total")


def _replace_again() -> bool:
    before = REGISTRY.collect
    replace_registry()
    return REGISTRY.collect is before


def test_again(worker: RemoteProcess) -> None:
    """Calling it again changes nothing."""
    assert worker.call(_replace_again)


def _ask(way: str) -> None:
    if way == "sample":
        REGISTRY.get_sample_value("a_total")
    elif way == "push":
        prometheus_client.push_to_gateway(
            "example.invalid", "job", REGISTRY, handler=lambda *_, **__: lambda: None
        )
    else:
        generate_latest()


def test_who_scrapes_is_named_once(nursery: Nursery, directory: str) -> None:
    """The first scrape of any worker is logged; asking for a sample and pushing are none."""
    arbiter = nursery.start()
    arbiter.call(_begin, directory)
    workers = [arbiter.fork(), arbiter.fork()]
    for worker in workers:
        worker.call(witness.watch)
        for way in ("sample", "push"):
            worker.call(_ask, way)
        assert worker.call(log_lines) == []
    for worker in workers:
        for _ in range(2):
            worker.call(_ask, "scrape")
    (line,) = [line for worker in workers for line in worker.call(log_lines)]
    assert f"{__file__}:" in line
    assert "replace_registry()" in line


def test_replaced_later(nursery: Nursery, directory: str) -> None:
    """An application that makes the call after it was loaded is not warned."""
    process = nursery.start()
    process.call(_begin, directory)
    process.call(witness.watch)
    process.call(replace_registry)
    process.call(_ask, "scrape")
    assert process.call(log_lines) == []
