"""The command ``obskit-gunicorn``: look into a multiprocess directory, and check one.

Both read only; ``check`` makes one file of its own and removes it. Exit status 0: fine; 1: a
problem was found; 2: wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from obskit_gunicorn import __version__
from obskit_gunicorn.errors import ConfigurationError
from obskit_gunicorn.locks import LockedFile
from obskit_gunicorn.mmapfile import MetricFile, MetricFileName, read_file
from obskit_gunicorn.options import DIRECTORY_VARIABLE
from obskit_gunicorn.slots import SlotDirectory, explain

__all__ = ["main"]


class _FileFacts(NamedTuple):
    """What ``inspect`` shows of a metric file."""

    name: str
    entries: int
    bytes: int
    damage: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="obskit-gunicorn", description="Prometheus metrics of Gunicorn's worker processes."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("inspect", "show the slots of a multiprocess directory, who holds them, and their files"),
        ("check", "find out whether a directory can be used, and what is wrong in it"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument(
            "directory",
            nargs="?",
            default=os.environ.get(DIRECTORY_VARIABLE),
            help=f"the multiprocess directory (default: ${DIRECTORY_VARIABLE})",
        )
        command.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    try:
        path = _directory(options.directory)
    except ConfigurationError as error:
        parser.error(str(error))
    run = {"inspect": _inspect, "check": _check}[options.command]
    return run(path, as_json=options.format == "json")


def _directory(path: str | None) -> str:
    if not path or not os.path.isdir(path):
        raise ConfigurationError(
            where="the multiprocess directory",
            value=path,
            expected="an existing directory",
            mend=f"Name it as an argument, or set {DIRECTORY_VARIABLE}.",
        )
    return path


def _inspect(path: str, *, as_json: bool) -> int:
    directory = SlotDirectory(path)
    records = directory.records()
    files = list(_files(path))
    if as_json:
        _print_json(
            {
                "directory": directory.path,
                "generation": directory.generation(),
                "slots": records,
                "files": [file._asdict() for file in files],
            }
        )
        return 0
    generation = directory.generation()
    print(f"directory  {directory.path}")
    print(f"protocol   {generation.get('protocol', 'none: no arbiter has been here')}")
    print(f"slots      {len(records)}, {sum(map(bool, records.values()))} leased")
    for slot, record in sorted(records.items(), key=lambda item: (len(item[0]), item[0])):
        print(f"  {slot:<10} {_holder(record)}")
    print(f"files      {len(files)}, {sum(file.bytes for file in files)} bytes")
    for file in files:
        damage = f"  damaged: {file.damage}" if file.damage else ""
        print(f"  {file.name:<32} {file.entries:>8} entries {file.bytes:>10} bytes{damage}")
    return 0


def _holder(record: dict[str, Any] | None) -> str:
    if record is None:
        return "free"
    facts = [str(record.get("role", "?")), f"pid {record.get('pid', '?')}"]
    facts += [str(record[name]) for name in ("state", "reason") if record.get(name)]
    if record.get("values_not_shared"):
        facts.append(f"{record['values_not_shared']} values not shared")
    return "leased: " + ", ".join(facts)


def _files(path: str) -> list[_FileFacts]:
    found = []
    for name in sorted(os.listdir(path)):
        if MetricFileName.parse(name) is None:
            continue
        try:
            data, entries = read_file(os.path.join(path, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(_FileFacts(name, 0, 0, str(error)))
            continue
        found.append(_FileFacts(name, len(entries.offsets), len(data), entries.damage))
    return found


def _check(path: str, *, as_json: bool) -> int:
    problems = [*_usability_problems(path), *_content_problems(path)]
    if as_json:
        _print_json({"directory": os.path.abspath(path), "problems": problems})
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{os.path.abspath(path)}: fine")
    return 1 if problems else 0


def _usability_problems(path: str) -> list[str]:
    """Try what a worker does: make, lock, reserve and map a metric file."""
    try:
        with tempfile.TemporaryDirectory(prefix=".check-", dir=path) as place:
            file = MetricFile(os.path.join(place, "counter_check.db"))
            try:
                second = LockedFile(file.path, os.O_RDWR)
                try:
                    if second.lock():
                        return [f"{path}: two processes can hold one lock here; use a local volume"]
                finally:
                    second.close()
            finally:
                file.release()
    except OSError as error:
        return [explain(error, path)]
    return []


def _content_problems(path: str) -> list[str]:
    problems = []
    leased = {slot for slot, record in SlotDirectory(path).records().items() if record}
    for file in _files(path):
        parsed = MetricFileName.parse(file.name)
        if file.damage:
            problems.append(
                f"{os.path.join(path, file.name)}: {file.damage}; its next holder "
                "keeps what can be read of it"
            )
        elif parsed is not None and not parsed.holder.startswith("slot"):
            problems.append(
                f"{os.path.join(path, file.name)}: written by a process that knows no "
                "slots; import obskit_gunicorn.multiprocess in it"
            )
    for name in sorted(os.listdir(path)):
        if name.endswith(".db.damaged"):
            problems.append(f"{os.path.join(path, name)}: was found damaged; look at it, remove it")
    for slot in sorted(leased):
        record = SlotDirectory(path).records().get(slot)
        if record and record.get("values_not_shared"):
            problems.append(f"{slot} ({_holder(record)}): see the server's error log")
    return problems


def _print_json(content: object) -> None:
    json.dump(content, sys.stdout, indent=2)
    print()
