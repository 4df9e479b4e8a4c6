"""Where many hosts come together, and where metrics are pushed to: asked, and not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.finding import Finding
    from obskit_gunicorn._exporter.protocol import Options

_OLDEST = {"redis": (6, 2), "valkey": (8, 0)}
"""See docs/fleet.md."""

_HOSTS_ARE_SERVED = "until then requests and the host's own /metrics are not affected"


def examine(options: Options) -> Iterator[Finding]:
    """Yield whether the store and the endpoint of a configuration can be used."""
    if options.metrics_redis is not None:
        yield from _store(options.metrics_redis, options.metrics_redis_name)
    if options.metrics_push is not None:
        yield _endpoint(options.metrics_push)


def _store(url: str, name: str) -> Iterator[Finding]:
    from obskit_gunicorn._fleet.source import FleetSource
    from obskit_gunicorn._fleet.store import Store, StoreError

    store = Store(url, name)
    try:
        hosts = len(FleetSource(store, folds=False).read().hosts)
        store.try_to_write()
        server = store.server()
    except StoreError as error:
        text, _, advice = str(error).partition("; ")
        yield finding.error("store", Problem(text, advice or _HOSTS_ARE_SERVED))
        return
    version = "" if server is None else f", {server.name} {'.'.join(map(str, server.version))}"
    yield finding.ok("store", f"{store.where} can be read and written: {hosts} hosts{version}")
    if server is not None and server.version < _OLDEST.get(server.name, (0,)):
        oldest = ".".join(map(str, _OLDEST[server.name]))
        text = f"{store.where} is {server.name} {'.'.join(map(str, server.version))}, which is old"
        yield finding.warning("store", Problem(text, f"use {server.name} {oldest} or newer"))


def _endpoint(url: str) -> Finding:
    from obskit_gunicorn._fleet.push import PushError, try_out

    try:
        where = try_out(url)
    except PushError as error:
        text, separator, advice = str(error).rpartition(": ")
        if not separator:
            text, advice = advice, _HOSTS_ARE_SERVED
        return finding.error("push", Problem(text, advice))
    return finding.ok("push", f"{where} accepts what is pushed")
