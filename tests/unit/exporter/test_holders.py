"""Who listens at an address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.holders import holder


def test_names_who_listens_at_ours(tmp_path: Path) -> None:
    """A Unix socket of our own is found too, although it was bound under another name."""
    address = Address.parse(f"unix:{tmp_path}/m.sock", os.sep)
    with address.listen():
        assert f"by process {os.getpid()} " in holder(address)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_names_the_process(kind: str, tmp_path: Path) -> None:
    """The line names pid and command of the process that listens, and nobody where none does."""
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as listener:
        listener.bind(str(path) if kind == "unix" else ("127.0.0.1", 0))
        listener.listen()
        text = f"unix:{path}" if kind == "unix" else f"127.0.0.1:{listener.getsockname()[1]}"
        address = Address.parse(text, os.sep)
        command = Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()
        assert holder(address) == f", by process {os.getpid()} ({command[:80]})"
    assert holder(address) == ""
    assert holder(Address.parse(f"unix:{tmp_path}/none", os.sep)) == ""
