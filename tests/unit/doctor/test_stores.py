"""The store of many hosts and the endpoint of pushes, asked before a server starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._doctor import stores
from obskit_gunicorn._exporter.protocol import Options
from obskit_gunicorn._fleet.store import Server, Store
from tests.support.process import HOST, free_port
from tests.support.remote_write import Answer, receiver
from tests.support.stores import SERVERS, StoreServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.finding import Finding

PASSWORD = "OBSKIT_METRICS_REDIS_PASSWORD"


def _asked(**options: str) -> Finding:
    given = {"metrics_redis": None, "metrics_redis_name": "shop", "metrics_push": None, **options}
    (found,) = stores.examine(Options(**given))
    return found


@pytest.fixture(params=SERVERS)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreServer]:
    """Each server in turn."""
    yield from running(tmp_path_factory.mktemp("store"), server=request.param)


def test_a_store(store: StoreServer) -> None:
    """It says what it is, that it can be used, and how many hosts there are; it is not changed."""
    found = _asked(metrics_redis=store.url)
    assert found.level == "ok", found
    assert "(shop) can be read and written: 0 hosts, " in found.text
    server = Store(store.url, "shop").server()
    assert server is not None
    assert f"{server.name} {server.version[0]}.{server.version[1]}" in found.text
    with store.client() as client:
        assert client.keys("*") == []
        client.config_set("requirepass", "secret")
    found = _asked(metrics_redis=store.url)
    assert (found.level, PASSWORD in found.advice) == ("error", True), found


def test_a_store_that_cannot_be_written(store: StoreServer) -> None:
    """A replica, and a user who may only read, are found although all can be read there."""
    with store.client() as client:
        client.execute_command("REPLICAOF", HOST, str(free_port()))
        found = _asked(metrics_redis=store.url)
        assert "replica" in found.text + found.advice, found
        client.execute_command("REPLICAOF", "NO", "ONE")
        rights = "~* +@read +evalsha +script +time +info"
        client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", *rights.split())
        found = _asked(metrics_redis=store.url.replace("//", "//reader:x@"))
        assert found.level == "error"
        assert "hdel" in found.text + found.advice, found
        assert "ACL SETUSER" in found.advice


def test_a_store_that_says_little(store: StoreServer) -> None:
    """A user with the documented rights and no others is enough; then the version is unknown."""
    with store.client() as client:
        rights = "~obskit:shop +evalsha +script|load +time +hget +hset +hdel +hincrby +del"
        client.execute_command("ACL", "SETUSER", "exporter", "on", "nopass", *rights.split())
    found = _asked(metrics_redis=store.url.replace("//", "//exporter:x@"))
    assert found.level == "ok", found
    assert found.text.endswith("0 hosts")


def test_an_old_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that is older than those that are supported is a warning."""
    monkeypatch.setattr(Store, "server", lambda _: Server("redis", (5, 0)))
    for store in running(tmp_path_factory.mktemp("store")):
        (fine, old) = stores._store(store.url, "shop")
        assert fine.level == "ok"
        assert old.level == "warning"
        assert old.advice == "use redis 6.2 or newer"


def test_no_store() -> None:
    """Nobody at the address is an error that says what to look at."""
    found = _asked(metrics_redis=f"redis://{HOST}:{free_port()}/0")
    assert found.level == "error"
    assert "it cannot be reached" in found.text
    assert "check that it runs" in found.advice


def test_an_endpoint() -> None:
    """It is asked with a request that has no samples; what it answers is judged as at a push."""
    with receiver() as endpoint:
        found = _asked(metrics_push=endpoint.url)
        assert found.level == "ok"
        assert endpoint.url in found.text
        (request,) = endpoint.requests
        assert (request.points, request.metadata) == ([], [])
        for status, level, words in (
            (400, "ok", ""),  # it wants samples
            (401, "error", "OBSKIT_METRICS_PUSH_TOKEN"),
            (404, "error", "path"),
            (503, "error", "look at the endpoint's log"),
        ):
            endpoint.answer = lambda _, status=status: Answer(status)  # type: ignore[misc]
            found = _asked(metrics_push=endpoint.url)
            assert found.level == level, found
            assert words in found.advice, found
    found = _asked(metrics_push=f"http://{HOST}:{free_port()}/api/v1/write")
    assert found.level == "error"
    assert "see that it runs" in found.advice
