"""Who listens at an address that is taken, as far as ``/proc`` tells."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from obskit_gunicorn._exporter.addresses import bound_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._exporter.addresses import Address

_LONGEST_SECONDS = 0.5
_MOST_COMMAND = 80
_LISTENING = "0A"


def holder(address: Address) -> str:
    """Return who listens at an address, for a line in the log; empty if it cannot be known.

    Never raises, and gives up after a while.
    """
    try:
        inodes = dict(_unix(address.path) if address.path else _tcp(address.port))
        if not inodes:
            return ""
        deadline = time.monotonic() + _LONGEST_SECONDS
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if time.monotonic() > deadline:
                break
            if any(target in inodes for target in _descriptors(pid)):
                return f", by process {pid} ({_command(pid)})"
        return f", by a process of the user with uid {next(iter(inodes.values()))}"
    except Exception:
        return ""


def _tcp(port: int) -> Iterator[tuple[str, str]]:
    """Yield the sockets that listen at a port, as descriptors name them, and their owners' uids."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file]
        except OSError:  # a kernel without IPv6
            continue
        for row in rows[1:]:
            if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{row[9]}]", row[7]


def _unix(path: str) -> Iterator[tuple[str, str]]:
    uid, names = str(os.stat(path).st_uid), {path}
    with contextlib.suppress(OSError):
        names.add(bound_name(path))
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            row = line.rstrip("\n").split(None, 7)
            if row[-1] in names:
                yield f"socket:[{row[6]}]", uid


def _descriptors(pid: str) -> Iterator[str]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or is another user's
        return
    for number in numbers:
        with contextlib.suppress(OSError):  # closed by now
            yield os.readlink(f"/proc/{pid}/fd/{number}")


def _command(pid: str) -> str:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
        text = file.read(4 * _MOST_COMMAND).replace("\0", " ").strip()
    return "".join(filter(str.isprintable, text[:_MOST_COMMAND]))
