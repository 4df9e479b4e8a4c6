"""Certificate files: loading them, and reading from when to when a certificate is valid."""

from __future__ import annotations

import calendar
import re
import ssl
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARNING_SECONDS = 14 * 86_400.0
_WARNING_SHARE = 0.2
"""Of a certificate's life: one that lives for a day is not renewed two weeks before."""

_PEM = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags of DER


class Validity(NamedTuple):
    """When a certificate is valid, in Unix time."""

    start: float
    end: float

    def ends_soon(self, now: float) -> bool:
        """Return whether it has expired, or should have been renewed by now."""
        return self.end - now <= min(_WARNING_SECONDS, _WARNING_SHARE * (self.end - self.start))

    def end_text(self) -> str:
        """Return when it expires, for people."""
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.end))


def context_of(certfile: str, keyfile: str | None, ca_certs: str | None) -> ssl.SSLContext:
    """Return the context to serve with.

    Args:
        certfile: The certificate chain.
        keyfile: The private key, if it is not in the same file.
        ca_certs: The authorities of client certificates; ``None`` to require none.

    Raises:
        OSError: A file cannot be read, or they do not belong together.
        ValueError: A path is none.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs)
    # A key with a passphrase is an error: OpenSSL would ask for it at the terminal, and wait.
    context.load_cert_chain(certfile, keyfile, password="")
    if ca_certs:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_validity(certfile: str) -> Validity | None:
    """Return when the first certificate of a PEM file is valid; ``None`` if that cannot be read."""
    try:
        with open(certfile, encoding="latin-1") as file:
            pem = _PEM.search(file.read())
        return validity(ssl.PEM_cert_to_DER_cert(pem[0] if pem else ""))
    except (OSError, ValueError):
        return None


def validity(der: bytes) -> Validity | None:
    """Return when a certificate is valid; ``None`` if that cannot be read.

    The standard library tells it of certificates that have been verified, so not of one's own and
    not of one that has expired. But it stands at a fixed place (RFC 5280, 4.1).

    Args:
        der: The certificate.
    """
    try:
        ((_, certificate),) = _elements(der)
        (_, signed), *_ = _elements(certificate)
        # A version, if it is not the first one; serial number, algorithm, issuer; validity.
        fields = [content for tag, content in _elements(signed) if tag != _VERSION]
        start, end = _elements(fields[3])
        return Validity(_unix_time(*start), _unix_time(*end))
    except (ValueError, IndexError):
        return None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return tag and content of each element of DER."""
    while data:
        tag, length, at = data[0], data[1], 2
        if length & 0x80:
            at += length & 0x7F
            length = int.from_bytes(data[2:at], "big")
        yield tag, data[at : at + length]
        data = data[at + length :]


def _unix_time(tag: int, text: bytes) -> float:
    digits = text.decode()
    if tag == _UTC_TIME:  # two digits of the year; from 1950 on
        digits = ("19" if digits >= "5" else "20") + digits
    return calendar.timegm(time.strptime(digits, "%Y%m%d%H%M%SZ"))
