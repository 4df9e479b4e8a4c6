"""Addresses to listen at: what is one, and what stands in the way of listening there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._exporter import addresses
from obskit_gunicorn._exporter.addresses import Address
from tests.support import forks
from tests.support.forks import Nursery, become_nobody
from tests.support.process import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6 on the loopback interface")


def listen(text: str) -> socket.socket:
    """Listen at an address."""
    return Address.parse(text, os.sep).listen()


def is_reached(listener: socket.socket, family: int, place: object) -> bool:
    """Return whether a client finds a listener at a place."""
    with socket.socket(family) as client:
        client.settimeout(5)
        try:
            client.connect(place)  # type: ignore[arg-type]
        except ConnectionRefusedError:
            return False
        listener.settimeout(5)
        listener.accept()[0].close()
        return True


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Iterator[str]:
    """A place for a Unix socket, short enough for one."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield str(tmp_path / "m.sock")
    os.chdir(before)


class TestParse:
    """Reading an address."""

    @pytest.mark.parametrize(
        ("text", "expected", "shown"),
        [
            ("127.0.0.1:9764", ("127.0.0.1", 9764, ""), "127.0.0.1:9764"),
            (":1", ("0.0.0.0", 1, ""), "0.0.0.0:1"),
            ("[::1]:65535", ("::1", 65535, ""), "[::1]:65535"),
            ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80, ""), "[fe80::1%eth0]:80"),
            ("localhost:09764", ("localhost", 9764, ""), "localhost:9764"),
            ("unix:/a/../b.sock", ("", 0, "/b.sock"), "unix:/b.sock"),
            ("unix:b.sock", ("", 0, "/base/b.sock"), "unix:/base/b.sock"),
            ("unix:/with space:1", ("", 0, "/with space:1"), "unix:/with space:1"),
        ],
    )
    def test_address(self, text: str, expected: tuple[str, int, str], shown: str) -> None:
        """An address is read, and has one spelling, which is read as the same."""
        found = Address.parse(text, "/base")
        assert found == expected
        assert str(found) == shown
        assert Address.parse(shown, "/elsewhere") == found

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:+1",
            "host:1_0",
            "host:²",
            "host:" + "1" * 5000,
            "::1:9764",
            "[::1]9764",
            "[::1:9764",
            "::1]:9764",
            "[]:9764",
            "[localhost]:9764",
            "a..b:9764",
            "." * 300 + ":9764",
            "a" * 64 + ".example:9764",
            "a/b:9764",
            "http://localhost:9764",
            "a b:9764",
            "a\0b:9764",
            "unix:",
            "unix:/a\0b",
        ],
    )
    def test_no_address(self, text: str) -> None:
        """What is no address is a ValueError, when it is read and not when somebody listens."""
        with pytest.raises(ValueError, match=r"port|path|brackets|name|digits"):
            Address.parse(text, "/base")


class TestTcp:
    """Listening at TCP."""

    def test_listens(self) -> None:
        """Clients of the address find it; it does not block, and programs do not inherit it."""
        port = free_port()
        with listen(f"{HOST}:{port}") as listener:
            assert not listener.getblocking()
            assert not listener.get_inheritable()
            assert is_reached(listener, socket.AF_INET, (HOST, port))

    def test_taken(self) -> None:
        """An address where somebody listens is an error, with what it is called by the system."""
        port = free_port()
        with listen(f"{HOST}:{port}"), pytest.raises(OSError, match="in use") as caught:
            listen(f"{HOST}:{port}")
        assert caught.value.errno == errno.EADDRINUSE

    def test_left_by_connections(self) -> None:
        """Connections that have just ended do not keep the address from a new listener."""
        port = free_port()
        with (
            listen(f"{HOST}:{port}") as listener,
            socket.create_connection((HOST, port), 5) as client,
        ):
            listener.settimeout(5)
            listener.accept()[0].close()  # its side is the one that waits
            assert client.recv(1) == b""
        listen(f"{HOST}:{port}").close()

    def test_name(self) -> None:
        """A name with an address of either kind is listened at where IPv4 clients look."""
        port = free_port()
        with listen(f"localhost:{port}") as listener:
            assert is_reached(listener, socket.AF_INET, (HOST, port))

    def test_name_with_both_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a name's addresses IPv4 comes first; one that this host does not have is passed."""
        port = free_port()
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(found))
        with listen(f"somewhere:{port}") as listener:
            assert listener.getsockname() == (HOST, port)
            # Taken is taken: nobody would look for it at the next address.
            with pytest.raises(OSError, match="in use"):
                listen(f"somewhere:{port}")

    def test_unknown_name(self) -> None:
        """A name that nobody knows is an OSError."""
        with pytest.raises(socket.gaierror):
            listen("name.invalid:9764")

    def test_address_of_another_host(self) -> None:
        """So is an address that this host does not have."""
        with pytest.raises(OSError, match="assign") as caught:
            listen("203.0.113.1:9764")
        assert caught.value.errno == errno.EADDRNOTAVAIL

    @needs_root
    def test_forbidden_port(self, nursery: Nursery) -> None:
        """A port that only root may take is an error for others."""
        stranger = nursery.start()
        stranger.call(become_nobody)
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if first <= 81:
            pytest.skip("every user may take every port here")
        assert stranger.call(_error_of_listening, f"{HOST}:81") == errno.EACCES

    @needs_ipv6
    def test_ipv6(self) -> None:
        """An IPv6 address in brackets is listened at."""
        port = free_port()
        with listen(f"[::1]:{port}") as listener:
            assert is_reached(listener, socket.AF_INET6, ("::1", port))

    @needs_ipv6
    def test_all_of_ipv6(self) -> None:
        """``[::]`` takes clients of IPv4 too."""
        port = free_port()
        with listen(f"[::]:{port}") as listener:
            assert is_reached(listener, socket.AF_INET6, ("::1", port))
            assert is_reached(listener, socket.AF_INET, (HOST, port))


class TestUnix:
    """Listening at a Unix socket."""

    def test_fresh(self, path: str) -> None:
        """A socket is made that every user may connect to who may enter its directory."""
        before = os.umask(0o077)
        try:
            with listen(f"unix:{path}") as listener:
                mode = os.lstat(path).st_mode
                assert stat.S_ISSOCK(mode)
                assert stat.S_IMODE(mode) == 0o666
                assert is_reached(listener, socket.AF_UNIX, path)
        finally:
            os.umask(before)

    def test_left_over(self, path: str) -> None:
        """A socket file at which nobody listens any more is replaced."""
        listen(f"unix:{path}").close()
        assert os.path.exists(path)
        with listen(f"unix:{path}") as listener:
            assert is_reached(listener, socket.AF_UNIX, path)

    def test_taken(self, path: str) -> None:
        """One at which somebody listens is left alone, also while that one is too busy to take."""
        with listen(f"unix:{path}") as listener:
            listener.listen(0)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                for _ in range(2):
                    with pytest.raises(OSError, match="in use") as caught:
                        listen(f"unix:{path}")
                    assert caught.value.errno == errno.EADDRINUSE
            listener.settimeout(5)
            listener.accept()[0].close()

    @pytest.mark.parametrize("kind", ["file", "directory", "link", "pipe"])
    def test_something_else(self, path: str, kind: str) -> None:
        """What is no socket is an error, and is left alone."""
        if kind == "file":
            Path(path).write_text("precious")
        elif kind == "directory":
            os.mkdir(path)
        elif kind == "link":
            os.symlink("/nowhere", path)
        else:
            os.mkfifo(path)
        before = os.lstat(path)
        with pytest.raises(OSError, match="not a socket"):
            listen(f"unix:{path}")
        assert os.lstat(path) == before

    def test_socket_of_another_kind(self, path: str) -> None:
        """A datagram socket at which somebody waits is left alone."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path)
            with pytest.raises(OSError, match="in use"):
                listen(f"unix:{path}")

    def test_no_directory(self, path: str) -> None:
        """A place that does not exist is an error."""
        with pytest.raises(FileNotFoundError):
            listen(f"unix:{path}/nowhere/m.sock")

    def test_too_long(self) -> None:
        """So is a path that is too long for a socket."""
        with pytest.raises(OSError, match="too long"):
            listen(f"unix:/{'a' * 200}")

    def test_removed_with_its_socket(self, path: str) -> None:
        """The file of a socket is removed on request, and leaves nothing beside it."""
        address = Address.parse(f"unix:{path}", os.sep)
        with address.listen() as listener:
            assert os.listdir(os.path.dirname(path)) == ["m.sock"]
            address.remove_file(listener)
        assert os.listdir(os.path.dirname(path)) == []

    def test_another_ones_file_stays(self, path: str) -> None:
        """A socket that has taken the place of ours is not removed with ours."""
        address = Address.parse(f"unix:{path}", os.sep)
        with address.listen() as ours:
            os.unlink(path)
            with address.listen() as theirs:
                address.remove_file(ours)
                assert is_reached(theirs, socket.AF_UNIX, path)
        with address.listen() as ours:
            os.rename(path, path + ".ours")
            Path(path).write_text("precious")
            address.remove_file(ours)
        assert Path(path).read_text() == "precious"

    def test_inherited_through_exec(self, path: str) -> None:
        """Whoever has only the socket, as after a SIGUSR2, can tell which file is its own."""
        address = Address.parse(f"unix:{path}", os.sep)
        with address.listen() as listener, socket.socket(fileno=os.dup(listener.fileno())) as copy:
            address.remove_file(copy)
        assert not os.path.lexists(path)

    def test_a_living_one_that_comes_meanwhile(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of two servers that replace one left-over file, the second leaves the first's alone."""
        listen(f"unix:{path}").close()
        living: list[socket.socket] = []

        def look(found: str) -> bool:
            monkeypatch.undo()
            living.append(listen(f"unix:{path}"))
            return True

        monkeypatch.setattr(addresses, "_is_dead", look)
        with pytest.raises(OSError, match="in use"):
            listen(f"unix:{path}")
        assert is_reached(living[0], socket.AF_UNIX, path)
        living[0].close()
        assert os.listdir(os.path.dirname(path)) == ["m.sock"]

    def test_without_proc(self, nursery: Nursery, path: str) -> None:
        """Without /proc root refuses; another user, whom no link can lead far, listens."""
        if os.geteuid() == 0:
            assert nursery.start().call(_error_without_proc, path) == errno.ENOTSUP
        with forks.public_directory() as place:
            place.chmod(0o777)
            stranger = nursery.start()
            stranger.call(become_nobody)
            assert stranger.call(_error_without_proc, str(place / "m.sock")) == 0
            assert stranger.call(_error_without_proc, str(place / "m.sock")) == 0

    @needs_root
    def test_nobody_leads_root(self, nursery: Nursery) -> None:
        """Who owns the directory swaps every name as fast as he can, and root follows none."""
        with forks.public_directory() as place:
            secret, held = place / "secret", place / "held"
            secret.write_text("root only")
            secret.chmod(0o600)
            held.mkdir()
            os.chown(held, forks.NOBODY, forks.NOBODY)
            attacker = nursery.start()
            attacker.call(become_nobody)
            attacker.tell(_swap_names, str(held), str(secret), str(place / "stop"))
            before = secret.stat()
            path = f"unix:{held}/m.sock"
            address = Address.parse(path, os.sep)
            listened = 0
            for _ in range(300):
                with contextlib.suppress(OSError):
                    listener = address.listen((forks.NOBODY, forks.NOBODY))
                    listened += 1
                    address.remove_file(listener)
                    listener.close()
            (place / "stop").touch()
            assert attacker.answer() > 0
            assert listened > 0
            after = secret.stat()
            assert (after.st_mode, after.st_uid, after.st_nlink) == (
                before.st_mode,
                before.st_uid,
                before.st_nlink,
            )

    @needs_root
    def test_nobody_leads_root_on_the_way(self, nursery: Nursery) -> None:
        """A link on the way that the workers' user has made is not followed; one of root's is."""
        with forks.public_directory() as place:
            (place / "theirs").mkdir()
            os.symlink(place, place / "theirs" / "link")
            os.chown(place / "theirs", forks.NOBODY, forks.NOBODY)
            with pytest.raises(PermissionError, match="another user may have made"):
                listen(f"unix:{place}/theirs/link/m.sock")
            os.symlink("theirs/../theirs", place / "ours")
            listen(f"unix:{place}/ours/m.sock").close()
            assert stat.S_ISSOCK((place / "theirs" / "m.sock").stat().st_mode)

    @needs_root
    def test_owner(self) -> None:
        """The file belongs to the user that root names."""
        with forks.public_directory() as place:
            address = Address.parse(f"unix:{place}/m.sock", os.sep)
            with address.listen((forks.NOBODY, forks.NOBODY)):
                status = (place / "m.sock").stat()
                assert (status.st_uid, status.st_gid) == (forks.NOBODY, forks.NOBODY)
                assert stat.S_IMODE(status.st_mode) == 0o666

    @needs_root
    def test_forbidden(self, nursery: Nursery, path: str) -> None:
        """So is a directory where this user may not make one."""
        stranger = nursery.start()
        stranger.call(become_nobody)
        assert stranger.call(_error_of_listening, f"unix:{path}") == errno.EACCES


def _error_of_listening(text: str) -> int:
    try:
        Address.parse(text, os.sep).listen().close()
    except OSError as error:
        return error.errno or -1
    return 0


def _error_without_proc(path: str) -> int:
    addresses._DESCRIPTORS = "/nowhere"
    address = Address.parse(f"unix:{path}", os.sep)
    try:
        with address.listen() as listener:
            assert is_reached(listener, socket.AF_UNIX, path)
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o666
    except OSError as error:
        return error.errno or -1
    return 0


def _swap_names(directory: str, secret: str, stop: str) -> int:
    """Put links to a secret in the place of everything that appears in a directory."""
    os.chdir(directory)
    swapped = 0
    while not os.path.exists(stop):
        for name in os.listdir():
            if name[0] == "z":
                continue
            swapped += 1
            with contextlib.suppress(OSError):
                if swapped % 3:
                    os.symlink(secret, f"z{swapped}")
                    os.rename(f"z{swapped}", name)
                else:
                    os.rename(name, f"z{swapped}")
                    os.symlink(secret, name)
                    os.unlink(name)
    return swapped
