"""When a certificate is valid, as it is read from its file."""

from __future__ import annotations

import datetime as dt
import random
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509

from obskit_gunicorn._exporter.certificates import Validity, read_validity

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY = trustme.CA()


def _utc(*date: int) -> dt.datetime:
    return dt.datetime(*date, tzinfo=dt.timezone.utc)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    "dates",
    [
        (_utc(2020, 1, 1), _utc(2021, 12, 31, 23, 59, 59)),
        (_utc(1951, 2, 3), _utc(1999, 12, 31, 1, 2, 3)),
        (_utc(2049, 12, 31), _utc(2050, 1, 1)),
        (_utc(2020, 1, 1), _utc(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_dates(dates: tuple[dt.datetime, dt.datetime], tmp_path: Path) -> None:
    """The dates are those of the first certificate, before and after 2050, wherever the key is."""
    leaf = AUTHORITY.create_child_ca().issue_cert("x", not_before=dates[0], not_after=dates[1])
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    read = x509.load_pem_x509_certificate(chain)
    expected = Validity(read.not_valid_before_utc.timestamp(), read.not_valid_after_utc.timestamp())
    assert expected == Validity(*(date.timestamp() for date in dates))
    for text in (chain, leaf.private_key_and_cert_chain_pem.bytes(), b"Bag: \xff\n" + chain):
        (tmp_path / "x.pem").write_bytes(text)
        assert read_validity(str(tmp_path / "x.pem")) == expected


def test_what_is_no_certificate(tmp_path: Path) -> None:
    """What cannot be read has no dates, and raises nothing, however it is damaged."""
    path = tmp_path / "x.pem"
    assert read_validity(str(path)) is None
    good = AUTHORITY.issue_cert("x").cert_chain_pems[0].bytes()
    frame = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"
    for text in (b"", b"garbage", frame % b"", frame % b"AAAA", good[:200], frame % b"MIIB"):
        path.write_bytes(text)
        assert read_validity(str(path)) is None
    random_numbers = random.Random(7)
    for _ in range(500):
        damaged = bytearray(good)
        for _ in range(5):
            damaged[random_numbers.randrange(len(damaged))] = random_numbers.randrange(256)
        path.write_bytes(damaged)
        read_validity(str(path))
