"""Real stores for the tests of a room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._fleet import store as module
from tests.support.stores import SERVERS, StoreServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = {client[0]: client for client in module._CLIENTS}


@pytest.fixture(scope="package", params=SERVERS)
def _any_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreServer]:
    yield from running(tmp_path_factory.mktemp("store"), server=request.param)


@pytest.fixture
def any_server(_any_server: StoreServer) -> StoreServer:
    """Each server in turn, empty."""
    _any_server.client().flushall()
    return _any_server


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use each client library in turn."""
    monkeypatch.setattr(module, "_CLIENTS", (CLIENTS[request.param],))
    return str(request.param)
