"""What the interpreter of an exporter runs first: it finds the packages and runs the program.

The process runs the source text of this file (``python -I -c``), because the package may be in an
archive. So it must not import anything of ours before it has found the packages.

It exits 0 on every path, whatever a user's collector does. Up to 25.3, if any child exits with
status 3 or 4, Gunicorn thinks that a worker cannot boot, and halts.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NoReturn

VARIABLE = "OBSKIT_EXPORTER_START"
"""The environment variable with the source text of this file."""

ORDER_VARIABLE = "OBSKIT_EXPORTER_ORDER"
"""The environment variable with what to do, written by :meth:`protocol.Order.to_json`. Other users
can read a command line, but not this."""


def start(told: dict[str, Any]) -> None:
    """Run an exporter; in a process of its own.

    Args:
        told: The order and more.
    """
    try:
        time.sleep(told["delay_seconds"])
        _find_packages(told["packages"])
        from obskit_gunicorn._exporter.program import main

        main(told["order"])
    except BaseException as error:
        if not told["is_silent"]:
            _say_why_not(told, error)


def _say_why_not(told: dict[str, Any], error: BaseException) -> None:
    """Log why it cannot run, however little there is to log with."""
    gone = [file for file in told["packages"].values() if not os.path.exists(file)]
    hint = f"; {gone[0]} is gone: start Gunicorn anew" if gone else ""
    text = f"the exporter cannot run: {type(error).__name__}: {error}{hint}"
    log = getattr(sys.modules.get("obskit_gunicorn._log"), "log", None)
    if log is not None and log.target.handlers:
        log.error("%s", text, exc_info=error)
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    line = f"[{now}] [{os.getpid()}] [ERROR] obskit exporter: {text}"
    path = told["order"].get("logging", {}).get("errorlog", "-")
    try:
        with open(os.dup(2) if path == "-" else path, "a", encoding="utf-8") as file:
            print(line, file=file)
    except OSError:
        print(line, file=sys.stderr)
    if not gone:
        import traceback

        traceback.print_exception(error)


def _find_packages(packages: dict[str, str]) -> None:
    """Import packages from their files; those in an archive are found by name.

    Their folders come last in ``sys.path``, so that nothing there hides a module of Python's.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    sys.path += [os.path.dirname(os.path.dirname(file)) for file in packages.values()]
    for name, file in packages.items():
        spec = spec_from_file_location(name, file)
        if spec is not None and spec.loader is not None and os.path.exists(file):
            module = sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(module)


def _take_name(name: str) -> None:
    """Show a name in place of the command line, as setproctitle does.

    It is written over the arguments, which Python has copied long since. What is not possible here
    is left alone: the name is the last argument too.
    """
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
        with open("/proc/self/stat", "rb") as file:
            begin, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
        text = os.fsencode(name)[: end - begin - 1]
        memory = os.open("/proc/self/mem", os.O_WRONLY)
        try:
            if 0 < begin < end:
                os.pwrite(memory, text.ljust(end - begin, b"\0"), begin)
        finally:
            os.close(memory)
    except (OSError, ValueError):
        pass


def _always_exit_0() -> None:
    end, own = os._exit, os.getpid()

    def exit_0(status: int) -> NoReturn:
        end(0 if os.getpid() == own else status)

    os._exit = exit_0


if __name__ == "__main__":
    _always_exit_0()
    try:
        import json

        _take_name(sys.argv[1])
        start(json.loads(os.environ.pop(ORDER_VARIABLE)))
    finally:
        os._exit(0)
