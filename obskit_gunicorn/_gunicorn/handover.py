"""What one configuration hands on to the next: to another arbiter at a SIGUSR2, here at a SIGHUP.

A SIGUSR2 starts a new arbiter by ``exec``: in the directory that Gunicorn has changed to, with a
copy of the environment from before the configuration file ran. :meth:`Handover.give` writes into
that copy, and :meth:`Handover.take` reads it in the new arbiter. A SIGHUP makes a new instance of
the class in the same process; what must survive that is kept here too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership

if TYPE_CHECKING:
    from collections.abc import MutableMapping

EXPORTED_VARIABLE = "OBSKIT_MULTIPROC_DIR"
"""Names the directory again if it was set by us, not by the user."""

LEASE_VARIABLE = "OBSKIT_LEASE_FD"
"""The descriptor of the lease that is handed on with the directory."""

START_VARIABLE = "OBSKIT_START_DIR"
"""Where Gunicorn was first started, for relative paths; SIGUSR2 starts it in another directory."""

LISTENER_VARIABLE = "OBSKIT_LISTENER_FD"
"""The descriptor of the exporter's listening socket, and its address."""


class Handover:
    """What this process has received, and what it hands on.

    Attributes:
        exported: The directories that were put into the environment by us, not by the user.
        started_in: Where Gunicorn was first started, before any ``chdir``; for relative paths.
        published: What Gunicorn got last; used at a SIGHUP whose configuration is wrong.
    """

    def __init__(self) -> None:
        """Start with nothing given."""
        self.exported: set[str] = set()
        self.started_in = _working_directory()
        self.published: dict[str, Any] | None = None
        self._lease: int | None = None
        self._listener = ""

    def give(self, environment: MutableMapping[str, str], listener: str | None) -> None:
        """Hand on what the arbiter of a SIGUSR2 needs; runs in its process, before the exec.

        Args:
            environment: The environment of the new arbiter.
            listener: Descriptor and address of the exporter's listening socket, if there is one.
        """
        environment[START_VARIABLE] = self.started_in
        environment.pop(LEASE_VARIABLE, None)
        environment.pop(LISTENER_VARIABLE, None)
        if listener is not None:
            environment[LISTENER_VARIABLE] = listener
        if membership.directory is None:
            return
        if membership.directory.path in self.exported:
            environment[DIRECTORY_VARIABLE] = membership.directory.path
            environment[EXPORTED_VARIABLE] = membership.directory.path
        # Until the new arbiter has begun, this lease shows that the directory is in use: the old
        # arbiter may end before the new one has read its configuration.
        membership.role = "arbiter"
        with contextlib.suppress(OSError):
            environment[LEASE_VARIABLE] = str(membership.acquire().hand_on())

    def give_command(self, command: list[str]) -> None:
        """Have the new arbiter started as this one was, if that was ``python -m``.

        Gunicorn starts it by the path of the module's file. Then Python looks for modules beside
        that file first; beside Gunicorn's there is an ``http`` that hides Python's.

        Args:
            command: The new arbiter's command: the interpreter, the program, its arguments.
        """
        main = sys.modules["__main__"]
        module = getattr(getattr(main, "__spec__", None), "name", "").removesuffix(".__main__")
        # A folder or an archive that is run has a __main__ of no package.
        if module and module != "__main__" and command[1:2] == [getattr(main, "__file__", None)]:
            command[1:2] = ["-m", module]

    def take(self, environment: MutableMapping[str, str]) -> None:
        """Take what another arbiter has handed on, and remove it from the environment.

        Runs while a configuration is loaded.
        """
        exported = environment.pop(EXPORTED_VARIABLE, "")
        if exported:
            self.exported.add(exported)
        self.started_in = environment.pop(START_VARIABLE, "") or self.started_in
        lease = environment.pop(LEASE_VARIABLE, "")
        if lease.isdigit():
            self._lease = int(lease)
        self._listener = environment.pop(LISTENER_VARIABLE, self._listener)
        number = self._listener.partition(" ")[0]
        if number.isdigit():
            # It came through an exec; programs that the application starts must not inherit it.
            with contextlib.suppress(OSError):
                os.set_inheritable(int(number), False)

    def export(self) -> None:
        """Name the directory of this process in its environment, for workers and libraries."""
        exported = os.environ.get(DIRECTORY_VARIABLE)
        if membership.directory is not None:
            if exported != membership.directory.path:
                os.environ[DIRECTORY_VARIABLE] = membership.directory.path
                self.exported.add(membership.directory.path)
        elif exported in self.exported:
            os.environ.pop(DIRECTORY_VARIABLE, None)

    def listener_at(self, address: str) -> socket.socket | None:
        """Return the listening socket that was handed on, if it is at this address."""
        number, _, handed = self._listener.partition(" ")
        if handed == address:
            with contextlib.suppress(OSError, ValueError):
                listener = socket.socket(fileno=int(number))
                self._listener = ""
                return listener
        return None

    def drop_lease(self) -> None:
        """Close the lease that was handed on; this process has its own by now."""
        descriptor, self._lease = self._lease, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)

    def drop_listener(self) -> None:
        """Close the listening socket that was handed on, if nobody has used it."""
        number, self._listener = self._listener.partition(" ")[0], ""
        if number:
            with contextlib.suppress(OSError, ValueError):
                os.close(int(number))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed
        return os.sep


handover = Handover()
"""The handover of this process."""
