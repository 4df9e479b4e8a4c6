"""Slots, leases, generations, and a process's membership."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import stat
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._store import forks as store_forks
from obskit_gunicorn._store import identity, locks, private
from obskit_gunicorn._store.directory import (
    _OLD_LOCK_WAIT_SECONDS,
    PROTOCOL,
    SlotDirectory,
    explain,
)
from obskit_gunicorn._store.fileformat import MetricFileName
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.membership import Membership, NotYetError, membership
from obskit_gunicorn._store.writer import MetricFile
from obskit_gunicorn._values import values
from tests.support import forks
from tests.support.forks import NOBODY, Nursery, act, join, read, slot, wait_until
from tests.support.process import process_stat

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from obskit_gunicorn._store.leases import Lease, Role

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


RECORDS = {"slots.lock", "slots.generation"}


def leased(directory: str) -> dict[str, bool]:
    """Return which slots there are, and whether they are leased."""
    return {name: bool(record) for name, record in SlotDirectory(directory).records().items()}


# What remote processes do.

_leases: list[Lease] = []


def take(directory: str) -> str:
    """Take a lease."""
    lease = SlotDirectory(directory).acquire("process")
    _leases.append(lease)
    return lease.slot


def give_back() -> None:
    """Release the lease."""
    _leases.pop().release()


def begin(directory: str, *, keep: bool = False) -> tuple[str, bool]:
    """Begin a generation; return the slot and whether the directory was wiped."""
    lease, wiped, _ = SlotDirectory(directory).start_generation(keep=keep)
    _leases.append(lease)
    return lease.slot, wiped


def begin_here(path: str | None, *, keep: bool = False) -> tuple[str, bool]:
    """Begin as the arbiter of this process; return the directory and whether it was wiped."""
    wiped = membership.begin(path, keep=keep, user=os.geteuid(), group=os.getegid())
    assert membership.directory is not None
    return membership.directory.path, wiped


class TestTaking:
    """Who gets which slot."""

    def test_takes_the_lowest_free_slot(self, nursery: Nursery, directory: str) -> None:
        """Slots are handed out from 0, and one that is given back is handed out again."""
        first, second, third = (nursery.start() for _ in range(3))
        assert [one.call(take, directory) for one in (first, second)] == ["slot0", "slot1"]
        first.call(give_back)
        assert third.call(take, directory) == "slot0"
        assert leased(directory) == {"slot0": True, "slot1": True}

    @pytest.mark.parametrize("end", ["kill", "end"])
    def test_any_end_frees_the_slot(self, nursery: Nursery, directory: str, end: str) -> None:
        """A process that ends without a word gives its slot back, however it ends."""
        holder = nursery.start()
        assert holder.call(take, directory) == "slot0"
        getattr(holder, end)()
        assert leased(directory) == {"slot0": False}
        assert nursery.start().call(take, directory) == "slot0"

    def test_names_suit_every_reader(self, nursery: Nursery, directory: str) -> None:
        """A slot's name is one part of a file name and cannot be taken for a pid."""
        names = [nursery.start().call(take, directory) for _ in range(12)]
        assert all("_" not in name and not name.isdigit() for name in names)
        assert len(set(names)) == 12

    def test_only_metric_files_end_in_db(self, nursery: Nursery, directory: str) -> None:
        """Whatever else is put into the directory is no ``.db`` file."""
        holder = nursery.start()
        holder.call(join, directory)
        holder.call(act, "counter", "c", "inc")
        others = [name for name in os.listdir(directory) if not MetricFileName.parse(name)]
        assert others
        assert not any(name.endswith(".db") for name in others)

    def test_a_slot_whose_files_are_in_use_is_passed_over(
        self, nursery: Nursery, directory: str
    ) -> None:
        """A free lease is not enough: nobody gets a slot while its files have a writer."""
        writer = MetricFile(os.path.join(directory, "counter_slot0.db"))
        assert nursery.start().call(take, directory) == "slot1"
        writer.release()

    def test_passing_over_a_slot_leaves_its_lease_alone(
        self, nursery: Nursery, directory: str
    ) -> None:
        """Looking at a slot whose lease file is gone does not make its holder look ended."""
        holder = nursery.start()
        holder.call(join, directory)
        holder.call(act, "gauge_livesum", "g", "inc", 5)
        os.unlink(os.path.join(directory, "slot0.lease"))
        assert nursery.start().call(take, directory) == "slot1"
        assert forks.read_ours(directory) == {"g": 5.0}
        SlotDirectory(directory).remove_live_gauges()
        assert read(directory) == {"g": 5.0}

    def test_what_one_holder_meant_goes_with_it(self, nursery: Nursery, directory: str) -> None:
        """Taking a slot removes the last holder's gauges of mode ``all`` and ``live*`` only."""
        holder = nursery.start()
        holder.call(join, directory)
        modes = ("all", "liveall", "livesum", "livemax", "livemin", "livemostrecent")
        for mode in (*modes, "sum", "max", "min", "mostrecent"):
            holder.call(act, f"gauge_{mode}", f"g_{mode}", "set", 3)
        for kind in ("counter", "histogram", "summary"):
            holder.call(act, kind, kind, "inc" if kind == "counter" else "observe", 1)
        holder.kill()
        assert nursery.start().call(take, directory) == "slot0"
        left = {name for name in os.listdir(directory) if name.endswith((".db", ".col"))}
        both = ("counter", "histogram", "summary", "gauge_sum", "gauge_max", "gauge_min")
        assert left == {f"{prefix}_slot0.{end}" for prefix in both for end in ("db", "col")} | {
            "gauge_mostrecent_slot0.db"
        }

    def test_sixty_at_once(self, nursery: Nursery, directory: str) -> None:
        """Sixty processes that start at once on leftovers get a slot each and lose no count."""
        for number in range(5):
            old = nursery.start()
            old.call(join, directory)
            old.call(act, "counter", "c", "inc", 1000)
            if number % 2:
                old.kill()
        expected = 5 * 1000
        crowd = [nursery.start() for _ in range(60)]
        for one in crowd:
            one.tell(_count_alone, directory, 100)
        taken = [one.answer() for one in crowd]
        assert len(set(taken)) == 60
        assert read(directory)["c_total"] == expected + 60 * 100

    def test_a_missing_directory_is_an_error(self, tmp_path: Path) -> None:
        """Nothing is made behind the caller's back."""
        with pytest.raises(FileNotFoundError):
            SlotDirectory(str(tmp_path / "gone")).acquire("process")
        assert not (tmp_path / "gone").exists()

    @needs_root
    def test_an_unwritable_directory_says_so(self, nursery: Nursery) -> None:
        """Where lock and leases are there but may not be written, the error is about access."""
        with forks.public_directory() as path:
            assert nursery.start().call(take, str(path)) == "slot0"
            for name in ("slots.lock", "slot0.lease"):
                (path / name).chmod(0o644)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            opened, number = stranger.call(_opened_for_taking, str(path))
            assert number in (errno.EACCES, errno.EPERM)
            assert opened < 20

    @needs_root
    def test_another_users_slot_is_passed_over(self, nursery: Nursery) -> None:
        """A lease file that this user may not open is left to its user."""
        with forks.public_directory() as path:
            path.chmod(0o777)
            other = nursery.start()
            assert other.call(take, str(path)) == "slot0"
            other.kill()
            (path / "slot0.lease").chmod(0o600)
            (path / "slots.lock").chmod(0o666)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert stranger.call(take, str(path)) == "slot1"

    @needs_root
    def test_another_users_files_are_passed_over(self, nursery: Nursery) -> None:
        """A slot with a metric file that this user may not write is left to its user."""
        with forks.public_directory() as path:
            path.chmod(0o777)
            MetricFile(str(path / "counter_slot0.db")).release()
            (path / "counter_slot0.db").chmod(0o644)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert stranger.call(take, str(path)) == "slot1"

    def test_no_flock_is_an_error(self, directory: str, mocker: MockerFixture) -> None:
        """A file system without flock gives no lease, and leaves no lock behind."""
        mocker.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "no locks"))
        with pytest.raises(OSError, match="no locks") as caught:
            SlotDirectory(directory).acquire("process")
        assert caught.value.errno == errno.ENOLCK
        mocker.stopall()
        lease = SlotDirectory(directory).acquire("process")
        assert lease.slot == "slot0"
        lease.release()


def _count_alone(directory: str, amount: int) -> str | None:
    join(directory)
    for _ in range(amount):
        act("counter", "c", "inc")
    # On a busy machine the wait for the directory lock may have been too long for the first try.
    wait_until(_is_shared, "the counts are shared")
    return slot()


def _is_shared() -> bool:
    act("counter", "c", "inc", 0)
    return values.not_shared() == 0


def _opened_for_taking(directory: str) -> tuple[int, int | None]:
    """Return how many files are opened by a try to take a slot, and its error."""
    count = 0

    def count_opens(event: str, _arguments: object) -> None:
        nonlocal count
        count += event == "open"

    sys.addaudithook(count_opens)
    try:
        take(directory)
    except OSError as error:
        return count, error.errno
    return count, None


class TestForks:
    """Forked children and their parents' leases."""

    def test_a_child_takes_its_own(self, nursery: Nursery, directory: str) -> None:
        """A child has no lease until it needs one, and then another than its parent."""
        parent = nursery.start()
        parent.call(join, directory)
        parent.call(act, "counter", "c", "inc")
        child = parent.fork()
        assert child.call(slot) is None
        child.call(act, "counter", "c", "inc")
        assert (parent.call(slot), child.call(slot)) == ("slot0", "slot1")

    def test_a_child_does_not_keep_theplaces_slot(self, nursery: Nursery, directory: str) -> None:
        """A child that outlives its parent does not hold the parent's lease or files."""
        parent = nursery.start()
        parent.call(join, directory)
        parent.call(act, "counter", "c", "inc")
        child = parent.fork()
        assert child.call(slot) is None
        assert not forks.mapped_files(child.pid)
        parent.kill()
        assert leased(directory) == {"slot0": False}
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(act, "counter", "c", "inc")
        assert newcomer.call(slot) == "slot0"
        assert not child.has_ended()

    def test_a_childs_end_leaves_theplaces_lease(self, nursery: Nursery, directory: str) -> None:
        """Neither a child's death nor its own release ends the parent's lease."""
        parent = nursery.start()
        parent.call(join, directory)
        parent.call(act, "counter", "c", "inc")
        child = parent.fork()
        child.call(_release_process)
        child.kill()
        assert leased(directory) == {"slot0": True}

    def test_forks_beside_a_claiming_thread(self, nursery: Nursery, directory: str) -> None:
        """Long-lived children forked while a thread takes leases keep nobody out afterwards."""
        parent = nursery.start()
        children = parent.call(_fork_beside_claims, directory, 40)
        assert leased(directory) == {"slot0": False}
        assert len(children) == 40
        newcomer = nursery.start()
        assert newcomer.call(take, directory) == "slot0"
        assert leased(directory) == {"slot0": True}
        parent.call(_kill_all, children)

    def test_a_signal_handler_may_fork_while_a_lease_is_taken(
        self, nursery: Nursery, directory: str
    ) -> None:
        """A fork in a signal handler does not hang on the lock that the same thread holds."""
        assert nursery.start().call(_fork_inside, directory) == 0

    def test_a_stray_child_is_dropped_when_it_looks(self, nursery: Nursery, directory: str) -> None:
        """A child forked behind Python's back that says so takes a slot of its own."""
        parent = nursery.start()
        parent.call(join, directory)
        parent.call(act, "counter", "c", "inc")
        assert parent.call(_stray_child_slot) == "slot1"
        assert parent.call(slot) == "slot0"


def _release_process() -> None:
    membership.release()


def _fork_beside_claims(directory: str, rounds: int) -> list[int]:
    claims = SlotDirectory(directory)
    stop = threading.Event()
    errors: list[OSError] = []

    def claim() -> None:
        while not stop.is_set():
            try:
                claims.acquire("process").release()
            except OSError as error:
                errors.append(error)

    thread = threading.Thread(target=claim)
    thread.start()
    children = [forks.fork_call(threading.Event().wait) for _ in range(rounds)]
    stop.set()
    thread.join()
    assert not errors
    return children


def _kill_all(children: list[int]) -> None:
    for child in children:
        os.kill(child, 9)
        forks.reap(child)


def _fork_inside(directory: str) -> int:
    with SlotDirectory(directory).locked():
        pid = forks.fork_call(_acquire_elsewhere, directory)
    return forks.reap(pid)


def _acquire_elsewhere(directory: str) -> None:
    with store_forks.guard():
        SlotDirectory(directory).acquire("process").release()


def _stray_child_slot() -> str:
    read_end, write_end = os.pipe()
    if ctypes.PyDLL(None).fork() == 0:
        store_forks.start_over()
        os.write(write_end, membership.acquire().slot.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        return answer.read().decode()


class TestAsking:
    """Asking who holds what."""

    def test_record(self, nursery: Nursery, directory: str) -> None:
        """A leased slot's record says which process holds it and how it is."""
        holder = nursery.start()
        assert holder.call(take, directory) == "slot0"
        record = SlotDirectory(directory).records()["slot0"]
        assert record is not None
        assert record["pid"] == holder.pid
        assert record["pid_namespace"] == os.readlink("/proc/self/ns/pid")
        assert record["start_ticks"] == process_stat(holder.pid)[2]
        assert (record["role"], record["state"]) == ("process", "")

    def test_record_can_be_changed(self, nursery: Nursery, directory: str) -> None:
        """What a holder notes replaces what it noted before, also when it is shorter."""
        holder = nursery.start()
        holder.call(take, directory)
        holder.call(_note, {"state": "leaving", "reason": "x" * 500})
        holder.call(_note, {"state": "booted", "reason": ""})
        record = SlotDirectory(directory).records()["slot0"]
        assert record is not None
        assert (record["state"], record["reason"]) == ("booted", "")

    def test_a_free_slot_has_none(self, nursery: Nursery, directory: str) -> None:
        """A slot that nobody holds has no record, whatever stands in its lease file."""
        holder = nursery.start()
        holder.call(take, directory)
        holder.kill()
        assert SlotDirectory(directory).records() == {"slot0": None}

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
    def test_a_spoilt_record_is_still_a_holder(
        self, nursery: Nursery, directory: str, content: bytes
    ) -> None:
        """Who holds a slot is a matter of the lock, not of what can be read beside it."""
        holder = nursery.start()
        holder.call(take, directory)
        Path(directory, "slot0.lease").write_bytes(content)
        assert leased(directory) == {"slot0": True}

    def test_an_empty_or_missing_directory(self, directory: str) -> None:
        """An empty directory has no slots; a missing one is an error."""
        assert SlotDirectory(directory).records() == {}
        os.rmdir(directory)
        with pytest.raises(FileNotFoundError):
            SlotDirectory(directory).records()

    def test_without_the_lock_all_count_as_leased(
        self, nursery: Nursery, directory: str, mocker: MockerFixture
    ) -> None:
        """When it cannot be told who is alive, nobody is taken for dead."""
        holder = nursery.start()
        holder.call(take, directory)
        holder.kill()
        assert leased(directory) == {"slot0": False}
        for name in ("flock", "fcntl"):
            mocker.patch.object(fcntl, name, side_effect=OSError(errno.ENOLCK, "no locks"))
        assert leased(directory) == {"slot0": True}

    def test_asking_does_not_make_slots_look_leased(self, nursery: Nursery, directory: str) -> None:
        """Slots do not creep upwards while somebody asks for them in a tight loop."""
        asker = nursery.start()
        asker.tell(_ask_until_told, directory)
        claimers = [nursery.start() for _ in range(2)]
        for claimer in claimers:
            claimer.tell(_take_and_give_back, directory, 300)
        taken = [claimer.answer() for claimer in claimers]
        Path(directory, "stop").touch()
        assert asker.answer() > 10
        assert set().union(*taken) <= {"slot0", "slot1"}

    def test_asking_changes_nothing(self, nursery: Nursery, directory: str) -> None:
        """Asking makes no file and changes none."""
        holder = nursery.start()
        holder.call(take, directory)
        before = _listing(directory)
        SlotDirectory(directory).records()
        SlotDirectory(directory).generation()
        assert _listing(directory) == before

    @needs_root
    def test_a_reader_needs_no_right_to_write(self, nursery: Nursery) -> None:
        """Another user who may only read sees who is alive."""
        with forks.public_directory() as path:
            holder = nursery.start()
            holder.call(take, str(path))
            for name in os.listdir(path):
                (path / name).chmod(0o644)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert stranger.call(leased, str(path)) == {"slot0": True}
            holder.kill()
            assert stranger.call(leased, str(path)) == {"slot0": False}


def _note(facts: dict[str, Any]) -> None:
    _leases[-1].note(**facts)


def _ask_until_told(directory: str) -> int:
    asked = 0
    while not os.path.exists(os.path.join(directory, "stop")):
        SlotDirectory(directory).records()
        asked += 1
    return asked


def _take_and_give_back(directory: str, rounds: int) -> set[str]:
    taken = set()
    for _ in range(rounds):
        lease = SlotDirectory(directory).acquire("process")
        taken.add(lease.slot)
        lease.release()
    return taken


def _listing(directory: str) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in Path(directory).iterdir()
    }


class TestNote:
    """Writing beside the lease."""

    def test_never_writes_into_a_reused_descriptor(
        self, nursery: Nursery, directory: str, tmp_path: Path
    ) -> None:
        """A process whose descriptors were closed wholesale does not spoil the files it opens."""
        holder = nursery.start()
        holder.call(take, directory)
        assert holder.call(_note_after_closerange, str(tmp_path)) == [b"precious"] * 8

    def test_survives_a_full_volume(self, directory: str, mocker: MockerFixture) -> None:
        """A record that cannot be written costs neither the lease nor the call."""
        mocker.patch.object(os, "pwrite", side_effect=OSError(errno.ENOSPC, "full"))
        lease = SlotDirectory(directory).acquire("process")
        lease.note(state="booted")
        assert leased(directory) == {"slot0": True}
        lease.release()

    def test_what_is_known_before_there_is_a_lease(self, directory: str) -> None:
        """What was noted stands beside each lease that the process takes afterwards."""
        member = Membership()
        member.note(state="booted", workers=3)
        member.join(directory)
        for _ in range(2):
            member.acquire()
            record = SlotDirectory(directory).records()["slot0"]
            assert record is not None
            assert (record["state"], record["workers"]) == ("booted", 3)
            member.release()
        member.start_over()
        member.acquire()
        record = SlotDirectory(directory).records()["slot0"]
        assert record is not None
        assert "workers" not in record
        member.release()


def _note_after_closerange(place: str) -> list[bytes]:
    lease = _leases[-1]
    forks.close_descriptors()
    paths = [os.path.join(place, f"application{number}") for number in range(8)]
    for path in paths:
        os.write(os.open(path, os.O_RDWR | os.O_CREAT), b"precious")
    lease.note(state="booted")
    lease.release()
    return [Path(path).read_bytes() for path in paths]


class TestDirectoryLock:
    """The lock of the whole directory."""

    def test_is_awaited_with_a_deadline(self, directory: str) -> None:
        """Somebody who holds the lock for ever costs a bounded time and an error."""
        with SlotDirectory(directory).locked():
            other = LockedFile(os.path.join(directory, "slots.lock"), os.O_RDWR)
            assert not other.lock()
            with (
                pytest.raises(TimeoutError) as caught,
                SlotDirectory(directory).locked(wait_seconds=0.05),
            ):
                pass
            other.close()
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.filename == os.path.join(directory, "slots.lock")

    def test_is_released_by_an_exception(self, directory: str) -> None:
        """An error under the lock does not leave it locked."""
        with pytest.raises(ZeroDivisionError), SlotDirectory(directory).locked():
            raise ZeroDivisionError
        with SlotDirectory(directory).locked(wait_seconds=0):
            pass

    def test_a_stray_child_does_not_keep_it(self, nursery: Nursery, directory: str) -> None:
        """A child that C code forks under the lock, and that lives on, does not keep it locked."""
        holder = nursery.start()
        child = holder.call(_stray_child_under_lock, directory)
        with SlotDirectory(directory).locked(wait_seconds=0):
            pass
        holder.call(_kill_all, [child])

    def test_a_new_lock_file_is_followed(self, nursery: Nursery, directory: str) -> None:
        """Who waits for a lock file that is removed meanwhile takes the new one."""
        holder, waiter = nursery.start(), nursery.start()
        holder.tell(_hold_lock_until_told, directory)
        wait_until(lambda: os.path.exists(os.path.join(directory, "held")), "the lock is held")
        waiter.tell(take, directory)
        os.unlink(os.path.join(directory, "slots.lock"))
        Path(directory, "stop").touch()
        assert holder.answer() is None
        assert waiter.answer() == "slot0"
        with SlotDirectory(directory).locked(wait_seconds=0) as file:
            assert file.is_in_place()

    def test_a_link_is_refused(self, directory: str, tmp_path: Path) -> None:
        """A symbolic link in the place of the lock leads nowhere."""
        (tmp_path / "target").write_bytes(b"precious")
        os.symlink(tmp_path / "target", os.path.join(directory, "slots.lock"))
        with pytest.raises(locks.NotAFileError):
            SlotDirectory(directory).acquire("process")
        assert (tmp_path / "target").read_bytes() == b"precious"


def _stray_child_under_lock(directory: str) -> int:
    with SlotDirectory(directory).locked():
        pid = int(ctypes.PyDLL(None).fork())
        if pid == 0:
            while True:
                threading.Event().wait()
    return pid


def _hold_lock_until_told(directory: str) -> None:
    with SlotDirectory(directory).locked():
        Path(directory, "held").touch()
        wait_until(lambda: os.path.exists(os.path.join(directory, "stop")), "told to stop")


def _fill(directory: str) -> set[str]:
    """Put what earlier runs and other programs leave into a directory; return what must stay."""
    place = Path(directory)
    ours = (
        "counter_slot0.db",
        "gauge_all_slot1.db",
        "histogram_slot1.db.damaged",
        "summary_slot0.new",
        "counter_slot0.col",
        "gauge_all_slot2.col",
        "counter_4711.col",
        "counter_slot0.col.new",
        "slot7.lease",
        "counter_4711.db",
        "gauge_livesum_12.db",
        "counter_99.db.damaged",
    )
    theirs = (
        "app.db",
        "app.db-journal",
        "app.col",
        "celery_beat.db",
        "notes.txt",
        "my.lease",
        "x.new",
    )
    for name in (*ours, *theirs):
        (place / name).write_bytes(b"content")
    (place / "subdirectory").mkdir()
    return {*theirs, "subdirectory"}


class TestGenerations:
    """Who wipes, and when."""

    def test_begin_wipes_what_is_ours(self, nursery: Nursery, directory: str) -> None:
        """A generation starts without anything of earlier runs, and leaves other files alone."""
        stays = _fill(directory)
        arbiter = nursery.start()
        assert arbiter.call(begin, directory) == ("slot0", True)
        assert set(os.listdir(directory)) == {*stays, *RECORDS, "slot0.lease"}
        generation = SlotDirectory(directory).generation()
        assert generation["protocol"] == PROTOCOL
        assert abs(generation["started"] - time.time()) < 60
        assert generation["private"] is False

    def test_keep_wipes_nothing(self, nursery: Nursery, directory: str) -> None:
        """With ``metrics_keep`` everything stays but what meant its last holder alone."""
        _fill(directory)
        os.unlink(os.path.join(directory, "gauge_all_slot1.db"))
        before = set(os.listdir(directory))
        assert nursery.start().call(begin, directory, keep=True) == ("slot0", False)
        assert set(os.listdir(directory)) == before | {*RECORDS, "slot0.lease"}

    @pytest.mark.parametrize("role", ["arbiter", "worker", "process"])
    def test_nobody_is_wiped_away(self, nursery: Nursery, directory: str, role: str) -> None:
        """While anybody holds a lease nothing is wiped."""
        holder = nursery.start()
        holder.call(_join_as, directory, role)
        holder.call(act, "counter", "c", "inc", 5)
        assert nursery.start().call(begin, directory) == ("slot1", False)
        assert read(directory) == {"c_total": 5.0}

    def test_a_writer_without_a_lease_is_not_wiped_away(
        self, nursery: Nursery, directory: str
    ) -> None:
        """A process whose lease file was removed by hand still has its counts."""
        holder = nursery.start()
        holder.call(join, directory)
        holder.call(act, "counter", "c", "inc", 5)
        os.unlink(os.path.join(directory, "slot0.lease"))
        os.unlink(os.path.join(directory, "slots.lock"))
        assert nursery.start().call(begin, directory) == ("slot1", False)
        assert read(directory) == {"c_total": 5.0}

    def test_only_begin_wipes(self, nursery: Nursery, directory: str) -> None:
        """A process that comes when nobody is there goes on from what it finds."""
        for expected in (1.0, 2.0, 3.0):
            holder = nursery.start()
            holder.call(join, directory)
            holder.call(act, "counter", "c", "inc")
            holder.kill()
            assert read(directory) == {"c_total": expected}

    def test_of_many_arbiters_one_wipes(self, nursery: Nursery, directory: str) -> None:
        """Of arbiters that start at once one wipes, and no count of the others is lost."""
        for name in _fill(directory) - {"subdirectory"}:
            os.unlink(os.path.join(directory, name))
        arbiters = [nursery.start() for _ in range(12)]
        for arbiter in arbiters:
            arbiter.tell(_begin_and_count, directory)
        assert sorted(arbiter.answer() for arbiter in arbiters) == [False] * 11 + [True]
        assert read(directory) == {"c_total": 12.0}

    def test_a_process_begins_once(self, nursery: Nursery, directory: str) -> None:
        """An arbiter that begins again, its lease being gone, wipes nothing."""
        arbiter = nursery.start()
        assert arbiter.call(begin_here, directory) == (directory, True)
        worker = nursery.start()
        worker.call(join, directory)
        worker.call(act, "counter", "c", "inc", 5)
        worker.kill()
        os.unlink(os.path.join(directory, "slot0.lease"))
        assert arbiter.call(begin_here, directory) == (directory, False)
        assert read(directory) == {"c_total": 5.0}

    def test_starting_beside_first_metrics(self, nursery: Nursery, directory: str) -> None:
        """An arbiter that asks whether the directory is in use costs nobody its slot."""
        worker = nursery.start()
        worker.call(_join_and_make_files, directory)
        arbiter = nursery.start()
        arbiter.tell(_begin_until_told, directory)
        moved = worker.call(_reopen_files, 300)
        Path(directory, "stop").touch()
        assert arbiter.answer() > 3
        assert moved == []

    def test_a_later_protocol_in_use_is_left_alone(self, nursery: Nursery, directory: str) -> None:
        """While processes of another protocol are there, nobody of this one joins or wipes."""
        holder = nursery.start()
        holder.call(take, directory)
        Path(directory, "slots.lock").write_text('{"protocol": 99}')
        stranger = nursery.start()
        for function in (take, begin):
            assert stranger.call(_errno_of, function, directory) == errno.EPROTONOSUPPORT
        assert leased(directory) == {"slot0": True}

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_protocol_of_an_ended_run_does_not_matter(
        self, nursery: Nursery, directory: str, keep: bool
    ) -> None:
        """When nobody is there any more, the arbiter and its workers agree to use the directory."""
        Path(directory, "slots.lock").write_text('{"protocol": 99, "started": 1.0}')
        arbiter = nursery.start()
        assert arbiter.call(begin, directory, keep=keep) == ("slot0", not keep)
        assert nursery.start().call(take, directory) == "slot1"

    @pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\0\0"])
    def test_a_spoilt_lock_file_is_no_error(
        self, nursery: Nursery, directory: str, content: str
    ) -> None:
        """What stands in the lock file is advice; spoilt advice is none."""
        Path(directory, "slots.lock").write_text(content)
        assert SlotDirectory(directory).generation() == {}
        assert nursery.start().call(take, directory) == "slot0"

    def test_a_directory_named_like_a_metric_file(self, nursery: Nursery, directory: str) -> None:
        """A subdirectory with the name of a metric file keeps nobody from starting."""
        os.mkdir(os.path.join(directory, "counter_slot0.db"))
        arbiter = nursery.start()
        arbiter.call(begin, directory)
        worker = nursery.start()
        worker.call(take, directory)
        assert sum(leased(directory).values()) == 2


def _join_as(directory: str, role: Role) -> None:
    join(directory)
    membership.role = role


def _begin_and_count(directory: str) -> bool:
    _, wiped = begin_here(directory)
    join(directory)
    act("counter", "c", "inc")
    return wiped


_MODES = ("sum", "max", "min", "all", "livesum", "livemax", "livemin", "liveall")


def _join_and_make_files(directory: str) -> None:
    join(directory)
    for mode in _MODES:
        act(f"gauge_{mode}", mode, "set", 1)


def _reopen_files(rounds: int) -> list[str]:
    """Let go of the files and open them again, as each new worker of a slot does."""
    for _ in range(rounds):
        values.withdraw()
        for mode in _MODES:
            act(f"gauge_{mode}", mode, "set", 1)
    return forks.log_lines()


def _begin_until_told(directory: str) -> int:
    begun = 0
    while not os.path.exists(os.path.join(directory, "stop")):
        lease, wiped, _ = SlotDirectory(directory).start_generation(keep=False)
        assert not wiped
        lease.release()
        begun += 1
    return begun


def _errno_of(function: Any, directory: str) -> int | None:
    try:
        function(directory)
    except OSError as error:
        return error.errno
    return None


class TestStrangers:
    """Who may only read, and takes every lock that he can get."""

    @needs_root
    @pytest.mark.parametrize("is_member", [True, False])
    def test_nobody_waits_for_him(self, nursery: Nursery, is_member: bool) -> None:
        """Boots, forks and first metrics are as quick as ever, slots do not grow, nothing stays."""
        with forks.public_directory() as path, forks.public_directory() as words:
            words.chmod(0o777)
            place = str(path)
            arbiter = nursery.start()
            arbiter.call(begin_here, place)
            stranger = nursery.start()
            stranger.call(forks.become_group_member if is_member else forks.become_nobody)
            stranger.tell(_take_every_lock, place, str(words))
            expected = 0
            paused = 0
            for number in range(8):
                worker = nursery.start()
                worker.call(join, place)
                worker.call(act, "counter", "c", "inc")
                wait_until((path / "slot1.lease").exists, "it is shared")
                paused += worker.call(forks.pauses, _count_anew)[1]
                paused += arbiter.call(forks.pauses, membership.remove_live_gauges)[1]
                expected += 2
                worker.kill()
                (words / f"round{number}").touch()
                wait_until((words / f"seen{number}").exists, "he has what he can get")
            assert paused == 0
            flat = read(place)
            assert flat["c_total"] == expected
            assert set(leased(place)) == {"slot0", "slot1"}
            arbiter.kill()
            heir = nursery.start()
            assert heir.call(forks.pauses, begin, place) == (("slot0", True), 0)
            assert not [name for name in os.listdir(path) if name.endswith(".db")]
            (words / "stop").touch()
            taken = stranger.answer()
            assert "slots.lock" not in taken
            assert bool(taken) == is_member

    @needs_root
    def test_lock_file_of_an_older_release(self, nursery: Nursery) -> None:
        """One that everybody can open, and somebody keeps locked, is replaced at the start."""
        with forks.public_directory() as path:
            (path / "slots.lock").write_text('{"protocol": 1, "started": 4711.0}')
            (path / "slots.lock").chmod(0o644)
            stranger = nursery.start()
            stranger.call(forks.become_nobody)
            assert stranger.call(_flock, str(path / "slots.lock"))
            arbiter = nursery.start()
            begun, paused = arbiter.call(forks.pauses, begin, str(path), keep=True)
            assert begun == ("slot0", False)
            assert 0 <= (paused - 1) * locks._POLL_SECONDS <= _OLD_LOCK_WAIT_SECONDS
            assert SlotDirectory(str(path)).generation()["started"] == 4711.0
            assert stat.S_IMODE((path / "slots.lock").stat().st_mode) == 0o600
            assert nursery.start().call(take, str(path)) == "slot1"

    def test_modes(self, nursery: Nursery, directory: str) -> None:
        """Whatever the umask is, the lock is its owner's alone, and the group reads the rest."""
        for umask in (0, 0o077):
            process = nursery.start()
            process.call(os.umask, umask)
            process.call(begin_here, directory)
            process.call(join, directory)
            process.call(act, "counter", f"c{umask}", "inc")
            process.call(act, "gauge_max", f"g{umask}", "set", 1)
            modes = {
                name: (Path(directory) / name).stat().st_mode for name in os.listdir(directory)
            }
            assert len(modes) == 7
            assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == {
                name: 0o600 if name == "slots.lock" else 0o640 for name in modes
            }
            process.kill()

    @needs_root
    def test_a_reader_of_the_group(self, nursery: Nursery) -> None:
        """Another user reads everything through the group, without any capability."""
        with forks.public_directory() as path:
            arbiter = nursery.start()
            arbiter.call(begin_here, str(path))
            worker = nursery.start()
            worker.call(join, str(path))
            worker.call(act, "counter", "c", "inc", 3)
            worker.call(act, "gauge_livesum", "g", "inc", 4)
            reader = nursery.start()
            reader.call(forks.become_group_member)
            assert reader.call(leased, str(path)) == {"slot0": True, "slot1": True}
            assert reader.call(forks.read_ours, str(path)) == {"c_total": 3.0, "g": 4.0}
            assert reader.call(_generation, str(path))["protocol"] == PROTOCOL
            worker.kill()
            assert reader.call(leased, str(path)) == {"slot0": True, "slot1": False}
            assert reader.call(forks.read_ours, str(path)) == {"c_total": 3.0}


class TestOlderReleases:
    """Processes whose claims are nothing but flocks, in one directory with ours."""

    def test_theirs_are_respected(self, nursery: Nursery, directory: str) -> None:
        """At a SIGUSR2 from an older release nothing is wiped, and no slot is taken twice."""
        place = Path(directory)
        (place / "slots.lock").write_text('{"protocol": 1, "started": 4711.0}')
        (place / "slots.lock").chmod(0o644)
        MetricFile(str(place / "counter_slot0.db")).release()
        (place / "slot0.lease").write_text('{"role": "arbiter", "pid": 1}')
        older = nursery.start()
        for name in ("slot0.lease", "counter_slot0.db"):
            assert older.call(_flock, str(place / name))
        arbiter, worker = nursery.start(), nursery.start()
        assert arbiter.call(begin, directory) == ("slot1", False)
        assert worker.call(take, directory) == "slot2"
        assert leased(directory) == {"slot0": True, "slot1": True, "slot2": True}
        assert SlotDirectory(directory).generation() == {"protocol": 1, "started": 4711.0}
        older.kill()
        worker.call(give_back)
        assert leased(directory) == {"slot0": False, "slot1": True, "slot2": False}
        assert worker.call(take, directory) == "slot0"
        assert worker.call(_errno_of, MetricFile, str(place / "counter_slot0.db")) is None

    def test_they_respect_ours(self, nursery: Nursery, directory: str) -> None:
        """An older release finds our flocks, so that it does not wipe, and a protocol to refuse."""
        arbiter = nursery.start()
        arbiter.call(begin_here, directory)
        arbiter.call(join, directory)
        arbiter.call(act, "counter", "c", "inc")
        for name in ("slot0.lease", "counter_slot0.db"):
            with LockedFile(os.path.join(directory, name), os.O_RDONLY) as file:
                assert not file.lock()
        assert json.loads(Path(directory, "slots.lock").read_text())["protocol"] == PROTOCOL == 2

    def test_without_write_locks(self, nursery: Nursery, directory: str) -> None:
        """Where the system has no write locks of open files, claims are flocks as before."""
        arbiter, worker = nursery.start(), nursery.start()
        for process in (arbiter, worker):
            process.call(_forget_write_locks)
        assert arbiter.call(begin, directory) == ("slot0", True)
        assert worker.call(take, directory) == "slot1"
        assert worker.call(leased, directory) == {"slot0": True, "slot1": True}
        assert worker.call(_generation, directory)["protocol"] == 1
        arbiter.kill()
        assert worker.call(leased, directory) == {"slot0": False, "slot1": True}


def _generation(directory: str) -> dict[str, Any]:
    return SlotDirectory(directory).generation()


def _forget_write_locks() -> None:
    locks._CAN_CLAIM = False


def _flock(path: str) -> bool:
    file = LockedFile(path, os.O_RDONLY)
    _kept.append(file)
    return file.lock()


_kept: list[LockedFile] = []


def _take_every_lock(directory: str, words: str) -> list[str]:
    """Take each lock that a reader can take, on whatever there is, until told to stop."""
    held: dict[tuple[str, int], int] = {}
    seen = 0
    while not os.path.exists(os.path.join(words, "stop")):
        is_asked = os.path.exists(os.path.join(words, f"round{seen}"))
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            key = (name, os.fstat(descriptor).st_ino)
            if key in held:
                os.close(descriptor)
                continue
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                held[key] = descriptor
            with contextlib.suppress(OSError):
                lock = struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
                held[key] = descriptor
            if key not in held:
                os.close(descriptor)
        if is_asked:
            Path(words, f"seen{seen}").touch()
            seen += 1
    return sorted({name for name, _inode in held})


def _count_anew() -> None:
    values.withdraw()
    act("counter", "c", "inc")
    assert values.not_shared() == 0


class TestLiveGauges:
    """Removing what ended processes have left in live gauges."""

    def test_goes_with_its_holder(self, nursery: Nursery, directory: str) -> None:
        """Live gauges of free slots are removed, those of leased ones and of pids are not."""
        ended, lives = nursery.start(), nursery.start()
        for one in (ended, lives):
            one.call(join, directory)
            one.call(act, "gauge_livesum", "live", "inc", 1)
            one.call(act, "gauge_sum", "sum", "inc", 1)
        MetricFile(os.path.join(directory, "gauge_livemax_77.db")).release()
        ended.kill()
        SlotDirectory(directory).remove_live_gauges()
        left = [name for name in os.listdir(directory) if name.endswith((".db", ".col"))]
        names = ("gauge_livemax_77", "gauge_livesum_slot1", "gauge_sum_slot0", "gauge_sum_slot1")
        assert sorted(left) == [f"{name}{end}" for name in names for end in (".col", ".db")]

    def test_holder_without_a_lease_file_keeps_them(self, nursery: Nursery, directory: str) -> None:
        """A process whose lease file was removed by hand still lives, and so do its gauges."""
        lives = nursery.start()
        lives.call(join, directory)
        lives.call(act, "gauge_livesum", "live", "inc", 1)
        os.unlink(os.path.join(directory, "slot0.lease"))
        SlotDirectory(directory).remove_live_gauges()
        assert read(directory) == {"live": 1.0}

    def test_gives_up_at_once_when_asked_to(self, directory: str) -> None:
        """With no time to wait it raises when somebody holds the directory lock."""
        holder = LockedFile(os.path.join(directory, "slots.lock"), os.O_RDWR | os.O_CREAT)
        assert holder.lock()

        def remove() -> None:
            with pytest.raises(TimeoutError):
                SlotDirectory(directory).remove_live_gauges(wait_seconds=0)

        assert forks.pauses(remove) == (None, 0)
        holder.close()


class TestProcess:
    """The place of one process."""

    def test_has_none_at_first(self, nursery: Nursery) -> None:
        """A process without a directory gets no lease, and says where its metrics are."""
        fresh = nursery.start()
        assert fresh.call(_errno_of_acquire) == errno.ENOENT
        assert fresh.call(_describe) == "metrics stay in the memory of each process"

    def test_begins_and_describes_itself(self, nursery: Nursery, tmp_path: Path) -> None:
        """An arbiter makes its directory, takes a lease, and says so."""
        arbiter = nursery.start()
        path = str(tmp_path / "deep" / "metrics")
        assert arbiter.call(begin_here, path) == (path, True)
        assert arbiter.call(_describe) == (
            f"metrics are shared in directory {path}, arbiter in slot0"
        )
        assert leased(path) == {"slot0": True}

    def test_does_not_touch_before_it_begins(self, nursery: Nursery, directory: str) -> None:
        """Joining a directory takes no lease until a metric needs one."""
        nursery.start().call(_join_only, directory)
        assert os.listdir(directory) == []

    @needs_root
    def test_a_worker_waits_until_it_has_dropped_root(
        self, nursery: Nursery, directory: str
    ) -> None:
        """A worker that still is root takes no lease, since its files would stay root's."""
        worker = nursery.start()
        worker.call(_join_as, directory, "worker")
        worker.call(identity.set_owner, NOBODY, NOBODY)
        with pytest.raises(forks.RemoteError, match=NotYetError.__name__):
            worker.call(_acquire_slot)
        os.chmod(directory, 0o777)
        assert not [name for name in os.listdir(directory) if name.endswith(".lease")]

    @needs_root
    def test_root_gives_the_directory_to_the_workers(self, nursery: Nursery) -> None:
        """Where the workers run as somebody else, directory and files are theirs."""
        with forks.public_directory() as place:
            path = str(place / "metrics")
            arbiter = nursery.start()
            arbiter.call(_begin_for, path, NOBODY, NOBODY)
            arbiter.call(act, "counter", "c", "inc")
            for name in (".", *os.listdir(path)):
                assert os.stat(os.path.join(path, name)).st_uid == NOBODY, name
            worker = arbiter.fork()
            worker.call(forks.become_nobody)
            worker.call(act, "counter", "c", "inc")
            assert read(path) == {"c_total": 2.0}
            arbiter.kill()
            heir = nursery.start()
            heir.call(forks.become_nobody)
            heir.call(join, path)
            heir.call(act, "counter", "c", "inc")
            assert heir.call(slot) == "slot0"
            assert read(path) == {"c_total": 3.0}

    @needs_root
    @pytest.mark.parametrize("when", ["before", "while it runs"])
    def test_root_is_led_nowhere(self, nursery: Nursery, when: str) -> None:
        """A link in the place of a directory leads root to nothing that it would then give away."""
        with forks.public_directory() as place:
            (place / "etc").mkdir()
            (place / "etc" / "counter_1.db").write_bytes(b"somebody else's")
            (place / "home").mkdir()
            os.chown(place / "home", NOBODY, NOBODY)
            path = place / "home" / "metrics"
            arbiter = nursery.start()
            if when == "before":
                os.symlink(place / "etc", path)
                with pytest.raises(forks.RemoteError, match="another user may have made"):
                    arbiter.call(_begin_as_root, str(path))
            else:
                arbiter.call(_begin_as_root, str(path))
                os.rename(path, place / "home" / "before")
                os.symlink(place / "etc", path)
                arbiter.call(act, "counter", "c", "inc")
                arbiter.call(_remove_live_gauges)
                assert arbiter.call(_errno_of_beginning_as_root, str(path)) == errno.ELOOP
            assert os.listdir(place / "etc") == ["counter_1.db"]
            assert (place / "etc").stat().st_uid == 0

    @needs_root
    def test_root_uses_no_directory_that_is_closed_to_the_workers(self, nursery: Nursery) -> None:
        """Where the workers' user may not write, root does not either, and says whom it is for."""
        with forks.public_directory() as place:
            (place / "theirs").write_bytes(b"")
            assert nursery.start().call(_errno_of_beginning_as_root, str(place)) == errno.EACCES
            assert os.listdir(place) == ["theirs"]

    @needs_root
    def test_readers_group_is_kept(self, nursery: Nursery) -> None:
        """Files in a directory that hands on its group belong to that group, whoever made them."""
        with forks.public_directory() as place:
            path = place / "metrics"
            path.mkdir()
            os.chown(path, NOBODY, 4711)
            path.chmod(0o2755)
            (path / "counter_slot0.db").write_bytes(b"")
            os.chown(path / "counter_slot0.db", 0, 4711)
            arbiter = nursery.start()
            arbiter.call(_begin_for, str(path), NOBODY, NOBODY, keep=True)
            arbiter.call(act, "gauge_sum", "g", "inc")
            for name in os.listdir(path):
                status = (path / name).stat()
                assert (status.st_uid, status.st_gid) == (NOBODY, 4711), name

    @needs_root
    def test_root_gives_away_what_it_finds(self, nursery: Nursery) -> None:
        """Files that an earlier run as root has left are opened to the workers' user."""
        with forks.public_directory() as place:
            path = str(place / "metrics")
            first = nursery.start()
            first.call(begin_here, path)
            first.call(join, path)
            first.call(act, "counter", "c", "inc")
            first.kill()
            second = nursery.start()
            second.call(_begin_for, path, NOBODY, NOBODY, keep=True)
            second.kill()
            worker = nursery.start()
            worker.call(forks.become_nobody)
            worker.call(join, path)
            worker.call(act, "counter", "c", "inc")
            assert worker.call(slot) == "slot0"
            assert read(path) == {"c_total": 2.0}

    def test_a_failed_begin_leaves_it_without(self, nursery: Nursery, tmp_path: Path) -> None:
        """When the directory cannot be used at all, the process has none."""
        (tmp_path / "file").write_bytes(b"")
        arbiter = nursery.start()
        error = arbiter.call(_errno_of, begin_here, str(tmp_path / "file"))
        assert error in (errno.EEXIST, errno.ENOTDIR)
        assert arbiter.call(_describe) == "metrics stay in the memory of each process"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ETIMEDOUT])
    def test_a_passing_trouble_keeps_the_directory(
        self, nursery: Nursery, directory: str, number: int
    ) -> None:
        """What keeps the arbiter from a lease for a while does not keep its workers from one."""
        arbiter = nursery.start()
        arbiter.call(_begin_in_trouble, directory, number)
        worker = arbiter.fork()
        worker.call(forks.join, directory)
        worker.call(act, "counter", "c", "inc")
        assert worker.call(slot) == "slot0"

    def test_who_is_in_charge(self, nursery: Nursery, directory: str) -> None:
        """The arbiter tidies up; its children do not; nor does a process that only joined."""
        arbiter = nursery.start()
        arbiter.call(begin_here, directory)
        assert arbiter.call(_is_in_charge)
        assert not arbiter.fork().call(_is_in_charge)
        other = nursery.start()
        other.call(join, directory)
        assert not other.call(_is_in_charge)


def _errno_of_acquire() -> int | None:
    try:
        membership.acquire()
    except OSError as error:
        return error.errno
    return None


def _acquire_slot() -> str:
    return membership.acquire().slot


def _describe() -> str:
    return membership.describe()


def _join_only(directory: str) -> None:
    membership.join(directory)


def _is_in_charge() -> bool:
    return membership.is_in_charge()


def _begin_for(path: str, user: int, group: int, *, keep: bool = False) -> None:
    from obskit_gunicorn._values import sharing

    sharing.install()
    sharing.begin(path, keep=keep, user=user, group=group)
    assert membership.lease is not None


def _begin_as_root(path: str) -> None:
    membership.begin(path, keep=False, user=NOBODY, group=NOBODY)


def _errno_of_beginning_as_root(path: str) -> int | None:
    return _errno_of(_begin_as_root, path)


def _remove_live_gauges() -> None:
    membership.remove_live_gauges()


def _begin_in_trouble(directory: str, number: int) -> None:
    acquire = SlotDirectory._acquire

    def fail(self: SlotDirectory, role: Role, **_options: bool) -> Lease:
        raise OSError(number, os.strerror(number))

    SlotDirectory._acquire = fail  # type: ignore[method-assign]
    try:
        assert _errno_of(begin_here, directory) == number
    finally:
        SlotDirectory._acquire = acquire  # type: ignore[method-assign]


@pytest.fixture(name="runtime")
def _runtime(tmp_path: Path) -> Path:
    """An XDG_RUNTIME_DIR of the test's own."""
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    return path


class TestPrivateDirectory:
    """The directory that is made when none is named."""

    def test_there_is_no_place(self, mocker: MockerFixture, tmp_path: Path) -> None:
        """Of a directory that nobody has named, the line does not say that it was removed."""
        mocker.patch.object(private, "places", return_value=[str(tmp_path / "not there")])
        with pytest.raises(private.NoPlaceError) as caught:
            private.make(NOBODY)
        problem = private.why_not(caught.value, NOBODY)
        assert problem.text.startswith("there is no place for a private directory")
        assert problem.advice == f"let uid {NOBODY} write to one, or set multiproc_dir"

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT])
    def test_the_place_is_closed(self, number: int) -> None:
        """Nor does it advise to unset a variable that is not set."""
        problem = private.why_not(OSError(number, os.strerror(number)), NOBODY)
        assert problem.text == f"private directory: [Errno {number}] {os.strerror(number)}"
        assert problem.advice == f"let uid {NOBODY} write to one, or set multiproc_dir"
        full = private.why_not(OSError(errno.ENOSPC, "full"), NOBODY)
        assert "the volume is full" in full.advice

    def test_is_private(self, nursery: Nursery, runtime: Path) -> None:
        """It lies in the runtime directory, nobody else can look into it, and it says so."""
        path, wiped = nursery.start().call(_begin_private, str(runtime))
        assert wiped
        assert Path(path).parent == runtime
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        assert SlotDirectory(path).generation()["private"] is True
        assert leased(path) == {"slot0": True}
        assert os.listdir(runtime) == [os.path.basename(path)]

    def test_places(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The unit's directory is first; a session's, which goes at a logout, is not used."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        me, other = os.geteuid(), os.geteuid() + 1
        monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/shop:/run/more")
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
        assert list(private.places(me)) == ["/run/shop", "/run/more", "/dev/shm", str(tmp_path)]
        assert list(private.places(other)) == ["/dev/shm", str(tmp_path)]
        monkeypatch.setenv("RUNTIME_DIRECTORY", "")
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/other")
        assert list(private.places(me)) == ["/run/other", "/dev/shm", str(tmp_path)]

    def test_that_of_a_unit_is_found(
        self, nursery: Nursery, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever looks at a unit's server has not its environment, and finds it once."""
        path, _ = nursery.start().call(_begin_private, str(runtime))
        runtime.with_name("alias").symlink_to(runtime)
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        assert "/run/*" in private._RUNTIME_DIRECTORIES
        monkeypatch.setattr(private, "_RUNTIME_DIRECTORIES", (f"{runtime.parent}/*",))
        assert [os.path.samefile(each, path) for each in private.find()].count(True) == 1

    def test_two_servers_have_two(self, nursery: Nursery, runtime: Path) -> None:
        """Two arbiters of one user do not share, and the second leaves the first's alone."""
        first, _ = nursery.start().call(_begin_private, str(runtime))
        second, _ = nursery.start().call(_begin_private, str(runtime))
        assert first != second
        assert leased(first) == leased(second) == {"slot0": True}

    def test_what_killed_runs_left_is_removed(self, nursery: Nursery, runtime: Path) -> None:
        """The next start removes directories whose holders have all ended."""
        killed = nursery.start()
        old, _ = killed.call(_begin_private, str(runtime))
        killed.kill()
        new, _ = nursery.start().call(_begin_private, str(runtime))
        assert os.listdir(runtime) == [os.path.basename(new)]
        assert old != new

    def test_a_surviving_worker_keeps_it(self, nursery: Nursery, runtime: Path) -> None:
        """A directory stays while anybody of it lives, be it only a child of a killed arbiter."""
        arbiter = nursery.start()
        path, _ = arbiter.call(_begin_private, str(runtime))
        worker = arbiter.fork()
        worker.call(_acquire_slot)
        arbiter.kill()
        nursery.start().call(_begin_private, str(runtime))
        assert os.path.isdir(path)

    @pytest.mark.parametrize("content", [None, "", '{"private": false}', '{"private": 1}'])
    def test_somebody_elses_is_left_alone(
        self, nursery: Nursery, runtime: Path, content: str | None
    ) -> None:
        """A directory with a similar name that does not say it is private stays."""
        theirs = runtime / "obskit-gunicorn-0-important"
        theirs.mkdir()
        (theirs / "data").write_bytes(b"precious")
        if content is not None:
            (theirs / "slots.lock").write_text(content)
        nursery.start().call(_begin_private, str(runtime))
        assert (theirs / "data").read_bytes() == b"precious"

    def test_a_link_is_left_alone(self, nursery: Nursery, runtime: Path, tmp_path: Path) -> None:
        """A symbolic link with the name of a leftover is not followed."""
        target = tmp_path / "target"
        target.mkdir()
        (target / "slots.lock").write_text('{"private": true}')
        (runtime / "obskit-gunicorn-0-link").symlink_to(target)
        nursery.start().call(_begin_private, str(runtime))
        assert (target / "slots.lock").exists()

    @needs_root
    def test_another_users_is_left_alone(self, nursery: Nursery, runtime: Path) -> None:
        """A leftover of another user stays, even for root."""
        theirs = runtime / "obskit-gunicorn-65534-x"
        theirs.mkdir()
        (theirs / "slots.lock").write_text('{"private": true}')
        os.chown(theirs, NOBODY, NOBODY)
        nursery.start().call(_begin_private, str(runtime))
        assert theirs.exists()

    def test_unfinished_ones_are_removed_when_they_are_old(
        self, nursery: Nursery, runtime: Path
    ) -> None:
        """A start that was killed half way is cleaned away, one that is under way is not."""
        old, new = runtime / ".obskit-gunicorn-0-old", runtime / ".obskit-gunicorn-0-new"
        for path in (old, new):
            path.mkdir()
        os.utime(old, (1, 1))
        nursery.start().call(_begin_private, str(runtime))
        assert new.exists()
        assert not old.exists()

    @needs_root
    def test_belongs_to_the_workers(self, nursery: Nursery, runtime: Path) -> None:
        """Made by root for workers of another user it lies where they can reach it."""
        arbiter = nursery.start()
        path = arbiter.call(_begin_private_for_nobody, str(runtime))
        try:
            assert Path(path).parent != runtime
            status = os.stat(path)
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o700)
            worker = arbiter.fork()
            worker.call(forks.become_nobody)
            worker.call(act, "counter", "c", "inc")
            assert worker.call(slot) == "slot1"
        finally:
            arbiter.kill()
            worker.kill()
            assert SlotDirectory(path).remove_if_unused()

    def test_removal_waits_for_the_last_holder(self, nursery: Nursery, runtime: Path) -> None:
        """It is removed only when nobody holds a lease in it."""
        arbiter = nursery.start()
        path, _ = arbiter.call(_begin_private, str(runtime))
        assert not SlotDirectory(path).remove_if_unused()
        arbiter.kill()
        assert SlotDirectory(path).remove_if_unused()
        assert os.listdir(runtime) == []


def _begin_private(runtime: str) -> tuple[str, bool]:
    os.environ.update(XDG_RUNTIME_DIR=runtime, TMPDIR=runtime)
    return begin_here(None)


def _begin_private_for_nobody(runtime: str) -> str:
    from obskit_gunicorn._values import sharing

    os.environ["XDG_RUNTIME_DIR"] = runtime
    sharing.install()
    sharing.begin(None, keep=False, user=NOBODY, group=NOBODY)
    assert membership.directory is not None
    return membership.directory.path


class TestExplain:
    """What a user is told."""

    @pytest.mark.parametrize(
        ("number", "mend"),
        [
            (errno.ENOSPC, "room"),
            (errno.EFBIG, "ulimit -f"),
            (errno.EMFILE, "ulimit -n"),
            (errno.EACCES, "writable"),
            (errno.EROFS, "writable"),
            (errno.ENOLCK, "flock"),
            (errno.ENOTDIR, "not a directory"),
            (errno.ENOENT, "it was removed"),
            (errno.EIO, "docs/"),
        ],
    )
    def test_says_what_to_do(self, number: int, mend: str) -> None:
        """The text names the directory, what the kernel said, and what to do about it."""
        text = str(explain(OSError(number, os.strerror(number)), "/metrics"))
        assert text.startswith("/metrics: ")
        assert os.strerror(number) in text
        assert re.search(mend, text)
