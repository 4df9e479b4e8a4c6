"""The configuration class: every server hook as a method, our options as attributes.

The facts in the docstrings of the hooks were measured on Gunicorn 20.1 to 27.0.

``docs/hooks.md`` is generated from this file. The lines that begin with a dash answer the same
questions for every hook; the first sentence of each goes into the table of that page.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.contract import Configuration, HookEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ssl import SSLContext

    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Config
    from gunicorn.dirty.arbiter import DirtyArbiter
    from gunicorn.dirty.worker import DirtyWorker
    from gunicorn.http.message import Request
    from gunicorn.http.wsgi import Response
    from gunicorn.workers.base import Worker

__all__ = ["HookEvent", "ObskitGunicornConfig"]


class ObskitGunicornConfig(Configuration):
    """The configuration of a Gunicorn server whose workers share one ``/metrics``.

    Subclass it in ``gunicorn.conf.py``. Gunicorn's settings are class attributes, its server hooks
    are methods::

        from obskit_gunicorn import ObskitGunicornConfig


        class Config(ObskitGunicornConfig):
            bind = "0.0.0.0:8000"
            workers = 4

            def post_worker_init(self, worker):
                super().post_worker_init(worker)
                worker.log.info("ready to serve")

    For each hook Gunicorn is given a function that runs the core of this package and then the
    method. An override that forgets ``super()`` loses the extras of the base method, never counts.
    The base methods call no ``super()``, so mixins go before this class.

    A contained exception is logged with its traceback and counted, and the server goes on; this
    holds for what derives from ``Exception``. Every other exception keeps Gunicorn's meaning.

    Making an instance has no side effects: Gunicorn does it for ``--check-config`` too, and anew at
    each SIGHUP. What must outlive a SIGHUP cannot be kept on ``self``, and what a worker keeps
    there the arbiter does not see.
    """

    multiproc_dir: str | None = None
    """The directory in which the processes of this server share their metrics.

    ``None`` means a private one (mode 0700), in memory where there is a place for that, handed on
    at a SIGUSR2 and removed when the last process has ended. Your own is created when it is
    missing; a relative path is made absolute before Gunicorn changes directory. The environment
    variable ``PROMETHEUS_MULTIPROC_DIR`` wins over the class.
    """

    metrics_keep: bool = False
    """Whether a start goes on from the totals of the runs before it.

    Otherwise a start begins at zero: what earlier runs left in the directory is removed once, and
    only if no process holds a lease there any more. A SIGHUP or SIGUSR2 is no start in this sense,
    and keeps the totals either way. The environment variable ``OBSKIT_METRICS_KEEP`` wins over the
    class.
    """

    metrics_bind: str | None = "127.0.0.1:9764"
    """Where the exporter listens: ``host:port``, ``[IPv6]:port``, ``unix:path``.

    The exporter is a process of its own that serves ``/metrics``, ``/-/healthy`` and ``/-/ready``;
    no worker answers a scrape. ``None`` (in the environment: an empty value) means no exporter. An
    address that is taken is one error line; the exporter goes on trying. The environment variable
    ``OBSKIT_METRICS_BIND`` wins over the class, and so with every option that begins with
    ``metrics_``.
    """

    metrics_path: str = "/metrics"
    """The path at which the exporter serves the exposition."""

    metrics_certfile: str | None = None
    """A PEM file with the exporter's certificate chain, for TLS; ``None`` for plain HTTP.

    It must exist when Gunicorn starts, and be readable for the workers' user. A renewed
    certificate is picked up at the next connection. A relative path is taken from where Gunicorn
    was started; likewise for the two files below.
    """

    metrics_keyfile: str | None = None
    """A PEM file with the private key, where ``metrics_certfile`` does not contain it."""

    metrics_ca_certs: str | None = None
    """A PEM file with the authorities whose client certificates are accepted: mutual TLS.

    With it, a client that shows no certificate of theirs is refused.
    """

    metrics_collectors: Sequence[str] = ()
    """Collectors that run once, in the exporter: import strings such as ``myapp.metrics:depth``.

    Each names an object with a method ``collect()``, or a class of such. They give what processes
    that share metrics cannot: an Info, an Enum, a callback, the depth of a queue. They are
    imported in the exporter, with the arbiter's ``sys.path``, directory and environment. One that
    raises, or takes longer than two seconds, is left out of that scrape and counted in
    ``obskit_gunicorn_collector_failures_total``. In the environment, commas separate them.
    """

    metrics_requests: bool = True
    """Whether requests are counted: ``gunicorn_requests_total{method,code}`` and so on.

    Under ASGI workers by a wrapper around the application, elsewhere by the request hooks.
    ``False`` leaves no trace of it, and so no cost.
    """

    metrics_buckets: Sequence[float] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
    """Upper bounds of the buckets of ``gunicorn_request_duration_seconds``, in seconds.

    In the environment, commas separate them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the new class published when Gunicorn asks for the names of its module."""
        super().__init_subclass__(**kwargs)
        from obskit_gunicorn._gunicorn.publish import watch

        watch(cls)

    # ---- Arbiter starting

    def nworkers_changed(self, server: Arbiter, new_value: int, old_value: int | None) -> None:
        """Run when the number of workers is set: the first hook of every arbiter.

        - Process: arbiter. Once at the start, before a preloaded application is imported, then at
          each SIGHUP (even with no change), SIGTTIN, SIGTTOU, and SIGWINCH of a daemon.
        - Never under: none.
        - Signal context: no. But from Gunicorn 25.1 ``gunicornc worker add`` and ``remove`` call it
          on another thread, the control thread.
        - Base: nothing. The core before it chooses the directory and begins the generation.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: contained once the server runs. At the start (``old_value`` is ``None``) it
          stops the start with exit code 1.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter. At the start only half built: it has ``cfg``, ``app`` and ``log``,
                but no ``pid`` and no listeners, and ``raw_env`` is not in ``os.environ`` yet.
            new_value: The number from now on.
            old_value: The number before; ``None`` at the start.
        """

    def on_starting(self, server: Arbiter) -> bool | None:
        """Run before the arbiter opens its listeners.

        Prefer ``when_ready`` for what needs them, and this hook for what must stop a start early.

        - Process: arbiter. Once, after daemonizing and after a preloaded application was imported;
          again in the new arbiter of a SIGUSR2, never at a SIGHUP.
        - Never under: none. Skipped if the preloaded application cannot be imported.
        - Signal context: no. Gunicorn's handlers are not installed yet: a SIGTERM ends the process.
        - Base: calls ``setup_multiprocess``.
        - super(): first. Forgetting it loses the log line of that method, never counts.
        - Exception: not contained. It stops the start with exit code 1; ``on_exit`` is not called.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter; ``pid`` is set, ``LISTENERS`` is empty.

        Returns:
            ``False`` to stop the start with one line in the log; anything else to go on.
        """
        self.setup_multiprocess(server)
        return None

    def when_ready(self, server: Arbiter) -> bool | None:
        """Run when the arbiter listens, before it forks the first worker.

        A readiness gate belongs here or into ``on_starting``. Clients can connect already; they
        wait while it runs.

        - Process: arbiter. Once; again in the new arbiter of a SIGUSR2, never at a SIGHUP.
        - Never under: none. Skipped if an address is in use.
        - Signal context: no. Signals are queued until it returns.
        - Base: nothing. The core before it binds the exporter's address and starts the exporter.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It stops the start with exit code 1; ``on_exit`` is not called.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter, listening. With dirty workers, their arbiter was forked before.

        Returns:
            ``False`` to stop the start with one line in the log; anything else to go on.
        """
        return None

    # ---- Forking

    def pre_fork(self, server: Arbiter, worker: Worker) -> None:
        """Run before a worker is forked.

        Prefer ``post_fork`` for anything the worker should own: what is opened here, every later
        worker inherits.

        - Process: arbiter. Once per worker: at the start, after a SIGHUP or SIGTTIN, and for each
          one that replaces another.
        - Never under: none.
        - Signal context: no. Before Gunicorn 24, ``child_exit`` can interrupt it.
        - Base: nothing. The core before it looks after directory and exporter.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It stops the server with exit code 255, without ``on_exit``.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter.
            worker: The worker to be; its ``pid`` is still ``"[booting]"``.
        """

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        """Run in a new worker, before it drops privileges and imports the application.

        Prefer ``post_worker_init`` for what needs the application, the worker's user, or gevent's
        patches, which come after this hook.

        - Process: worker. Once per worker.
        - Never under: none.
        - Signal context: no.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The worker fails to boot, which stops the whole server with exit
          code 3 (from Gunicorn 25 with several workers 1, without ``on_exit``).
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter, as a copy that this worker got at the fork.
            worker: The worker; ``pid`` is its own now.
        """

    def post_worker_init(self, worker: Worker) -> None:
        """Run in a new worker when it has imported the application and is about to serve.

        - Process: worker. Once per worker. Under ``asgi`` and ``UvicornWorker`` the application's
          lifespan startup comes after it.
        - Never under: none. Skipped if the application cannot be imported.
        - Signal context: no.
        - Base: nothing. The core before it takes the worker's lease, if no metric has done so.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The worker fails to boot, which stops the whole server with exit
          code 3 (from Gunicorn 25 with several workers 1, without ``on_exit``).
        - Since: every supported Gunicorn.

        Args:
            worker: The worker; the application is ``worker.wsgi`` (``asgi``: ``worker.asgi``).
        """

    # ---- Worker

    def worker_int(self, worker: Worker) -> None:
        """Run in a worker that SIGINT or SIGQUIT stops.

        Prefer ``worker_exit``: a SIGTERM, the usual way to stop a server, never calls this hook.

        - Process: worker. Once per worker as a rule, twice if Ctrl-C reaches the whole group.
        - Never under: UvicornWorker.
        - Signal context: yes. Under ``gevent`` it runs in a greenlet, under ``asgi`` in the event
          loop, elsewhere in the handler, on any line of the application: no metric updates, no
          locks, no logging; set a flag.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged and the worker stops all the same.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
        """

    def worker_abort(self, worker: Worker) -> None:
        """Run in a worker that received SIGABRT, as a rule because it timed out.

        - Process: worker. Once per worker. If it cannot run within a second, the arbiter sends
          SIGKILL and no hook of the worker runs: so with a blocked ``asgi`` event loop.
        - Never under: UvicornWorker.
        - Signal context: yes. It interrupts any line of the main thread, holding what that line has
          locked (under ``asgi`` it runs in the event loop): no metric updates, no locks, no
          logging. ``faulthandler.dump_traceback`` is fine.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged or becomes the application's own (``sync``: status
          500); the worker exits all the same.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
        """

    # ---- Request

    def ssl_context(
        self, config: Config, default_ssl_context_factory: Callable[[], SSLContext]
    ) -> SSLContext:
        """Return the TLS context to serve with.

        - Process: worker. Once per connection under ``sync`` and ``gthread``, elsewhere once per
          worker.
        - Never under: UvicornWorker.
        - Signal context: no.
        - Base: returns ``default_ssl_context_factory()``, as Gunicorn does without the hook.
        - super(): first, and change what it returns. Without it make a context of your own; counts
          do not depend on it.
        - Exception: not contained. ``sync``, ``gthread``: the connection fails, up to 23 a
          ``gthread`` worker with it. ``gevent``: workers crash and are replaced without end.
          ``asgi``: it is logged, and the port serves plain HTTP.
        - Since: Gunicorn 21.

        Args:
            config: Gunicorn's configuration, not this class.
            default_ssl_context_factory: Makes the context that Gunicorn's settings describe.
        """
        return default_ssl_context_factory()

    def pre_request(self, worker: Worker, req: Request) -> None:
        """Run before each request; overriding it costs every request a call.

        - Process: worker. Once per request (HTTP/2: per stream), on the thread or greenlet or event
          loop that serves it, so several may run at once.
        - Never under: UvicornWorker, tornado, gevent_pywsgi. Skipped for websockets and for
          requests that cannot be parsed.
        - Signal context: no.
        - Base: logs method and path at debug level, as Gunicorn does without the hook.
        - super(): first. Forgetting it loses that line, never counts.
        - Exception: not contained. The client gets status 500, and ``post_request`` is called with
          an empty ``environ`` and ``resp`` ``None``.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
            req: The request, with ``method``, ``path``, ``query``, ``version`` and ``scheme``.
        """
        worker.log.debug("%s %s", req.method, req.path)

    def post_request(
        self,
        worker: Worker,
        req: Request,
        environ: dict[str, Any] | None = None,
        resp: Response | None = None,
    ) -> None:
        """Run after each request; it may take the first two or three parameters only.

        - Process: worker. Once per request (HTTP/2: per stream), where ``pre_request`` ran; the
          connection waits for it. In Gunicorn 27 under ``asgi``, overriding it makes the next
          request of the connection wait for the application's background work as well.
        - Never under: UvicornWorker, tornado, gevent_pywsgi. Skipped for websockets, for requests
          that cannot be parsed, and when the worker is killed in the middle of a request.
        - Signal context: no.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged; the client has its response already.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
            req: The request.
            environ: Its WSGI environment; ``None`` under ``asgi`` without an access log.
            resp: The response; ``None`` where ``environ`` is, or if ``pre_request`` raised.
                ``resp.status`` is ``None`` if the application raised before it answered.
        """

    # ---- Ending

    def worker_exit(self, server: Arbiter, worker: Worker) -> None:
        """Run in a worker that ends by itself or is stopped in an orderly way.

        Best effort: prefer ``child_exit`` for what must happen for every worker.

        - Process: worker. Once per worker; longer than ``graceful_timeout`` and it is killed in the
          middle. Now and then the arbiter (up to 25.3 after a failed boot) or a child of it runs it
          too: act only if ``os.getpid() == worker.pid``.
        - Never under: none. Skipped under ``UvicornWorker`` at a SIGTERM, after SIGKILL, after
          ``os._exit``, and in 25.3 under ``asgi`` at a SIGTERM once it has served a request.
        - Signal context: no.
        - Base: nothing. The core before it notes that the worker leaves.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. Gunicorn itself would log it and go on too.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter, as a copy that this worker got at the fork.
            worker: The worker.
        """

    def child_exit(self, server: Arbiter, worker: Worker) -> None:
        """Run in the arbiter when it has reaped a worker.

        - Process: arbiter. Once per worker, however it ended.
        - Never under: none. Skipped for a worker whose failure to boot stops the server, for those
          that a SIGTERM of the server had to kill after ``graceful_timeout``, and if the arbiter
          dies.
        - Signal context: before Gunicorn 24. There it interrupts the arbiter, other hooks and
          itself: no metric updates, no locks, no logging, no subprocesses. From 24 on it runs in
          the main loop, where a slow one delays replacements, signals and time-outs.
        - Base: calls ``cleanup_worker``.
        - super(): last. Forgetting it leaves ended workers' live gauges to other readers of the
          directory for a little longer; it never loses counts.
        - Exception: contained. Otherwise it would stop the server with exit code 255.
        - Since: Gunicorn 19.7.

        Args:
            server: The arbiter; ``worker`` is not in ``server.WORKERS`` any more.
            worker: The worker as the arbiter knew it: ``pid``, ``age``, ``aborted`` after a
                time-out, but no exit status, and ``booted`` and ``nr`` were never updated.
        """
        self.cleanup_worker(server, worker)

    def on_exit(self, server: Arbiter) -> None:
        """Run before the arbiter exits in an orderly way.

        Best effort: never rely on it for what the next start needs.

        - Process: arbiter. Once, when the workers are gone.
        - Never under: none. Skipped after SIGKILL, when the start fails, when a hook or a reload
          stops the server, and from Gunicorn 25 when several workers fail to boot.
        - Signal context: no.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. Otherwise the exit code would be 1.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter.
        """

    # ---- Reload and re-exec

    def on_reload(self, server: Arbiter) -> None:
        """Run at a SIGHUP, after the configuration was read again and before new workers start.

        ``when_ready`` does not run again: what a reload must renew is renewed here.

        - Process: arbiter. Once per SIGHUP, just after ``nworkers_changed``, on a new instance of
          the class; the class is new as well, except with ``-c python:module``.
        - Never under: none.
        - Signal context: no. Before Gunicorn 24, ``child_exit`` can interrupt it.
        - Base: nothing. The core before it moves the exporter to where changed options say.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. Otherwise it would stop the server with exit code 255.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter; ``cfg`` is the new configuration, the old workers still serve.
        """

    def pre_exec(self, server: Arbiter) -> None:
        """Run at a SIGUSR2, in the process that is about to become the new arbiter.

        The new arbiter gets ``server.cfg.env_orig`` as its environment: add to that, for
        ``os.environ`` is not passed on.

        - Process: forked child of the arbiter. Once per SIGUSR2; the old arbiter serves meanwhile.
        - Never under: none. Skipped if the SIGUSR2 is ignored, as while an upgrade is going on.
        - Signal context: no.
        - Base: nothing. The core before it hands the multiprocess directory on.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. The upgrade goes on; otherwise the child would stop the workers of
          the old arbiter and remove its pid file.
        - Since: every supported Gunicorn.

        Args:
            server: A copy of the old arbiter, whose pid ``server.pid`` still is.
        """

    # ---- Dirty workers

    def on_dirty_starting(self, arbiter: DirtyArbiter) -> None:
        """Run in the dirty arbiter before it forks its workers.

        - Process: dirty arbiter. Once; again when it had died and was forked anew. The hook of the
          server's arbiter for the same moment is ``on_starting``, which runs earlier.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty arbiter dies and is forked anew without end, tens of
          times a second; the web workers serve on.
        - Since: Gunicorn 25.

        Args:
            arbiter: The dirty arbiter. A SIGHUP does not give it a new configuration.
        """

    def dirty_post_fork(self, arbiter: DirtyArbiter, worker: DirtyWorker) -> None:
        """Run after a dirty worker was forked, in its parent.

        Prefer ``dirty_worker_init`` for what should happen in the worker: this hook, unlike
        ``post_fork``, does not run there.

        - Process: dirty arbiter. Once per dirty worker, while that initializes its applications.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no. It runs in the event loop, so it must not block.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty arbiter dies and is forked anew without end, tens of
          times a second; the web workers serve on.
        - Since: Gunicorn 25.

        Args:
            arbiter: The dirty arbiter.
            worker: The dirty worker; ``pid`` is its own already.
        """

    def dirty_worker_init(self, worker: DirtyWorker) -> None:
        """Run in a dirty worker when it has initialized its applications.

        - Process: dirty worker. Once per dirty worker; ``post_fork`` and ``post_worker_init`` never
          run there.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty worker dies and is forked anew without end, hundreds
          of times a second; the web workers serve on.
        - Since: Gunicorn 25.

        Args:
            worker: The dirty worker; its applications are ``worker.apps``.
        """

    def dirty_worker_exit(self, arbiter: DirtyArbiter, worker: DirtyWorker) -> None:
        """Run in the dirty arbiter when it has reaped a dirty worker.

        No hook runs in the dying worker itself, and no ``atexit`` function either.

        - Process: dirty arbiter. Once per dirty worker, however it ended.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``; skipped if the
          dirty arbiter dies.
        - Signal context: no. It runs in the event loop, so it must not block.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. asyncio prints it, the dirty worker's socket file stays behind,
          and another worker takes its place.
        - Since: Gunicorn 25.

        Args:
            arbiter: The dirty arbiter.
            worker: The dirty worker that ended.
        """

    # ---- What the hooks call

    def setup_multiprocess(self, server: Arbiter) -> None:
        """Say in the log where metrics are kept; called by ``on_starting``.

        Override it to say more or nothing. The directory itself was chosen and prepared earlier, by
        the core of ``nworkers_changed``, which no override can lose.

        Args:
            server: The arbiter.
        """
        from obskit_gunicorn._store.membership import membership

        if server.log is not None:  # always, in a hook; only the type stubs do not know
            server.log.info("obskit: %s", membership.describe())

    def cleanup_worker(self, server: Arbiter, worker: Worker) -> None:
        """Remove the live-gauge files of ended workers; called by ``child_exit``.

        For readers of the directory that do not know leases; our own collector leaves ended
        workers' live gauges out with or without it. Does nothing without prometheus-client. Safe
        in signal context: plain file work that waits for nobody.

        Args:
            server: The arbiter.
            worker: The worker that ended.
        """
        # Loaded when the class was published. Not imported here, because before Gunicorn 24 this is
        # signal context.
        store = sys.modules.get("obskit_gunicorn._store.membership")
        if store is not None:
            store.membership.remove_live_gauges()

    def hook_event(self, event: HookEvent) -> None:
        """Be told of every run of a hook, after it; does nothing unless overridden.

        Runs in the process and in the context of the hook, so for ``worker_int``,
        ``worker_abort`` and, before Gunicorn 24, ``child_exit`` in signal context. Once it is
        overridden it hears of every hook, overridden or not, except ``pre_request`` and
        ``post_request``. An exception in it is logged, and the outcome of the hook stands.

        Args:
            event: Which hook ran, when, where, how long, and what it raised.
        """
