"""docs/fleet.md: what it says about the store, its user, its fields and its metrics is so."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from obskit_gunicorn import ObskitGunicornConfig
from obskit_gunicorn._exporter.pages import Pages
from obskit_gunicorn._fleet import publisher, reporter, source, store
from obskit_gunicorn._fleet.publisher import Publisher, Reading
from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import Store, StoreError
from obskit_gunicorn._gunicorn.options import exporter_options, read_options
from obskit_gunicorn._scrape.source import Part
from obskit_gunicorn._store import remains
from obskit_gunicorn._store.directory import SOCKET_NAME, SlotDirectory
from tests.support import metrics_page
from tests.support.process import free_port, wait_until
from tests.support.stores import SERVERS, StoreServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[StoreServer]:
    yield from running(tmp_path / "store")


def _administrator(server: StoreServer) -> Any:
    """Return a client that may do everything."""
    return server.client()


def _rules() -> list[str]:
    """Return what the page says that the store's user needs."""
    (line,) = re.findall(r"^ACL SETUSER obskit reset (.*)$", PAGE, flags=re.MULTILINE)
    assert line.startswith("on >PASSWORD ~obskit:* ")
    return str(line).split()


def _use(server: StoreServer, folder: Path, name: str = "shop") -> None:
    """Do all that hosts do in a store."""
    text = json.dumps(["shop_orders", "shop_orders_total", {}, "Orders."]).encode()
    text += b" " * (-(len(text) + 4) % 8)
    part = Part("counter", "slot0", (struct.pack("i", len(text)) + text,), [1.0])
    url = f"redis://obskit@127.0.0.1:{server.port}/0"
    used = Store(url, name)
    publishing = Publisher(
        used,
        lambda: Reading(str(folder), "one", [part], ()),
        host="web-1",
        interval=5,
        returns=False,
    )
    publishing.publish()
    publishing.publish(ended=True)
    clock = iter(range(100))
    reading = FleetSource(used, grace_seconds=0, clock=lambda: float(next(clock)))
    assert len(reading.read().hosts) == 1
    reading.read()
    assert reading.read().hosts == []  # folded
    assert reading.read().snapshot.series_count() == 1
    used.reset()
    used.close()


@pytest.mark.parametrize("name", SERVERS)
def test_the_user_may_do_what_is_needed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the page is enough, for each store."""
    monkeypatch.setenv("OBSKIT_METRICS_REDIS_PASSWORD", "PASSWORD")
    for server in running(tmp_path / "store", server=name):
        _administrator(server).execute_command("ACL", "SETUSER", "obskit", "reset", *_rules())
        _use(server, tmp_path)


def test_the_user_may_do_nothing_else(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any one of the commands something is refused; an error names them."""
    monkeypatch.setenv("OBSKIT_METRICS_REDIS_PASSWORD", "PASSWORD")
    commands = [rule.removeprefix("+") for rule in _rules() if rule.startswith("+")]
    administrator = _administrator(server)
    for command in commands:
        administrator.execute_command("ACL", "SETUSER", "obskit", "reset", *_rules())
        administrator.execute_command("ACL", "SETUSER", "obskit", f"-{command}")
        administrator.flushall()
        administrator.script_flush()
        (tmp_path / "fleet.json").unlink(missing_ok=True)
        with pytest.raises(StoreError) as raised:
            _use(server, tmp_path)
        hint = str(raised.value).partition("ACL SETUSER ")[2]
        assert re.findall(r"\+(\S+)", hint) == commands


def test_the_overlay_has_the_same_user() -> None:
    """What docs/kubernetes.md writes into the Secret may do the same."""
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^user obskit (.*)$", text, flags=re.MULTILINE)
    assert line.split() == [rule.replace(">PASSWORD", ">$password") for rule in _rules()]


def test_a_file_of_users_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay's file of users, and the options that its Valkey has for it."""
    users = tmp_path / "users.acl"
    users.write_text(f"user default off\nuser obskit {' '.join(_rules())}\n", encoding="utf-8")
    monkeypatch.setenv("OBSKIT_METRICS_REDIS_PASSWORD", "PASSWORD")
    options = ("--aclfile", str(users), "--appendonly", "yes", "--maxmemory", "64mb")
    for server in running(tmp_path / "store", *options, server="valkey-8"):
        _use(server, tmp_path)
        with pytest.raises(redis.AuthenticationError):
            server.client().ping()


def test_each_field_is_explained(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash has the fields of the page's table, and there is no other key."""
    monkeypatch.delenv("OBSKIT_METRICS_REDIS_PASSWORD", raising=False)
    fields: set[bytes] = set()
    reset = Store.reset
    look = _administrator(server)
    look.execute_command("ACL", "SETUSER", "obskit", "on", "nopass", "+@all", "~*")

    def look_first(self: Store, lost: str = "") -> str:
        fields.update(look.hkeys("obskit:shop"))
        return reset(self, lost)

    monkeypatch.setattr(Store, "reset", look_first)
    _use(server, tmp_path)
    assert look.keys("*") == [b"obskit:shop"]
    assert look.ttl("obskit:shop") == -1
    section = PAGE.partition("### What is in it")[2].partition("\n### ")[0]
    table = "".join(re.findall(r"^\| (`[^|]*) \|", section, flags=re.MULTILINE))
    named = {name.partition("<")[0] for name in re.findall(r"`([^`]*)`", table)}
    plain = {"format", "epoch", "begun", "n", "hosts", "retired", "rev", "tombs"}
    assert plain <= named
    assert {name.decode() for name in fields if name.decode(errors="replace") in plain} == plain
    for field in fields:
        start = field.decode("latin-1")
        assert start in plain or start.startswith(tuple(named - plain)), field


def test_times_and_numbers() -> None:
    """The page has the numbers of the code."""
    for text in (
        f"at most {reporter.LAST_SECONDS:g} seconds for that, and the arbiter waits at most "
        f"{reporter.LAST_SECONDS + 2:g}",
        f"within {_word(source.ALIVE_INTERVALS)} of its intervals",
        "a silent one after an hour",
        "for ten minutes if it has ended, for a day if it may return",
        "publication gives up after four",
        "waits for a second",
        "At most four are kept",
        f"Unix socket `{SOCKET_NAME}` in the multiprocess directory (mode 0660)",
    ):
        assert text in PAGE, text
    assert f"`{remains.PREFIX}...`" in PAGE
    assert (source.FORGET_SECONDS, store.TOMB_SECONDS) == (3600, 86400)
    assert (publisher.LONGEST_SECONDS, store.CALL_SECONDS) == (4, 1)


def _word(number: int) -> str:
    return {3: "three", 4: "four"}[number]


def _families(pages: Pages, path: str) -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of our metrics on a page."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    told: list[str] = []
    body = b"".join(pages(environ, lambda status, _headers: told.append(status)))
    assert told == ["200 OK"], body
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        if family.name.startswith(("gunicorn_", "obskit_gunicorn_")):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = (family.type, labels - {"le"})
    return found


def test_metrics_of_a_host_and_of_the_fleet(server: StoreServer, tmp_path: Path) -> None:
    """The two pages have what docs/metrics.md lists for them, with these types and labels."""
    directory = SlotDirectory(str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    lease = directory.start_generation(keep=False).lease
    environment = {
        "OBSKIT_METRICS_REDIS": server.url,
        "OBSKIT_METRICS_HOST": "web-1",
        "OBSKIT_METRICS_PUSH": f"http://127.0.0.1:{free_port()}/api/v1/write",
    }
    options = exporter_options(
        read_options(ObskitGunicornConfig(), environment, source="a test", base=str(tmp_path))
    )
    assert options is not None
    pages = Pages(directory.path, options)
    pages.start()
    try:
        wait_until(lambda: "obskit_gunicorn_push_up" in _families(pages, "/metrics"), "it pushes")
        own = _families(pages, "/metrics")
        fleet = _families(pages, "/metrics/fleet")
    finally:
        pages.end()
        lease.release()
    prefixes = ("obskit_gunicorn_fleet_", "obskit_gunicorn_push_")
    listed = {row.name: row for row in metrics_page.rows() if row.name.startswith(prefixes)}
    assert {name for name in {**own, **fleet} if name.startswith(prefixes)} == set(listed)
    for name, row in listed.items():
        assert (name in own) == ("on a host's own page" not in row.absent), name
        if name in own:
            assert own[name] == (row.type, set()), name
        is_pushed = name.startswith("obskit_gunicorn_push_")
        assert fleet[name] == (row.type, {"host"} if is_pushed else set(row.labels)), name
    # What the exporter reads of its host has the label.
    per_host = [
        row.name
        for row in metrics_page.rows()
        if row.writer == "read by the exporter" and row.name in fleet
    ]
    assert len(per_host) > 10
    for name in per_host:
        assert "host" in fleet[name][1], name
        assert fleet[name][1] - {"host"} == own[name][1], name
