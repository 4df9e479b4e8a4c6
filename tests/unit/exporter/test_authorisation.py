"""Who is let in, by which header; and what is answered to all others."""

from __future__ import annotations

import base64
import logging
import os
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obskit_gunicorn._exporter.authorisation import Guard, basic_credentials
from obskit_gunicorn._exporter.protocol import HEALTHY_PATH, READY_PATH, STATUS_PATH, Options

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TOKEN = b"t0ken-of-some-length"
USERS = b"prom:" + bcrypt.hashpw(b"right", bcrypt.gensalt(4)) + b"\n"
RIGHT = "Basic " + base64.b64encode(b"prom:right").decode()
LONG_AGO = 1_000_000_000


class Behind:
    """An application that notes whom it answers, and what it is told of them."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.answered: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer."""
        self.answered.append(environ)
        start_response("200 OK", [])
        return [b"secret figures"]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return that it costs much."""
        return True

    def register(self, collector: object) -> None:
        """Expose nothing more."""


class Guarded:
    """An application behind a token, passwords, or both.

    Attributes:
        behind: The application.
        guard: What is in front of it.
    """

    def __init__(self, directory: Path, kind: str = "both", *, probes: bool = False) -> None:
        """Write the files."""
        self.token, self.users = directory / "token", directory / "users"
        for path, data in ((self.token, TOKEN + b"\n"), (self.users, USERS)):
            path.write_bytes(data)
            os.utime(path, (LONG_AGO, LONG_AGO))
        self.behind = Behind()
        options = Options(
            metrics_bearer_token_file=str(self.token) if kind != "users" else None,
            metrics_auth_file=str(self.users) if kind != "token" else None,
            metrics_auth_probes=probes,
        )
        self.guard = Guard(self.behind, options, {})

    def ask(
        self, header: str | None, path: str = "/metrics", method: str = "GET"
    ) -> tuple[str, list[tuple[str, str]], bytes]:
        """Ask with a header; return status, headers and body."""
        environ = {"PATH_INFO": path, "REQUEST_METHOD": method}
        if header is not None:
            environ["HTTP_AUTHORIZATION"] = header
        told: list[Any] = []
        body = b"".join(self.guard(environ, lambda *what: told.append(what)))
        ((status, headers),) = told
        return status[:3], headers, body

    def status(self, header: str | None, path: str = "/metrics", method: str = "GET") -> str:
        """Ask with a header; return the status."""
        return self.ask(header, path, method)[0]


@pytest.fixture(name="guarded")
def _guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


@pytest.fixture(name="shared", scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize(
    "header",
    [f"Bearer {TOKEN.decode()}", f"bearer  {TOKEN.decode()} ", f"BEARER {TOKEN.decode()}",
     RIGHT, RIGHT.replace("Basic", "bAsIc")],
)  # fmt: skip
def test_whoever_is_right_is_let_in(guarded: Guarded, header: str) -> None:
    """Either is enough, in any spelling of the scheme; what is behind is not shown the header."""
    assert guarded.status(header) == "200"
    (environ,) = guarded.behind.answered
    assert not any(isinstance(each, str) and each in header for each in environ.values())


@pytest.mark.parametrize(
    "header",
    [
        None, "", " ", "Bearer", "Bearer ", "Basic", "Basic ", "Basic =", "Basic ====",
        TOKEN.decode(), f"Basic {TOKEN.decode()}", f"Token {TOKEN.decode()}",
        f"Bearer {TOKEN.decode()}x", f"Bearer {TOKEN.decode()[:-1]}", "Bearer t\xf6ken",
        f"Bearer {TOKEN.decode()},Bearer {TOKEN.decode()}", f"{RIGHT},{RIGHT}",
        f"{RIGHT}, Bearer {TOKEN.decode()}", RIGHT.replace("Basic ", "Bearer "),
        RIGHT[:-1], f"{RIGHT}=", f"{RIGHT}!", RIGHT.replace("Basic ", "Basic\t"),
        "Basic " + base64.b64encode(b"prom").decode(),
        "Basic " + base64.b64encode(b"prom:right\n").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"prom:" + b"x" * 73).decode(),
        "Basic " + "A" * 60_000, "Bearer " + "A" * 60_000, "Basic \u20ac",
        'Digest username="prom"',
    ],
    ids=lambda header: repr(header)[:40],
)  # fmt: skip
def test_whoever_is_not_is_refused(
    guarded: Guarded, header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Every other header is a 401 that says how to ask, and nothing of it is logged."""
    caplog.set_level(logging.DEBUG)
    status, headers, body = guarded.ask(header)
    assert status == "401"
    challenges = [value for name, value in headers if name == "WWW-Authenticate"]
    assert challenges == ['Bearer realm="metrics"', 'Basic realm="metrics", charset="UTF-8"']
    assert ("Cache-Control", "no-store") in headers
    assert body == b"Not authorised: a bearer token or a user and a password is needed.\n"
    assert guarded.behind.answered == []
    assert caplog.records == []


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_any_header_is_answered(shared: Guarded, header: str) -> None:
    """Whatever is sent is refused, and nothing raises."""
    for each in (header, f"Basic {header}", f"Bearer {header}"):
        assert shared.status(each) in ("401", "429")
    assert shared.behind.answered == []


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_basic_credentials_are_taken_apart(user: bytes, password: bytes) -> None:
    """Any bytes can be a user or a password; the first colon is between them."""
    user = user.replace(b":", b"")
    packed = base64.b64encode(user + b":" + password)
    assert basic_credentials(packed) == (user, password)


@given(st.binary(max_size=100))
def test_other_credentials_are_none(data: bytes) -> None:
    """Bytes that are no base64 with padding have no password."""
    user, password = basic_credentials(data)
    if password is not None:
        assert base64.b64encode(user + b":" + password) == data


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/metrics/fleet", STATUS_PATH, "/-/page.js",
     "/nothing", "", "//-/healthy", "/-/healthy/", "/-/ready/x"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "BREW"])
def test_everything_is_behind_it(shared: Guarded, path: str, method: str) -> None:
    """Whatever is asked but the probes, and however, needs it; HEAD gets no body."""
    status, _, body = shared.ask(None, path, method)
    assert status == "401"
    assert bool(body) == (method != "HEAD")


@pytest.mark.parametrize("path", [HEALTHY_PATH, READY_PATH])
def test_probes_are_open_unless_told(tmp_path: Path, path: str) -> None:
    """A probe needs nothing, even with a wrong header; with the option it does."""
    guarded = Guarded(tmp_path)
    assert guarded.status(None, path) == guarded.status("Bearer wrong", path) == "200"
    closed = Guarded(tmp_path, probes=True)
    assert closed.status(None, path) == "401"
    assert closed.status(f"Bearer {TOKEN.decode()}", path) == "200"


@pytest.mark.parametrize(
    ("kind", "challenge", "right", "other"),
    [
        ("token", "Bearer", f"Bearer {TOKEN.decode()}", RIGHT),
        ("users", "Basic", RIGHT, f"Bearer {TOKEN.decode()}"),
    ],
)
def test_one_of_them_alone(
    tmp_path: Path, kind: str, challenge: str, right: str, other: str
) -> None:
    """Only what is configured is taken, and named."""
    guarded = Guarded(tmp_path, kind)
    assert guarded.status(right) == "200"
    status, headers, _ = guarded.ask(other)
    (named,) = (value for name, value in headers if name == "WWW-Authenticate")
    assert (status, named.split()[0]) == ("401", challenge)


def test_a_file_that_is_gone_closes(guarded: Guarded) -> None:
    """Without its file a scheme lets nobody in, with nothing as token either; the other does."""
    guarded.token.unlink()
    for header in (f"Bearer {TOKEN.decode()}", "Bearer ", "Bearer"):
        assert guarded.status(header) == "401"
    assert guarded.status(RIGHT) == "200"


def test_no_time_for_a_password(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another password is checked, 429 says when to come again, and names no scheme."""
    passwords: Any = guarded.guard._passwords
    monkeypatch.setattr(passwords, "judge", lambda user, password: "busy")
    status, headers, body = guarded.ask(RIGHT)
    assert status == "429"
    assert ("Retry-After", "1") in headers
    assert "WWW-Authenticate" not in dict(headers)
    assert body


def test_whoever_is_refused_takes_no_room_of_scrapes(guarded: Guarded) -> None:
    """A request counts as a scrape only if it is let in, and is judged once."""
    wrong = {"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET", "HTTP_AUTHORIZATION": "Bearer x"}
    assert not guarded.guard.is_scrape(wrong)
    right = wrong | {"HTTP_AUTHORIZATION": f"Bearer {TOKEN.decode()}"}
    right.pop("obskit.authorisation", None)
    assert guarded.guard.is_scrape(right)
    guarded.token.unlink()
    assert b"".join(guarded.guard(right, lambda *_: None)) == b"secret figures"


def test_lines_that_are_left_out_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong line is named by its number, once, although the file is read several times."""
    guarded = Guarded(tmp_path)
    guarded.users.write_bytes(USERS + b"other:s3cret\n" * 5)
    for _ in range(3):
        assert guarded.status(RIGHT) == "200"
    (line,) = (each.getMessage() for each in caplog.records)
    assert f"{guarded.users}: line 2 is no user:hash" in line
    assert "and 2 lines more" in line
    assert "s3cret" not in line
