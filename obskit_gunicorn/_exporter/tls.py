"""The exporter's certificate, key and authorities, reloaded when their files change."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn._exporter.certificates import Validity, context_of, read_validity
from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Iterable

HANDSHAKE = b"\x16"
"""The first byte of every TLS connection."""


class TlsFiles(Collector):
    """Certificate, key and authorities, reloaded when their files change. Thread-safe.

    As a collector it exposes when the certificate in use expires.
    """

    def __init__(self, certfile: str, keyfile: str | None, ca_certs: str | None) -> None:
        """Name the files; nothing is read.

        Args:
            certfile: The certificate chain.
            keyfile: The private key, if it is not in the same file.
            ca_certs: The authorities of client certificates; ``None`` to require none.
        """
        self._certfile, self._keyfile, self._ca_certs = certfile, keyfile, ca_certs
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._seen: object = None
        self._is_wrong = False
        self._validity: Validity | None = None
        self._said = logging.NOTSET

    def collect(self) -> Iterable[Metric]:
        """Return when the certificate in use expires, if that is known."""
        self.context()
        if self._validity is not None:
            yield GaugeMetricFamily(
                "obskit_gunicorn_certificate_expiry_time_seconds",
                "When the exporter's certificate expires, in Unix time.",
                self._validity.end,
            )

    def context(self) -> ssl.SSLContext | None:
        """Return the context to serve with; the previous one while the new files do not match.

        ``None`` if the files have never matched. What is wrong with them is logged once, and so is
        a certificate that will soon expire, and one that has.
        """
        with self._lock:
            files = [path for path in (self._certfile, self._keyfile, self._ca_certs) if path]
            seen = list(map(self._look, files))
            # After a failure each call tries again: the files may have been half written.
            if seen != self._seen or self._is_wrong:
                self._seen = seen
                try:
                    self._context = context_of(self._certfile, self._keyfile, self._ca_certs)
                    self._validity = read_validity(self._certfile)
                    self._said = logging.NOTSET
                    if self._is_wrong:
                        log.info("TLS: %s are in use again", " and ".join(files))
                    self._is_wrong = False
                except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                    if not self._is_wrong:
                        log.error(
                            "TLS: %s cannot be used: %s; %s until that is fixed",
                            " and ".join(files),
                            error,
                            "the previous certificate stays in use"
                            if self._context
                            else "every connection is refused",
                        )
                    self._is_wrong = True
            self._check_validity()
            return self._context

    def _check_validity(self) -> None:
        """Log once that the certificate expires soon, and once that it has expired."""
        if self._validity is None:
            return
        now = time.time()
        if not self._validity.ends_soon(now):
            return
        has_ended = self._validity.end <= now
        level, what = (logging.ERROR, "has expired") if has_ended else (logging.WARNING, "expires")
        if level != self._said:
            self._said = level
            log.log(
                level,
                "TLS: the certificate in %s %s on %s: renew the file; it is used without a restart",
                self._certfile,
                what,
                self._validity.end_text(),
            )

    @staticmethod
    def _look(path: str) -> tuple[int, ...]:
        try:
            status = os.stat(path)
        except OSError:
            return ()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return (status.st_dev, status.st_ino, status.st_size, *times)
