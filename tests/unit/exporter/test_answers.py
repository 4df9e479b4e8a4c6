"""How the exporter's server sends an answer."""

from __future__ import annotations

import http.client
import io
import socket
import threading
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.server import MetricsServer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Application:
    """It has two pages, one of them empty."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer."""
        body = b"" if environ["PATH_INFO"] == "/empty" else b"body"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return that none is."""
        return False

    def register(self, collector: object) -> None:
        """Take nothing."""


def test_the_head_is_sent_in_one_piece(tmp_path: Path) -> None:
    """A process that is killed meanwhile has sent nothing, or how long the body is."""
    # Such a socket keeps apart what was sent apart.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = MetricsServer(listener, Application(), None)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            for path, body in (("/", b"body"), ("/empty", b"")):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                    client.connect(str(tmp_path / "socket"))
                    client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    status, _, headers = client.recv(65536).partition(b"\r\n")
                    assert status == b"HTTP/1.0 200 OK"
                    assert headers.endswith(b"\r\n\r\n")
                    found = http.client.parse_headers(io.BytesIO(headers))
                    assert found["Content-Length"] == str(len(body))
                    assert client.recv(65536) == body
        finally:
            server.shutdown()
            thread.join()
