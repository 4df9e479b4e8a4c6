"""Passwords: whose are right, what is remembered, and whose turn it is to be checked."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import bcrypt
import pytest

from obskit_gunicorn._exporter import passwords
from obskit_gunicorn._exporter.passwords import Passwords
from obskit_gunicorn._exporter.secret_files import SecretFile, users_in
from tests.support.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONG_AGO = 1_000_000_000


def hashed(password: bytes) -> bytes:
    """Return a hash that is quick to check."""
    return bcrypt.hashpw(password, bcrypt.gensalt(4))


def write(path: Path, users: dict[bytes, bytes]) -> None:
    """Write the file of the users' hashes."""
    path.write_bytes(b"".join(b"%b:%b\n" % each for each in users.items()))
    os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    write(path, {b"prom": hashed(b"right"), b"other": hashed(b"other's")})
    return path


class Slow:
    """Stands for the library where a test says when a check ends: its time is what is tested.

    Attributes:
        checked: What was checked.
        may_end: Set where checks may end.
    """

    def __init__(self) -> None:
        """Let every check end at once."""
        self.checked: list[bytes] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, password: bytes, hash_: bytes) -> bool:
        """Check a password."""
        self.checked.append(password)
        assert self.may_end.wait(30)
        return bcrypt.checkpw(password, hash_)


@pytest.fixture(name="slow")
def _slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow()
    monkeypatch.setattr(passwords, "find_bcrypt", lambda: slow)
    yield slow
    slow.may_end.set()


def made(path: Path) -> Passwords:
    """Return what judges by a file."""
    return Passwords(SecretFile(str(path), users_in, what="password", descriptor=None))


def patiently(judged: Passwords, user: bytes, password: bytes) -> str:
    """Judge a password until there is time for it."""
    verdicts: list[str] = []

    def is_judged() -> bool:
        verdicts.append(judged.judge(user, password))
        return verdicts[-1] != "busy"

    wait_until(is_judged, "it is judged")
    return verdicts[-1]


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Call a function in a thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("user", "password", "verdict"),
    [
        (b"prom", b"right", "right"),
        (b"other", b"other's", "right"),
        (b"prom", b"other's", "wrong"),
        (b"prom", b"", "wrong"),
        (b"PROM", b"right", "wrong"),
        (b"nobody", b"right", "wrong"),
        (b"nobody", b"", "wrong"),
        (b"", b"", "wrong"),
        (b"prom", b"right\0", "wrong"),
        (b"prom", b"\xff\xfe", "wrong"),
        (b"prom", b"x" * 73, "wrong"),
        (b"prom", b"x" * 100_000, "wrong"),
        (b"x" * 100_000, b"right", "wrong"),
    ],
)
def test_judges(path: Path, user: bytes, password: bytes, verdict: str) -> None:
    """A user's own password is right, and nothing else; nothing raises."""
    judged = made(path)
    assert judged.judge(user, password) == verdict
    assert patiently(judged, user, password) == verdict


def test_72_bytes_are_all_of_them(path: Path) -> None:
    """A longer password is wrong, although bcrypt would look at its first 72 bytes only."""
    write(path, {b"prom": hashed(b"x" * 72)})
    judged = made(path)
    assert judged.judge(b"prom", b"x" * 72) == "right"
    assert judged.judge(b"prom", b"x" * 73) == "wrong"


def test_what_bcrypt_does_not_look_at_is_not_checked(path: Path, slow: Slow) -> None:
    """Releases of the library differ in what they do with it: it is refused before."""
    judged = made(path)
    for password in (b"x" * 73, b"right" + b"\0" * 68, b"right\0"):
        assert judged.judge(b"prom", password) == "wrong"
    assert slow.checked == []


def test_a_stranger_is_wrong_whatever_comes_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who is not in the file is checked too, for the time that it takes, and is wrong."""
    checked: list[bytes] = []

    def check(password: bytes, against: bytes) -> bool:
        checked.append(against)
        return True

    monkeypatch.setattr(passwords, "find_bcrypt", lambda: check)
    judged = made(path)
    assert judged.judge(b"nobody", b"right") == "wrong"
    (against,) = checked
    assert against[:7] == b"$2b$04$"
    assert bcrypt.checkpw(b"right", against) is False  # and not refused at once as no hash


def test_a_hash_that_the_library_refuses(path: Path) -> None:
    """A hash that looks right, and is none to the library, is a wrong password and no error."""
    write(path, {b"prom": b"$2b$04$" + b"z" * 53})
    assert made(path).judge(b"prom", b"right") == "wrong"


def test_a_right_password_is_checked_once(path: Path, slow: Slow) -> None:
    """From then on it is known, whatever else is asked; wrong ones are checked each time."""
    judged = made(path)
    for _ in range(3):
        assert judged.judge(b"prom", b"right") == "right"
    assert slow.checked == [b"right"]
    for _ in range(2):
        assert patiently(judged, b"prom", b"wrong") == "wrong"
    assert judged.judge(b"prom", b"right") == "right"
    assert slow.checked == [b"right", b"wrong", b"wrong"]


def test_what_is_remembered_is_bounded(path: Path) -> None:
    """There is one digest for each user of the file, and nothing of anybody else."""
    judged = made(path)
    for number in range(5):
        write(path, {b"user%d" % number: hashed(b"right")})
        assert patiently(judged, b"user%d" % number, b"right") == "right"
        assert patiently(judged, b"user%d" % number, b"wrong") == "wrong"
        assert patiently(judged, b"nobody", b"%d" % number) == "wrong"
    assert len(judged._right) == 1


def test_a_renewed_file(path: Path, slow: Slow) -> None:
    """A password that is another one now is wrong at once; a line that stays is not looked at."""
    judged = made(path)
    assert judged.judge(b"prom", b"right") == judged.judge(b"other", b"other's") == "right"
    users = users_in(path.read_bytes()).hashes
    write(path, users | {b"prom": hashed(b"new")})
    assert judged.judge(b"other", b"other's") == "right"
    assert slow.checked == [b"right", b"other's"]
    assert patiently(judged, b"prom", b"right") == "wrong"
    assert patiently(judged, b"prom", b"new") == "right"
    write(path, {b"other": users[b"other"]})
    assert patiently(judged, b"prom", b"new") == "wrong"
    path.unlink()
    assert judged.judge(b"other", b"other's") == "wrong"


def test_without_the_library(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every password is wrong, and the log says what to install."""
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    judged = made(path)
    assert judged.judge(b"prom", b"right") == "wrong"
    (line,) = (each.getMessage() for each in caplog.records if each.levelno == logging.ERROR)
    assert 'pip install "obskit-gunicorn[auth]"' in line


class TestTurns:
    """Who is checked while others guess."""

    def test_one_at_a_time(self, path: Path, slow: Slow) -> None:
        """Whoever comes while one is checked is told to come again, and does not wait."""
        judged = made(path)
        slow.may_end.clear()
        checking = in_thread(lambda: judged.judge(b"prom", b"guess"))
        wait_until(lambda: slow.checked, "the first is checked")
        for number in range(100):
            assert judged.judge(b"prom", b"%d" % number) == "busy"
        assert slow.checked == [b"guess"]
        slow.may_end.set()
        checking.join(30)

    def test_a_known_password_does_not_wait(self, path: Path, slow: Slow) -> None:
        """It is right while others are checked."""
        judged = made(path)
        assert judged.judge(b"prom", b"right") == "right"
        slow.may_end.clear()
        checking = in_thread(lambda: judged.judge(b"prom", b"guess"))
        wait_until(lambda: b"guess" in slow.checked, "a guess is checked")
        assert judged.judge(b"prom", b"right") == "right"
        slow.may_end.set()
        checking.join(30)

    def test_whoever_comes_again_goes_first(self, path: Path, slow: Slow) -> None:
        """What was refused for lack of time is checked next, before those who were never seen."""
        judged = made(path)
        slow.may_end.clear()
        verdicts: list[str] = []
        first = in_thread(lambda: judged.judge(b"prom", b"guess"))
        wait_until(lambda: slow.checked, "a guess is checked")
        assert judged.judge(b"prom", b"right") == "busy"
        again = in_thread(lambda: verdicts.append(judged.judge(b"prom", b"right")))
        wait_until(lambda: judged._turns._line, "it stands in line")
        assert judged.judge(b"prom", b"right") == "busy"  # one place for each
        slow.may_end.set()
        first.join(30)
        again.join(30)
        assert verdicts == ["right"]
        assert slow.checked == [b"guess", b"right"]

    def test_whoever_was_wrong_does_not_go_first(
        self, path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A password that came out wrong has no place in the line again."""
        monkeypatch.setattr(passwords, "_LINE_SECONDS", 60.0)
        judged = made(path)
        assert judged.judge(b"prom", b"wrong") == "wrong"
        slow.may_end.clear()
        checking = in_thread(lambda: patiently(judged, b"prom", b"guess"))
        wait_until(lambda: b"guess" in slow.checked, "a guess is checked")
        verdicts: list[str] = []
        again = in_thread(
            lambda: verdicts.extend(judged.judge(b"prom", b"wrong") for _ in range(3))
        )
        again.join(30)
        assert verdicts == ["busy"] * 3  # while the guess is being checked
        slow.may_end.set()
        checking.join(30)

    def test_the_line_is_short(self, path: Path, slow: Slow) -> None:
        """Where too many come again, the others are told to come later; all are judged in turn."""
        judged = made(path)
        slow.may_end.clear()
        first = in_thread(lambda: judged.judge(b"prom", b"guess"))
        wait_until(lambda: slow.checked, "a guess is checked")
        verdicts: list[str] = []
        several = [b"again%d" % number for number in range(passwords._MOST_IN_LINE)]
        threads = []
        for number, each in enumerate(several, 1):
            assert judged.judge(b"prom", each) == "busy"
            threads.append(
                in_thread(lambda each=each: verdicts.append(judged.judge(b"prom", each)))  # type: ignore[misc]
            )
            wait_until(lambda n=number: len(judged._turns._line) == n, "it stands in line")  # type: ignore[misc]
        for _ in range(2):
            assert judged.judge(b"prom", b"one more") == "busy"
        slow.may_end.set()
        for thread in (first, *threads):
            thread.join(30)
        assert verdicts == ["wrong"] * len(several)
        assert slow.checked == [b"guess", *several]

    def test_nobody_waits_for_long(
        self, path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever stands in line for too long is told to come again, and the next one moves up."""
        monkeypatch.setattr(passwords, "_LINE_SECONDS", 0.05)
        judged = made(path)
        slow.may_end.clear()
        first = in_thread(lambda: judged.judge(b"prom", b"guess"))
        wait_until(lambda: slow.checked, "a guess is checked")
        for _ in range(2):
            assert judged.judge(b"prom", b"right") == "busy"
        assert not judged._turns._line
        slow.may_end.set()
        first.join(30)
        assert judged.judge(b"prom", b"right") == "right"

    def test_guesses_take_half_of_a_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a wrong password nobody new is checked for as long as that took; the line is."""
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        turns = passwords._Turns()
        assert turns.take(b"guess", waits=False)
        now += 3
        turns.give_back(rests=True)
        now += 2.9
        assert not turns.take(b"new", waits=False)
        assert turns.take(b"again", waits=True)
        turns.give_back(rests=False)
        now += 0.2
        assert turns.take(b"new", waits=False)


def test_the_filter_forgets_the_oldest_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows the last ones, hardly takes one for another, and does not grow; an eighth of it."""
    most = passwords._MOST_IN_FILTER // 8
    monkeypatch.setattr(passwords, "_MOST_IN_FILTER", most)
    monkeypatch.setattr(passwords, "_BYTES_OF_FILTER", passwords._BYTES_OF_FILTER // 8)
    found = passwords._Filter()
    digests = [os.urandom(32) for _ in range(most)]
    for digest in digests:
        found.add(digest)
    assert all(digest in found for digest in digests)
    assert sum(os.urandom(32) in found for _ in range(10_000)) < 20
    for _ in range(2 * most):
        found.add(os.urandom(32))
    assert sum(digest in found for digest in digests[:10_000]) < 20
    assert len(found._newer) + len(found._older) == 2 * passwords._BYTES_OF_FILTER
