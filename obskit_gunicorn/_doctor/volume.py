"""The file system of a directory: its type, its room, and who may clear it."""

from __future__ import annotations

import configparser
import glob
import os
import pwd
import re
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obskit_gunicorn._doctor.finding import Finding

_PART = "volume"
_LITTLE_ROOM = 64 << 10
_ROOM_A_PROCESS = 1 << 20
"""What a process with some thousand series needs."""

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|ceph|9p|lustre|afs|gfs2?|ocfs2|glusterfs|beegfs"
    r"|fuse\.(?:sshfs|glusterfs|ceph.*|s3.*|gcsfuse|rclone|juicefs|davfs.*|blobfuse.*)"
)
"""The types of file systems that other machines have a part in."""

_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_FIRST_USER = 1000
"""From this uid on systemd takes a user for a person, as ``SYS_UID_MAX`` of most systems says."""


class Mount(NamedTuple):
    """What is mounted where a directory is."""

    point: str
    kind: str


def mount_of(path: str) -> Mount | None:
    """Return what is mounted where a directory is; ``None`` where the system does not tell."""
    real, found = os.path.realpath(path), None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:  # the last one covers those before
                before, _, after = line.partition(" - ")
                point = re.sub(r"\\(\d{3})", lambda each: chr(int(each[1], 8)), before.split()[4])
                is_above = os.path.commonpath([point, real]) == point
                if is_above and (found is None or len(point) >= len(found.point)):
                    found = Mount(point, after.split()[0])
    except OSError:
        return None
    return found


def examine(path: str, *, processes: int = 0) -> Iterator[Finding]:
    """Yield what kind of volume a directory is on, and whether there is room.

    Args:
        path: The directory, or one that it will be in.
        processes: How many processes will have files there; 0 if unknown.

    Raises:
        OSError: The directory is not there.
    """
    mount = mount_of(path)
    if mount is not None:
        yield _kind(path, mount)
    status = os.statvfs(path)
    size, left = (blocks * status.f_frsize for blocks in (status.f_blocks, status.f_bavail))
    text = f"{_bytes(left)} of {_bytes(size)} are free on the volume"
    advice = "enlarge the volume (docker: --shm-size; Kubernetes: sizeLimit of the emptyDir)"
    if size and left < _LITTLE_ROOM:
        what = f"the volume is full: only {text}, and a metric file that grows needs as much again"
        yield finding.error(_PART, Problem(what, advice))
    elif not status.f_favail and status.f_files:
        problem = Problem("no inodes are left on the volume", "raise nr_inodes, or remove files")
        yield finding.error(_PART, problem)
    elif size and left < processes * _ROOM_A_PROCESS:
        what = f"only {text}, for {processes} processes; each may need a MiB for 5,000 series"
        yield finding.warning(_PART, Problem(what, advice))
    else:
        yield finding.ok(_PART, text)


def _kind(path: str, mount: Mount) -> Finding:
    where = f"{path} is on {mount.kind} ({mount.point})"
    if _NETWORK.fullmatch(mount.kind):
        advice = "use a local volume, best in memory: tmpfs, or an emptyDir of medium Memory"
        text = f"{where}, a network's: its locks and mapped files are slow, and get lost with it"
        return finding.warning(_PART, Problem(text, advice))
    if mount.kind in _IN_MEMORY:
        return finding.ok(_PART, f"{where}, in memory")
    advice = "a tmpfs, or an emptyDir of medium Memory, writes nothing to a disk"
    if mount.kind.startswith("overlay"):
        return finding.ok(_PART, f"{where}, the container's own layer: it goes with it", advice)
    return finding.ok(_PART, where, advice)


def cleared_at_logout(path: str, uid: int, *, root: str = "/") -> Finding | None:
    """Return a warning if systemd clears a directory at the last logout of its user.

    Args:
        path: The directory, or one that it will be in.
        uid: Its owner's.
        root: Where the system's files are.
    """

    def there(*parts: str) -> str:
        return os.path.join(root, *parts)

    if not os.path.realpath(path).startswith("/dev/shm") or uid < _FIRST_USER:
        return None
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    is_lingering = os.path.exists(there("var/lib/systemd/linger", name))
    is_there = os.path.exists(there("run/systemd/system"))
    if not is_there or is_lingering or not _removes(there):
        return None
    text = f"systemd clears {path} when the last session of {name} ends (RemoveIPC)"
    advice = (
        f"set RuntimeDirectory= in the unit, or RemoveIPC=no in logind.conf, or call "
        f"loginctl enable-linger {name} (docs/deployment.md)"
    )
    return finding.warning(_PART, Problem(text, advice))


def _removes(there: Callable[..., str]) -> bool:
    """Return whether ``RemoveIPC`` is in force, which is the default."""
    files = [there("etc/systemd/logind.conf")]
    for folder in ("usr/lib", "run", "etc"):
        files += sorted(glob.glob(there(folder, "systemd/logind.conf.d/*.conf")))
    settings = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    try:
        settings.read(files, encoding="utf-8")
        return settings.getboolean("Login", "RemoveIPC", fallback=True)
    except (configparser.Error, ValueError, UnicodeDecodeError):
        return True


def _bytes(number: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 10_240 or unit == "GiB":
            break
        number //= 1024
    return f"{number:,} {unit}"
