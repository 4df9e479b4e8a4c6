"""The files of who may ask: what is read of them, when, and what becomes of a damaged one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obskit_gunicorn._exporter.secret_files import (
    SecretFile,
    read_file,
    token_in,
    users_in,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

HASH = b"$2y$10$" + b"a" * 53
LONG_AGO = 1_000_000_000


@pytest.mark.parametrize("data", [b"t0ken", b"t0ken\n", b"\r\n t0ken \r\n", b"\tt0ken"])
def test_a_token(data: bytes) -> None:
    """White space around it, such as the end of its line, is no part of it."""
    assert token_in(data) == b"t0ken"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"s3cret s3cret", "more than one"),
        (b"s3cret\ns3cret", "more than one"),
        (b"s3cret\0", "more than one"),
        ("s3crét".encode(), "printable ASCII"),
        (b"s3cret" * 2000, "longer than"),
    ],
)
def test_no_token(data: bytes, said: str) -> None:
    """What cannot be sent in a header is refused, and the error shows nothing of it."""
    with pytest.raises(ValueError, match=said) as caught:
        token_in(data)
    assert "s3cr" not in str(caught.value)


def test_users() -> None:
    """Lines of htpasswd with bcrypt are users; comments and empty lines are left out."""
    lines = [b"# who may ask", b"", b"prom:" + HASH, b"j\xc3\xbcrgen:" + HASH.replace(b"y", b"b")]
    users = users_in(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n")
    assert users.hashes == {b"prom": HASH, b"j\xc3\xbcrgen": HASH.replace(b"y", b"b")}
    assert users.wrong == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"prom:s3cret", "line 2 is no user:hash"),
        (b"prom", "line 2 is no user:hash"),
        (b":" + HASH, "line 2 is no user:hash"),
        (b"prom:" + HASH + b"a", "line 2 is no user:hash"),
        (b"prom:" + HASH[:-1], "line 2 is no user:hash"),
        (b"prom:" + HASH.replace(b"2y", b"2x"), "line 2 is no user:hash"),
        (b"prom:$apr1$abcdefgh$" + b"a" * 22, "line 2 is no user:hash"),
        (b"prom:" + HASH.replace(b"10", b"03"), "line 2 has a cost of 3"),
        (b"prom:" + HASH.replace(b"10", b"16"), "line 2 has a cost of 16"),
        (b"other:" + HASH, "line 2 has a user of a line before it"),
    ],
)
def test_a_wrong_line(line: bytes, said: str) -> None:
    """A wrong line costs its user, and no other; what is said shows nothing of it."""
    users = users_in(b"other:" + HASH + b"\n" + line)
    assert users.hashes == {b"other": HASH}
    (wrong,) = users.wrong
    assert said in wrong
    assert "s3cret" not in wrong
    assert "prom" not in wrong


@pytest.mark.parametrize("data", [b"", b"\n# nobody\n", b"prom:s3cret\n" * 5, b"\xff\xfe\0"])
def test_no_users(data: bytes) -> None:
    """A file without any right line is damaged."""
    with pytest.raises(ValueError, match="no user") as caught:
        users_in(data)
    assert "s3cret" not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Whatever a file holds, it is read or refused."""
    for parse in (token_in, users_in):
        with contextlib.suppress(ValueError):
            assert parse(data)


def written(path: Path, data: bytes, time: int = LONG_AGO) -> None:
    """Replace a file by another one, as a Secret of Kubernetes is replaced."""
    other = path.with_suffix(".new")
    other.write_bytes(data)
    os.utime(other, (time, time))
    other.replace(path)


def watched(path: Path, descriptor: int | None = None) -> SecretFile[bytes]:
    """Return the file of a token."""
    return SecretFile(str(path), token_in, what="token", descriptor=descriptor)


def made_a_pipe(path: Path) -> None:
    """Put a pipe in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors that were logged since the last call."""
    found = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    caplog.clear()
    return found


def test_a_renewed_file_is_read_again(tmp_path: Path, mocker: MockerFixture) -> None:
    """It is read once, until it is replaced or written anew."""
    path = tmp_path / "token"
    written(path, b"one")
    file = watched(path)
    assert file.content() == b"one"
    reading = mocker.spy(os, "open")
    assert [file.content() for _ in range(3)] == [b"one"] * 3
    assert reading.call_count == 0
    written(path, b"two")
    assert file.content() == b"two"
    path.write_bytes(b"six")
    assert file.content() == b"six"


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, mocker: MockerFixture) -> None:
    """Two contents of one length, written within one tick of the clock, are told apart."""
    mocker.patch("obskit_gunicorn._exporter.secret_files.identity", return_value=(1,))
    path = tmp_path / "token"
    path.write_bytes(b"one")
    file = watched(path)
    assert file.content() == b"one"
    path.write_bytes(b"two")
    assert file.content() == b"two"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"a b"), "more than one token"),
        (lambda path: path.write_bytes(b"a" * (1 << 20) + b"b"), "longer than"),
        (lambda path: (path.unlink(), path.mkdir()), "no regular file"),
        (made_a_pipe, "no regular file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "symbolic links"),
    ],
)
def test_a_damaged_file_lets_nobody_in(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: object,
    said: str,
) -> None:
    """Taken away, emptied or damaged, it has no content; one line says so, and one its return."""
    path = tmp_path / "token"
    written(path, b"one")
    file = watched(path)
    assert file.content() == b"one"
    damage(path)  # type: ignore[operator]
    assert [file.content() for _ in range(3)] == [None] * 3
    (line,) = errors(caplog)
    assert f"authorisation: {path} cannot be used: " in line
    assert said in line
    assert "nobody is let in with a token until that is fixed" in line
    if path.is_dir():
        path.rmdir()
    caplog.set_level(logging.INFO)
    written(path, b"two")
    assert file.content() == b"two"
    assert f"{path} is in use again" in caplog.text


def test_without_descriptors_the_last_content_stays(
    tmp_path: Path, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that has no descriptor left does not lock out those who were right before."""
    path = tmp_path / "token"
    written(path, b"one")
    file = watched(path)
    assert file.content() == b"one"
    written(path, b"two")
    opening = mocker.patch.object(os, "open", side_effect=OSError(errno.EMFILE, "too many"))
    assert file.content() == b"one"
    mocker.stop(opening)
    assert file.content() == b"two"
    assert errors(caplog) == []


class TestHandedOver:
    """A file that another process has opened for this one, which may not read it."""

    @pytest.fixture(autouse=True, name="_refused")
    def _refuse(self, mocker: MockerFixture) -> None:
        """Let nothing be opened by its path, as root's files are to others."""
        mocker.patch.object(os, "open", side_effect=PermissionError(errno.EACCES, "refused"))

    def opened(self, path: Path) -> int:
        """Return a descriptor of a file."""
        with path.open("rb") as file:
            return os.dup(file.fileno())

    def test_is_read(self, tmp_path: Path) -> None:
        """It is read by its descriptor, again when it is written anew."""
        path = tmp_path / "token"
        path.write_bytes(b"one")
        file = watched(path, self.opened(path))
        assert file.content() == b"one"
        path.write_bytes(b"two")
        assert file.content() == b"two"

    @pytest.mark.parametrize("is_gone", [True, False])
    def test_one_that_was_replaced_lets_nobody_in(
        self, tmp_path: Path, is_gone: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it held may be what is refused from now on; the line says what to do."""
        path = tmp_path / "token"
        path.write_bytes(b"one")
        file = watched(path, self.opened(path))
        assert file.content() == b"one"
        if is_gone:
            path.unlink()
        else:
            written(path, b"two")
        assert file.content() is None
        (line,) = errors(caplog)
        assert ("No such file" if is_gone else "send Gunicorn a SIGHUP") in line

    def test_without_a_descriptor_it_is_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that nobody has handed over lets nobody in."""
        path = tmp_path / "token"
        path.write_bytes(b"one")
        assert watched(path).content() is None
        (line,) = errors(caplog)
        assert "refused" in line


def test_read_file_takes_regular_files_only(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_file(str(tmp_path / "pipe"))
