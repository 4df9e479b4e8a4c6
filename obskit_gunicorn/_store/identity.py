"""What identifies a process, and which user owns its files.

A pid does not identify a process: processes of several pid namespaces may share a directory, and
the kernel reuses pids. Together with its namespace and its start time it does.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_NO_CHANGE = 0xFFFFFFFF


class _Owner:
    """The user with whose rights root opens files, and whether it does so now."""

    ids: tuple[int, int] | None = None
    libc: ctypes.CDLL | None = None
    acts = False


def set_owner(user: int, group: int) -> None:
    """Set with whose rights root opens files from now on, in this process and its forks.

    Args:
        user: The uid of the workers.
        group: Their gid.

    Raises:
        OSError: This process is root, and cannot take these rights.
    """
    _Owner.ids, _Owner.libc = (user, group), None
    if os.geteuid() != 0 or user == 0:
        return
    with contextlib.suppress(ImportError, OSError):
        import ctypes

        libc = ctypes.CDLL(None)
        libc.setfsuid.argtypes = libc.setfsgid.argtypes = [ctypes.c_uint]
        _Owner.libc = libc
    act_as_owner()
    is_owner = _Owner.libc is not None and _Owner.libc.setfsuid(_NO_CHANGE) == user
    act_as_oneself()
    if not is_owner:
        raise OSError(errno.ENOTSUP, "root cannot act with the rights of the workers' user here")


def owner() -> tuple[int, int] | None:
    """Return the uid and gid given to :func:`set_owner`, or ``None`` if it was not called."""
    return _Owner.ids


def acting_user() -> int:
    """Return the uid with whose rights this process touches the directory."""
    user = os.geteuid()
    return _Owner.ids[0] if user == 0 and _Owner.ids is not None else user


def act_as_owner() -> None:
    """Touch files with the rights of the workers' user; does nothing unless root.

    What root makes then belongs to that user, whose processes can use it. And whatever that user
    has put in the place of a file or a directory, root gets no further with it than he does. It is
    about files alone, and about this thread alone: signals, forks and other threads notice nothing.
    """
    if _Owner.libc is not None and _Owner.ids is not None and os.geteuid() == 0:
        _Owner.acts = True
        _Owner.libc.setfsgid(_Owner.ids[1])
        _Owner.libc.setfsuid(_Owner.ids[0])


def act_as_oneself() -> None:
    """End :func:`act_as_owner`; may be called without it."""
    if _Owner.acts and _Owner.libc is not None:
        _Owner.acts = False
        _Owner.libc.setfsuid(os.geteuid())
        _Owner.libc.setfsgid(os.getegid())


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
