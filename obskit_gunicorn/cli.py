"""The command ``obskit-gunicorn``: check a configuration or a directory, watch it, or serve it.

And look at the store in which many hosts come together. All of them only read, except that
``check`` creates a file and removes it, and that ``fleet reset`` begins anew. Exit status 0: fine;
1: a problem was found; 2: wrong use, or a server that cannot be started.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._doctor import finding, setup
from obskit_gunicorn._doctor.directory import (
    DirectoryReport,
    describe_error,
    describe_server,
    examine,
)
from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._fleet.address import StoreAddress
from obskit_gunicorn._gunicorn.options import OPTIONS, Option, exporter_options, read_options
from obskit_gunicorn._store import private
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._version import __version__
from obskit_gunicorn.config import ObskitGunicornConfig
from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obskit_gunicorn._exporter.protocol import Options

__all__ = ["main"]

_MOST_SERIES_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may be what nobody here can write
            stream.reconfigure(errors="backslashreplace")
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
    _add_check_command(commands)
    _add_top_command(commands)
    _add_command(
        commands,
        _serve,
        "serve the metrics of a multiprocess directory, beside the server that writes them",
        "SIGTERM and SIGINT end it, with exit status 0. SIGHUP does nothing: renewed certificates "
        "are read by themselves.",
    )
    _add_fleet_command(commands)
    given, rest = parser.parse_known_args(arguments)
    command: argparse.ArgumentParser = given.parser
    if given.run is _check:
        given.arguments = rest
    elif rest:
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status = int(given.run(given.find(given), given))
        sys.stdout.flush()
        return status
    except ConfigurationError as error:
        command.error(str(error))
    except BrokenPipeError:  # whoever reads has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"obskit-gunicorn: {describe_error(error)}", file=sys.stderr)
        return 1


def _add_command(
    commands: Any, run: Callable[[Any, argparse.Namespace], int], text: str, more: str
) -> None:
    """Add a command; its own usage is printed with errors in its arguments."""
    command = commands.add_parser(
        run.__name__.strip("_"), help=text, description=f"{text.capitalize()}.", epilog=more
    )
    find = _served_directory if run is _serve else _directory
    command.set_defaults(parser=command, run=run, find=find)
    directory: dict[str, Any] = {
        "default": os.environ.get(DIRECTORY_VARIABLE),
        "help": f"the multiprocess directory (default: ${DIRECTORY_VARIABLE})",
    }
    if run is not _serve:
        command.add_argument("directory", nargs="?", **directory)
        command.add_argument(
            "--format", choices=("text", "json"), default="text", help="how to print it"
        )
        command.add_argument(
            "--series",
            action="store_true",
            help="show the metrics with most series, and the label that makes them, and no more",
        )
        return
    directory["help"] += "; none is needed with --redis, to serve many hosts"
    command.add_argument("--directory", **directory)
    for option in filter(lambda option: option.is_exporters, OPTIONS):
        _add_option(command, option)


def _add_check_command(commands: Any) -> None:
    text = "find out what is right with a server's configuration, what will bite, and what to do"
    command = commands.add_parser(
        "check",
        help=text,
        usage="%(prog)s [-h] [--format {text,json}] [-c CONFIG] [Gunicorn's arguments] [APP]\n"
        "       %(prog)s [-h] [--format {text,json}] --directory [DIRECTORY]",
        description=f"{text.capitalize()}. Write it in the place of `gunicorn` in the command that "
        "starts the server, and call it as the same user, in the same directory and environment.",
        epilog="The configuration is loaded, and the application imported, in processes of their "
        "own. A file is made in the directory and removed. Exit status: 0 all is right, 1 "
        "something will bite, 2 the server cannot be started, or wrong use.",
        allow_abbrev=False,
    )
    command.set_defaults(parser=command, run=_check, find=_checked_directory)
    command.add_argument(
        "--directory",
        nargs="?",
        const="",
        help="look at the multiprocess directory of a running server instead (default: "
        f"${DIRECTORY_VARIABLE}, else the private one of this machine)",
    )
    command.add_argument(
        "--format", choices=("text", "json"), default="text", help="how to print it"
    )


def _add_top_command(commands: Any) -> None:
    text = "watch the workers of a running server, as top does"
    command = commands.add_parser(
        "top",
        help=text,
        description=f"{text.capitalize()}.",
        epilog="The last line of the screen names the keys; q quits. Without a terminal it prints "
        "the figures once. Exit status: 0; 1 if there is nothing to be read, 2 for wrong use.",
    )
    command.set_defaults(parser=command, run=_top, find=_watched)
    command.add_argument(
        "directory",
        nargs="?",
        metavar="DIRECTORY | URL",
        default=os.environ.get(DIRECTORY_VARIABLE),
        help="the multiprocess directory, or the address of an exporter such as "
        f"http://127.0.0.1:9764 (default: ${DIRECTORY_VARIABLE}, else the private one of this "
        "machine)",
    )


def _add_option(command: argparse.ArgumentParser, option: Option) -> None:
    default = getattr(ObskitGunicornConfig, option.name)
    shown = f" (default: ${option.variable}" + (f", else {default})" if default else ")")
    text = (option.help + shown).replace("%", "%%")
    command.add_argument(option.flag, dest=option.name, help=text)


def _add_fleet_command(commands: Any) -> None:
    text = "show which hosts come together in a store, or begin anew there"
    command = commands.add_parser(
        "fleet",
        help=text,
        description=f"{text.capitalize()}.",
        epilog="Exit status: 0; 1 if the store cannot be used, 2 for wrong use. Begin anew to get "
        "rid of label sets that no host uses any more: all counts start from 0, as after a restart "
        "of every host.",
    )
    command.set_defaults(parser=command, run=_fleet, find=_fleet_options)
    command.add_argument("action", nargs="?", choices=("show", "reset"), default="show")
    command.add_argument(
        "--format", choices=("text", "json"), default="text", help="how to print it"
    )
    for option in OPTIONS:
        if option.name in ("metrics_redis", "metrics_redis_name"):
            _add_option(command, option)


def _fleet_options(given: argparse.Namespace) -> Options:
    """Return options with an address of a store.

    Raises:
        ConfigurationError: There is none, or it is wrong.
    """
    options = _exporter_options(given)
    if options.metrics_redis is None:
        raise ConfigurationError(
            where="--redis",
            value=None,
            expected="the address of a Redis or Valkey",
            hint="Name it, as in --redis redis://cache.internal:6379/0, or set "
            "OBSKIT_METRICS_REDIS.",
        )
    return options


def _has_password(url: str | None) -> bool:
    """Return whether an address of a store has a password in it; what is wrong is said later."""
    try:
        return url is not None and StoreAddress.parse(url).has_password
    except ValueError:
        return False


def _exporter_options(given: argparse.Namespace) -> Options:
    """Return the options of ``serve``: a flag wins over the environment, that over the default.

    Raises:
        ConfigurationError: One of them is wrong, or there is no address.
    """
    flags = {
        option.variable: option
        for option in OPTIONS
        if option.is_exporters and getattr(given, option.name, None) is not None
    }
    if _has_password(getattr(given, "metrics_redis", None)):
        raise ConfigurationError(
            where="--redis",
            value="...",
            expected="an address without a password, which everybody on this machine could read",
            hint="Set OBSKIT_METRICS_REDIS_PASSWORD, or OBSKIT_METRICS_REDIS_PASSWORD_FILE.",
        )
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
            expected=re.sub(r"\bmetrics_[a-z_]+file\b", _as_flag, error.expected)
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


def _as_flag(name: re.Match[str]) -> str:
    """Return the flag of the option whose name was found."""
    return next(option.flag for option in OPTIONS if option.name == name[0])


def _serve(path: str | None, given: argparse.Namespace) -> int:
    """Run an exporter until SIGTERM or SIGINT.

    Args:
        path: The directory to serve; ``None`` to serve many hosts, and none here.
        given: The arguments.
    """
    options = _exporter_options(given)
    _share_nothing()  # metrics that --collectors create stay in this process
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
        f"obskit-gunicorn: serving {path or f'fleet {options.metrics_redis_name}'} at "
        f"{options.metrics_bind}{options.metrics_path}",
        flush=True,
    )

    def wait() -> None:
        signal.sigwait(ends)
        address.remove_file(listener)

    served = pages.Pages(path, options, only_fleet=path is None)
    program.serve(served, options, listener, wait)
    return 0


def _share_nothing() -> None:
    """Keep prometheus_client, which is loaded next, from sharing what this process counts."""
    for variable in (DIRECTORY_VARIABLE, DIRECTORY_VARIABLE.lower()):
        os.environ.pop(variable, None)


def _watched(given: argparse.Namespace) -> str:
    """Return the URL or the directory to watch.

    Raises:
        ConfigurationError: There is none, or there are several.
    """
    if given.directory and re.match("(?i)https?://", given.directory):
        return str(given.directory)
    return _directory(given)


def _top(source: str, _given: argparse.Namespace) -> int:
    try:
        import rich as _rich
    except ImportError:
        text = 'obskit-gunicorn: top needs rich: pip install "obskit-gunicorn[cli]"'
        print(text, file=sys.stderr)
        return 1
    del _rich
    _share_nothing()
    from obskit_gunicorn._terminal import top

    return top.run(source)


def _checked_directory(given: argparse.Namespace) -> str | None:
    """Return the directory to check; ``None`` to check a configuration.

    Raises:
        ConfigurationError: There is none, or there are several.
    """
    if given.directory is None:
        return None
    if given.arguments:
        given.parser.error(f"--directory is alone, without {' '.join(given.arguments)}")
    given.directory = given.directory or os.environ.get(DIRECTORY_VARIABLE)
    return _directory(given)


def _served_directory(given: argparse.Namespace) -> str | None:
    """Return the directory to serve; ``None`` if a store is named and no directory."""
    redis = given.metrics_redis or os.environ.get("OBSKIT_METRICS_REDIS")
    return None if redis and not given.directory else _directory(given)


def _directory(given: argparse.Namespace) -> str:
    """Return the multiprocess directory, absolute; by default the private one of this machine.

    Raises:
        ConfigurationError: There is none, or there are several.
    """
    found = [] if given.directory else private.find()
    path: str | None = given.directory or (found[0] if len(found) == 1 else None)
    if not path or not os.path.isdir(path):
        is_flag = given.run not in (_inspect, _top)
        shown = "; ".join(f"{each} ({describe_server(each)})" for each in found)
        private_ones = f" There are several private ones: {shown}." if found else ""
        if not path and not found:
            private_ones = (
                " There is no private one that this user may read: start the server, or call this "
                "as the user of its workers."
            )
        named = "" if is_flag else " as an argument"
        if given.run is _top:
            named += ", or the exporter's address, as in http://127.0.0.1:9764"
        raise ConfigurationError(
            where="--directory" if is_flag else "the multiprocess directory",
            value=path,
            expected="an existing directory",
            hint=f"Name it{named}, or set {DIRECTORY_VARIABLE}. A "
            'running server logs it ("obskit: metrics are shared in ..."), and '
            f"obskit_gunicorn_info{{directory}} shows it.{private_ones}",
        )
    return os.path.abspath(path)


def _inspect(path: str, given: argparse.Namespace) -> int:
    report = DirectoryReport(path, **({"largest": _MOST_SERIES_SHOWN} if given.series else {}))
    metrics = [metric._asdict() for metric in report.metrics]
    if given.format == "json":
        everything = {
            "generation": report.generation,
            "slots": report.records,
            "files": [file._asdict() for file in report.files],
        }
        _print_json(directory=path, **({} if given.series else everything), metrics=metrics)
        return 0
    from obskit_gunicorn._terminal import inspected

    if sys.stdout.isatty() and inspected.print_tables(report, only_series=given.series):
        return 0
    for line in inspected.lines(report, only_series=given.series):
        print(line)
    return 0


def _fleet(options: Options, given: argparse.Namespace) -> int:
    from obskit_gunicorn._fleet.source import FleetSource, state_of
    from obskit_gunicorn._fleet.store import Store, StoreError

    store = Store(options.metrics_redis or "", options.metrics_redis_name)
    try:
        if given.action == "reset":
            print(f"{store.where}: epoch {store.reset()} has begun")
            return 0
        reading = FleetSource(store, folds=False).read()
        size = store.size()
    except StoreError as error:
        print(f"obskit-gunicorn: {error}", file=sys.stderr)
        return 1
    hosts = sorted(reading.hosts, key=lambda host: (host.name, host.incarnation))
    rows = [
        {
            "host": host.name,
            "state": state_of(host, reading.now),
            "published_seconds_ago": round(max(0.0, reading.now - host.published), 1),
            "publications": host.sequence,
            "bytes": host.size,
            "version": host.facts.get("version"),
            "incarnation": host.incarnation,
        }
        for host in hosts
    ]
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(reading.begun)) if reading.begun else ""
    if given.format == "json":
        _print_json(
            store=store.where,
            epoch_began=begun,
            bytes=size,
            series=reading.snapshot.series_count(),
            hosts=rows,
        )
        return 0
    print(f"store      {store.where}")
    print(f"counting   since {begun}" if begun else "counting   not yet: nobody has published")
    print(f"size       {'unknown' if size is None else f'{size} bytes'}")
    print(f"series     {reading.snapshot.series_count()}")
    print(f"hosts      {len(rows)}, and those that have ended and were added up")
    for row in rows:
        print(
            f"  {row['host']:<30} {row['state']:<7} {row['published_seconds_ago']:>8.1f} s ago "
            f"{row['publications']:>8} publications {row['bytes']:>8} bytes  {row['version']}"
        )
    return 0


def _check(path: str | None, given: argparse.Namespace) -> int:
    if path is None:
        found = finding.in_order(setup.examine(given.arguments))
        facts: dict[str, object] = {"arguments": given.arguments}
    else:
        found, facts = finding.in_order(examine(path)), {"directory": path}
    if given.format == "json":
        _print_json(**finding.as_json(found, **facts))
    else:
        for each in found:
            print(each.lines())
    return finding.status(found)


def _print_json(**content: object) -> None:
    json.dump(content, sys.stdout, indent=2)
    print()
