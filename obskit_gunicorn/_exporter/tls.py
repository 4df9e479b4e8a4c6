"""The exporter's certificate, key and authorities, reloaded when their files change."""

from __future__ import annotations

import os
import ssl
import threading

from obskit_gunicorn._log import log


class TlsFiles:
    """Certificate, key and authorities, reloaded when their files change. Thread-safe."""

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

    def context(self) -> ssl.SSLContext | None:
        """Return the context to serve with; the previous one while the new files do not match.

        ``None`` if the files have never matched. What is wrong with them is logged once.
        """
        with self._lock:
            files = [path for path in (self._certfile, self._keyfile, self._ca_certs) if path]
            seen = list(map(self._look, files))
            # After a failure each call tries again: the files may have been half written.
            if seen != self._seen or self._is_wrong:
                self._seen = seen
                try:
                    self._context = self._load()
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
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._ca_certs)
        # A key with a passphrase is an error: OpenSSL would ask for it at the terminal, and wait.
        context.load_cert_chain(self._certfile, self._keyfile, password="")
        if self._ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @staticmethod
    def _look(path: str) -> tuple[int, ...]:
        try:
            status = os.stat(path)
        except OSError:
            return ()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return (status.st_dev, status.st_ino, status.st_size, *times)
