"""What identifies a process, and which user owns its files.

A pid does not identify a process: processes of several pid namespaces may share a directory, and
the kernel reuses pids. Together with its namespace and its start time it does.
"""

from __future__ import annotations

import os


class _Owner:
    """The owner of the files that root creates."""

    ids: tuple[int, int] | None = None


def set_owner(user: int, group: int) -> None:
    """Set the owner of the files that root creates, in this process and its forks.

    Args:
        user: The uid of the workers.
        group: Their gid.
    """
    _Owner.ids = (user, group)


def owner() -> tuple[int, int] | None:
    """Return the uid and gid given to :func:`set_owner`, or ``None`` if it was not called."""
    return _Owner.ids


def give_to_owner(descriptor: int) -> None:
    """Make the workers' user the owner of a file that root has just created.

    Otherwise the next holder of the slot, which has dropped root, could not open the files that a
    root arbiter created. Does nothing unless root.

    Args:
        descriptor: An open descriptor of the file.

    Raises:
        OSError: The file system does not support owners.
    """
    if _Owner.ids is not None and os.geteuid() == 0:
        os.fchown(descriptor, *_Owner.ids)


def pid_namespace() -> str:
    """Return the name of this process's pid namespace; empty if unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_ticks(pid: int | None = None) -> int:
    """Return when a process started, in clock ticks since boot (proc(5)); 0 if unknown.

    Args:
        pid: The process, which may have ended but must not have been reaped; by default this one.
    """
    try:
        with open(f"/proc/{pid or 'self'}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
