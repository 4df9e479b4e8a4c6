"""What is known of classes of workers, without a server."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from gunicorn.workers.base import Worker
from gunicorn.workers.gasgi import ASGIWorker
from gunicorn.workers.ggevent import GeventPyWSGIWorker, GeventWorker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from tornado.wsgi import WSGIContainer
from uvicorn_worker import UvicornH11Worker

from obskit_gunicorn._gunicorn import seams
from obskit_gunicorn._gunicorn.worker_classes import capacity, kind_of

SETTINGS = SimpleNamespace(threads=3, worker_connections=50)


@pytest.mark.parametrize(
    ("base", "requests", "expected"),
    [
        (SyncWorker, "hooks", 1),
        (ThreadWorker, "hooks", 3),
        (GeventWorker, "hooks", 50),
        (GeventPyWSGIWorker, "wsgi", 50),
        (ASGIWorker, "asgi", 50),
        (UvicornH11Worker, "uvicorn", None),
        (Worker, "", None),
    ],
)
def test_a_class_is_known_by_what_it_is_derived_from(
    base: type, requests: str, expected: int | None
) -> None:
    """Of a class under any name is known what is known of its base."""
    for worker_class in (base, type("Mine", (base,), {})):
        assert kind_of(worker_class).requests == requests
        assert capacity(worker_class, SETTINGS) == expected


def test_a_server_of_ones_own() -> None:
    """A gevent worker with another server is handed to it, and calls no hooks."""
    mine = type("Mine", (GeventWorker,), {"server_class": object})
    assert kind_of(mine).requests == "wsgi"
    assert kind_of(mine).connections == ""


def _frozen() -> web.Application:
    application = web.Application()
    application.freeze()
    return application


@pytest.mark.parametrize(
    ("seam", "application", "expected"),
    [
        ("tornado", WSGIContainer(lambda *args: []), "a WSGI application"),
        ("aiohttp", _frozen(), "can be given a middleware"),
        ("aiohttp", object(), "aiohttp.web.Application"),
        ("uvicorn", lambda: None, "an ASGI 3 application"),
    ],
)
def test_an_application_that_cannot_be_counted(
    caplog: pytest.LogCaptureFixture, seam: str, application: Any, expected: str
) -> None:
    """It is left as it is, nothing is made that would be shown as 0, and one line says so."""

    def make(**kwargs: Any) -> Any:
        raise AssertionError("nothing is to be shown")

    worker = SimpleNamespace(wsgi=application)
    with caplog.at_level(logging.WARNING, "obskit_gunicorn"):
        seams.count(worker, seam, make)
    assert worker.wsgi is application
    (record,) = caplog.records
    assert "requests are not counted" in record.getMessage()
    assert expected in record.getMessage()
