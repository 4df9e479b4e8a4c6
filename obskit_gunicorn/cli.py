"""The command ``obskit-gunicorn``: serve a multiprocess directory, inspect it, or check it.

All of them only read, except that ``check`` creates a file and removes it. Exit status 0: fine; 1:
a problem was found; 2: wrong use.
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
from obskit_gunicorn._store.directory import SlotDirectory, explain
from obskit_gunicorn._store.fileformat import MetricFileName, is_key
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._store.writer import MetricFile
from obskit_gunicorn._version import __version__
from obskit_gunicorn.config import ObskitGunicornConfig
from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_command(
        commands,
        _inspect,
        "show the slots of a multiprocess directory, who holds them, and their files",
        "Changes nothing. Exit status: 0; 2 for wrong use.",
    )
    _add_command(
        commands,
        _check,
        "find out whether a directory can be used, and what is wrong in it",
        "Makes a file in the directory and removes it, so it needs the right to write there. "
        "Exit status: 0 fine, 1 a problem was found, 2 wrong use.",
    )
    _add_command(
        commands,
        _serve,
        "serve the metrics of a multiprocess directory, beside the server that writes them",
        "SIGTERM and SIGINT end it, with exit status 0. SIGHUP does nothing: renewed certificates "
        "are read by themselves.",
    )
    given = parser.parse_args(arguments)
    command: argparse.ArgumentParser = given.parser
    try:
        return int(given.run(_directory(given), given))
    except ConfigurationError as error:
        command.error(str(error))


def _add_command(
    commands: Any, run: Callable[[str, argparse.Namespace], int], text: str, more: str
) -> None:
    """Add a command; its own usage is printed with errors in its arguments."""
    command = commands.add_parser(
        run.__name__.strip("_"), help=text, description=f"{text.capitalize()}.", epilog=more
    )
    command.set_defaults(parser=command, run=run)
    directory: dict[str, Any] = {
        "default": os.environ.get(DIRECTORY_VARIABLE),
        "help": f"the multiprocess directory (default: ${DIRECTORY_VARIABLE})",
    }
    if run is not _serve:
        command.add_argument("directory", nargs="?", **directory)
        command.add_argument(
            "--format", choices=("text", "json"), default="text", help="how to print it"
        )
        return
    command.add_argument("--directory", **directory)
    for option in filter(lambda option: option.is_exporters, OPTIONS):
        default = getattr(ObskitGunicornConfig, option.name)
        shown = f" (default: ${option.variable}" + (f", else {default})" if default else ")")
        command.add_argument(option.flag, dest=option.name, help=option.help + shown)


def _exporter_options(given: argparse.Namespace) -> Options:
    """Return the options of ``serve``: a flag wins over the environment, that over the default.

    Raises:
        ConfigurationError: One of them is wrong, or there is no address.
    """
    flags = {
        option.variable: option
        for option in OPTIONS
        if option.is_exporters and getattr(given, option.name) is not None
    }
    # A flag is read like the environment variable of its option.
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
            hint="Name one, as in --bind 0.0.0.0:9764.",
        )
    return options


def _serve(path: str, given: argparse.Namespace) -> int:
    """Run an exporter until SIGTERM or SIGINT."""
    options = _exporter_options(given)
    # Before prometheus_client is loaded: metrics that --collectors create stay in this process.
    for variable in (DIRECTORY_VARIABLE, DIRECTORY_VARIABLE.lower()):
        os.environ.pop(variable, None)
    from obskit_gunicorn._exporter import logs, pages, program

    # Blocked in every thread; this one waits for them.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    # Many send it for a reload. There is nothing to reload, and no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logs.log_to({})
    address = Address.parse(options.metrics_bind, os.sep)
    try:
        listener = address.listen()
    except OSError as error:
        print(f"obskit-gunicorn: cannot listen at {options.metrics_bind}: {error}", file=sys.stderr)
        return 1
    sys.path.insert(0, os.getcwd())  # for --collectors, as Gunicorn does for applications
    print(
        f"obskit-gunicorn: serving {path} at {options.metrics_bind}{options.metrics_path}",
        flush=True,
    )
    program.serve(pages.Pages(path, options), options, listener, lambda: signal.sigwait(ends))
    address.remove_file()
    return 0


def _directory(given: argparse.Namespace) -> str:
    """Return the multiprocess directory, absolute.

    Raises:
        ConfigurationError: There is none.
    """
    path: str | None = given.directory
    if not path or not os.path.isdir(path):
        is_flag = given.run is _serve
        raise ConfigurationError(
            where="--directory" if is_flag else "the multiprocess directory",
            value=path,
            expected="an existing directory",
            hint=f"Name it{'' if is_flag else ' as an argument'}, or set {DIRECTORY_VARIABLE}. A "
            'running server logs it ("obskit: metrics are shared in ..."), and '
            "obskit_gunicorn_info{directory} shows it.",
        )
    return os.path.abspath(path)


def _inspect(path: str, given: argparse.Namespace) -> int:
    directory = SlotDirectory(path)
    records, generation = directory.records(), directory.generation()
    files = list(_files(path))
    if given.format == "json":
        shown = [file._asdict() for file in files]
        _print_json(directory=path, generation=generation, slots=records, files=shown)
        return 0
    print(f"directory  {path}")
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


def _files(path: str) -> Iterator[_FileFacts]:
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
            yield _FileFacts(name, len(reader.layout.keys), reader.size, damage)


def _check(path: str, given: argparse.Namespace) -> int:
    problems = [*_usability_problems(path), *_content_problems(path)]
    if given.format == "json":
        _print_json(directory=path, problems=problems)
    else:
        print("\n".join(problems) or f"{path}: fine")
    return 1 if problems else 0


def _usability_problems(path: str) -> list[str]:
    """Do what a worker does: create, lock, reserve and map a metric file."""
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".check-", dir=path))
            file = MetricFile(os.path.join(folder, "counter_check.db"))
            stack.callback(file.release)
            second = stack.enter_context(contextlib.closing(LockedFile(file.path, os.O_RDWR)))
            if second.lock():
                return [f"{path}: two processes can hold one lock here; use a local volume"]
    except OSError as error:
        return [explain(error, path)]
    return []


def _content_problems(path: str) -> Iterator[str]:
    for file in _files(path):
        full = os.path.join(path, file.name)
        if file.damage:
            yield f"{full}: {file.damage}; its next holder keeps what can be read of it"
        elif not file.name.rpartition("_")[2].startswith("slot"):
            yield (
                f"{full}: written by a process that does not use slots; import "
                "obskit_gunicorn.multiprocess in it"
            )
    for name in sorted(os.listdir(path)):
        if name.endswith(".db.damaged"):
            yield f"{os.path.join(path, name)}: was found damaged; look at it, then remove it"
    for slot, record in sorted(SlotDirectory(path).records().items()):
        if record and record.get("values_not_shared"):
            yield f"{slot} ({_holder(record)}): see the server's error log"


def _print_json(**content: object) -> None:
    json.dump(content, sys.stdout, indent=2)
    print()
