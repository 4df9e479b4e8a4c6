"""Posts requests to a remote-write endpoint over HTTP or HTTPS.

Nothing but the URL decides where they go: no redirect is followed and no proxy is used, whatever
the environment says, as Prometheus does it too. So credentials reach only the host that was named.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obskit_gunicorn._fleet.secret import authorisation
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_ANSWER = 4096
_MOST_SHOWN = 300
_SECRETS = "OBSKIT_METRICS_PUSH"
_USER, _PASSWORD, _TOKEN = (f"{_SECRETS}_{end}" for end in ("USER", "PASSWORD", "TOKEN"))
_PRINTABLE = re.compile(r"[!-~]+")
_ADVICE = {
    401: f"set {_TOKEN}, or {_USER} and {_PASSWORD}, to what the endpoint expects",
    403: "the credentials may not write: look at their rights",
    404: "look at the path, and whether the server takes remote write "
    "(Prometheus needs --web.enable-remote-write-receiver)",
    405: "look at the path: this one takes no POST",
    415: "the server does not speak remote write 1.0",
    429: "the next push sends newer values; push less often, or raise the server's limits",
}


class EndpointError(Exception):
    """A request has not been answered, or not as it should; says what to do."""


class Answer:
    """What the endpoint has answered.

    Attributes:
        status: The status.
        text: Its words, on one line, without secrets.
    """

    def __init__(self, status: int, text: str) -> None:
        """Keep both."""
        self.status, self.text = status, text

    @property
    def is_accepted(self) -> bool:
        """Whether all that was sent is stored."""
        return 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether the samples are the reason: sent again, they would be refused again."""
        return self.status in {400, 413, 422}

    def advice(self) -> str:
        """Return what to do if it is neither."""
        if 300 <= self.status < 400:
            return "redirects are not followed: give the URL that it leads to"
        if self.status >= 500:
            return "look at the endpoint's log; the next push sends newer values"
        return _ADVICE.get(self.status, "look at the endpoint's log")


class Endpoint:
    """A remote-write endpoint. Not thread-safe.

    Attributes:
        where: Its URL as it may be shown: without user information and query.
        target: The path and the query, which is not shown.
    """

    def __init__(self, url: str) -> None:
        """Take the URL apart; what is wrong with it is said when it is used.

        Args:
            url: The URL. Its query is sent, and never shown.
        """
        self.where = "the given URL"
        self.target = "/"
        self._wrong = ""
        self._context: ssl.SSLContext | None = None
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            self._wrong = "it is not a URL: give one as in https://host/api/v1/write"
            return
        self._is_tls = parts.scheme == "https"
        self._default_port = 443 if self._is_tls else 80
        self._host, self._port = host, port or self._default_port
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme not in {"http", "https"} or not _PRINTABLE.fullmatch(host):
            self._wrong = "it is not a URL of HTTP: give one as in https://host/api/v1/write"
        elif not _PRINTABLE.fullmatch(self.target) or "@" in parts.path:
            # With a slash in a password, a part of it is taken for the path.
            self._wrong = "its path or query has characters that must be escaped with a percent"
        else:
            shown = f"[{host}]" if ":" in host else host
            self.where = f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path}"
            if "@" in parts.netloc:
                self._wrong = f"it has user information: use {_USER} and {_PASSWORD} instead"

    @contextlib.contextmanager
    def connected(self, seconds: float) -> Iterator[Connection]:
        """Give a connection, which ends with the context.

        Args:
            seconds: How long all may take until the context ends. Only looking up the host's name
                is not bounded by it, but by the resolver.

        Raises:
            EndpointError: Something failed, or the credentials in the environment cannot be used.
        """
        if self._wrong:
            raise EndpointError(self._wrong)
        try:
            header, secrets = authorisation(_SECRETS)
        except ValueError as error:
            raise EndpointError(str(error)) from error
        connection = Connection(self, header, secrets, time.monotonic() + seconds)
        # What bounds each read alone would let a slow endpoint take for ever.
        timer = threading.Timer(seconds, connection.cut)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            self._context = None  # the authorities may be others next time
            raise EndpointError(_words(error, connection.is_late, seconds)) from error
        finally:
            timer.cancel()
            connection.close()

    def open(self, deadline: float) -> socket.socket:
        """Connect.

        Args:
            deadline: By when, in monotonic time.

        Raises:
            OSError: No connection.
        """
        sock = _open(self._host, self._port, deadline)
        if self._is_tls:
            try:
                if self._context is None:
                    self._context = ssl.create_default_context()
                return self._context.wrap_socket(sock, server_hostname=self._host)
            except BaseException:
                sock.close()
                raise
        return sock

    def client(self) -> http.client.HTTPConnection:
        """Return what speaks HTTP, without a connection."""
        client = http.client.HTTPConnection(self._host, self._port)
        client.default_port = self._default_port  # it is not in the header Host
        client.auto_open = 0  # what it opens would not have our deadline
        return client


class Connection:
    """A connection to an endpoint, see :meth:`Endpoint.connected`; opened when it is needed."""

    def __init__(
        self, endpoint: Endpoint, header: str, secrets: tuple[str, ...], deadline: float
    ) -> None:
        """Keep what each request needs.

        Args:
            endpoint: Where to.
            header: Who asks, as ``Authorization`` says it; or nothing.
            secrets: What is never to be shown.
            deadline: When all has to be done, in monotonic time.
        """
        self._endpoint, self._client = endpoint, endpoint.client()
        self._deadline, self._secrets = deadline, secrets
        self._sock: socket.socket | None = None
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "snappy",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
            "User-Agent": f"obskit-gunicorn/{__version__}",
        }
        if header:
            self._headers["Authorization"] = header

    def post(self, body: bytes) -> Answer:
        """Post a request's body, which is compressed already.

        Raises:
            OSError: The connection failed, or the time is over.
            http.client.HTTPException: What came is not HTTP.
        """
        client = self._client
        if self.is_late:
            raise TimeoutError
        if client.sock is None:  # the first request, or the endpoint ends it after each
            client.sock = self._sock = self._endpoint.open(self._deadline)
        self._bound()
        try:
            client.request("POST", self._endpoint.target, body, self._headers)
        except BrokenPipeError:
            pass  # it may have answered before it had read everything
        self._bound()
        response = client.getresponse()
        text = response.read(_MOST_ANSWER).decode("utf-8", "replace")
        if not response.isclosed() and response.read(1):
            client.close()  # not worth reading
        for hidden in self._secrets:
            text = text.replace(hidden, "***")
        text = "".join(c if c.isprintable() else " " for c in text).strip()
        return Answer(response.status, text[:_MOST_SHOWN])

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    def cut(self) -> None:
        """End the connection under the thread that waits for it."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's method, which changes what the other thread uses.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _bound(self) -> None:
        if self._sock is not None:
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))


def _open(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers; each may take its share of the time."""
    problem: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(found):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left / (len(found) - place))
            sock.connect(address)
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            problem = error
        else:
            return sock
    raise problem or TimeoutError()


def _words(error: Exception, is_late: bool, seconds: float) -> str:
    """Return what has happened, and what to do."""
    if is_late or isinstance(error, TimeoutError):
        return (
            f"it did not answer within {seconds:g} s: look at its load, and whether a firewall "
            "is in between; the next push sends newer values"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {error.verify_message}; renew it, or name its "
            "authority's file in SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}; does it speak HTTPS at this port?"
    if isinstance(error, socket.gaierror):
        return f"its host is not found: {error.strerror}; look at the URL and the DNS"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return f"it does not speak HTTP ({type(error).__name__}): look at the URL"
    problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{problem}: see that it runs and can be reached; the next push sends newer values"
