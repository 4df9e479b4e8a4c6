"""Passwords against hashes of bcrypt, which are slow to check on purpose.

So only one is checked at a time, and whoever comes meanwhile is told to come again: no client keeps
another one waiting. A right password is remembered, as a keyed digest, and costs a microsecond from
then on. What is wrong is not remembered there, so no number of wrong ones drives out a right one.

Who guesses comes with another password each time. Who has the right one comes again with the same,
so what was refused only for lack of time goes first the next time: in a short line, apart from the
passwords that nobody has seen before. So the right one is checked at its second try, at the latest,
whatever others guess meanwhile. Whose password came out wrong has no place in that line again.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._exporter.secret_files import SecretFile, Users

Verdict = Literal["right", "wrong", "busy"]

MISSING = (
    "passwords cannot be checked, because the package bcrypt is missing: "
    'pip install "obskit-gunicorn[auth]"'
)
"""What is said where the extra is not installed."""

MOST_BYTES = 72
"""How long a password may be: bcrypt looks at no more."""

_MOST_IN_LINE = 8
_LINE_SECONDS = 5.0
_BYTES_OF_FILTER = 1 << 18
_MOST_IN_FILTER = 100_000
_NOBODY = b"." * 53
"""A salt, which the library accepts, and a digest that no password has."""


def find_bcrypt() -> Callable[[bytes, bytes], bool] | None:
    """Return what checks a password against a hash; ``None`` if the extra is not installed."""
    try:
        import bcrypt
    except ImportError:
        return None
    return bcrypt.checkpw


class Passwords:
    """Says whether a user has a password. Thread-safe."""

    def __init__(self, file: SecretFile[Users]) -> None:
        """Name the file of the users.

        Args:
            file: The file. Where the library is missing that is logged here, and every password
                is wrong.
        """
        self._file = file
        self._check = find_bcrypt()
        if self._check is None:
            log.error("authorisation: %s; nobody is let in with a password until then", MISSING)
        self._key = os.urandom(32)
        self._right: dict[bytes, bytes] = {}
        self._turns = _Turns()
        self._refused, self._wrong = _Filter(), _Filter()

    def judge(self, user: bytes, password: bytes) -> Verdict:
        """Return whether the password is the user's; ``busy`` if there is no time to find out.

        A user who is not in the file is checked against a hash that no password has, so that the
        time does not tell who is in it.
        """
        users = self._file.content()
        if users is None or self._check is None:
            return "wrong"
        if len(password) > MOST_BYTES or b"\0" in password:
            return "wrong"
        hashed = users.hashes.get(user)
        against = hashed or next(iter(users.hashes.values()))[:7] + _NOBODY
        # The hash has a fixed length, so nothing else has the same bytes.
        message = b"%d:%b%b%b" % (len(user), user, against, password)
        digest = hmac.digest(self._key, message, "sha256")
        if hmac.compare_digest(self._right.get(user, b""), digest):
            return "right"
        is_next = digest in self._refused and digest not in self._wrong
        if not self._turns.take(digest, waits=is_next):
            self._refused.add(digest)
            return "busy"
        is_right = False
        try:
            with contextlib.suppress(ValueError):  # the library has its own idea of a hash
                is_right = self._check(password, against) and hashed is not None
            if is_right:
                kept = {name: known for name, known in self._right.items() if name in users.hashes}
                self._right = kept | {user: digest}
            else:
                self._wrong.add(digest)
        finally:
            self._turns.give_back(rests=not is_right)
        return "right" if is_right else "wrong"


class _Turns:
    """Whose turn it is to be checked: one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[bytes] = deque()
        self._current: bytes | None = None
        self._began = self._rests_until = 0.0

    def take(self, who: bytes, *, waits: bool) -> bool:
        """Take a turn; return whether there was one.

        Args:
            who: What is to be checked; each has one place in the line.
            waits: Stand in line for it, a few seconds at most. Those in line go first.
        """
        with self._changed:
            if not waits:
                is_free = self._current is None and not self._line
                if not is_free or time.monotonic() < self._rests_until:
                    return False
            elif who == self._current or who in self._line or len(self._line) >= _MOST_IN_LINE:
                return False
            else:
                self._line.append(who)
                try:
                    if not self._changed.wait_for(
                        lambda: self._current is None and self._line[0] == who, _LINE_SECONDS
                    ):
                        return False
                finally:
                    self._line.remove(who)
                    self._changed.notify_all()
            self._current, self._began = who, time.monotonic()
            return True

    def give_back(self, *, rests: bool) -> None:
        """End a turn.

        Args:
            rests: Give nobody outside the line a turn for as long as this one took, so that
                guesses take half of a processor at most.
        """
        with self._changed:
            now = time.monotonic()
            self._current = None
            if rests:
                self._rests_until = 2 * now - self._began
            self._changed.notify_all()


class _Filter:
    """Which digests were added: a Bloom filter of the last hundred thousand. Thread-safe.

    It may say that one was added that was not, once in thousands, and never forgets one of the
    last ones. It holds no digest, and half a megabyte however many there were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newer, self._older = bytearray(), bytearray()
        self._count = 0

    def add(self, digest: bytes) -> None:
        """Add a digest; the oldest go where there are too many."""
        with self._lock:
            if not self._newer or self._count >= _MOST_IN_FILTER:
                self._older, self._newer = self._newer, bytearray(_BYTES_OF_FILTER)
                self._count = 0
            self._count += 1
            for place, bit in _bits(digest):
                self._newer[place] |= bit

    def __contains__(self, digest: bytes) -> bool:
        """Return whether a digest was added, as far as is known."""
        with self._lock:
            return any(
                half and all(half[place] & bit for place, bit in _bits(digest))
                for half in (self._newer, self._older)
            )


def _bits(digest: bytes) -> list[tuple[int, int]]:
    numbers = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 24, 4)]
    return [(number % _BYTES_OF_FILTER, 1 << (number >> 29)) for number in numbers]
