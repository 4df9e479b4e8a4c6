"""What mypy and pyright say about settings: an error on each line with ``# wrong``, else none.

``# wrong to pyright`` is no error to mypy.

Read by ``tests/unit/gunicorn/test_settings.py``, never run.
"""

# ruff: noqa: D101, D102, RUF012 - each class is a case, its attributes are as users write them

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gunicorn.workers.gthread import ThreadWorker
from typing_extensions import assert_type

from obskit_gunicorn import ObskitGunicornConfig

# ---- Values


class Values(ObskitGunicornConfig):
    bind = "0.0.0.0:8000"
    workers = 4
    threads = os.cpu_count() or 1
    worker_class = "gthread"
    timeout = 30
    preload_app = True
    accesslog = None
    errorlog = None
    raw_env = ["STAGE=live"]
    user = "www-data"
    group = 33
    umask = 0o007
    secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
    logconfig_dict = {"version": 1, "root": {"level": "INFO"}}
    proxy_protocol = True
    cert_reqs = ssl.CERT_REQUIRED
    statsd_host = "localhost:8125"
    http_protocols = "h2,h1"
    metrics_bind = None
    metrics_collectors = ["shop.metrics:depth"]


class OtherValues(ObskitGunicornConfig):
    bind = ["127.0.0.1:8000", "unix:/run/shop.sock"]
    worker_class = ThreadWorker
    proxy_protocol = "v2"
    user = 1000
    pidfile = "/run/shop.pid"


class Annotated(ObskitGunicornConfig):
    bind: str = "0.0.0.0:8000"
    workers: int = 4
    raw_env: list[str] = ["STAGE=live"]
    logconfig_dict: dict[str, Any] = {}
    metrics_bind: str = "0.0.0.0:9764"
    metrics_host: str | None = None


@dataclass
class OfFields(ObskitGunicornConfig):
    workers: int = 4


class WrongValues(ObskitGunicornConfig):
    workers = "four"  # wrong
    bind = 8000  # wrong
    preload_app = "yes"  # wrong
    timeout = None  # wrong
    raw_env = {"STAGE": "live"}.items()  # wrong
    secure_scheme_headers = "X-FORWARDED-PROTO"  # wrong
    forwarded_allow_ips = ["*"]  # wrong
    metrics_bind = 9764  # wrong
    metrics_keep = "yes"  # wrong
    metrics_path = None  # wrong
    metrics_collectors = (1, 2)  # wrong


class WronglyAnnotated(ObskitGunicornConfig):
    workers: str = "4"  # wrong
    metrics_bind: int = 9764  # wrong


# ---- Properties


class Properties(ObskitGunicornConfig):
    @property
    def workers(self) -> int:
        return 2 * (os.cpu_count() or 1) + 1

    @property
    def bind(self) -> str:
        return f"0.0.0.0:{os.environ['PORT']}"

    @property
    def raw_env(self) -> Sequence[str]:
        return [f"WORKERS={self.workers}"]

    @property
    def accesslog(self) -> str | None:
        return os.environ.get("ACCESS_LOG")

    @property
    def metrics_bind(self) -> str:
        return f"{os.environ['POD_IP']}:9764"


class WrongProperties(ObskitGunicornConfig):
    @property
    def workers(self) -> str:  # wrong
        return "4"

    @property
    def bind(self) -> int:  # wrong
        return 8000

    @property
    def metrics_bind(self) -> int:  # wrong
        return 9764

    def threads(self) -> int:  # wrong
        return 4


# ---- Reading, inheriting


class Base(ObskitGunicornConfig):
    workers = 2
    timeout = 60


class Derived(Base):
    workers = 8

    @property
    def graceful_timeout(self) -> int:
        assert_type(self.workers, int)
        assert_type(self.keepalive, int)
        assert_type(self.metrics_bind, "str | None")
        return self.timeout // 2


class Mixin:
    workers = 3


class Mixed(Mixin, ObskitGunicornConfig):
    own = "an attribute that is no setting"
    _worker = "a leading underscore marks a name as one's own"


class WrongMixin:
    workers: str = "3"


class WronglyMixed(WrongMixin, ObskitGunicornConfig):  # wrong
    pass


Mixed.workers = 5
Mixed.workers = "5"  # wrong

# ---- Names that are nearly right


class WrongNames(ObskitGunicornConfig):
    worker = 4  # wrong
    time_out = 30  # wrong
    access_logfile = "-"  # wrong
    workerclass = "gthread"  # wrong
    max_request: int = 1000  # wrong
    metric_bind = "0.0.0.0:9764"  # wrong

    @property
    def thread(self) -> int:  # wrong
        return 4

    def on_start(self, server: object) -> None:  # wrong
        pass


# ---- Limits


class NotNearEnough(ObskitGunicornConfig):
    wrokers = 4
    port = 8000


class OnTheInstance(ObskitGunicornConfig):
    def __init__(self) -> None:
        super().__init__()
        self.workers = 4  # wrong to pyright
