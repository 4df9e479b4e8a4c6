"""Configuration files in the shapes that people publish, and the ways to adopt each.

Each file is whole without us. Each of its hooks logs ``hook: `` and its name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FILES", "SHAPES", "WAYS", "adopted", "hooks_of"]

SHAPES: dict[str, str] = {
    "settings alone": """
bind = "127.0.0.1:0"
backlog = 2048
workers = 2
worker_class = "sync"
timeout = 30
keepalive = 2
proc_name = None
""",
    "the example with its hooks": """
import sys, threading, traceback

workers = 2
spew = False

def pre_fork(server, worker):
    server.log.info("hook: pre_fork")

def post_fork(server, worker):
    server.log.info("hook: post_fork (pid: %s)", worker.pid)

def pre_exec(server):
    server.log.info("Forked child, re-executing.")

def when_ready(server):
    server.log.info("hook: when_ready")

def worker_int(worker):
    worker.log.info("hook: worker_int")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    code = []
    for ident, stack in sys._current_frames().items():
        for file, line, name, text in traceback.extract_stack(stack):
            code.append(f"{names.get(ident)} {file}:{line} {name} {text}")
    worker.log.debug("\\n".join(code))

def worker_abort(worker):
    worker.log.info("worker received SIGABRT signal")
""",
    "the recipe of prometheus_client": """
import glob, os
from prometheus_client import multiprocess

workers = 2
metrics_place = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", os.path.abspath("recipe"))
os.makedirs(metrics_place, exist_ok=True)

def on_starting(server):
    server.log.info("hook: on_starting")
    for path in glob.glob(os.path.join(metrics_place, "*.db")):
        os.remove(path)

def child_exit(server, worker):
    server.log.info("hook: child_exit")
    multiprocess.mark_process_dead(worker.pid)
""",
    "a hook that imports what may be missing": """
import os

workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
wsgi_app = "app:application"
access_log_format = '%(h)s "%(r)s" %(s)s'

def worker_exit(server, worker):
    worker.log.info("hook: worker_exit")
    try:
        from prometheus_client import multiprocess
        multiprocess.mark_process_dead(worker.pid)
    except Exception:
        pass
""",
    "tracing in post_fork": """
from shop_hooks import tracing

workers = 2
threads = 2
worker_tmp_dir = "/dev/shm"

def post_fork(server, worker):
    server.log.info("hook: post_fork")
    tracing.append(worker.pid)
    assert len(tracing) == 1
""",
    "settings from GUNICORN_ variables": """
import os

os.environ.setdefault("GUNICORN_WORKERS", "2")
for k, v in os.environ.items():
    if k.startswith("GUNICORN_") and k != "GUNICORN_CMD_ARGS":
        key = k.split("_", 1)[1].lower()
        locals()[key] = v
""",
    "workers computed from the machine": """
import json, multiprocessing, os

workers_per_core_str = os.getenv("WORKERS_PER_CORE", "1")
max_workers_str = os.getenv("MAX_WORKERS", "2")
use_max_workers = int(max_workers_str) if max_workers_str else None
host = os.getenv("HOST", "127.0.0.1")
port = os.getenv("PORT", "0")
use_loglevel = os.getenv("LOG_LEVEL", "info")
use_bind = f"{host}:{port}"
cores = multiprocessing.cpu_count()
default_web_concurrency = float(workers_per_core_str) * cores
web_concurrency = max(int(default_web_concurrency), 2)
if use_max_workers:
    web_concurrency = min(web_concurrency, use_max_workers)
accesslog_var = os.getenv("ACCESS_LOG", "-")
use_accesslog = accesslog_var or None
errorlog_var = os.getenv("ERROR_LOG", "-")
use_errorlog = errorlog_var or None
graceful_timeout_str = os.getenv("GRACEFUL_TIMEOUT", "2")

loglevel = use_loglevel
workers = web_concurrency
bind = use_bind
errorlog = use_errorlog
accesslog = use_accesslog
graceful_timeout = int(graceful_timeout_str)
log_data = {"workers": workers, "bind": bind, "host": host, "port": port}
print(json.dumps(log_data))
""",
    "lambdas": """
workers = 2
when_ready = lambda server: server.log.info("hook: when_ready")
on_exit = lambda server: server.log.info("hook: on_exit")
post_fork = lambda server, worker: worker.log.info("hook: post_fork")
""",
    "hooks imported by name": """
from shop_hooks import post_fork, worker_exit  # noqa

workers = 2
# hook: post_fork hook: worker_exit
""",
    "hooks of a module": """
import shop_hooks

workers = 2
when_ready = shop_hooks.when_ready
pre_request = shop_hooks.pre_request
post_request = shop_hooks.post_request
# hook: when_ready hook: pre_request hook: post_request
""",
    "hooks as import strings": """
workers = 2
post_worker_init = "shop_hooks.post_worker_init"
when_ready = "shop_hooks.when_ready"
# hook: post_worker_init hook: when_ready
""",
    "callables of every kind": """
import functools, operator
import shop_hooks

class Ready:
    def __init__(self, text):
        self.text = text

    def __call__(self, server):
        server.log.info(self.text)

    def forked(self, server, worker):
        worker.log.info("hook: post_fork")

workers = 2
when_ready = Ready("hook: when_ready")
post_fork = when_ready.forked
child_exit = functools.partial(shop_hooks.say_twice, "hook: child_exit")
""",
    "defaults of the company": """
from company import set_defaults

set_defaults(globals())
# hook: post_fork hook: on_reload
""",
    "a shared file, and more": """
from base_conf import *
import base_conf

timeout = 20

def post_fork(server, worker):
    base_conf.post_fork(server, worker)
    worker.log.info("hook: post_fork")
# hook: when_ready hook: base
""",
    "a dictionary of settings": """
def child_exit(server, worker):
    server.log.info("hook: child_exit")

settings = {"workers": 2, "timeout": 30, "preload_app": True, "child_exit": child_exit}
globals().update(settings)
""",
    "hooks set in a loop": """
workers = 2

def setup_hooks():
    import shop_hooks
    for hook_name in "on_starting,when_ready,post_fork,worker_exit,on_exit".split(","):
        hook = getattr(shop_hooks, hook_name, None)
        if hook:
            globals()[hook_name] = hook

setup_hooks()
# hook: on_starting hook: when_ready hook: post_fork hook: worker_exit hook: on_exit
""",
    "decorated hooks": """
import functools, os, time

def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        started = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            args[0].log.info("took %.3f s", time.time() - started)
    return wrapper

workers = 2

@timed
def on_starting(server):
    server.log.info("hook: on_starting")

@timed
def post_worker_init(worker):
    worker.log.info("hook: post_worker_init")
""",
    "every hook": """
workers = 2

def on_starting(server): server.log.info("hook: on_starting")
def on_reload(server): server.log.info("hook: on_reload")
def when_ready(server): server.log.info("hook: when_ready")
def pre_fork(server, worker): server.log.info("hook: pre_fork")
def post_fork(server, worker): server.log.info("hook: post_fork")
def post_worker_init(worker): worker.log.info("hook: post_worker_init")
def worker_int(worker): worker.log.info("hook: worker_int")
def worker_abort(worker): worker.log.info("aborted")
def pre_exec(server): server.log.info("executed")
def pre_request(worker, req): worker.log.info("hook: pre_request")
def post_request(worker, req, environ, resp): worker.log.info("hook: post_request")
def child_exit(server, worker): server.log.info("hook: child_exit")
def worker_exit(server, worker): server.log.info("hook: worker_exit")
def nworkers_changed(server, new_value, old_value): server.log.info("hook: nworkers_changed")
def on_exit(server): server.log.info("hook: on_exit")
""",
    "conditions": """
import os

workers = 2

if os.environ.get("DEBUG"):
    reload = True

    def when_ready(server):
        server.log.info("debugging")
else:
    def when_ready(server):
        server.log.info("hook: when_ready")

try:
    import missing_agent
except ImportError:
    pass
else:
    def post_fork(server, worker):
        missing_agent.start()
""",
    "requests are logged": """
import time

workers = 2
worker_class = "gthread"
threads = 4

def pre_request(worker, req):
    req.started = time.time()
    worker.log.info("hook: pre_request %s", req.path)

def post_request(worker, req):
    worker.log.info("hook: post_request %.3f", time.time() - req.started)
""",
    "an object of settings": """
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

class Settings:
    workers: int = 2
    log_level: str = "info"

settings = Settings()
workers = settings.workers
loglevel = settings.log_level

def child_exit(_: Arbiter, worker: Worker) -> None:
    worker.log.info("hook: child_exit")
""",
    "another file that is executed": """
import os

with open("common.conf") as common:
    exec(common.read())
workers += 1

def on_exit(server):
    server.log.info("hook: on_exit")
# hook: post_fork
""",
}
"""Each starts two workers."""

FILES = {
    "shop_hooks.py": """
tracing = []
def on_starting(server): server.log.info("hook: on_starting")
def when_ready(server): server.log.info("hook: when_ready")
def post_fork(server, worker): worker.log.info("hook: post_fork")
def post_worker_init(worker): worker.log.info("hook: post_worker_init")
def pre_request(worker, req): worker.log.info("hook: pre_request")
def post_request(worker, req, environ): worker.log.info("hook: post_request")
def worker_exit(server, worker): worker.log.info("hook: worker_exit")
def on_exit(server): server.log.info("hook: on_exit")
def say_twice(text, server, worker): server.log.info("%s %s", text, text)
""",
    "company.py": """
def post_fork(server, worker): worker.log.info("hook: post_fork")
def on_reload(server): server.log.info("hook: on_reload")
def set_defaults(names):
    for name, value in {"workers": 2, "post_fork": post_fork, "on_reload": on_reload}.items():
        names.setdefault(name, value)
""",
    "base_conf.py": """
workers = 2
def when_ready(server): server.log.info("hook: when_ready")
def post_fork(server, worker): worker.log.info("hook: base")
""",
    "common.conf": """
workers = 1
def post_fork(server, worker): worker.log.info("hook: post_fork")
""",
}
"""What the files import."""

WAYS = ("one name", "star first", "star last", "adopt", "class", "peer's names")
"""How a file is adopted; a class is refused if the file has hooks, and it is said what to write."""


def hooks_of(shape: str) -> list[str]:
    """Return what a file's hooks log."""
    return sorted(set(re.findall(r"hook: (\w+)", SHAPES[shape])))


def adopted(shape: str, way: str, lines: Sequence[str] = ()) -> str:
    """Return the text of a file after one of :data:`WAYS`.

    Args:
        shape: The file.
        way: The way.
        lines: What is in the class.
    """
    text = SHAPES[shape]
    future = "from __future__ import annotations\n"
    head, text = (future, text.replace(future, "")) if future in text else ("", text)
    body = "".join(f"    {line}\n" for line in lines or ["pass"])
    return (
        head
        + {
            "one name": f"from obskit_gunicorn.hooks import pre_fork\n{text}",
            "star first": f"from obskit_gunicorn.hooks import *\n{text}",
            "star last": f"{text}\nfrom obskit_gunicorn.hooks import *\n",
            "adopt": f"{text}\nfrom obskit_gunicorn import adopt\nadopt(globals())\n",
            "class": f"{text}\nfrom obskit_gunicorn import ObskitGunicornConfig\n"
            f"class Config(ObskitGunicornConfig):\n{body}",
            "peer's names": "from obskit_gunicorn.hooks import default_on_exit\n"
            "from obskit_gunicorn.hooks import default_on_starting\n"
            f"on_starting = default_on_starting\non_exit = default_on_exit\n{text}",
        }[way]
    )
