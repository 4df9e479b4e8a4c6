"""Addresses to listen at: parsing them, and listening there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._store.locks import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

_BACKLOG = 1024
"""How many clients may wait to be accepted; the system may allow fewer."""

_SOCKET_MODE = 0o666

_LONGEST_PATH_BYTES = 107

_DESCRIPTORS = "/proc/self/fd"
"""Where a descriptor has a name that leads to what is open there, whoever renames what."""

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC
"""Flags to open a file or directory only to name it, without the right to read it."""


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

    def listen(self, owner: tuple[int, int] | None = None) -> socket.socket:
        """Return a new listening socket; it does not block, and programs do not inherit it.

        Replaces a socket file that a killed process has left behind, but not one at which somebody
        listens.

        Args:
            owner: To whom root gives the file of a Unix socket: uid and gid.

        Raises:
            OSError: Somebody else listens there, or this process is not allowed to.
        """
        if self.path:
            return self._listen_at_path(owner)
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

    def try_out(self) -> None:
        """Find out whether :meth:`listen` would succeed; leaves nothing behind, for nobody.

        Raises:
            OSError: It would not.
        """
        if not self.path:
            self.listen().close()
            return
        if len(os.fsencode(self.path)) > _LONGEST_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", self.path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise _not_a_socket(self.path)
            if not _is_dead(self.path):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self.path)
        beside = self._replace(path=os.path.join(os.path.dirname(self.path), ".check"))
        listener = beside.listen()
        beside.remove_file(listener)
        listener.close()

    def _listen_at(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def _listen_at_path(self, owner: tuple[int, int] | None) -> socket.socket:
        """Listen at a Unix socket.

        The file is made in a new directory that nobody else may enter, and gets its name when it is
        ready: somebody who may write next to it can put nothing in its place that root would then
        open to everybody, or give away.
        """
        if len(os.fsencode(self.path)) > _LONGEST_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket", self.path)
        if not os.path.isdir(_DESCRIPTORS):
            return self._listen_at_plain_path()
        with self._parent() as parent, self._private(parent) as private:
            # A name that no other socket has: see bound_name.
            name = os.urandom(8).hex()
            listener = self._listen_at(socket.AF_UNIX, f"{_DESCRIPTORS}/{private}/{name}")
            try:
                with _opened(name, private) as file:
                    os.chmod(f"{_DESCRIPTORS}/{file}", _SOCKET_MODE)
                    self._link(name, private, parent)
                    if owner is not None:
                        os.chown(f"{_DESCRIPTORS}/{file}", *owner)
            except BaseException:
                listener.close()
                raise
            finally:
                os.unlink(name, dir_fd=private)
            return listener

    def _listen_at_plain_path(self) -> socket.socket:
        if os.geteuid() == 0:
            raise OSError(errno.ENOTSUP, "root needs /proc for a Unix socket", self.path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise _not_a_socket(self.path)
            if _is_dead(self.path):
                os.unlink(self.path)
        listener = self._listen_at(socket.AF_UNIX, self.path)
        os.chmod(self.path, _SOCKET_MODE)
        return listener

    @contextlib.contextmanager
    def _parent(self) -> Iterator[int]:
        """Open the directory of the Unix socket, once and for all."""
        descriptor = open_directory(os.path.dirname(self.path))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _private(self, parent: int) -> Iterator[int]:
        """Make a directory beside the socket's name that only this user may enter."""
        name = f".{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            with _opened(name, parent, os.O_DIRECTORY) as descriptor:
                status = os.fstat(descriptor)
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise OSError(errno.EPERM, "somebody else moves our files", self.path)
                yield descriptor
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)

    def _link(self, name: str, private: int, parent: int) -> None:
        """Give a socket its name; in the place of one that is dead, never of a living one."""
        final = os.path.basename(self.path)
        for is_last in (False, True):
            try:
                os.link(name, final, src_dir_fd=private, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                if is_last or not self._remove_dead(final, private, parent):
                    raise OSError(
                        errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self.path
                    ) from None
            else:
                return

    def _remove_dead(self, final: str, private: int, parent: int) -> bool:
        """Remove what has the socket's name, unless somebody listens there."""
        with _opened(final, parent) as file:
            found = os.fstat(file)
            if not stat.S_ISSOCK(found.st_mode):
                raise _not_a_socket(self.path)
            if not _is_dead(f"{_DESCRIPTORS}/{file}"):
                return False
        # Out of the way first: another server may have put its own there by now.
        os.rename(final, "dead", src_dir_fd=parent, dst_dir_fd=private)
        try:
            moved = os.stat("dead", dir_fd=private, follow_symlinks=False)
            if not os.path.samestat(moved, found):
                os.link("dead", final, src_dir_fd=private, dst_dir_fd=parent, follow_symlinks=False)
                return False
        finally:
            os.unlink("dead", dir_fd=private)
        return True

    def remove_file(self, listener: socket.socket) -> None:
        """Remove the file of a Unix socket, if this is one and the file is still the socket's.

        Never raises.

        Args:
            listener: The socket, open.
        """
        if not self.path:
            return
        with contextlib.suppress(OSError):
            if not os.path.isdir(_DESCRIPTORS):
                os.unlink(self.path)
                return
            name = os.path.basename(self.path)
            with self._parent() as parent:
                with _opened(name, parent) as file:
                    is_ours = bound_name(f"{_DESCRIPTORS}/{file}") == listener.getsockname()
                if is_ours:
                    os.unlink(name, dir_fd=parent)


@contextlib.contextmanager
def _opened(name: str, directory: int, flags: int = 0) -> Iterator[int]:
    """Open what has a name in a directory, without following a link, only to name it."""
    descriptor = os.open(name, _SEARCH | os.O_NOFOLLOW | flags, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_dead(path: str) -> bool:
    """Return whether nobody listens any more at a socket file."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass  # a full backlog, or no permission to connect: somebody listens
    return False


def bound_name(path: str) -> str:
    """Return the name that the socket was bound to which listens at a socket file.

    A socket does not know its file, and has perhaps come through an exec; but who connects is told
    this name.

    Raises:
        OSError: Nobody listens there, or not for us.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(path)
        return str(client.getpeername())


def _not_a_socket(path: str) -> OSError:
    return OSError(errno.EADDRINUSE, "there is a file that is not a socket", path)
