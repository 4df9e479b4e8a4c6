"""What type checkers must accept and must refuse; checked by mypy, never run.

Each wrong use says which error it must be. Under ``warn_unused_ignores`` a signature that gets
looser makes one of these comments superfluous, and that fails the check.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: D102, TC002 - overrides have the base's docstrings, and nothing here is ever imported

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Literal

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config as GunicornConfig
from gunicorn.dirty.arbiter import DirtyArbiter
from gunicorn.dirty.worker import DirtyWorker
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker
from typing_extensions import assert_type

from obskit_gunicorn import (
    ConfigurationError,
    HookEvent,
    ObskitGunicornConfig,
    ObskitGunicornError,
    ObskitGunicornWarning,
    replace_collector,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# ---- Right


class Annotated(ObskitGunicornConfig):
    """Every hook and every extra, with the base's own signatures."""

    bind = "0.0.0.0:8000"
    workers = 4
    multiproc_dir = "/metrics"
    metrics_keep = True

    def nworkers_changed(self, server: Arbiter, new_value: int, old_value: int | None) -> None:
        super().nworkers_changed(server, new_value, old_value)

    def on_starting(self, server: Arbiter) -> bool | None:
        assert_type(super().on_starting(server), bool | None)
        return False

    def when_ready(self, server: Arbiter) -> bool | None:
        return super().when_ready(server)

    def pre_fork(self, server: Arbiter, worker: Worker) -> None:
        super().pre_fork(server, worker)

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        super().post_fork(server, worker)

    def post_worker_init(self, worker: Worker) -> None:
        super().post_worker_init(worker)

    def worker_int(self, worker: Worker) -> None:
        super().worker_int(worker)

    def worker_abort(self, worker: Worker) -> None:
        super().worker_abort(worker)

    def ssl_context(
        self,
        config: GunicornConfig,
        default_ssl_context_factory: Callable[[], ssl.SSLContext],
    ) -> ssl.SSLContext:
        context = super().ssl_context(config, default_ssl_context_factory)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def pre_request(self, worker: Worker, req: Request) -> None:
        super().pre_request(worker, req)

    def post_request(
        self,
        worker: Worker,
        req: Request,
        environ: dict[str, Any] | None = None,
        resp: Response | None = None,
    ) -> None:
        super().post_request(worker, req)
        super().post_request(worker, req, environ)
        super().post_request(worker, req, environ, resp)

    def worker_exit(self, server: Arbiter, worker: Worker) -> None:
        super().worker_exit(server, worker)

    def child_exit(self, server: Arbiter, worker: Worker) -> None:
        super().child_exit(server, worker)

    def on_exit(self, server: Arbiter) -> None:
        super().on_exit(server)

    def on_reload(self, server: Arbiter) -> None:
        super().on_reload(server)

    def pre_exec(self, server: Arbiter) -> None:
        super().pre_exec(server)

    def on_dirty_starting(self, arbiter: DirtyArbiter) -> None:
        super().on_dirty_starting(arbiter)

    def dirty_post_fork(self, arbiter: DirtyArbiter, worker: DirtyWorker) -> None:
        super().dirty_post_fork(arbiter, worker)

    def dirty_worker_init(self, worker: DirtyWorker) -> None:
        super().dirty_worker_init(worker)

    def dirty_worker_exit(self, arbiter: DirtyArbiter, worker: DirtyWorker) -> None:
        super().dirty_worker_exit(arbiter, worker)

    def setup_multiprocess(self, server: Arbiter) -> None:
        super().setup_multiprocess(server)

    def cleanup_worker(self, server: Arbiter, worker: Worker) -> None:
        super().cleanup_worker(server, worker)

    def hook_event(self, event: HookEvent) -> None:
        super().hook_event(event)
        assert_type(event.name, Literal["hook_success", "hook_failure"])
        assert_type(event.hook, str)
        assert_type(event.time, float)
        assert_type(event.duration_seconds, float)
        assert_type(event.pid, int)
        assert_type(event.error, BaseException | None)


class Unannotated(ObskitGunicornConfig):
    """As most people write it."""

    def on_starting(self, server):
        super().on_starting(server)

    def post_fork(self, server, worker):
        super().post_fork(server, worker)

    def post_request(self, worker, req, environ=None, resp=None):
        super().post_request(worker, req, environ, resp)


class GateThatNeverRefuses(ObskitGunicornConfig):
    """A gate may return nothing at all, or always the same."""

    def on_starting(self, server: Arbiter) -> None:
        super().on_starting(server)

    def when_ready(self, server: Arbiter) -> bool:
        return True


class Optional(ObskitGunicornConfig):
    """Parameters of one's own are fine when they have defaults."""

    def pre_fork(self, server: Arbiter, worker: Worker, *, quiet: bool = False) -> None:
        super().pre_fork(server, worker)


class Mixin(ObskitGunicornConfig):
    """A mixin that a checker knows to have the hooks."""

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        super().post_fork(server, worker)


class Mixed(Mixin, ObskitGunicornConfig):
    """A class with a mixin before the base."""


def publish(published: type[ObskitGunicornConfig]) -> ObskitGunicornConfig:
    """Take the class, as the adapter does, and make an instance of it."""
    return published()


publish(Annotated)
publish(Mixed)


def catch() -> None:
    """Catch errors by the class that suits."""
    try:
        raise ConfigurationError(where="Config.workers", value=0, expected="more", hint="Add.")
    except ConfigurationError as error:
        assert_type(error.where, str)
        assert_type(error.value, object)
        assert_type(error.expected, str)
        assert_type(error.hint, str)
        caught: ValueError = error
        ours: ObskitGunicornError = error
        del caught, ours
    category: type[UserWarning] = ObskitGunicornWarning
    del category


asked: Callable[[], None] = replace_collector

# ---- Wrong


class TooMany(ObskitGunicornConfig):
    """Gunicorn passes two arguments."""

    def pre_fork(self, server: Arbiter, worker: Worker, extra: int) -> None: ...  # type: ignore[override]


class TooFew(ObskitGunicornConfig):
    """Gunicorn passes two arguments."""

    def child_exit(self, server: Arbiter) -> None: ...  # type: ignore[override]


class TooFewUnannotated(ObskitGunicornConfig):
    """A checker sees a missing parameter without any annotation."""

    def child_exit(self, server): ...  # type: ignore[override]


class Swapped(ObskitGunicornConfig):
    """The arbiter comes first."""

    def post_fork(self, worker: Worker, server: Arbiter) -> None: ...  # type: ignore[override]


class WrongType(ObskitGunicornConfig):
    """The parameter is the worker."""

    def post_worker_init(self, worker: Arbiter) -> None: ...  # type: ignore[override]


class NotAGate(ObskitGunicornConfig):
    """Only the two gates return something."""

    def post_fork(self, server: Arbiter, worker: Worker) -> bool: ...  # type: ignore[override, empty-body]


class GateWithText(ObskitGunicornConfig):
    """A gate says yes or no."""

    def when_ready(self, server: Arbiter) -> str: ...  # type: ignore[override, empty-body]


class NoContext(ObskitGunicornConfig):
    """A context must come back."""

    def ssl_context(  # type: ignore[override]
        self,
        config: GunicornConfig,
        default_ssl_context_factory: Callable[[], ssl.SSLContext],
    ) -> None: ...


class Coroutine(ObskitGunicornConfig):
    """Gunicorn never awaits a hook."""

    async def post_worker_init(self, worker: Worker) -> None: ...  # type: ignore[override]


class NoDefaults(ObskitGunicornConfig):
    """The base can be called with two arguments, so an override must be."""

    def post_request(  # type: ignore[override]
        self, worker: Worker, req: Request, environ: dict[str, Any], resp: Response
    ) -> None: ...


class WrongOptions(ObskitGunicornConfig):
    """Options have types too."""

    multiproc_dir = 3  # type: ignore[assignment]
    metrics_keep = "yes"  # type: ignore[assignment]


class EventOfAnotherKind(ObskitGunicornConfig):
    """The event is a HookEvent."""

    def hook_event(self, event: str) -> None: ...  # type: ignore[override]


ConfigurationError("Config.workers", 0, "more", "Add.")  # type: ignore[call-arg]
HookEvent("hook_started", "on_exit", 1.0, 0.5, 7, None)  # type: ignore[arg-type]
HookEvent("hook_success", "on_exit", 1.0, 0.5, 7, None).pid = 8  # type: ignore[misc]
replace_collector("/metrics")  # type: ignore[call-arg]
publish(ObskitGunicornError)  # type: ignore[arg-type]
