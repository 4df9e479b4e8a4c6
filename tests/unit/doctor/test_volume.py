"""The file system of a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._doctor import volume
from obskit_gunicorn._doctor.volume import Mount
from tests.support import forks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.forks import Nursery

USER = 4711
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("tmpfs", "ok", "in memory"),
        ("ext4", "ok", "is on ext4 (/mnt)"),
        ("overlay", "ok", "the container's own layer"),
        ("nfs4", "warning", "a network's"),
        ("nfs", "warning", "a network's"),
        ("cifs", "warning", "a network's"),
        ("fuse.sshfs", "warning", "a network's"),
        ("nfsd", "ok", "is on nfsd"),
    ],
)
def test_kinds(kind: str, level: str, words: str) -> None:
    """A network's file system is a warning with what to do; a disk could be better."""
    found = volume._kind("/mnt/metrics", Mount("/mnt", kind))
    assert found.level == level
    assert words in found.text
    assert bool(found.advice) == (kind != "tmpfs")


def _said(path: str, processes: int) -> list[str]:
    return [each.lines() for each in volume.examine(path, processes=processes)]


@needs_root
def test_a_volume_of_ones_own(nursery: Nursery, directory: str) -> None:
    """Its type, its mount point and its room are those of the directory's own volume."""
    process = nursery.start()
    process.call(forks.mount_small, directory, 4096)
    kind, room = process.call(_said, directory, 0)
    assert f"{directory} is on tmpfs ({directory}), in memory" in kind
    assert "ok " in room
    assert "4,096 KiB of 4,096 KiB are free" in room
    # The size of Docker's /dev/shm is nothing for a hundred workers.
    _, room = process.call(_said, directory, 5)
    assert room.startswith("warning")
    assert "for 5 processes" in room
    assert "--shm-size" in room
    process.call(forks.fill_volume, directory)
    _, room = process.call(_said, directory, 0)
    assert "error " in room
    assert "the volume is full" in room


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system that has been started by systemd, with its defaults."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/logind.conf.d").mkdir(parents=True)
    (tmp_path / "etc/systemd/logind.conf").write_text("[Login]\n#RemoveIPC=yes\n")
    return tmp_path


def _is_cleared(system: Path, path: str = "/dev/shm", uid: int = USER) -> bool:
    found = volume.cleared_at_logout(path, uid, root=str(system))
    assert found is None or (found.is_problem and "RuntimeDirectory=" in found.advice)
    return found is not None


def test_what_systemd_clears(system: Path) -> None:
    """It clears /dev/shm for people, and for nobody else and nowhere else."""
    assert _is_cleared(system)
    assert not _is_cleared(system, uid=33)
    assert not _is_cleared(system, path="/tmp")


def _ways_out(system: Path) -> Iterator[None]:
    conf = system / "etc/systemd/logind.conf"
    conf.write_text("[Login]\nRemoveIPC=no\n")
    yield
    conf.write_text("[Login]\n")
    (system / "etc/systemd/logind.conf.d/ipc.conf").write_text("[Login]\nRemoveIPC=false\n")
    yield
    (system / "etc/systemd/logind.conf.d/ipc.conf").unlink()
    (system / "var/lib/systemd/linger").mkdir(parents=True)
    (system / "var/lib/systemd/linger" / str(USER)).touch()
    yield
    (system / "var/lib/systemd/linger" / str(USER)).unlink()
    (system / "run/systemd/system").rmdir()
    yield


def test_what_keeps_systemd_from_it(system: Path) -> None:
    """Each way that the advice names is noticed, and a system without systemd."""
    ways = _ways_out(system)
    for _ in ways:
        assert not _is_cleared(system)
