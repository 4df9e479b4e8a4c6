"""Addresses to listen at: parsing them, and listening there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any, NamedTuple

_BACKLOG = 1024
"""How many clients may wait to be accepted; the system may allow fewer."""

_SOCKET_MODE = 0o666


class Address(NamedTuple):
    """An address to listen at, such as ``127.0.0.1:9764``, ``[::1]:9764`` or ``unix:/run/m.sock``.

    ``str()`` returns it as text, always spelled the same way.
    """

    host: str
    """A name or an IP address; empty for a Unix socket."""

    port: int
    """The TCP port; 0 for a Unix socket."""

    path: str
    """The path of a Unix socket, absolute; empty for TCP."""

    @classmethod
    def parse(cls, text: str, base: str) -> Address:
        """Parse an address.

        Args:
            text: ``host:port``, ``[host]:port``, ``:port`` for all interfaces, or ``unix:path``.
            base: The directory that a relative path starts from.

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
                raise ValueError("brackets are for IPv6 addresses, as in [::1]:9764")
        elif ":" in host:
            raise ValueError("an IPv6 address needs brackets, as in [::1]:9764")
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
        """Return a new listening socket; it does not block, and programs do not inherit it.

        Replaces a socket file that a killed process has left behind, but not one at which somebody
        listens.

        Raises:
            OSError: Somebody else listens there, or this process is not allowed to.
        """
        if self.path:
            self._remove_left_over()
            return self._listen_at(socket.AF_UNIX, self.path)
        found = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # A name may have several addresses: take the first usable one, IPv4 first, like Gunicorn.
        found.sort(key=lambda one: one[0] != socket.AF_INET)
        while True:
            family, _, _, _, address = found.pop(0)
            try:
                return self._listen_at(family, address)
            except OSError as error:
                if not found or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise

    def _listen_at(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            if self.path:  # the permissions of its directory decide who may connect
                os.chmod(self.path, _SOCKET_MODE)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, if this is one; never raises."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _remove_left_over(self) -> None:
        try:
            is_socket = stat.S_ISSOCK(os.lstat(self.path).st_mode)
        except FileNotFoundError:
            return
        if not is_socket:
            raise OSError(errno.EADDRINUSE, "there is a file that is not a socket", self.path)
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            try:
                client.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
            except OSError:
                pass  # a full backlog, or no permission to connect: somebody listens
