"""Who a process is, and whose its files shall be.

A pid alone means little: processes of several pid namespaces may share a directory, and the kernel
uses a pid again. With its namespace and its start time it names one process.
"""

from __future__ import annotations

import os


class _Owner:
    """To whom root gives the files it makes."""

    ids: tuple[int, int] | None = None


def set_owner(user: int, group: int) -> None:
    """Say to whom root gives the files it makes from now on, in this process and its forks.

    Args:
        user: The uid of the workers.
        group: Their gid.
    """
    _Owner.ids = (user, group)


def owner() -> tuple[int, int] | None:
    """Return the uid and gid of :func:`set_owner`, or ``None`` when it was not called."""
    return _Owner.ids


def give_to_owner(descriptor: int) -> None:
    """Give a file that root has just made to the user that the workers run as.

    Without it a root arbiter would leave files behind that the next holder of the slot, which has
    dropped root, cannot open. Does nothing for any other user.

    Args:
        descriptor: An open descriptor of the file.

    Raises:
        OSError: The file system has no owners.
    """
    if _Owner.ids is not None and os.geteuid() == 0:
        os.fchown(descriptor, *_Owner.ids)


def pid_namespace() -> str:
    """Return the name of this process's pid namespace; empty if it cannot be known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_ticks(pid: int | None = None) -> int:
    """Return when a process started, in clock ticks since boot (proc(5)); 0 if unknown.

    Args:
        pid: The process, ended or not as long as nobody has reaped it; this one by default.
    """
    try:
        with open(f"/proc/{pid or 'self'}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
