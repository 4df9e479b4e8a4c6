"""Open files that are flocked, and letting go of them."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._store import forks, identity, locks
from obskit_gunicorn._store.locks import LockedFile, NotAFileError, open_file
from tests.support.forks import (
    NOBODY,
    Nursery,
    fork_call,
    pauses,
    public_directory,
    reap,
    wait_until,
)

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

MAKE = os.O_RDWR | os.O_CREAT


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


class TestLock:
    """Who gets the lock, and when it ends."""

    def test_one_holder_at_a_time(self, path: str) -> None:
        """An exclusive lock keeps every other opener of the file out until it is released."""
        first, second = LockedFile(path, MAKE), LockedFile(path, MAKE)
        assert first.lock()
        assert not second.lock()
        first.release()
        assert second.lock()
        first.close()
        second.close()

    def test_sharers_keep_out_holders_only(self, path: str) -> None:
        """Shared locks go together, and keep an exclusive one out."""
        first, second, third = (LockedFile(path, MAKE) for _ in range(3))
        assert first.lock(shared=True)
        assert second.lock(shared=True)
        assert not third.lock()
        for file in (first, second, third):
            file.close()

    def test_gives_up_after_the_deadline(self, path: str) -> None:
        """A lock that somebody holds is awaited as long as asked and no longer."""
        first, second = LockedFile(path, MAKE), LockedFile(path, MAKE)
        assert first.lock()
        started = time.monotonic()
        taken, paused = pauses(second.lock, wait_seconds=0.05)
        assert not taken
        assert time.monotonic() - started >= 0.05
        assert 0 <= (paused - 1) * locks._POLL_SECONDS <= 0.05
        first.close()
        second.close()

    def test_waits_for_the_holder_to_end(self, nursery: Nursery, path: str) -> None:
        """A holder's death lets the one who waits in, at once."""
        holder = nursery.start()
        assert holder.call(_hold, path)
        waiter = nursery.start()
        waiter.tell(_hold, path, 30.0)
        holder.kill()
        assert waiter.answer()

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
    def test_missing_flock_is_an_error(self, path: str, mocker: MockerFixture, number: int) -> None:
        """A file system without flock raises what the kernel said, and does not look contended."""
        file = LockedFile(path, MAKE)
        mocker.patch.object(fcntl, "flock", side_effect=OSError(number, os.strerror(number)))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            file.lock(wait_seconds=1)
        assert caught.value.errno == number
        mocker.stopall()
        file.close()

    @pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
    def test_contention_is_no_error(self, path: str, mocker: MockerFixture, number: int) -> None:
        """What kernels say of a lock that somebody holds is an answer, not an error."""
        file = LockedFile(path, MAKE)
        mocker.patch.object(fcntl, "flock", side_effect=OSError(number, os.strerror(number)))
        assert not file.lock()
        mocker.stopall()
        file.close()

    def test_unlock_ends_inherited_copies(self, nursery: Nursery, path: str) -> None:
        """Unlocking frees the file although a long-lived child has a copy of the descriptor."""
        holder = nursery.start()
        assert holder.call(_hold, path)
        child = holder.fork()
        holder.call(_unlock)
        other = LockedFile(path, MAKE)
        assert other.lock()
        assert not child.has_ended()
        other.close()

    def test_child_cannot_end_the_lock(self, nursery: Nursery, path: str) -> None:
        """Closing the copy of a forked child, or the child's death, leaves the lock alone."""
        holder = nursery.start()
        assert holder.call(_hold, path)
        child = holder.fork()
        child.call(_close)
        child.kill()
        other = LockedFile(path, MAKE)
        assert not other.lock()
        other.close()

    def test_lock_ends_with_exec(self, nursery: Nursery, path: str) -> None:
        """A program that the holder executes inherits neither descriptor nor lock."""
        holder = nursery.start()
        assert holder.call(_hold, path)
        holder.tell(os.execv, "/bin/sleep", ["sleep", "60"])
        other = LockedFile(path, MAKE)
        wait_until(other.lock, "the lock ended with exec")
        other.close()


class TestPlace:
    """Whether the name still leads to the file."""

    def test_knows_its_place(self, path: str) -> None:
        """A file that was neither removed nor replaced is in place and linked."""
        file = LockedFile(path, MAKE)
        assert file.is_in_place()
        assert file.is_linked()
        file.close()

    def test_notices_removal(self, path: str) -> None:
        """A removed file is neither in place nor linked."""
        file = LockedFile(path, MAKE)
        os.unlink(path)
        assert not file.is_in_place()
        assert not file.is_linked()
        file.close()

    def test_notices_replacement(self, path: str) -> None:
        """A file is not in place when its name leads to another one."""
        file = LockedFile(path, MAKE)
        Path(path + ".2").write_bytes(b"")
        os.rename(path + ".2", path)
        assert not file.is_in_place()
        file.close()

    def test_follows_no_link(self, path: str) -> None:
        """A symbolic link at the path is refused, so that it cannot lead root elsewhere."""
        Path(path + ".target").write_bytes(b"")
        os.symlink(path + ".target", path)
        with pytest.raises(NotAFileError):
            LockedFile(path, MAKE)

    def test_a_pipe_does_not_block(self, path: str) -> None:
        """A pipe or a directory at the path is refused at once."""
        os.mkfifo(path)
        os.mkdir(path + ".directory")
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
            for name in (path, path + ".directory"):
                with pytest.raises(NotAFileError):
                    open_file(name, flags)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked to be careful")
    def test_root_writes_no_hard_link(self, path: str) -> None:
        """A file with a second name may be somebody's trap: root reads it and never writes it."""
        Path(path).write_bytes(b"precious")
        os.link(path, path + ".2")
        with pytest.raises(NotAFileError):
            LockedFile(path, MAKE)
        os.close(open_file(path, os.O_RDONLY))


class TestClose:
    """Letting go of a descriptor that may be somebody else's by now."""

    def test_may_be_closed_twice(self, path: str) -> None:
        """Closing again does nothing."""
        file = LockedFile(path, MAKE)
        file.close()
        file.close()
        assert file.descriptor == -1

    def test_spares_a_reused_descriptor(self, path: str) -> None:
        """A descriptor that the application closed and took for its own file is left open."""
        file = LockedFile(path, MAKE)
        assert file.lock()
        number = file.descriptor
        os.close(number)
        theirs = os.open(path + ".theirs", MAKE)
        if theirs != number:  # another thread of the test run was quicker
            os.dup2(theirs, number)
            os.close(theirs)
        file.release()
        file.close()
        assert os.path.samestat(os.fstat(number), os.stat(path + ".theirs"))
        os.close(number)

    def test_survives_a_closed_descriptor(self, path: str) -> None:
        """A descriptor that is closed already is no error."""
        file = LockedFile(path, MAKE)
        os.close(file.descriptor)
        file.release()
        assert not file.is_linked()
        file.close()

    def test_is_not_inherited_by_programs(self, path: str) -> None:
        """The descriptor is closed in programs that are executed."""
        file = LockedFile(path, MAKE)
        assert not os.get_inheritable(file.descriptor)
        file.close()


class TestOwner:
    """Whom root gives the files it makes."""

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_root_gives_its_files_to_the_workers(self, nursery: Nursery, path: str) -> None:
        """What root makes belongs to the user that the workers run as."""
        with public_directory() as place:
            os.chown(place, NOBODY, NOBODY)
            made = nursery.start().call(_make_for, str(place / "file"), NOBODY, NOBODY)
            assert made == (NOBODY, NOBODY)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act with another's rights")
    def test_root_has_only_the_workers_rights(self, nursery: Nursery) -> None:
        """Under the guard, and only there, root opens what the workers' user could open."""
        with public_directory() as place:
            (place / "secret").write_text("root only")
            (place / "secret").chmod(0o600)
            refused = errno.EACCES
            opened = nursery.start().call(_open_in_forks, str(place / "secret"))
            assert opened == [refused, refused, 0, 0, 0]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act with another's rights")
    def test_root_that_cannot_act_so(self, nursery: Nursery) -> None:
        """Where the system cannot do that, root says so instead of using its own rights."""
        assert nursery.start().call(_error_without_ctypes) == errno.ENOTSUP

    def test_owner_is_nobody_in_particular_by_default(self, nursery: Nursery, path: str) -> None:
        """Until somebody is named, files stay with the one who makes them."""
        process = nursery.start()
        assert process.call(identity.owner) is None
        assert process.call(_make_for, path) == (os.geteuid(), os.getegid())


class _OriginalTime:
    """Stands for gevent.monkey in a process that has patched its modules."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def get_original(self, module: str, name: str) -> object:
        self.asked.append((module, name))
        return time.sleep


def test_pause_does_not_yield_to_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gevent a pause blocks the thread, since its caller holds a native lock."""
    monkey = _OriginalTime()
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    locks.pause(0)
    assert monkey.asked == [("time", "sleep")]


_held: list[LockedFile] = []


def _hold(path: str, wait_seconds: float = 0.0) -> bool:
    _held.append(LockedFile(path, MAKE))
    return _held[0].lock(wait_seconds=wait_seconds)


def _unlock() -> None:
    _held[0].release()


def _close() -> None:
    _held[0].close()


def _make_for(path: str, *ids: int) -> tuple[int, int]:
    if ids:
        identity.set_owner(*ids)
    with forks.guard():
        file = LockedFile(path, MAKE)
    status = os.fstat(file.descriptor)
    return status.st_uid, status.st_gid


def _open_in_forks(path: str) -> list[int]:
    """Open a file of root's: under the guard, after it, in a child forked under it and after."""
    identity.set_owner(NOBODY, NOBODY)
    found = []
    with forks.guard():
        with forks.guard():
            found.append(_error_of_opening(path))
        found.append(_error_of_opening(path))
        found.append(reap(fork_call(_open, path)))
    found.append(_error_of_opening(path))
    found.append(reap(fork_call(_open, path)))
    return found


def _error_of_opening(path: str) -> int:
    try:
        _open(path)
    except OSError as error:
        return error.errno or -1
    return 0


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def _error_without_ctypes() -> int | None:
    sys.modules["ctypes"] = None  # type: ignore[assignment]
    try:
        identity.set_owner(NOBODY, NOBODY)
    except OSError as error:
        return error.errno
    return None


def test_fork_helpers_report_failures(nursery: Nursery) -> None:
    """A child of a test that raises ends with status 1, and one that is killed with its signal."""
    assert nursery.start().call(_child_statuses) == [0, 1, -9]


def _child_statuses() -> list[int]:
    return [
        reap(fork_call(os.getpid)),
        reap(fork_call(os.close, -1)),
        reap(fork_call(lambda: os.kill(os.getpid(), 9))),
    ]
