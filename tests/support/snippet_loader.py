"""A program that loads pieces of Python, each in a process of its own that was forked for it.

So Gunicorn is imported once for all of them. On its standard input is a list of cases in JSON: the
folder, and what is to be done there: ``"load"`` is ``gunicorn --check-config`` with the file
gunicorn.conf.py, anything else names a file to be executed. On its standard output is a list of
exit statuses and of what was said.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import sys
import traceback
from typing import Any
from wsgiref.util import setup_testing_defaults


def load() -> None:
    """Have Gunicorn load its configuration and the application, as ``--check-config`` does."""
    from gunicorn.app.wsgiapp import WSGIApplication

    # Gunicorn's own default is the directory in which it was imported.
    here = ["--chdir", os.getcwd(), "--config", os.path.abspath("gunicorn.conf.py")]
    sys.argv = ["gunicorn", "--check-config", *here, "shop:app"]
    WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").run()


def execute(path: str) -> None:
    """Execute a file with a multiprocess directory, and ask its application, if any, for a page."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.path.abspath("metrics")
    os.mkdir("metrics")
    names = runpy.run_path(path)
    app = names.get("app")
    if inspect.isfunction(app) and len(inspect.signature(app).parameters) == 2:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        answers = []
        body = b"".join(app(environ, lambda status, headers: answers.append((status, headers))))
        assert answers
        assert body


def main() -> None:
    """Read the cases, run each, and write what has come of it."""
    import gunicorn.app.wsgiapp  # noqa: F401 - once for all

    import obskit_gunicorn  # noqa: F401

    found = []
    for folder, what in json.load(sys.stdin):
        said = os.path.join(folder, "said")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(folder)
                sys.path.insert(0, folder)
                descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                if what == "load":
                    load()
                else:
                    execute(what)
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(bool(error.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(pid, 0)
        with open(said, encoding="utf-8") as file:
            found.append([os.waitstatus_to_exitcode(ended), file.read()])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
