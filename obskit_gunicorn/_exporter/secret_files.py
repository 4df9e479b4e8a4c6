"""The files of who may ask the exporter: a token, or users with the hashes of their passwords.

What a file says now is what counts. One that is gone, empty or damaged lets nobody in until it is
right again: it may have been taken away so that somebody is refused from now on.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_COST, MOST_COST = 4, 15
"""The costs of bcrypt that are taken: each doubles the time of the one before; 15 is seconds."""

_MOST_BYTES = 1 << 20
_MOST_TOKEN = 8192
_TOKEN = re.compile(rb"[!-~]+")
_LINE = re.compile(rb"([^:]+):(\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53})")
_NOT_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_SETTLED_SECONDS = 1.0

Content = TypeVar("Content")


class Users(NamedTuple):
    """Who has which password."""

    hashes: dict[bytes, bytes]
    """The bcrypt hash of each user's password."""

    wrong: list[str]
    """What is wrong with other lines, in words without anything of what is in them."""


def token_in(data: bytes) -> bytes:
    """Return the token that a file holds; white space around it is no part of it.

    Raises:
        ValueError: There is none, or it cannot be sent in a header. Shows nothing of it.
    """
    token = data.strip()
    if not token:
        raise ValueError("it is empty")
    if len(token) > _MOST_TOKEN:
        raise ValueError(f"it is longer than {_MOST_TOKEN} bytes")
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            "it holds more than one token: one of printable ASCII characters without spaces "
            "is expected"
        )
    return token


def users_in(data: bytes) -> Users:
    """Return the users of an htpasswd file: lines ``user:hash``, as ``htpasswd -B`` writes them.

    Empty lines and those that begin with ``#`` are left out. Of lines with one user the first
    counts, as in Apache.

    Raises:
        ValueError: No line is right. Shows nothing of the file.
    """
    users = Users({}, [])
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            users.wrong.append(f"line {number} is no user:hash with a hash of bcrypt")
        elif not LEAST_COST <= int(found[3]) <= MOST_COST:
            users.wrong.append(
                f"line {number} has a cost of {int(found[3])}, which is not from {LEAST_COST} to "
                f"{MOST_COST}"
            )
        elif found[1] in users.hashes:
            users.wrong.append(f"line {number} has a user of a line before it")
        else:
            users.hashes[found[1]] = found[2]
    if not users.hashes:
        raise ValueError(summary(users.wrong) or "no user is in it")
    return users


def summary(wrong: list[str]) -> str:
    """Return what is wrong with some lines as one; empty if nothing is."""
    more = f", and {len(wrong) - 3} lines more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def read_file(path: str, descriptor: int | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: The file.
        descriptor: The same file, opened by a process that may read it where this one may not.

    Raises:
        OSError: It cannot be read, or the descriptor is of another file than the path by now.
        ValueError: It is too long.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        if descriptor is None:
            raise
        _check_same(path, descriptor)
        data = os.pread(descriptor, _MOST_BYTES + 1, 0)
    else:
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            data = os.pread(opened, _MOST_BYTES + 1, 0)
        finally:
            os.close(opened)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return data


def _check_same(path: str, descriptor: int) -> None:
    held = os.fstat(descriptor)
    try:
        named = os.stat(path)
    except PermissionError:  # its folder is not to be looked into either
        named = held
    if not held.st_nlink or not os.path.samestat(held, named):
        raise PermissionError(
            errno.EACCES,
            f"it was replaced, and uid {os.geteuid()} may not read the new one: send Gunicorn a "
            "SIGHUP",
        )


def words(error: OSError | ValueError) -> str:
    """Return what is wrong with a file, without anything of what is in it."""
    return getattr(error, "strerror", None) or str(error)


def identity(path: str) -> tuple[int, ...]:
    """Return what changes with a file; empty if it cannot be looked at."""
    try:
        return _identity(os.stat(path))
    except (OSError, ValueError):
        return ()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, status.st_nlink, *times)


class SecretFile(Generic[Content]):
    """A file that is read again when it changes. Thread-safe; holds only what was made of it."""

    def __init__(
        self, path: str, parse: Callable[[bytes], Content], *, what: str, descriptor: int | None
    ) -> None:
        """Name the file; nothing is read.

        Args:
            path: The file.
            parse: Makes of its bytes what is kept; raises ValueError.
            what: What nobody is let in with while it cannot be used, for the log.
            descriptor: The same file, opened by a process that may read it where this one may not.
        """
        self._path, self._parse, self._what = path, parse, what
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._state: tuple[object, Content | None] = (None, None)
        self._said = ""

    def content(self) -> Content | None:
        """Return what the file holds now; ``None`` while it cannot be used, which is logged once.

        Only where this process has no descriptor or memory left to read it, what was read last
        stays.
        """
        seen = self._look()
        before, content = self._state
        if seen == before:
            return content
        with self._lock:
            return self._read(seen)

    def _read(self, seen: object) -> Content | None:
        try:
            data = read_file(self._path, self._descriptor)
            content = self._parse(data)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _NOT_NOW:
                return self._state[1]
            self._state = (None, None)  # each call tries again: it may be half written
            problem = words(error)
            if problem != self._said:
                self._said = problem
                log.error(
                    "authorisation: %s cannot be used: %s; nobody is let in with a %s until that "
                    "is fixed",
                    self._path,
                    problem,
                    self._what,
                )
            return None
        if self._said:
            self._said = ""
            log.info("authorisation: %s is in use again", self._path)
        # What is written again within one tick of the clock has the same time.
        self._state = (seen if self._is_settled() else None, content)
        return content

    def _is_settled(self) -> bool:
        try:
            status = os.stat(self._path)
        except OSError:
            return True
        return abs(time.time() - status.st_mtime) > _SETTLED_SECONDS

    def _look(self) -> object:
        seen = identity(self._path)
        if self._descriptor is None:
            return seen
        return seen, _identity(os.fstat(self._descriptor))
