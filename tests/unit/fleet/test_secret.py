"""Secrets from the environment: a variable, or a file that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._fleet.secret import secret

if TYPE_CHECKING:
    from pathlib import Path

NAME = "OBSKIT_METRICS_SOME_TOKEN"


def test_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable holds the secret as it is; an empty one holds none."""
    assert secret(NAME) is None
    monkeypatch.setenv(NAME, "")
    monkeypatch.setenv(f"{NAME}_FILE", "")
    assert secret(NAME) is None
    monkeypatch.setenv(NAME, "s3 cret ")
    assert secret(NAME) == "s3 cret "


def test_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file is read at each call, without the line's end."""
    path = tmp_path / "token"
    monkeypatch.setenv(f"{NAME}_FILE", str(path))
    path.write_text("old\n")
    assert secret(NAME) == "old"
    path.write_text("néw\r\n", encoding="utf-8", newline="")
    assert secret(NAME) == "néw"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"s3cret\xff", "is not UTF-8"),
        (b"s3cret" * 20_000, "is too long"),
    ],
)
def test_a_file_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """The error names the variable and the file, and shows nothing of what is in it."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(f"{NAME}_FILE", str(path))
    with pytest.raises(ValueError, match=words) as caught:
        secret(NAME)
    assert f"{NAME}_FILE: {path}" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value.__cause__)


def test_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable and a file leave open which one is meant."""
    monkeypatch.setenv(NAME, "s3cret")
    monkeypatch.setenv(f"{NAME}_FILE", "/nowhere")
    with pytest.raises(ValueError, match=f"{NAME} and {NAME}_FILE are both set"):
        secret(NAME)
