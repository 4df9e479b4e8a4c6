"""Addresses to listen at: reading them, and listening there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any, NamedTuple

_BACKLOG = 1024
"""How many clients may wait to be accepted; the system has a limit of its own."""

_SOCKET_MODE = 0o666


class Address(NamedTuple):
    """An address to listen at, such as ``127.0.0.1:9464``, ``[::1]:9464`` or ``unix:/run/m.sock``.

    ``str()`` gives it as text, in one spelling.
    """

    host: str
    """A name or an IP address; empty for a Unix socket."""

    port: int
    """The TCP port; 0 for a Unix socket."""

    path: str
    """The path of a Unix socket, absolute; empty for TCP."""

    @classmethod
    def parse(cls, text: str, base: str) -> Address:
        """Read an address.

        Args:
            text: ``host:port``, ``[host]:port``, ``:port`` for all interfaces, or ``unix:path``.
            base: Where a relative path starts.

        Raises:
            ValueError: The text is not an address.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or "\0" in path:
                raise ValueError("a Unix socket needs a path")
            return cls("", 0, os.path.abspath(os.path.join(base, path)))
        host, colon, digits = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if ":" not in host:
                raise ValueError("brackets are for IPv6 addresses, as in [::1]:9464")
        elif ":" in host:
            raise ValueError("an IPv6 address needs brackets, as in [::1]:9464")
        if not colon or not (digits.isascii() and digits.isdigit()):
            raise ValueError("the port is missing")
        port = int(digits)
        if not 0 < port < 1 << 16:
            raise ValueError("a port is a number from 1 to 65535")
        if any(character.isspace() or character in "/[]\0" for character in host):
            raise ValueError("the host is neither a name nor an IP address")
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError("the host is neither a name nor an IP address") from None
        return cls(host or "0.0.0.0", port, "")

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def listen(self) -> socket.socket:
        """Return a new listening socket, which does not block and is not inherited by programs.

        The socket file that a killed process has left is replaced, one at which somebody listens is
        not.

        Raises:
            OSError: Somebody else listens there, or this process may not.
        """
        if self.path:
            return self._listen_at_path()
        found = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # Of a name's addresses the first that will do, IPv4 before IPv6 as Gunicorn has it.
        found.sort(key=lambda one: one[0] != socket.AF_INET)
        while True:
            family, kind, protocol, _, address = found.pop(0)
            try:
                return self._listen_at(socket.socket(family, kind, protocol), address)
            except OSError as error:
                if not found or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise

    def _listen_at(self, listener: socket.socket, address: Any) -> socket.socket:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if listener.family == socket.AF_INET6 and self.host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def _listen_at_path(self) -> socket.socket:
        if self._is_left_over():
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self.path)
            # The directory that it is in says who may connect.
            os.chmod(self.path, _SOCKET_MODE)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def _is_left_over(self) -> bool:
        try:
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise OSError(errno.EADDRINUSE, "there is a file that is not a socket", self.path)
        except FileNotFoundError:
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            try:
                client.connect(self.path)
            except ConnectionRefusedError:
                return True
            except OSError:  # a full backlog, or no right to connect: somebody is there
                return False
        return False
