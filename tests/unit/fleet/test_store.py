"""What the store does, on every server that there is, by way of every client that there is."""

from __future__ import annotations

import sys
import threading
import time
import types
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._fleet import store as module
from obskit_gunicorn._fleet.store import Entry, Fetched, Store, StoreError
from tests.support.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.stores import StoreServer

EVERY_BYTE = bytes(range(256)) + b"\r\n$5\r\n"


@pytest.fixture(name="store")
def _store(any_server: StoreServer, client: str) -> Iterator[Store]:
    store = Store(any_server.url, "default")
    yield store
    store.close()


def publish(
    store: Store,
    epoch: str,
    incarnation: str = "a",
    sequence: int = 1,
    *,
    data: bytes = b"data",
    base: bytes = b"",
    figures: bytes = b"figures",
    ended: bool = False,
) -> bool:
    """Publish something."""
    return store.publish(
        epoch,
        incarnation,
        sequence,
        ended=ended,
        facts='{"host": "a host"}',
        data=data,
        base=base,
        figures=figures,
    )


def numbers(store: Store, *keys: bytes) -> tuple[str, list[int]]:
    """Have keys numbered."""
    pairs = [(blake2b(key, digest_size=12).digest(), key) for key in keys]
    return store.numbers_of(pairs, deadline=time.monotonic() + 10)


def everything(store: Store) -> Fetched:
    """Fetch all that there is."""
    return store.fetch("", 0, -1, [])


# ------------------------------------------------------------------------------------------------
# Each script


def test_the_first_one_to_enter_begins_an_epoch(store: Store) -> None:
    """Everybody after it finds the same one."""
    entry = store.enter("a")
    assert entry == Entry(entry.epoch, 0, b"", None, b"", b"")
    assert entry.epoch
    assert store.enter("b").epoch == entry.epoch
    fetched = everything(store)
    assert fetched[0] == entry.epoch
    assert abs(fetched.now - time.time()) < 5
    assert 0 <= fetched.now - fetched.begun < 5


def test_nothing_is_begun_by_reading(store: Store) -> None:
    """A fetch of a blank store finds nothing, and leaves it blank."""
    fetched = everything(store)
    assert fetched == Fetched("", fetched.now, 0.0, 0, b"", [], [])
    assert store.size() is None


def test_keys_have_one_number_each(store: Store) -> None:
    """From 0 in the order in which they come; whoever asks later is told the same."""
    epoch, found = numbers(store, b"one", EVERY_BYTE)
    assert found == [0, 1]
    assert numbers(store, b"three", EVERY_BYTE, b"one") == (epoch, [2, 1, 0])
    assert everything(store).keys == [b"one", EVERY_BYTE, b"three"]
    assert store.fetch(epoch, 2, -1, []).keys == [b"three"]
    assert store.fetch("another epoch", 2, -1, []).keys == [b"one", EVERY_BYTE, b"three"]


def test_more_keys_than_are_sent_at_once(store: Store) -> None:
    """They are numbered in several commands, as far as time allows."""
    keys = [b"%d" % number for number in range(1201)]
    epoch, found = numbers(store, *keys)
    assert found == [*range(1201)]
    pairs = [(key, key) for key in keys]
    assert store.numbers_of(pairs, deadline=time.monotonic()) == (epoch, [*range(1201, 1701)])
    assert store.numbers_of([], deadline=time.monotonic()) == ("", [])


def test_an_epoch_that_changes_between(
    store: Store, any_server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of two epochs are not mixed."""
    monkeypatch.setattr(module, "_MOST_KEYS_AT_ONCE", 1)
    run, other = store._run, Store(any_server.url, "default")
    epochs: list[str] = []

    def reset_after_one(script: str, *told: object) -> Any:
        answer = run(script, *told)
        if not epochs:
            epochs.append(other.reset())
        return answer

    monkeypatch.setattr(store, "_run", reset_after_one)
    assert numbers(store, b"one", b"two") == (epochs[0], [])
    other.close()


def test_a_publication_needs_the_next_sequence(store: Store) -> None:
    """Nothing is set by one that repeats, skips, or is of another epoch."""
    epoch = store.enter("a").epoch
    assert not publish(store, epoch, sequence=2)
    assert not publish(store, "another epoch")
    assert everything(store).hosts == []
    assert publish(store, epoch, data=EVERY_BYTE, base=b"base", figures=EVERY_BYTE)
    for sequence in (0, 1, 3):
        assert not publish(store, epoch, sequence=sequence, data=b"wrong", base=b"wrong")
    assert not publish(store, "another epoch", sequence=2)
    (host,) = everything(store).hosts
    assert (host.incarnation, host.data, host.figures) == ("a", EVERY_BYTE, EVERY_BYTE)
    assert store.enter("a") == Entry(epoch, 1, b"base", None, b"", b"")
    assert publish(store, epoch, sequence=2, ended=True)
    at, changed, published, ended, facts = everything(store).hosts[0].head.split(" ", 4)
    assert (at, changed, ended, facts) == ("2", "2", "1", '{"host": "a host"}')
    assert abs(float(published) - time.time()) < 5


def test_what_is_empty_stays_as_it_was(store: Store) -> None:
    """Data and base that have not changed are not sent again; and sequences stay numbers."""
    epoch = store.enter("a").epoch
    assert publish(store, epoch, base=b"base")
    for sequence in range(2, 13):
        assert publish(store, epoch, sequence=sequence, data=b"", figures=b"%d" % sequence)
    (host,) = everything(store).hosts
    assert host.head.startswith("12 1 ")
    assert (host.data, host.figures) == (b"data", b"12")
    assert store.enter("a").base == b"base"


def test_only_what_has_changed_is_fetched(store: Store) -> None:
    """Data only if they have changed, figures only after a publication, hosts always."""
    epoch = store.enter("a").epoch
    for name in ("a", "b", "c"):
        assert publish(store, epoch, name, data=name.encode())
    assert publish(store, epoch, "b", 2, data=b"")
    assert publish(store, epoch, "c", 2, data=b"cc")
    fetched = store.fetch(epoch, 0, 0, ["a", 1, 1, "b", 1, 1, "c", 1, 1, "gone", 7, 7])
    assert [(host.incarnation, host.data, host.figures) for host in fetched.hosts] == [
        ("a", b"", b""),
        ("b", b"", b"figures"),
        ("c", b"cc", b"figures"),
    ]
    assert [host.head.split()[:2] for host in fetched.hosts] == [
        ["1", "1"],
        ["2", "1"],
        ["2", "2"],
    ]
    another = store.fetch("another epoch", 0, 0, ["a", 1, 1, "b", 2, 1, "c", 2, 2])
    assert [host.data for host in another.hosts] == [b"a", b"b", b"cc"]


def test_folding_is_all_or_nothing(store: Store) -> None:
    """One host that has published, or one folding in between, and nothing is done."""
    epoch = store.enter("a").epoch
    for name in ("a", "b", "c"):
        assert publish(store, epoch, name, data=name.encode(), base=b"base " + name.encode())
    assert publish(store, epoch, "b", 2, data=b"")
    before = everything(store)
    assert not store.fold(epoch, 0, b"sums", [("a", 1, 60.0), ("b", 1, 60.0)])
    assert not store.fold(epoch, 0, b"sums", [("a", 1, 60.0), ("nobody", 1, 60.0)])
    assert not store.fold(epoch, 1, b"sums", [("a", 1, 60.0)])
    assert not store.fold("another epoch", 0, b"sums", [("a", 1, 60.0)])
    assert everything(store)[2:] == before[2:]
    assert store.fold(epoch, 0, EVERY_BYTE, [("a", 1, 60.0), ("b", 2, 60.0)])
    after = everything(store)
    assert (after.rev, after.retired) == (1, EVERY_BYTE)
    assert [host.incarnation for host in after.hosts] == ["c"]
    assert store.fetch(epoch, 0, 1, []).retired == b""
    assert not store.fold(epoch, 0, b"sums", [("c", 1, 60.0)])
    assert store.fold(epoch, 1, b"sums", [("c", 1, 60.0)])


def test_what_was_folded_is_remembered(store: Store) -> None:
    """A host that returns is told what others have folded, and cannot publish over it."""
    epoch = store.enter("a").epoch
    assert publish(store, epoch, data=EVERY_BYTE, base=b"base")
    assert publish(store, epoch, sequence=2, data=b"")
    assert store.fold(epoch, 0, b"sums", [("a", 2, 60.0)])
    assert store.enter("a") == Entry(epoch, 0, b"", 2, EVERY_BYTE, b"base")
    for sequence in (1, 3):
        assert not publish(store, epoch, sequence=sequence)
    assert publish(store, epoch, "a~1")


def test_tombs_expire(store: Store, any_server: StoreServer) -> None:
    """What was folded is forgotten in its time, and nothing of it stays in the store."""
    epoch = store.enter("a").epoch
    for name in ("a", "b", "c"):
        assert publish(store, epoch, name)
    assert store.fold(epoch, 0, b"sums", [("a", 1, -5.0), ("b", 1, 60.0)])
    assert store.enter("a").folded_at is None
    assert store.enter("b").folded_at == 1
    fields = {field.decode() for field in any_server.client().hkeys(store.key)}
    assert {"fb", "fdb", "fbb"} <= fields
    assert not {"ha", "da", "ga", "ba", "fa", "fda", "fba"} & fields
    assert publish(store, epoch, "a")  # as one that it has never heard of
    assert store.fold(epoch, 1, b"sums", [("a", 1, 60.0)])
    assert store.enter("a").folded_at == 1


def test_only_so_many_tombs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first."""
    monkeypatch.setattr(module, "_MOST_TOMBS", 2)
    epoch = store.enter("a").epoch
    for rev, name in enumerate("abc"):
        assert publish(store, epoch, name)
        assert store.fold(epoch, rev, b"sums", [(name, 1, 60.0)])
    assert [store.enter(name).folded_at for name in "abc"] == [None, 1, 1]


def test_a_reset_begins_anew(store: Store) -> None:
    """Everything is gone, and whoever believes in the epoch before cannot publish."""
    epoch = store.enter("a").epoch
    numbers(store, b"one")
    assert publish(store, epoch)
    assert store.fold(epoch, 0, b"sums", [("a", 1, 60.0)])
    new = store.reset()
    assert new != epoch
    fetched = everything(store)
    assert fetched == Fetched(new, fetched.now, fetched.begun, 0, b"", [], [])
    assert store.enter("a") == Entry(new, 0, b"", None, b"", b"")
    assert not publish(store, epoch)
    assert numbers(store, b"two") == (new, [0])


def test_a_loss_is_answered_once(store: Store) -> None:
    """Of all who have noticed it, one begins the new epoch, which the others find."""
    epoch = store.enter("a").epoch
    new = store.reset(epoch)
    assert new != epoch
    assert store.reset(epoch) == new
    assert store.reset("another epoch") == new


def test_another_format(store: Store, any_server: StoreServer) -> None:
    """What another release has written is left alone by everything that there is."""
    any_server.client().hset(store.key, mapping={"format": "2", "epoch": "theirs"})
    calls: list[Callable[[], object]] = [
        lambda: store.enter("a"),
        lambda: numbers(store, b"one"),
        lambda: publish(store, "theirs"),
        lambda: everything(store),
        lambda: store.fold("theirs", 0, b"", []),
        store.reset,
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"is written in format 2.*another metrics_redis_name"):
            call()
    assert any_server.client().hlen(store.key) == 2


def test_names_are_apart(store: Store, any_server: StoreServer) -> None:
    """Two fleets in one store do not see each other, and nothing else is touched."""
    any_server.client().set("else", "here")
    other = Store(any_server.url, "other")
    assert publish(store, store.enter("a").epoch)
    assert everything(other).hosts == []
    assert other.enter("a").epoch != store.enter("a").epoch
    other.close()
    assert {*any_server.client().keys()} == {b"obskit:default", b"obskit:other", b"else"}


def test_its_size(store: Store, any_server: StoreServer) -> None:
    """All that is published is counted, or nothing is said."""
    assert publish(store, store.enter("a").epoch, data=b"x" * 100_000)
    size = store.size()
    assert size is not None
    assert 100_000 < size < 150_000
    any_server.client().execute_command("ACL", "SETUSER", "default", "-memory")
    try:
        assert store.size() is None
    finally:
        any_server.client().execute_command("ACL", "SETUSER", "default", "+@all")


def test_no_key_in_time(store: Store, any_server: StoreServer) -> None:
    """Nothing of the store expires by itself."""
    publish(store, store.enter("a").epoch)
    assert any_server.client().ttl(store.key) == -1


# ------------------------------------------------------------------------------------------------
# Several at once


def test_two_publishers_race(store: Store, any_server: StoreServer) -> None:
    """Of two who publish the same sequence one is told so: none is lost, none is there twice."""
    epoch = store.enter("a").epoch
    done: list[int] = []

    def run(own: Store) -> None:
        while len(done) < 200:
            sequence = own.enter("a").sequence + 1
            if publish(own, epoch, sequence=sequence):
                done.append(sequence)

    others = [Store(any_server.url, "default") for _ in range(2)]
    threads = [threading.Thread(target=run, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [*range(1, len(done) + 1)]
    assert store.enter("a").sequence == len(done)
    for each in others:
        each.close()


def test_one_store_for_many_threads(store: Store, any_server: StoreServer) -> None:
    """Each gets its own answer, and all of them share one connection."""
    wrong: list[object] = []
    control = any_server.client()
    before = {each["id"] for each in control.client_list()}

    def run(name: str) -> None:
        try:
            epoch = store.enter(name).epoch
            for sequence in range(1, 20):
                assert publish(store, epoch, name, sequence)
                assert store.enter(name).sequence == sequence
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(f"host-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    (own,) = {each["id"] for each in control.client_list()} - before
    store.close()
    wait_until(lambda: own not in {each["id"] for each in control.client_list()}, "it is closed")


# ------------------------------------------------------------------------------------------------
# Libraries


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be installed is said."""
    monkeypatch.setattr(module, "_CLIENTS", (("no_such_client", "Redis"),))
    with pytest.raises(StoreError, match=r"client of the store: pip install 'obskit-gunicorn\["):
        Store("redis://127.0.0.1:1", "default").enter("a")


def test_an_old_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is too old is named."""
    old = types.ModuleType("old_client")
    old.__version__ = "4.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "old_client", old)
    monkeypatch.setattr(module, "_CLIENTS", (("old_client", "Redis"),))
    with pytest.raises(StoreError, match=r"old_client 4\.6\.0 is too old"):
        Store("redis://127.0.0.1:1", "default").enter("a")
