"""Looking into a multiprocess directory: what is in it, and whether all is well.

Reads only, but for one file that it makes where it may write, and removes. Needs no
prometheus_client.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import stat
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._doctor import finding, running, volume
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import remains
from obskit_gunicorn._store.cardinality import MANY_SERIES, widest_label
from obskit_gunicorn._store.directory import SlotDirectory, explain, is_ours
from obskit_gunicorn._store.fileformat import MetricFileName, is_key, key_text
from obskit_gunicorn._store.leases import is_ready_worker
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._store.writer import MetricFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.finding import Finding

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_LARGEST_SHOWN = 5


class FileReport(NamedTuple):
    """What is known of a metric file."""

    name: str
    entries: int
    bytes: int
    damage: str | None


class MetricReport(NamedTuple):
    """How many series a metric has in all files together, and why."""

    name: str
    series: int
    label: str
    """The label with the most values; empty where there is none."""

    label_values: int


class DirectoryReport:
    """What is in a multiprocess directory.

    Attributes:
        path: The directory.
        generation: What it says of its generation.
        records: What stands beside each lease, by slot; ``None`` for a slot that is free.
        files: Its metric files.
        metrics: Its largest metrics, the largest first.
        damaged: The names of files that were found damaged and kept.
        foreign: The names of what is neither ours nor prometheus_client's.
    """

    def __init__(self, path: str, *, largest: int = _LARGEST_SHOWN) -> None:
        """Read the directory.

        Args:
            path: The directory.
            largest: How many metrics to name.

        Raises:
            OSError: It cannot be read.
        """
        self.path = path
        names = sorted(os.listdir(path))
        directory = SlotDirectory(path)
        self.generation: dict[str, Any] = directory.generation()
        self.records: dict[str, dict[str, Any] | None] = directory.records()
        self.files: list[FileReport] = []
        self.damaged = [name for name in names if name.endswith(".db.damaged")]
        self.foreign = [
            name for name in names if not is_ours(name) and not name.startswith(remains.PREFIX)
        ]
        keys: set[bytes] = set()
        for name in names:
            if MetricFileName.parse(name) is None:
                continue
            reader = MetricFileReader(os.path.join(path, name))
            with contextlib.suppress(FileNotFoundError):
                reader.refresh()
                keys.update(reader.layout.keys)
                self.files.append(_file_report(name, reader))
        self.metrics = _largest(keys, largest)

    def held(self) -> dict[str, dict[str, Any]]:
        """Return the records of the slots that are leased."""
        return {slot: record for slot, record in self.records.items() if record is not None}


def _file_report(name: str, reader: MetricFileReader) -> FileReport:
    damage = None if reader.damage is None else reader.damage.text
    strange = sum(not is_key(key) for key in reader.layout.keys)
    if strange:
        damage = damage or f"{strange} of its keys are not a metric's"
    return FileReport(name, len(reader.layout.keys), reader.size, damage)


def _largest(keys: set[bytes], most: int) -> list[MetricReport]:
    series: dict[str, list[list[tuple[str, str]]]] = {}
    for key in keys:
        if is_key(key):
            metric, _sample, labels, _help = json.loads(key_text(key))
            series.setdefault(metric, []).append(list(labels.items()))
    reports = (
        MetricReport(name, len(found), *widest_label(found)) for name, found in series.items()
    )
    return sorted(reports, key=lambda report: report.series, reverse=True)[:most]


def examine(path: str) -> Iterator[Finding]:
    """Yield what is right with a directory, and what is wrong; never raises ``OSError``.

    Args:
        path: The directory.
    """
    try:
        yield from look_into(path)
        yield from volume.examine(path)
    except OSError as error:
        advice = "run this as the workers' user, or as root"
        yield finding.error("directory", Problem(describe_error(error), advice))
        return
    yield from write_in(path)


def look_into(path: str) -> Iterator[Finding]:
    """Yield what is in a directory, and how those do who use it; changes nothing.

    Raises:
        OSError: It cannot be read.
    """
    report = DirectoryReport(path)
    yield finding.ok("directory", f"{path} can be read: {len(report.files)} metric files")
    yield from _contents(report)
    yield from _holders(report)
    for record in report.held().values():
        if isinstance(record.get("exporter"), dict):
            yield from running.ask(record["exporter"])


def write_in(path: str, *, by: str = "") -> Iterator[Finding]:
    """Do what a worker does: create, lock, reserve and map a metric file; and remove it.

    Args:
        path: The directory.
        by: Who does it, for people; by default the uid of this process, which need not be that of
            the workers.
    """
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".check-", dir=path))
            file = MetricFile(os.path.join(folder, "counter_check.db"))
            stack.callback(file.release)
            second = stack.enter_context(contextlib.closing(LockedFile(file.path, os.O_RDWR)))
            if second.lock():
                text = f"{path}: two processes can hold one lock here"
                problem = Problem(text, "use a local volume, such as an emptyDir")
                yield finding.error("directory", problem)
                return
            has_claims = second.is_claimed(by_flock=False)
    except OSError as error:
        error.filename = path  # nobody knows the name of the trial
        yield _unwritable(error, path)
        return
    text = f"a metric file can be made, locked and mapped in {path} by "
    text += by or f"uid {os.geteuid()}; the workers' user must be able to, too"
    if not has_claims:
        text += "; there are flocks only, so that whoever may read can hold up a start"
    yield finding.ok("directory", text)


def _unwritable(error: OSError, path: str) -> Finding:
    problem = explain(error, path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return finding.error("volume", problem)
    if error.errno not in _READ_ONLY:
        return finding.error("directory", problem)
    if SlotDirectory(path).generation():
        # A server uses it; whoever only reads, such as a sidecar, needs no more.
        text = f"uid {os.geteuid()} may read here and not write, as a sidecar may; locks were not"
        return finding.ok("directory", f"{text} tried ({access(path)})")
    return finding.error("directory", Problem(f"{problem.text} ({access(path)})", problem.advice))


def _contents(report: DirectoryReport) -> Iterator[Finding]:
    for file in report.files:
        full = os.path.join(report.path, file.name)
        if file.damage:
            problem = Problem(f"{full}: {file.damage}", "its next holder keeps what can be read")
            yield finding.warning("files", problem)
        elif not file.name.rpartition("_")[2].startswith("slot"):
            text = f"{full}: written by a process that does not use slots"
            advice = "import obskit_gunicorn.multiprocess in it"
            yield finding.warning("files", Problem(text, advice))
    for name in report.damaged:
        full = os.path.join(report.path, name)
        problem = Problem(f"{full}: was found damaged", "look at it, then remove it")
        yield finding.warning("files", problem)
    if report.foreign:
        names = ", ".join(report.foreign[:_LARGEST_SHOWN])
        yield finding.ok("files", f"{len(report.foreign)} are not ours, and left alone: {names}")
    for metric in report.metrics:
        if metric.series >= MANY_SERIES:
            problem = Problem(describe_metric(metric), "give it fewer values, or drop it")
            yield finding.warning("files", problem)


def _holders(report: DirectoryReport) -> Iterator[Finding]:
    held = report.held()
    yield finding.ok("processes", f"{len(held)} of {len(report.records)} slots are leased")
    wanted = [record.get("workers") for record in held.values()]
    workers = sum(count for count in wanted if type(count) is int)
    ready = sum(map(is_ready_worker, held.values()))
    if workers:
        text = f"{ready} of {workers} workers have booted and hold a lease"
        if ready < workers:
            yield finding.warning("processes", Problem(text, "see the server's log"))
        else:
            yield finding.ok("processes", text)
    roles = [record.get("role") for record in held.values()]
    if "worker" in roles and "arbiter" not in roles:
        count = roles.count("worker")
        text = f"workers hold slots ({count}) and no arbiter does: nobody replaces them"
        advice = "if the arbiter was killed, end its workers, and start the server again"
        yield finding.error("processes", Problem(text, advice))
    for slot, record in sorted(held.items()):
        if record.get("values_not_shared"):
            text = f"{slot} ({describe_holder(record)})"
            yield finding.error("processes", Problem(text, "see the server's error log"))


def describe_holder(record: dict[str, Any] | None) -> str:
    """Return one line about the holder of a slot."""
    if record is None:
        return "free"
    words = [str(record.get("role", "?")), f"pid {record.get('pid', '?')}"]
    words += [str(record[name]) for name in ("state", "reason") if record.get(name)]
    if record.get("values_not_shared"):
        words.append(f"{record['values_not_shared']} values not shared")
    return "leased: " + ", ".join(words)


def describe_server(path: str) -> str:
    """Return one line about the server that uses a directory."""
    with contextlib.suppress(OSError):
        for record in SlotDirectory(path).records().values():
            if record is not None and record.get("role") == "arbiter":
                facts = record.get("exporter")
                where = f", metrics at {facts.get('address')}" if isinstance(facts, dict) else ""
                return f"arbiter {record.get('pid', '?')}{where}"
    return "no arbiter"


def describe_metric(metric: MetricReport) -> str:
    """Return one line about the size of a metric."""
    if not metric.label:
        return f"{metric.name} has {metric.series:,} series"
    values = "1 value" if metric.label_values == 1 else f"{metric.label_values:,} values"
    label = f"its label {metric.label} has {values}"
    return f"{metric.name} has {metric.series:,} series: {label}"


def describe_error(error: OSError) -> str:
    """Return one line about an error: what failed, whose the file is, and who asked."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    text = f"{path}: {error.strerror or error}" if path else str(error)
    return f"{text} ({access(path)})" if path else text


def access(path: str) -> str:
    """Return owner and mode of a file, or of the directory that it should be in, and who asks."""
    status = None
    while status is None:
        try:
            status = os.stat(path)
        except OSError:
            parent = os.path.dirname(path)
            if parent == path or not parent:
                break
            path = parent
    own = f"this is uid {os.geteuid()}, gid {os.getegid()}"
    if status is None:
        return own
    mode = stat.S_IMODE(status.st_mode)
    owner = f"{_user(status.st_uid)}:{_group(status.st_gid)}"
    return f"{path} belongs to {owner}, mode {mode:04o}; {own}"


def _user(uid: int) -> str:
    try:
        return f"{uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return f"{gid} ({grp.getgrgid(gid).gr_name})"
    except KeyError:
        return str(gid)
