"""Who may ask the exporter: whoever has the token, or a user's password.

Everything but the probes is behind it, what is not there too. Nothing that a client sends is kept
or logged, and a header that means nothing is the same as a wrong one.
"""

from __future__ import annotations

import base64
import hmac
import os
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.pages import STRICT
from obskit_gunicorn._exporter.passwords import Passwords
from obskit_gunicorn._exporter.protocol import HEALTHY_PATH, NOT_AUTHORISED, READY_PATH
from obskit_gunicorn._exporter.secret_files import SecretFile, summary, token_in, users_in
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.registry import Collector

    from obskit_gunicorn._exporter.passwords import Verdict
    from obskit_gunicorn._exporter.protocol import Options
    from obskit_gunicorn._exporter.secret_files import Users
    from obskit_gunicorn._exporter.server import Application

_REALM = 'realm="metrics"'
_VERDICT = "obskit.authorisation"
_RETRY_SECONDS = 1

_REFUSED = f"{NOT_AUTHORISED}: {{}}.\n"
_BUSY = "Too many passwords to check at once: try again in a second.\n"


class Guard:
    """An application behind a token and passwords; one itself. Thread-safe."""

    def __init__(
        self, application: Application, options: Options, descriptors: Mapping[str, int]
    ) -> None:
        """Put it in front of an application.

        What is wrong with the files is logged at once.

        Args:
            application: What whoever is authorised is answered by.
            options: The options, which name the files.
            descriptors: Files that another process has opened for this one, by option.
        """
        self._application = application
        self._open = () if options.metrics_auth_probes else (HEALTHY_PATH, READY_PATH)
        self._key = os.urandom(32)
        self._token: SecretFile[bytes] | None = None
        self._passwords: Passwords | None = None
        self._challenges: list[tuple[str, str]] = []
        self._users_path, self._said = options.metrics_auth_file or "", ""
        wanted = []
        if options.metrics_bearer_token_file:
            self._token = SecretFile(
                options.metrics_bearer_token_file,
                lambda data: self._digest(token_in(data)),
                what="token",
                descriptor=descriptors.get("metrics_bearer_token_file"),
            )
            self._token.content()
            self._challenges.append(("WWW-Authenticate", f"Bearer {_REALM}"))
            wanted.append("a bearer token")
        if options.metrics_auth_file:
            users = SecretFile(
                options.metrics_auth_file,
                self._users,
                what="password",
                descriptor=descriptors.get("metrics_auth_file"),
            )
            self._passwords = Passwords(users)
            users.content()
            self._challenges.append(("WWW-Authenticate", f'Basic {_REALM}, charset="UTF-8"'))
            wanted.append("a user and a password")
        self._refusal = _REFUSED.format(f"{' or '.join(wanted)} is needed").encode()
        self.register: Callable[[Collector], None] = application.register

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        verdict = self._verdict(environ)
        if verdict == "right":
            return self._application(environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8"), *STRICT]
        status, body = "401 Unauthorized", self._refusal
        if verdict == "busy":
            status, body = "429 Too Many Requests", _BUSY.encode()
            headers.append(("Retry-After", str(_RETRY_SECONDS)))
        else:
            headers += self._challenges
        status, headers, body = complete(environ["REQUEST_METHOD"], status, headers, body)
        start_response(status, headers)
        return [body]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether a request is a costly one, by somebody who may make it.

        Whoever may not takes no room of scrapes.
        """
        return self._verdict(environ) == "right" and self._application.is_scrape(environ)

    def _verdict(self, environ: dict[str, Any]) -> Verdict:
        """Return whether a request is authorised; found out once for each request."""
        if _VERDICT not in environ:
            # From here on nobody needs it, and nobody can show it.
            header = environ.pop("HTTP_AUTHORIZATION", "")
            is_open = environ["PATH_INFO"] in self._open
            environ[_VERDICT] = "right" if is_open else self._judge(header)
        verdict: Verdict = environ[_VERDICT]
        return verdict

    def _judge(self, header: str) -> Verdict:
        scheme, _, rest = header.partition(" ")
        try:
            credentials = rest.strip(" ").encode("latin-1")  # WSGI's encoding
        except UnicodeEncodeError:
            return "wrong"
        if scheme.lower() == "bearer" and self._token is not None:
            token = self._token.content()
            is_right = hmac.compare_digest(token or b"", self._digest(credentials))
            return "right" if is_right else "wrong"
        if scheme.lower() == "basic" and self._passwords is not None:
            user, password = basic_credentials(credentials)
            return "wrong" if password is None else self._passwords.judge(user, password)
        return "wrong"

    def _users(self, data: bytes) -> Users:
        """Return the users in a file, and log once which lines are left out."""
        users = users_in(data)
        problem = summary(users.wrong)
        if problem and problem != self._said:
            log.warning(
                "authorisation: %s: %s: who is meant there is not let in", self._users_path, problem
            )
        self._said = problem
        return users

    def _digest(self, token: bytes) -> bytes:
        """Return a digest that is compared in the place of a token, whose length it hides."""
        return hmac.digest(self._key, token, "sha256")


def basic_credentials(credentials: bytes) -> tuple[bytes, bytes | None]:
    """Return user and password of the scheme Basic; no password if they are none."""
    try:
        user, colon, password = base64.b64decode(credentials, validate=True).partition(b":")
    except ValueError:
        return b"", None
    return user, password if colon else None
