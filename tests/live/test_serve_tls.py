"""TLS: who is served and who is refused, and how certificates are renewed while it runs."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import subprocess
import warnings
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.forks import NOBODY
from tests.support.metrics_page import documented
from tests.support.process import HOST, parse_metrics, wait_until
from tests.support.serving import ServeProcess, may_run, reset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.timezone.utc)


@pytest.fixture(name="authority", scope="module")
def _authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(name="stranger", scope="module")
def _stranger() -> trustme.CA:
    """Another authority, whom nobody trusts."""
    return trustme.CA()


class Files:
    """Certificate, key and authority in files.

    Attributes:
        directory: Where they are.
        certificate: The chain.
        key: Its key.
        authority: Who has signed clients' certificates.
    """

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        """Write the first ones."""
        self.directory = directory
        self._authority = authority
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"
        self.authority = directory / "ca.crt"
        self.authority.write_bytes(authority.cert_pem.bytes())
        self.write(self.issue())

    def issue(self) -> trustme.LeafCert:
        """Return a new certificate for this host."""
        return self._authority.issue_cert(HOST)

    def write(self, leaf: trustme.LeafCert) -> None:
        """Write certificate and key over those that are there."""
        self.certificate.write_bytes(chain(leaf))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    def arguments(self, *, mutual: bool = False) -> list[str]:
        """Return the command's flags."""
        more = ["--ca-certs", str(self.authority)] if mutual else []
        return ["--certfile", str(self.certificate), "--keyfile", str(self.key), *more]


@pytest.fixture(name="files")
def _files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    path = tmp_path / "metrics"
    path.mkdir()
    return path


@pytest.fixture(name="served")
def _served(directory: Path, files: Files) -> Iterator[ServeProcess]:
    with ServeProcess(directory, *files.arguments()) as served:
        yield served


def chain(leaf: trustme.LeafCert) -> bytes:
    """Return a certificate chain as PEM."""
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def client(authority: trustme.CA, leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Return what a client needs that trusts an authority and has a certificate, or none."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if leaf is not None:
        leaf.configure_cert(context)
    return context


def serial(served: ServeProcess) -> int:
    """Return the serial number of the certificate that is served."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with served.connect() as plain, context.wrap_socket(plain) as connection:
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return _serial(ssl.DER_cert_to_PEM_cert(der).encode())


def _serial(pem: bytes) -> int:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem).serial_number


def serial_of(leaf: trustme.LeafCert) -> int:
    """Return the serial number of a certificate."""
    return _serial(leaf.cert_chain_pems[0].bytes())


def is_refused(served: ServeProcess, tls: ssl.SSLContext) -> bool:
    """Return whether a client gets no answer."""
    try:
        return served.get("/-/healthy", tls=tls).status != 200
    except OSError:
        return True


def test_serves(served: ServeProcess, authority: trustme.CA, stranger: trustme.CA) -> None:
    """Pages are served to who trusts the certificate's authority."""
    for path in ("/metrics", "/-/healthy", "/"):
        page = served.get(path, tls=client(authority))
        assert page.status == 200
        assert int(page.headers["content-length"]) == len(page.body)
    with pytest.raises(ssl.SSLCertVerificationError):
        served.get(tls=client(stranger))


def test_versions(served: ServeProcess, authority: trustme.CA) -> None:
    """TLS 1.2 and 1.3 are spoken, and nothing older."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client(authority)
        context.minimum_version = context.maximum_version = version
        assert served.get("/-/healthy", tls=context).status == 200
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = client(authority)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            served.get("/-/healthy", tls=context)


def test_plain_http(served: ServeProcess, authority: trustme.CA) -> None:
    """Plain HTTP at the TLS port is told to use HTTPS and nothing else, and hurts nobody."""
    for data in (
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G",
        b"\0" * 5000,
        b"GET /metrics HTTP/1.1\r\n\r\n" + _client_hello(),
    ):
        answer = served.exchange(data)
        head, _, text = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 400 Bad Request\r\n")
        assert text == b"This port speaks HTTPS: ask for https:// instead of http://.\n"
        assert served.get(tls=client(authority)).status == 200
    for data in (b"", b"\x16", b"\x16\x03\x01"):
        with served.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP" not in connection.recv(1 << 16)
        assert served.get(tls=client(authority)).status == 200
    assert served.log().count("\n") == 1


EXPIRY = "obskit_gunicorn_certificate_expiry_time_seconds"


def expiry(served: ServeProcess, authority: trustme.CA) -> float:
    """Return the gauge that says when the certificate expires."""
    context = client(authority)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return parse_metrics(served.get(tls=context).text)[EXPIRY, frozenset()]


def test_expiry(directory: Path, files: Files, authority: trustme.CA) -> None:
    """A gauge says when it ends; one line warns before and one after, of each certificate."""
    assert documented()[EXPIRY] == ("gauge", ())
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    day = dt.timedelta(days=1)

    def valid(before: dt.timedelta, after: dt.timedelta) -> float:
        """Write a certificate; return when it expires."""
        leaf = authority.issue_cert(HOST, not_before=now - before, not_after=now + after)
        files.write(leaf)
        return (now + after).timestamp()

    with ServeProcess(directory, *files.arguments()) as served:
        expiry(served, authority)  # it has read the first files, before others are written
        for name, level, count, validity in (
            ("fresh", "WARNING", 0, (1 * day, 90 * day)),
            ("ending", "WARNING", 1, (77 * day, 13 * day)),
            ("short-lived", "WARNING", 1, (0.5 * day, 0.5 * day)),
            ("short-lived, ending", "WARNING", 2, (0.9 * day, 0.1 * day)),
            ("expired", "ERROR", 1, (90 * day, -1 * day)),
            ("expired again", "ERROR", 2, (90 * day, -2 * day)),
            ("renewed", "ERROR", 2, (1 * day, 90 * day)),
        ):
            end = valid(*validity)
            for _ in range(2):
                assert expiry(served, authority) == end, name
            lines = [line for line in served.log().splitlines() if f"[{level}]" in line]
            assert len(lines) == count, name
            assert all(str(files.certificate) in line for line in lines)
        assert served.log().count("\n") == 1 + 2 + 2


def test_expires_while_it_serves(directory: Path, files: Files, authority: trustme.CA) -> None:
    """A certificate that ends while it is in use is an error line, at the next connection."""
    end = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=8)
    files.write(authority.issue_cert(HOST, not_before=LONG_AGO, not_after=end))
    with ServeProcess(directory, *files.arguments()) as served:
        wait_until(lambda: "expires on" in served.log(), "it warns")

        def has_said_so() -> bool:
            expiry(served, authority)
            return "has expired on" in served.log()

        wait_until(has_said_so, "it has expired")
        assert served.log().count("TLS: ") == 2


def test_stalled_handshakes(served: ServeProcess, authority: trustme.CA) -> None:
    """Handshakes that stall keep nobody out, and are cut off within seconds."""
    hello = _client_hello()
    with contextlib.ExitStack() as stack:
        stalled = []
        for number in range(150):
            connection = stack.enter_context(served.connect())
            connection.sendall(hello[: number % len(hello)])
            stalled.append(connection)
            if number % 30 == 29:
                assert served.get(tls=client(authority)).status == 200
                assert served.threads() < 70
        for connection in stalled:  # each waits for 20 s
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass
    served.wait_until_idle(descriptors=8)
    assert served.log().count("\n") == 1


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        side.do_handshake()
    return outgoing.read()


def test_combined_file(directory: Path, files: Files, authority: trustme.CA) -> None:
    """Certificate and key may stand in one file."""
    files.certificate.write_bytes(files.issue().private_key_and_cert_chain_pem.bytes())
    with ServeProcess(directory, "--certfile", str(files.certificate)) as served:
        assert served.get(tls=client(authority)).status == 200


def test_mutual(directory: Path, files: Files, authority: trustme.CA, stranger: trustme.CA) -> None:
    """Under mutual TLS a client needs a certificate that is good; others see nothing."""
    good = authority.issue_cert("client.example")
    expired = authority.issue_cert(
        "client.example", not_before=LONG_AGO, not_after=LONG_AGO + dt.timedelta(days=1)
    )
    child = authority.create_child_ca().issue_cert("client.example")
    wrong = (None, expired, stranger.issue_cert("client.example"))
    with ServeProcess(directory, *files.arguments(mutual=True)) as served:
        for _ in range(2):
            for leaf in (good, child):
                assert served.get(tls=client(authority, leaf)).status == 200
            for bad in wrong:
                for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                    context = client(authority, bad)
                    context.maximum_version = version
                    assert is_refused(served, context)
        assert served.log().count("\n") == 1
        # Another authority takes over.
        files.authority.write_bytes(stranger.cert_pem.bytes())
        assert is_refused(served, client(authority, good))
        assert served.get(tls=client(authority, wrong[2])).status == 200


@pytest.mark.parametrize("way", ["rename", "in place", "kubernetes"])
def test_renewed(directory: Path, tmp_path: Path, authority: trustme.CA, way: str) -> None:
    """The next connection after a renewal gets the new certificate, however it was written."""
    place = tmp_path / "tls"
    place.mkdir()
    files = Files(place, authority)
    if way == "kubernetes":
        _move_behind_links(place, "first")
    with ServeProcess(directory, *files.arguments()) as served:
        seen = {serial(served)}
        for number in range(3):
            leaf = files.issue()
            if way == "in place":
                files.write(leaf)
            elif way == "rename":
                for path, data in (
                    (files.certificate, chain(leaf)),
                    (files.key, leaf.private_key_pem.bytes()),
                ):
                    fresh = path.with_suffix(".fresh")
                    fresh.write_bytes(data)
                    fresh.rename(path)
            else:
                _swap(place, f"version{number}", leaf)
            assert serial(served) == serial_of(leaf)
            seen.add(serial(served))
            assert served.get(tls=client(authority)).status == 200
        assert len(seen) == 4
        assert served.log().count("\n") == 1


def _move_behind_links(place: Path, version: str) -> None:
    """Arrange the files of a directory as Kubernetes does with a Secret's."""
    (place / version).mkdir()
    for path in list(place.iterdir()):
        if path.is_file():
            path.rename(place / version / path.name)
            path.symlink_to(f"..data/{path.name}")
    (place / "..data").symlink_to(version)


def _swap(place: Path, version: str, leaf: trustme.LeafCert) -> None:
    """Renew them as Kubernetes does: all at once, by one link."""
    old = os.readlink(place / "..data")
    (place / version).mkdir()
    (place / version / "tls.crt").write_bytes(chain(leaf))
    (place / version / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    (place / "..data_tmp").symlink_to(version)
    (place / "..data_tmp").rename(place / "..data")
    for path in (place / old).iterdir():
        path.unlink()
    (place / old).rmdir()


def test_files_that_do_not_match(served: ServeProcess, files: Files, authority: trustme.CA) -> None:
    """While certificate and key do not go together the old pair is used, and one line says so."""
    before = serial(served)
    leaf = files.issue()
    files.certificate.write_bytes(chain(leaf))
    for _ in range(3):
        assert serial(served) == before
    # Half of the key, and then no key at all.
    files.key.write_bytes(leaf.private_key_pem.bytes()[:100])
    assert serial(served) == before
    files.key.unlink()
    assert serial(served) == before
    assert served.get(tls=client(authority)).status == 200
    assert served.log().count("cannot be used") == 1
    assert "the previous certificate stays in use" in served.log()
    files.key.write_bytes(leaf.private_key_pem.bytes())
    assert serial(served) == serial_of(leaf)
    assert served.log().count("cannot be used") == 1
    assert served.log().count("in use again") == 1


@pytest.mark.parametrize("trouble", ["garbage", "passphrase", "mismatch"])
def test_unusable_from_the_start(
    directory: Path, files: Files, authority: trustme.CA, trouble: str
) -> None:
    """Files that cannot be used are one error line; it stays, and serves once they are mended."""
    good = files.key.read_bytes()
    if trouble == "garbage":
        files.key.write_bytes(b"garbage")
    elif trouble == "mismatch":
        files.key.write_bytes(files.issue().private_key_pem.bytes())
    else:
        files.key.write_bytes(_with_passphrase(good))
    with ServeProcess(directory, *files.arguments()) as served:
        for _ in range(3):
            assert is_refused(served, client(authority))
        (line,) = [line for line in served.log().splitlines() if "ERROR" in line]
        assert str(files.key) in line
        assert "every connection is refused" in line
        files.key.write_bytes(good)
        assert served.get(tls=client(authority)).status == 200


def _with_passphrase(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_key_that_may_not_be_read(files: Files, authority: trustme.CA, place: Path) -> None:
    """A key that its user may not read is one error line, until it may."""
    if not may_run(NOBODY):
        pytest.skip("another user may not run this interpreter")
    for name in ("tls.crt", "tls.key"):
        (place / name).write_bytes((files.directory / name).read_bytes())
    key = place / "tls.key"
    key.chmod(0o600)
    arguments = ["--certfile", str(place / "tls.crt"), "--keyfile", str(key)]
    with ServeProcess(place, *arguments, user=NOBODY) as served:
        for _ in range(3):
            assert is_refused(served, client(authority))
        (line,) = [line for line in served.log().splitlines() if "ERROR" in line]
        assert "Permission denied" in line
        key.chmod(0o644)
        assert served.get(tls=client(authority)).status == 200


def test_clients_that_break_off(served: ServeProcess, authority: trustme.CA) -> None:
    """Clients that go away in the middle leave nothing behind, in the log neither."""
    tls = client(authority)
    for _ in range(20):
        with served.connect() as plain:
            connection = tls.wrap_socket(plain, server_hostname=HOST)
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            reset(connection)
    with served.connect() as plain:
        plain.sendall(_client_hello())
        reset(plain)
    served.wait_until_idle(descriptors=8)
    assert served.get(tls=tls).status == 200
    assert served.log().count("\n") == 1


def test_curl(served: ServeProcess, files: Files) -> None:
    """The command curl is content with how a response ends."""
    try:
        done = subprocess.run(
            [
                *("curl", "--silent", "--show-error", "--fail", "--compressed"),
                *("--cacert", str(files.authority), f"https://{HOST}:{served.port}/metrics"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    assert done.returncode == 0, done.stderr
    assert "obskit_gunicorn_info" in done.stdout
    wait_until(lambda: served.threads() <= 2, "nobody is served")
