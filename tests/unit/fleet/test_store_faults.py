"""A store that fails in every way that stores do: bounded, said in words, and over when it is."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from obskit_gunicorn._fleet.publisher import Publisher, Reading
from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import CALL_SECONDS, Store, StoreError
from obskit_gunicorn._fleet.store_errors import COMMANDS, PASSWORD, SENTINEL_PASSWORD
from obskit_gunicorn._scrape.source import Part
from tests.support.process import HOST, free_port, wait_until
from tests.support.store_groups import cluster, cutting_proxy, sentinel
from tests.support.stores import StoreServer, running
from tests.unit.fleet.test_store import everything, numbers, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "geheim-7"


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[StoreServer]:
    """A server that a test may do anything to."""
    yield from running(tmp_path / "store")


@pytest.fixture(name="store")
def _store(server: StoreServer, client: str) -> Iterator[Store]:
    store = Store(server.url, "default")
    yield store
    store.close()


def wrong_with(store: Store) -> str:
    """Return what is said about a store that cannot be used."""
    with pytest.raises(StoreError) as caught:
        store.enter("a")
    text = str(caught.value)
    assert text.startswith(f"{store.where}: ")
    assert "\n" not in text
    assert not text.endswith(".")
    assert caught.value.__suppress_context__
    return text.removeprefix(f"{store.where}: ")


def wrong_at(url: str, name: str = "default") -> str:
    """Return what is said about a store that cannot be used, by its address."""
    with contextlib.closing(Store(url, name)) as store:
        return wrong_with(store)


def kill_clients(server: StoreServer) -> None:
    """Close all connections but the one that says so."""
    server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# ------------------------------------------------------------------------------------------------
# Refused


def test_it_is_full(any_server: StoreServer, client: str) -> None:
    """Nothing is written by halves; what is there can be read, and a reset makes room."""
    store = Store(any_server.url, "default")
    epoch = store.enter("a").epoch
    assert publish(store, epoch)
    before = any_server.client().hgetall(store.key)
    any_server.client().config_set("maxmemory", 1)
    try:
        for call in (
            lambda: publish(store, epoch, sequence=2),
            lambda: store.fold(epoch, 0, b"sums", [("a", 1, 60.0)]),
            lambda: numbers(store, b"one"),
        ):
            with pytest.raises(StoreError, match="it is full; raise its maxmemory"):
                call()
        assert any_server.client().hgetall(store.key) == before
        assert len(everything(store).hosts) == 1
        assert store.reset() != epoch
        assert "it is full" in wrong_at(any_server.url, "new")
    finally:
        any_server.client().config_set("maxmemory", 0)
        store.close()


def test_another_type(any_server: StoreServer, client: str) -> None:
    """What holds something else under the key is left alone, and how to go on is said."""
    store = Store(any_server.url, "default")
    any_server.client().set(store.key, "mine")
    assert wrong_with(store) == (
        "the key obskit:default holds something else; delete it there (DEL obskit:default), or "
        "choose another metrics_redis_name"
    )
    with pytest.raises(StoreError, match="holds something else"):
        store.reset()
    assert any_server.client().get(store.key) == b"mine"
    any_server.client().delete(store.key)
    assert store.enter("a").epoch
    store.close()


def test_a_damaged_hash(any_server: StoreServer, client: str) -> None:
    """Whoever has removed fields by hand is told, and a reset mends it."""
    store = Store(any_server.url, "default")
    publish(store, store.enter("a").epoch)
    any_server.client().hdel(store.key, "ha")
    with pytest.raises(StoreError, match=r"is not what this release writes.*fleet reset"):
        everything(store)
    store.reset()
    assert everything(store).hosts == []
    store.close()


def test_a_replica(any_server: StoreServer, client: str) -> None:
    """It is said that it is one, and what to name in its place; a promoted one is used again."""
    control = any_server.client()
    store = Store(any_server.url, "default")
    epoch = store.enter("a").epoch
    try:
        control.execute_command("REPLICAOF", HOST, 1)
        with pytest.raises(StoreError, match="it is a replica, which accepts no writes"):
            publish(store, epoch)
        control.config_set("replica-serve-stale-data", "no")
        assert "replica that has lost its primary" in wrong_with(store)
    finally:
        control.execute_command("REPLICAOF", "NO", "ONE")
        control.config_set("replica-serve-stale-data", "yes")
    assert publish(store, epoch)
    control.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreError, match="too few replicas follow it"):
            publish(store, epoch, sequence=2)
    finally:
        control.config_set("min-replicas-to-write", 0)
    store.close()


def test_it_cannot_save(server: StoreServer, store: Store) -> None:
    """A store that refuses writes because its disk does is said to do so."""
    store.enter("a")
    control = server.client()
    control.config_set("save", "1 1")
    file = os.path.join(control.config_get("dir")["dir"], "dump.rdb")
    os.mkdir(file)  # so that not even root can write it
    control.set("x", 1)
    control.bgsave()
    wait_until(
        lambda: control.info("persistence")["rdb_last_bgsave_status"] == "err", "a failed save"
    )
    assert "it cannot save to its disk" in wrong_with_writing(store)
    os.rmdir(file)
    control.bgsave()
    wait_until(lambda: control.info("persistence")["rdb_last_bgsave_status"] == "ok", "a save")
    assert numbers(store, b"one")[1] == [0]


def wrong_with_writing(store: Store) -> str:
    """Return what is said about a store that can be read."""
    with pytest.raises(StoreError) as caught:
        numbers(store, b"one")
    return str(caught.value)


def test_no_scripts(tmp_path: Path, client: str) -> None:
    """A store without a command that is needed is said to lack it; arguments are not repeated."""
    for server in running(tmp_path / "store", "--rename-command", "EVALSHA", ""):
        text = wrong_at(server.url)
        assert "unknown command 'EVALSHA'); allow EVALSHA and SCRIPT LOAD there" in text
        assert "obskit:" not in text


def test_no_such_database(server: StoreServer, client: str) -> None:
    """The number is wrong, which is said."""
    assert "does not have this database" in wrong_at(f"{server.url}99")


def test_too_many_clients(server: StoreServer, client: str) -> None:
    """Its limit is named."""
    control = server.client()
    control.ping()
    control.config_set("maxclients", 1)
    assert "raise its maxclients" in wrong_at(server.url)


def test_somebody_elses_script(server: StoreServer, store: Store) -> None:
    """A store that is busy says so, and works again afterwards."""
    store.enter("a")
    control = server.client()
    control.config_set("busy-reply-threshold", 50)
    other = socket.create_connection((HOST, server.port))
    other.sendall(b"EVAL 'while true do end' 0\r\n")
    wait_until(lambda: "busy with a script" in (said(store) or ""), "the script runs")
    control.execute_command("SCRIPT", "KILL")
    wait_until(lambda: said(store) is None, "the script is over")
    other.close()


def said(store: Store) -> str | None:
    """Return what is wrong, if anything."""
    try:
        store.enter("a")
    except StoreError as error:
        return str(error)
    return None


def test_no_store_at_all(client: str, tmp_path: Path) -> None:
    """Whatever else is at an address, or nothing: it is said in words."""
    port = free_port()
    assert "cannot be reached" in wrong_at(f"redis://{HOST}:{port}")
    assert "cannot be reached" in wrong_at("redis://nowhere.invalid")
    assert "cannot be reached" in wrong_at(f"redis://{'a' * 70}.b")
    assert "its socket" in wrong_at(f"unix://{tmp_path}/no.sock")
    with socket.create_server((HOST, free_port())) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        store = Store(f"redis://{HOST}:{listener.getsockname()[1]}", "default")
        assert "neither Redis nor Valkey" in wrong_with(store)
        answering.join()


# ------------------------------------------------------------------------------------------------
# Away, and back


def test_it_does_not_answer(server: StoreServer, store: Store) -> None:
    """Nobody waits for long: neither with an open connection, nor with a new one."""
    epoch = store.enter("a").epoch
    other = Store(server.url, "default")
    server.send(signal.SIGSTOP)
    for each in (store, other):
        started = time.monotonic()
        assert f"no answer within {CALL_SECONDS:g} s" in wrong_with(each)
        assert time.monotonic() - started > CALL_SECONDS * 0.9
    with ThreadPoolExecutor(6) as threads:
        texts = [str(text) for text in threads.map(said, [store] * 6)]
    # Each has the store for a second, and waits no longer than three for his turn.
    assert {"no answer to those who have asked before" in text for text in texts} == {True, False}
    server.send(signal.SIGCONT)
    assert store.enter("a").epoch == other.enter("a").epoch == epoch
    other.close()


def test_restarted(server: StoreServer, store: Store) -> None:
    """The first call after a restart works, whether there were calls in between or none."""
    epoch = store.enter("a").epoch
    server.stop(signal.SIGKILL)
    server.start()
    assert store.enter("a").epoch != epoch
    server.stop(signal.SIGKILL)
    assert "cannot be reached" in wrong_with(store)
    assert "Connection refused" in wrong_with(store)
    server.start()
    assert store.enter("a").epoch


def test_it_is_loading(server: StoreServer, store: Store) -> None:
    """A store that has just started says so to those who ask, and is used when it is done."""
    pipe = server.client().pipeline(transaction=False)
    for number in range(1000):
        pipe.set(f"k{number}", "x" * 100)
    pipe.execute()
    epoch = store.enter("a").epoch
    server.client().save()
    server.stop(signal.SIGKILL)
    slowly = ("--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024")
    server.start(*slowly, probe=False)
    found = wait_until(lambda: found if "disk" in (found := said(store) or "") else "", "LOADING")
    assert "it has just started, and still reads its data from its disk" in found
    wait_until(lambda: said(store) is None, "it has started")
    assert store.enter("a").epoch == epoch


def test_connections_that_are_closed(any_server: StoreServer, client: str) -> None:
    """A connection that was closed in the meantime, and a script that was forgotten, are no fault.

    So a restart of a load balancer and SCRIPT FLUSH are not noticed at all.
    """
    store = Store(any_server.url, "default")
    epoch = store.enter("a").epoch
    for sequence in range(1, 6):
        any_server.client().execute_command("SCRIPT", "FLUSH")
        assert publish(store, epoch, sequence=sequence)
        kill_clients(any_server)
        assert store.enter("a").sequence == sequence
    store.close()


def test_everything_is_removed(any_server: StoreServer, client: str) -> None:
    """FLUSHALL is noticed by the next publication, and by nobody as an error."""
    store = Store(any_server.url, "default")
    epoch = store.enter("a").epoch
    assert publish(store, epoch)
    any_server.client().flushall()
    assert not publish(store, epoch, sequence=2)
    assert everything(store).epoch == ""
    assert store.enter("a").epoch not in ("", epoch)
    store.close()


def test_evicted(server: StoreServer, store: Store) -> None:
    """Where others fill the memory, all of the fleet is removed or nothing of it."""
    control = server.client()
    epoch = store.enter("a").epoch
    numbers(store, *(b"key %d" % number for number in range(500)))
    assert publish(store, epoch, data=b"x" * 20_000)
    fields = control.hlen(store.key)
    control.config_set("maxmemory-policy", "allkeys-lru")
    control.config_set("maxmemory", control.info("memory")["used_memory"] + 200_000)
    found = set()
    for number in range(3000):
        control.set(f"other {number}", "x" * 1000)
        found.add(control.hlen(store.key))
        if 0 in found:
            break
    assert found == {fields, 0}
    assert not publish(store, epoch, sequence=2)


# ------------------------------------------------------------------------------------------------
# An answer that is lost


@pytest.mark.parametrize("size", [0, 1, 5, 9])
def test_an_answer_that_is_cut(server: StoreServer, client: str, size: int) -> None:
    """Whether a publication was set is found out, and it is set once."""
    with cutting_proxy(server.port) as proxy:
        store = Store(f"redis://{HOST}:{proxy.port}", "default")
        do_everything(store)  # so that no answer is about a script that is not known
        epoch = store.enter("a").epoch
        proxy.lets_through = size
        assert not publish(store, epoch)  # it was repeated, and had been set before
        assert proxy.cuts == 1
        assert store.enter("a").sequence == 1
        proxy.lets_through = size
        assert store.enter("a").epoch == epoch
        proxy.lets_through = size
        fetched = everything(store)
        assert [host.incarnation for host in fetched.hosts] == ["a"]
        proxy.lets_through = size
        assert not store.fold(epoch, 0, b"sums", [("a", 1, 60.0)])
        assert everything(store).rev == 1
        proxy.lets_through = size
        new = store.reset(epoch)
        assert store.reset(epoch) == new
        assert proxy.cuts == 5
        store.close()


def test_a_publisher_whose_answers_are_cut(
    server: StoreServer, client: str, tmp_path: Path
) -> None:
    """What it publishes counts once, wherever the connection breaks."""
    with cutting_proxy(server.port) as proxy:
        counted = [0.0]

        def read() -> Reading:
            parts = [Part("counter", "", KEYS, [counted[0]])]
            return Reading(str(tmp_path), "generation", parts, ())

        publisher = Publisher(
            Store(f"redis://{HOST}:{proxy.port}", "default"),
            read,
            host="web-1",
            interval=1.0,
            returns=False,
        )
        source = FleetSource(Store(server.url, "default"))
        for size in [*range(14), *range(12)]:
            counted[0] += 1
            proxy.lets_through = size
            publisher.publish()
            source.read()
            (host,) = source._hosts.values()
            (part,) = host.parts
            assert part.packed.numbers == array("d", [counted[0]])
        assert proxy.cuts > 12


KEYS = [b'["requests_total", "requests_total", {}, "Requests."]']


# ------------------------------------------------------------------------------------------------
# Who may


@pytest.fixture(name="no_passwords", autouse=True)
def _no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PASSWORD, SENTINEL_PASSWORD):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def test_a_password_that_changes(
    server: StoreServer,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new one is read when the store wants it, in the same call; none is ever shown."""
    control = server.client()
    control.ping()
    control.config_set("requirepass", SECRET)
    missing = wrong_with(store)
    assert missing == f"it wants a password; set {PASSWORD} or {PASSWORD}_FILE"
    monkeypatch.setenv(PASSWORD, "falsch-1")
    wrong = wrong_with(store)
    assert wrong.startswith(f"it does not accept the user or the password; correct {PASSWORD}")
    monkeypatch.setenv(PASSWORD, SECRET)
    epoch = store.enter("a").epoch
    monkeypatch.delenv(PASSWORD)
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(file))
    for number in range(3):
        control.config_set("requirepass", f"{SECRET}-{number}")
        file.write_text(f"{SECRET}-{number}\n")
        kill_from_inside(control)
        assert store.enter("a").epoch == epoch
    file.unlink()
    kill_from_inside(control)
    assert store.enter("a").epoch == epoch  # the one that is known is good
    control.config_set("requirepass", SECRET)
    kill_from_inside(control)
    gone = wrong_with(store)
    assert f"{PASSWORD}_FILE: {file} cannot be read: No such file" in gone
    shown = [missing, wrong, gone, repr(store), caplog.text, repr(store._link)]
    assert not any(each in text for each in (SECRET, "falsch") for text in shown)


def kill_from_inside(control: Any) -> None:
    """Close all other connections, by one that needs no new password."""
    control.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_a_password_that_is_not_wanted(
    server: StoreServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without one says so; it is not left to chance which client is installed."""
    monkeypatch.setenv(PASSWORD, SECRET)
    text = wrong_with(store)
    assert text.startswith("it has no password")
    assert SECRET not in text
    monkeypatch.delenv(PASSWORD)
    assert store.enter("a").epoch


def test_exactly_the_commands_that_are_said(any_server: StoreServer, client: str) -> None:
    """A user who may do what is documented can do everything, and without any of it nothing."""
    control = any_server.client()
    where = any_server.url.replace("//", f"//metrics:{SECRET}@")
    allowed = COMMANDS.split()
    try:
        for missing in ["", *allowed]:
            left = [each for each in allowed if each != missing]
            control.execute_command(
                *("ACL", "SETUSER", "metrics", "reset", "on", f">{SECRET}", "~obskit:default"),
                *left,
            )
            control.flushall()
            control.execute_command("SCRIPT", "FLUSH")
            store = Store(where, "default")
            if missing:
                with pytest.raises(StoreError, match="its user may not do all that is") as caught:
                    do_everything(store)
                assert f"ACL SETUSER <user> ~obskit:default {COMMANDS}" in str(caught.value)
                assert SECRET not in str(caught.value)
            else:
                do_everything(store)
                with pytest.raises(StoreError, match="its user may not do all that is needed"):
                    Store(where, "other").enter("a")
            store.close()
    finally:
        control.execute_command("ACL", "DELUSER", "metrics")


def do_everything(store: Store) -> None:
    """Do everything that a fleet does."""
    epoch = store.enter("a").epoch
    numbers(store, b"one")
    assert publish(store, epoch)
    assert publish(store, epoch, sequence=2)
    everything(store)
    assert store.fold(epoch, 0, b"sums", [("a", 2, 60.0)])
    store.size()
    store.reset()


# ------------------------------------------------------------------------------------------------
# Ways to it


def test_a_socket(tmp_path: Path, client: str) -> None:
    """A store is reached by a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="obskit-") as folder:  # a socket's path is short
        for server in running(tmp_path / "store", "--unixsocket", f"{folder}/s"):
            store = Store(f"unix://{folder}/s?db=3", "default")
            do_everything(store)
            assert server.client(db=3).exists(store.key)
            store.close()


def tls_server(folder: Path, authority: trustme.CA, name: str, *options: str) -> StoreServer:
    """Return a started server that speaks TLS only."""
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert(name)
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    server = StoreServer(folder / "store")
    server.start(
        *("--port", "0", "--tls-port", str(server.port)),
        *("--tls-cert-file", str(folder / "server.pem")),
        *("--tls-key-file", str(folder / "server.pem")),
        *("--tls-ca-cert-file", str(folder / "ca.pem"), *options),
        probe=False,
    )
    wait_until(lambda: listens(server.port), "it listens")
    return server


def listens(port: int) -> bool:
    """Return whether anything listens at a port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_tls(tmp_path: Path, client: str) -> None:
    """It is spoken by rediss://, and its certificate has to be signed for the name in the address.

    By each client, whatever it checks by itself.
    """
    authority = trustme.CA()
    server = tls_server(tmp_path, authority, HOST, "--tls-auth-clients", "no")
    try:
        signed = f"ssl_ca_certs={tmp_path}/ca.pem"
        address = f"rediss://{HOST}:{server.port}/0"
        for good in (f"{address}?{signed}", f"{address}?ssl_cert_reqs=none"):
            store = Store(good, "default")
            do_everything(store)
            store.close()
        untrusted = wrong_at(address)
        assert "no TLS connection" in untrusted
        assert "ssl_ca_certs in the address" in untrusted
        other_name = address.replace(HOST, "localhost")
        assert "no TLS connection" in wrong_at(f"{other_name}?{signed}")
        lax = Store(f"{other_name}?{signed}&ssl_check_hostname=false", "default")
        assert lax.enter("a").epoch
        lax.close()
        plain = wrong_at(f"redis://{HOST}:{server.port}")
        assert "rediss:// if it speaks TLS" in plain
        no_file = wrong_at(f"{address}?ssl_ca_certs={tmp_path}/no.pem")
        assert "No such file" in no_file
    finally:
        server.stop(signal.SIGKILL)


def test_no_tls(server: StoreServer, client: str) -> None:
    """A port that does not speak it is found out in time."""
    text = wrong_at(server.url.replace("redis:", "rediss:"))
    assert "its port does not speak TLS (then redis:// is right)" in text


def test_tls_on_both_sides(tmp_path: Path, client: str) -> None:
    """A store may want a certificate of ours."""
    authority = trustme.CA()
    server = tls_server(tmp_path, authority, HOST, "--tls-auth-clients", "yes")
    try:
        own = authority.issue_cert("web-1")
        own.private_key_pem.write_to_path(tmp_path / "own.key")
        own.cert_chain_pems[0].write_to_path(tmp_path / "own.pem")
        address = f"rediss://{HOST}:{server.port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        store = Store(
            f"{address}&ssl_certfile={tmp_path}/own.pem&ssl_keyfile={tmp_path}/own.key", "default"
        )
        do_everything(store)
        store.close()
        text = wrong_at(address)
        assert "ssl_certfile and ssl_keyfile this host's own" in text
    finally:
        server.stop(signal.SIGKILL)


def test_sentinels(tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary is found by the sentinels, and after a failover the new one, in the same call."""
    options = ["--requirepass", SECRET, "--masterauth", SECRET, "--repl-diskless-sync-delay", "0"]
    primary = StoreServer(tmp_path / "one", *options).start()
    options += ["--replicaof", f"{HOST} {primary.port}"]
    replica = StoreServer(tmp_path / "two", *options).start()
    monkeypatch.setenv(PASSWORD, SECRET)
    try:
        with sentinel(tmp_path / "s", primary, f"sentinel auth-pass main {SECRET}") as watching:
            watching.looks_often()
            wait_until(watching.knows_a_replica, "the sentinel knows the replica")
            nobody = f"{HOST}:{free_port()}"
            store = Store(f"redis+sentinel://{nobody},{HOST}:{watching.port}/main/0", "default")
            epoch = store.enter("a").epoch
            assert publish(store, epoch)
            wait_until(
                lambda: replica.client(password=SECRET).hget(store.key, "ha"), "it is replicated"
            )
            wait_until(lambda: watching.fails_over_to(replica.port), "a failover")
            # Which the sentinel does as well, some seconds later.
            primary.client(password=SECRET).execute_command("REPLICAOF", HOST, replica.port)
            assert store.enter("a").epoch == epoch
            assert publish(store, epoch, sequence=2)
            assert replica.client(password=SECRET).hget(store.key, "ha").startswith(b"2 ")
            unknown = wrong_at(f"redis+sentinel://{HOST}:{watching.port}/typo")
            assert "no sentinel knows a primary named typo" in unknown
            nowhere = wrong_at(f"redis+sentinel://{nobody}/main")
            assert "no sentinel knows" in nowhere
            assert SECRET not in unknown + nowhere
            store.close()
    finally:
        for server in (primary, replica):
            server.stop(signal.SIGKILL)


def test_a_primary_that_is_killed(tmp_path: Path, client: str) -> None:
    """Its sentinels make another one the primary, and soon it is used; nothing hangs meanwhile."""
    primary = StoreServer(tmp_path / "one", "--repl-diskless-sync-delay", "0").start()
    replica = StoreServer(tmp_path / "two", "--replicaof", f"{HOST} {primary.port}").start()
    try:
        with sentinel(tmp_path / "s", primary) as watching:
            watching.looks_often()
            wait_until(watching.knows_a_replica, "the sentinel knows the replica")
            store = Store(f"redis+sentinel://{HOST}:{watching.port}/main", "default")
            epoch = store.enter("a").epoch
            wait_until(lambda: replica.client().exists(store.key), "it is replicated")
            primary.send(signal.SIGSTOP)
            wait_until(lambda: said(store) is None, "another one is the primary")
            assert store.enter("a").epoch == epoch
            assert publish(store, epoch)
            assert replica.client().hexists(store.key, "ha")
            store.close()
    finally:
        for server in (primary, replica):
            server.stop(signal.SIGKILL)


def test_sentinels_with_a_password(
    server: StoreServer, tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have their own, which is not the store's."""
    with sentinel(tmp_path / "s", server, f'requirepass "{SECRET}"') as watching:
        wait_until(lambda: listens(watching.port), "the sentinel listens")
        store = Store(f"redis+sentinel://{HOST}:{watching.port}/main", "default")
        for value in ("", "falsch-1"):
            monkeypatch.setenv(SENTINEL_PASSWORD, value)
            text = wrong_with(store)
            assert f"set {SENTINEL_PASSWORD} or {SENTINEL_PASSWORD}_FILE" in text
            assert not value or value not in text
        monkeypatch.setenv(SENTINEL_PASSWORD, SECRET)
        assert wait_until(lambda: said(store) is None, "the primary is found")
        store.close()


def test_a_cluster_of_one(tmp_path: Path, client: str) -> None:
    """A store that is a cluster by itself is used like any other."""
    with cluster(tmp_path, 1) as one:
        store = Store(one.nodes[0].url, "default")
        do_everything(store)
        assert "does not have this database" in wrong_at(one.nodes[0].url.replace("/0", "/1"))
        store.close()


def test_a_cluster(tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may be any node; the key may move while it is used; a node may go."""
    key = "obskit:default"
    with cluster(tmp_path, 3, "--cluster-require-full-coverage", "no") as three:
        owner, other = three.owner(key), three.other(key)
        third = next(node for node in three.nodes if node not in (owner, other))
        user = ("metrics", "reset", "on", f">{SECRET}", "~obskit:*", *COMMANDS.split())
        for node in three.nodes:
            node.client().execute_command("ACL", "SETUSER", *user, "+asking", "+cluster|slots")
        monkeypatch.setenv(PASSWORD, SECRET)
        store = Store(f"redis://metrics@{HOST}:{other.port}", "default")
        epoch = store.enter("a").epoch
        assert publish(store, epoch)
        assert owner.client().exists(key)

        # A slot moves: the key is there before the slot is.
        ids, slot = three.ids(), owner.client().execute_command("CLUSTER", "KEYSLOT", key)
        for node, what, whose in ((third, "IMPORTING", owner), (owner, "MIGRATING", third)):
            node.client().execute_command("CLUSTER", "SETSLOT", slot, what, ids[whose])
        assert publish(store, epoch, sequence=2)
        owner.client().execute_command("MIGRATE", HOST, third.port, key, 0, 5000)
        fresh = Store(f"redis://metrics@{HOST}:{other.port}", "default")
        assert publish(store, epoch, sequence=3)
        assert fresh.enter("a").sequence == 3
        for node in (third, owner, other):
            node.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[third])
        assert publish(store, epoch, sequence=4)
        assert publish(fresh, epoch, sequence=5)
        assert third.client().exists(key)

        # The node in the address goes, and the connection to the one with the key is lost.
        other.stop(signal.SIGKILL)
        assert publish(store, epoch, sequence=6)
        kill_clients(third)
        wait_until(lambda: said(store) is None, "another node is asked")
        assert publish(store, epoch, sequence=7)

        # The node with the key goes.
        third.stop(signal.SIGKILL)
        wait_until(lambda: said(store) is not None, "it is gone")
        assert "cannot be reached" in wrong_with(store) or "cluster is down" in wrong_with(store)
        for each in (store, fresh):
            each.close()


# ------------------------------------------------------------------------------------------------
# Nothing is left


def test_nothing_is_left_of_failures(
    server: StoreServer, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 failures of many kinds leave no descriptor and no thread behind, and close() none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what tests have left before
    store = Store(server.url, "default")
    store.enter("a")
    descriptors, threads = open_descriptors(), threading.active_count()
    control = server.client()
    control.ping()
    for number in range(200):
        if number % 4 == 0:
            control.config_set("requirepass", SECRET)
            kill_from_inside(control)
            wrong_with(store)
            control.config_set("requirepass", "")
        elif number % 4 == 1:
            kill_from_inside(control)
            store.enter("a")
        elif number % 4 == 2:
            wrong_at(f"redis://{HOST}:{server.port}/99")
        else:
            wrong_at(f"redis+sentinel://{HOST}:{server.port}/main")
    store.enter("a")
    gc.collect()
    assert open_descriptors() <= descriptors + 1  # the one of control
    assert threading.active_count() == threads
    control.close()
    store.close()
    store.close()
    gc.collect()
    assert open_descriptors() < descriptors + 1
    assert store.enter("a").epoch
    store.close()


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
