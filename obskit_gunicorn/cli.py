"""The command ``obskit-gunicorn``: serve a multiprocess directory, look into one, and check one.

All read only; ``check`` makes one file of its own and removes it. Exit status 0: fine; 1: a
problem was found; 2: wrong use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._gunicorn.options import OPTIONS, exporter_options, read_options
from obskit_gunicorn._store.format import MetricFileName, is_key
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._store.slots import SlotDirectory, explain
from obskit_gunicorn._store.writer import MetricFile
from obskit_gunicorn._version import __version__
from obskit_gunicorn.config import ObskitGunicornConfig
from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obskit_gunicorn._exporter.protocol import Options

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
    for name, text, more in (
        (
            "inspect",
            "show the slots of a multiprocess directory, who holds them, and their files",
            "Changes nothing. Exit status: 0; 2 for wrong use.",
        ),
        (
            "check",
            "find out whether a directory can be used, and what is wrong in it",
            "Makes a file in the directory and removes it, so it needs the right to write there. "
            "Exit status: 0 fine, 1 a problem was found, 2 wrong use.",
        ),
    ):
        command = _add_command(commands, name, text, more)
        command.add_argument(
            "directory",
            nargs="?",
            default=os.environ.get(DIRECTORY_VARIABLE),
            help=f"the multiprocess directory (default: ${DIRECTORY_VARIABLE})",
        )
        command.add_argument(
            "--format", choices=("text", "json"), default="text", help="how to print it"
        )
    _add_serve(commands)
    options = parser.parse_args(arguments)
    try:
        path = _directory(options)
        if options.command == "serve":
            exporter = _exporter_options(options)
    except ConfigurationError as error:
        options.parser.error(str(error))
    if options.command == "serve":
        return _serve(path, exporter)
    run = {"inspect": _inspect, "check": _check}[options.command]
    return run(path, as_json=options.format == "json")


def _add_command(commands: Any, name: str, text: str, more: str) -> argparse.ArgumentParser:
    """Add a command, which says what is wrong with its arguments by its own usage."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text.capitalize() + ".", epilog=more
    )
    command.set_defaults(parser=command)
    return command


def _add_serve(commands: Any) -> None:
    """Add the command that runs an exporter; its flags are the class's options."""
    text = "serve the metrics of a multiprocess directory, beside the server that writes them"
    more = (
        "SIGTERM and SIGINT end it, with exit status 0. SIGHUP does nothing: renewed certificates "
        "are read by themselves."
    )
    command = _add_command(commands, "serve", text, more)
    command.add_argument(
        "--directory",
        default=os.environ.get(DIRECTORY_VARIABLE),
        help=f"the multiprocess directory (default: ${DIRECTORY_VARIABLE})",
    )
    for option in filter(lambda option: option.is_exporters, OPTIONS):
        default = getattr(ObskitGunicornConfig, option.name)
        shown = f" (default: ${option.variable}" + (f", else {default})" if default else ")")
        command.add_argument(option.flag, dest=option.name, help=option.help + shown)


def _exporter_options(given: argparse.Namespace) -> Options:
    """Return the options of ``serve``: a flag over the environment over the default.

    Raises:
        ConfigurationError: One of them is wrong, or there is no address.
    """
    flags = {
        option.variable: option
        for option in OPTIONS
        if option.is_exporters and getattr(given, option.name) is not None
    }
    # A flag is read as the environment variable of its option is.
    environment = {**os.environ, **{v: getattr(given, flags[v].name) for v in flags}}
    try:
        options = exporter_options(
            read_options(
                ObskitGunicornConfig(), environment, source="the command line", base=os.getcwd()
            )
        )
    except ConfigurationError as error:
        option = flags.get(error.where.rpartition(" ")[2])
        if option is None:
            raise
        raise ConfigurationError(
            where=option.flag,
            value=error.value,
            expected=re.sub(r"\bmetrics_(?=[a-z]+file\b)", "--", error.expected)
            .replace(", or None for no exporter", "")
            .replace(", or None", ""),
            hint=f"Write for example {option.flag} {option.example}, or see --help.",
        ) from None
    if options is None:
        raise ConfigurationError(
            where="--bind",
            value=environment.get("OBSKIT_METRICS_BIND"),
            expected="an address to listen at",
            hint="Name one, as in --bind 0.0.0.0:9464.",
        )
    return options


def _serve(path: str, options: Options) -> int:
    """Run an exporter until SIGTERM or SIGINT."""
    # Before prometheus_client is loaded: what --collectors make is this process's own.
    for variable in (DIRECTORY_VARIABLE, DIRECTORY_VARIABLE.lower()):
        os.environ.pop(variable, None)
    from obskit_gunicorn._exporter import pages, program

    # Blocked in every thread, and awaited in this one.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    # Many send it for a reload; there is nothing to load again, and no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    program.log_to(None)
    address = Address.parse(options.metrics_bind, os.sep)
    try:
        listener = address.listen()
    except OSError as error:
        print(f"obskit-gunicorn: cannot listen at {options.metrics_bind}: {error}", file=sys.stderr)
        return 1
    sys.path.insert(0, os.getcwd())  # where --collectors are found, as Gunicorn's applications are
    print(
        f"obskit-gunicorn: serving {path} at {options.metrics_bind}{options.metrics_path}",
        flush=True,
    )
    program.serve(pages.Pages(path, options), options, listener, lambda: signal.sigwait(ends))
    if address.path:
        with contextlib.suppress(OSError):
            os.unlink(address.path)
    return 0


def _directory(given: argparse.Namespace) -> str:
    """Return the multiprocess directory, absolute.

    Raises:
        ConfigurationError: There is none.
    """
    path: str | None = given.directory
    if not path or not os.path.isdir(path):
        is_flag = given.command == "serve"
        raise ConfigurationError(
            where="--directory" if is_flag else "the multiprocess directory",
            value=path,
            expected="an existing directory",
            hint=f"Name it{'' if is_flag else ' as an argument'}, or set {DIRECTORY_VARIABLE}. A "
            'running server logs it ("obskit: metrics are shared in ..."), and '
            "obskit_gunicorn_info{directory} shows it.",
        )
    return os.path.abspath(path)


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
        reader = MetricFileReader(os.path.join(path, name))
        with contextlib.suppress(FileNotFoundError):
            reader.refresh()
            damage = None if reader.damage is None else reader.damage.text
            strange = sum(not is_key(key) for key in reader.layout.keys)
            if strange:
                damage = damage or f"{strange} of its keys are not a metric's"
            found.append(_FileFacts(name, len(reader.layout.keys), reader.size, damage))
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
        with tempfile.TemporaryDirectory(prefix=".check-", dir=path) as folder:
            file = MetricFile(os.path.join(folder, "counter_check.db"))
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
