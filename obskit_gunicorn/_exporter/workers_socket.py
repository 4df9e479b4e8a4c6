"""A socket in the multiprocess directory, at which the exporter shows workers the whole fleet.

For platforms that reach an application at one URL only: the application shows the metrics of all
hosts itself, by way of the exporter, and no worker has a connection to the store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.server import MetricsServer
from obskit_gunicorn._log import log
from obskit_gunicorn._store.directory import SOCKET_NAME

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from obskit_gunicorn._exporter.server import Application

_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 0.1
_LONGEST_SECONDS = 2.0
_MODE = 0o660


class WorkersSocket:
    """Serves an application at a socket in a directory, wherever that is at the moment.

    Another exporter may have the socket still, because it is being replaced, or may have taken it
    since; so this looks again and again.
    """

    def __init__(self, directory: Callable[[], str], application: Application) -> None:
        """Name both; nothing is opened."""
        self._directory, self._application = directory, application
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="obskit socket", daemon=True)
        self._server: MetricsServer | None = None
        self._listener: socket.socket | None = None
        self._address: Address | None = None
        self._inode = 0
        self._problem = 0

    def start(self) -> None:
        """Serve, on threads."""
        self._thread.start()

    def end(self) -> None:
        """Stop, and remove the socket's file."""
        self._is_over.set()
        self._thread.join(_LONGEST_SECONDS)

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                if not self._is_in_place():
                    self._close()
                    self._open()
                self._problem = 0
            except OSError as error:
                # The exporter before this one still listens there, for a moment.
                if error.errno not in (errno.EADDRINUSE, self._problem):
                    log.warning("workers cannot show the fleet: %s: %s", self._path(), error)
                self._problem = error.errno or 0
            self._is_over.wait(_RETRY_SECONDS if self._problem else _LOOK_SECONDS)
        self._close()

    def _path(self) -> str:
        return os.path.join(self._directory(), SOCKET_NAME)

    def _is_in_place(self) -> bool:
        """Return whether the file of the socket is still the one that was made."""
        if self._listener is None or self._address is None or self._address.path != self._path():
            return False
        with contextlib.suppress(OSError):
            return os.stat(self._path()).st_ino == self._inode
        return False

    def _open(self) -> None:
        """Listen and serve.

        Raises:
            OSError: It is not possible now.
        """
        address = Address.parse(f"unix:{self._path()}", os.sep)
        listener = address.listen()
        with contextlib.suppress(OSError):
            os.chmod(address.path, _MODE)
        self._inode = os.stat(address.path).st_ino
        self._listener, self._address = listener, address
        self._server = MetricsServer(listener, self._application, None)
        threading.Thread(target=self._server.serve, daemon=True).start()

    def _close(self) -> None:
        server, self._server = self._server, None
        listener, self._listener = self._listener, None
        if server is not None and listener is not None:
            server.shutdown()
            if self._address is not None:
                self._address.remove_file(listener)
            listener.close()
