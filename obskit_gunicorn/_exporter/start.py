"""What the interpreter of an exporter runs first: it finds the packages and runs the program.

The process runs the source text of this file (``python -I -c``), because the package may be in an
archive. So it must not import anything of ours before it has found the packages.

It exits 0 on every path, whatever a user's collector does. Up to 25.3, if any child exits with
status 3 or 4, Gunicorn thinks that a worker cannot boot, and halts. A failure is printed only at
the first start.
"""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn


def start(argument: str) -> None:
    """Run an exporter; in a process of its own.

    Args:
        argument: The order and more, written by :meth:`protocol.Order.to_json`.
    """
    import json

    told = json.loads(argument)
    try:
        time.sleep(told["delay_seconds"])
        _find_packages(told["packages"])
        from obskit_gunicorn._exporter.program import main

        main(told["order"])
    except BaseException:
        if told["is_first"]:
            import traceback

            traceback.print_exc()


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


def _always_exit_0() -> None:
    end, own = os._exit, os.getpid()

    def exit_0(status: int) -> NoReturn:
        end(0 if os.getpid() == own else status)

    os._exit = exit_0


if __name__ == "__main__":
    _always_exit_0()
    try:
        start(sys.argv[1])
    finally:
        os._exit(0)
