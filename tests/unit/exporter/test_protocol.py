"""What arbiter and exporter say to each other, and what the exporter takes from its arbiter."""

from __future__ import annotations

import json
import logging
import socket
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from gunicorn.config import Config

from obskit_gunicorn._exporter import program
from obskit_gunicorn._exporter.logs import settings_of
from obskit_gunicorn._exporter.protocol import BOOTED, STOP, Options, Order

if TYPE_CHECKING:
    import pytest


def test_order_of_another_release() -> None:
    """Fields that one of two releases does not know are left out, or have their defaults."""
    order = Order(Options(metrics_bind="x"), "/directory", {"loglevel": "debug"}, sys_path=[])
    told = json.loads(order.to_json())["order"]
    assert Order.from_dict(told) == order
    told["new"] = 1
    del told["ended"], told["logging"]
    assert Order.from_dict(told).logging == {}


def test_control_socket_that_does_not_block() -> None:
    """Nothing to read is no end; a message and the end of file are what they are."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    pages: Any = SimpleNamespace(has_booted=False, is_replaced=False)
    with ours, theirs:
        assert program._continues(theirs, pages, 0.01)
        ours.send(BOOTED + STOP)
        assert program._continues(theirs, pages)
        assert pages.has_booted
        assert not program._continues(theirs, pages)
        ours.close()
        assert not program._continues(theirs, pages)


def test_settings_of_the_log() -> None:
    """What differs from the default goes to the exporter; what has no name stays, by its name."""
    settings = Config()
    assert settings_of(settings) == ({}, [])
    settings.set("logconfig_dict", {"handlers": {"one": {"()": logging.StreamHandler}}})
    settings.set("errorlog", "relative.log")
    found, lost = settings_of(settings)
    assert found["logconfig_dict"] == {"handlers": {"one": {"()": "ext://logging.StreamHandler"}}}
    assert found["errorlog"].startswith("/")
    assert lost == []
    settings.set("logconfig_dict", {"filters": {"one": {"()": lambda: None}}})
    found, lost = settings_of(settings)
    assert lost == ["logconfig_dict"]
    assert found.keys() == {"errorlog"}


def test_logger_class_of_the_configuration_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that the configuration file defines is not asked for where there is no such file."""
    module = ModuleType("__config__")
    exec("from gunicorn.glogging import Logger\nclass Mine(Logger): pass", vars(module))
    monkeypatch.setitem(sys.modules, "__config__", module)
    settings = Config()
    settings.set("logger_class", module.Mine)
    assert settings_of(settings) == ({}, ["logger_class"])
