"""What the interpreter of an exporter runs first: it finds the packages and runs the program.

The source of this file is the program of the process (``python -I -c``), so that it is there where
the package stands in an archive, and it may import nothing before it has found the packages.

It exits 0 on every path, whatever a collector of the user's does: up to 25.3 Gunicorn takes the
exit status 3 or 4 of any child for a worker that cannot boot, and halts. A failure is shown once,
not at each try.
"""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn


def start(argument: str) -> None:
    """Run an exporter; in a process of its own.

    Args:
        argument: What :mod:`obskit_gunicorn._exporter.launch` says, as JSON.
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
    """Import packages from their files; what is in an archive is found by name, and last.

    What stands beside them must not hide a module of Python's own.
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
