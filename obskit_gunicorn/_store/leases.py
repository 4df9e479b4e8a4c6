"""Leases: one process's exclusive hold on a slot, and the record of its holder.

A lease is a claim to ``slotN.lease``, see :mod:`obskit_gunicorn._store.locks`. It does not expire
by time; it ends when the process releases it or ends, for whatever reason. Pids are never used to
tell who is alive, because processes of several pid namespaces may share the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from obskit_gunicorn._store.identity import pid_namespace, start_ticks

if TYPE_CHECKING:
    from obskit_gunicorn._store.locks import LockedFile

Role = Literal["arbiter", "worker", "process"]


RECORD_BYTES = 4096
"""How long a record may be."""


class Lease:
    """One process's exclusive hold on a slot.

    Created by ``SlotDirectory.acquire``. Compared by identity: a process that takes the slot
    of its dead parent has a different lease.

    Attributes:
        slot: The slot's name, as in file names.
        record: What the lease file says about the holder.
        by_flock: Whether holders of other slots may have nothing but an flock.
    """

    __slots__ = ("_file", "by_flock", "record", "slot")

    def __init__(self, slot: str, file: LockedFile, role: Role, *, by_flock: bool = False) -> None:
        """Wrap a claimed lease file."""
        self.slot = slot
        self.by_flock = by_flock
        self._file = file
        self.record: dict[str, Any] = {
            "pid": os.getpid(),
            "pid_namespace": pid_namespace(),
            "start_ticks": start_ticks(),
            "role": role,
            "state": "booting" if role == "worker" else "",
            "reason": "",
            "values_not_shared": 0,
        }
        self.note()

    def note(self, **facts: object) -> None:
        """Change the record; never raises. Safe in signal context."""
        self.record.update(facts)
        # The record is for people and telemetry only: the lease is valid on a full volume too.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(self.record).encode())

    def is_in_place(self) -> bool:
        """Return whether others still see this lease: its file was neither removed nor replaced."""
        return self._file.is_in_place()

    def hand_on(self) -> int:
        """Make the program that this process is about to execute inherit the lease.

        Returns:
            The descriptor, which stays open through ``exec``.
        """
        os.set_inheritable(self._file.descriptor, True)
        return self._file.descriptor

    def metric_file_path(self, prefix: str) -> str:
        """Return the path of the slot's file for a prefix such as ``gauge_max``."""
        return os.path.join(os.path.dirname(self._file.path), f"{prefix}_{self.slot}.db")

    def path_beside(self, suffix: str) -> str:
        """Return the path of a file of the slot that is no metric file, such as its exemplars."""
        return self._file.path.removesuffix(".lease") + suffix

    def moved_to(self, path: str) -> None:
        """Note that the directory has been renamed to ``path``."""
        self._file.path = os.path.join(path, os.path.basename(self._file.path))

    def release(self) -> None:
        """End the lease; the slot's files stay for the next holder."""
        self._file.release()

    def drop(self) -> None:
        """Close a forked child's copy of its parent's lease; the parent keeps the lease."""
        self._file.close()


def is_ready_worker(record: dict[str, Any]) -> bool:
    """Return whether the record of a lease describes a worker that has booted."""
    return record.get("role") == "worker" and record.get("state") == "booted"


def read_json(descriptor: int) -> dict[str, Any]:
    """Return the record in a file; empty if there is none."""
    try:
        return dict(_parsed(os.pread(descriptor, RECORD_BYTES, 0)))
    except OSError:
        return {}


@lru_cache(maxsize=1024)  # records change seldom, and all of them are read at each scrape
def _parsed(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
