"""The configuration class: every server hook as a method, our options as attributes.

The facts in the docstrings of the hooks were measured on Gunicorn 20.1 to 27.0.

``docs/hooks.md`` is generated from this file. The lines that begin with a dash answer the same
questions for every hook; the table of that page shows the first sentence of each.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.contract import Configuration, HookEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ssl import SSLContext

    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Config
    from gunicorn.dirty.arbiter import DirtyArbiter
    from gunicorn.dirty.worker import DirtyWorker
    from gunicorn.http.message import Request
    from gunicorn.http.wsgi import Response
    from gunicorn.workers.base import Worker

    from obskit_gunicorn._gunicorn.settings import Settings
else:
    Settings = Configuration

__all__ = ["HookEvent", "ObskitGunicornConfig"]


class ObskitGunicornConfig(Settings):
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

    For each hook, Gunicorn calls a function that runs the core of this package and then the method.
    An override that forgets ``super()`` loses what the base method does; it never loses counts. The
    base methods do not call ``super()``, so put mixins before this class.

    A contained exception is logged with its traceback and counted, and the server continues. Only
    subclasses of ``Exception`` are contained. Any other exception means what it means to Gunicorn.

    Creating an instance has no side effects: it happens for ``--check-config`` too, and again at
    each SIGHUP. So ``self`` does not survive a SIGHUP, and the arbiter does not see what a worker
    stores there.
    """

    if not TYPE_CHECKING:  # to type checkers they are declared in Settings
        multiproc_dir: str | None = None
        """The directory in which the processes of this server share their metrics.

        ``None`` means a private one (mode 0700), in memory if possible. It is handed on at a
        SIGUSR2, and removed when the last process has ended. A directory of your own is created if
        it is missing. A relative path is made absolute before Gunicorn changes directory. The
        environment variable ``PROMETHEUS_MULTIPROC_DIR`` wins over the class.
        """

        metrics_keep: bool = False
        """Whether a start continues from the totals of earlier runs.

        Otherwise a start begins at zero: what earlier runs left in the directory is removed once,
        and only if no process holds a lease there any more. A SIGHUP or SIGUSR2 is not a start in
        this sense, and always keeps the totals. The environment variable ``OBSKIT_METRICS_KEEP``
        wins over the class.
        """

        metrics_bind: str | None = "127.0.0.1:9764"
        """Where the exporter listens: ``host:port``, ``[IPv6]:port``, ``unix:path``.

        The exporter is a separate process that serves ``/metrics``, ``/-/healthy`` and
        ``/-/ready``; no worker answers a scrape. ``None`` (in the environment: an empty value)
        means no exporter. If the address is taken, one error line says so, and the exporter keeps
        trying. The environment variable ``OBSKIT_METRICS_BIND`` wins over the class; each option
        that begins with ``metrics_`` has such a variable.
        """

        metrics_path: str = "/metrics"
        """The path at which the exporter serves the exposition."""

        metrics_page: bool = True
        """Whether the exporter shows a live page at ``/``, and its figures at ``/-/status``.

        Both read the directory when somebody asks, and cost nothing otherwise.
        """

        metrics_certfile: str | None = None
        """A PEM file with the exporter's certificate chain, for TLS; ``None`` for plain HTTP.

        It must exist when Gunicorn starts, and be readable for the workers' user. The next
        connection uses a renewed certificate. A relative path starts from the directory in which
        Gunicorn was started. All this is true for the two files below too.
        """

        metrics_keyfile: str | None = None
        """A PEM file with the private key, if ``metrics_certfile`` does not contain it."""

        metrics_ca_certs: str | None = None
        """A PEM file with the authorities whose client certificates are accepted: mutual TLS.

        All other clients are refused.
        """

        metrics_bearer_token_file: str | None = None
        """A file with a token: whoever asks the exporter must send it.

        That is ``Authorization: Bearer ...``, Prometheus' ``authorization`` with
        ``credentials_file``. Everything but the probes needs it. White space around the token is no
        part of it. A renewed file is used for the next request; while it is gone, empty or damaged,
        nobody is let in. As root, Gunicorn hands the file to an exporter that may not read it, and
        a renewed one at the next SIGHUP. See ``docs/security.md``.
        """

        metrics_auth_file: str | None = None
        """A file of users: whoever asks the exporter must send a user's name and password.

        Its lines are ``user:hash`` with hashes of bcrypt, as ``htpasswd -B`` writes them. With
        ``metrics_bearer_token_file`` too, either is enough. A token is cheaper to check, and cannot
        be guessed; passwords are for browsers. Needs ``pip install "obskit-gunicorn[auth]"``:
        without it no password is right.
        """

        metrics_auth_probes: bool = False
        """Whether ``/-/healthy`` and ``/-/ready`` need a token or a password too.

        A kubelet asks them without one, so they are open by default; they say only that the
        exporter answers, and whether a worker is ready.
        """

        metrics_collectors: Sequence[str] = ()
        """Collectors that run once, in the exporter: import strings like ``myapp.metrics:depth``.

        Each names an object with a method ``collect()``, or a class of such objects. Use them for
        what shared metrics cannot express: a callback, the depth of a queue. They
        are imported in the exporter, with the arbiter's ``sys.path``, working directory and
        environment. A collector that raises an exception, or takes longer than two seconds, is left
        out of that scrape and counted in ``obskit_gunicorn_collector_failures_total``. In the
        environment, separate them by commas.
        """

        metrics_max_series: int | Mapping[str, int] | None = None
        """How many label sets each metric may have, in the directory: a budget.

        Who comes first has a place, and keeps it until the next generation; what comes later is
        counted with ``__other__`` as the value of all its labels, and nothing is lost. A mapping
        has a number for each metric that it names, and for all others under ``"*"``. Metrics
        without labels need no place. In the environment: ``100,http_requests=1000``.
        """

        metrics_max_bytes: int | None = None
        """From which size of the metric files on there is no place for more label sets, in bytes.

        Those that have a place keep it, and ``__other__`` needs none.
        """

        metrics_requests: bool = True
        """Whether requests are counted: ``gunicorn_requests_total{method,code}`` and so on.

        Under ASGI workers a wrapper around the application counts them, elsewhere the request hooks
        do. With ``False`` there is neither, and no cost.
        """

        metrics_routes: bool = False
        """Whether requests are counted by route too: ``gunicorn_route_requests_total{route}``.

        A route is the template in the application's code, such as ``/items/{id}``; paths that
        clients ask for are never shown. Known are the routes of Django, Falcon, FastAPI, Flask,
        Starlette and aiohttp; other applications can say them, see docs/metrics.md.
        """

        metrics_buckets: Sequence[float] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
        """Upper bounds of the buckets of ``gunicorn_request_duration_seconds``, in seconds.

        In the environment, separate them by commas.
        """

        metrics_exemplars: bool = False
        """Whether request durations carry the trace of a request as an exemplar.

        Each bucket of ``gunicorn_request_duration_seconds`` then names the last sampled trace that
        fell into it, by ``trace_id`` and ``span_id``, where OpenTelemetry traces the application.
        Only OpenMetrics shows exemplars, and Prometheus keeps them with
        ``--enable-feature=exemplar-storage``. Under WSGI the span is known to a few
        instrumentations only; see docs/metrics.md.
        """

        metrics_standard: bool = True
        """Whether the names that prometheus_client has in one process are shown for the server.

        ``process_cpu_seconds_total`` and others, ``python_info``, ``python_gc_*``: what common
        dashboards ask for. A metric of your own with such a name wins.
        """

        metrics_redis: str | None = None
        """A Redis or Valkey in which the metrics of many hosts meet: ``redis://host:6379/0``.

        ``rediss://`` is the same over TLS; ``unix:///run/redis.sock`` a socket;
        ``redis+sentinel://one:26379,two:26379/service`` asks sentinels. The exporter publishes what
        this host has counted, and serves what all hosts have at ``metrics_fleet_path``; workers
        know nothing of it. A password comes from ``OBSKIT_METRICS_REDIS_PASSWORD``, or from the
        file that ``OBSKIT_METRICS_REDIS_PASSWORD_FILE`` names. Needs ``pip install
        "obskit-gunicorn[redis]"``. See ``docs/fleet.md``.
        """

        metrics_redis_name: str = "default"
        """The name of the fleet; hosts that publish under one name are added up."""

        metrics_redis_interval: float = 5.0
        """How often this host publishes to the store, or pushes, in seconds.

        A host that is killed together with its volume loses at most what it has counted since.
        """

        metrics_host: str | None = None
        """The name of this host among others, as label ``host``; by default the host name.

        Servers that share a host need a name each.
        """

        metrics_fleet_path: str = "/metrics/fleet"
        """The path at which the exporter serves what all hosts have counted."""

        metrics_push: str | None = None
        """A Prometheus remote-write endpoint to which this host's metrics are pushed.

        For pods that do not live long enough to be scraped:
        ``http://prometheus:9090/api/v1/write``. The exporter pushes every
        ``metrics_redis_interval`` seconds, and once more at its end. A bearer token comes from
        ``OBSKIT_METRICS_PUSH_TOKEN``, a user from ``OBSKIT_METRICS_PUSH_USER`` and
        ``OBSKIT_METRICS_PUSH_PASSWORD``, or each from the file that the variable with ``_FILE``
        behind it names. Needs ``pip install "obskit-gunicorn[push]"``. See ``docs/fleet.md``.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Arrange that the class is published when Gunicorn asks for the names of its module."""
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
        - Base: nothing. The core before it chooses the directory and begins the generation, or
          counts the change.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: contained once the server runs. At the start (``old_value`` is ``None``) it
          stops the start with exit code 1.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter. At the start it is not complete: it has ``cfg``, ``app`` and
                ``log``, but no ``pid`` and no listeners, and ``raw_env`` is not in ``os.environ``.
            new_value: The new number.
            old_value: The old number; ``None`` at the start.
        """

    def on_starting(self, server: Arbiter) -> bool | None:
        """Run before the arbiter opens its listeners.

        If you need the listeners, use ``when_ready``. To stop a start early, use this hook.

        - Process: arbiter. Once, after daemonizing and after a preloaded application was imported;
          again in the new arbiter of a SIGUSR2, never at a SIGHUP.
        - Never under: none. Skipped if the preloaded application cannot be imported.
        - Signal context: no. Gunicorn's handlers are not installed yet: a SIGTERM ends the process.
        - Base: calls ``setup_multiprocess``.
        - super(): first. Without it, the log line of that method is missing; counts are never
          lost.
        - Exception: not contained. It stops the start with exit code 1; ``on_exit`` is not called.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter; ``pid`` is set, ``LISTENERS`` is empty.

        Returns:
            ``False`` to stop the start with one line in the log; anything else to continue.
        """
        self.setup_multiprocess(server)
        return None

    def when_ready(self, server: Arbiter) -> bool | None:
        """Run when the arbiter listens, before it forks the first worker.

        Put a readiness gate here or into ``on_starting``. Clients can connect already; they wait
        while the hook runs.

        - Process: arbiter. Once; again in the new arbiter of a SIGUSR2, never at a SIGHUP.
        - Never under: none. Skipped if an address is in use.
        - Signal context: no. Signals are queued until it returns.
        - Base: nothing. The core before it binds the exporter's address and starts the exporter.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It stops the start with exit code 1; ``on_exit`` is not called.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter, which listens. If there are dirty workers, their arbiter was forked
                before.

        Returns:
            ``False`` to stop the start with one line in the log; anything else to continue.
        """
        return None

    # ---- Forking

    def pre_fork(self, server: Arbiter, worker: Worker) -> None:
        """Run before a worker is forked.

        If a worker should own something, open it in ``post_fork``: every later worker inherits what
        is opened here.

        - Process: arbiter. Once per worker: at the start, after a SIGHUP or SIGTTIN, and for each
          worker that replaces another one.
        - Never under: none.
        - Signal context: no. Before Gunicorn 24, ``child_exit`` can interrupt it.
        - Base: nothing. The core before it makes sure that directory and exporter still exist.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It stops the server with exit code 255, without ``on_exit``.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter.
            worker: The future worker; its ``pid`` is still ``"[booting]"``.
        """

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        """Run in a new worker, before it drops privileges and imports the application.

        If you need the application, the worker's user, or gevent's patches, use
        ``post_worker_init``: they come after this hook.

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
        - Base: nothing. The core before it takes the worker's lease, unless a metric has done so.
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

        Use ``worker_exit`` instead if you can: a SIGTERM, which is how servers are usually stopped,
        never calls this hook.

        - Process: worker. Usually once per worker; twice if Ctrl-C reaches the whole group.
        - Never under: UvicornWorker.
        - Signal context: yes. Under ``gevent`` it runs in a greenlet, under ``asgi`` in the event
          loop, elsewhere in the handler, on any line of the application: no metric updates, no
          locks, no logging; set a flag.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged, and the worker stops anyway.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
        """

    def worker_abort(self, worker: Worker) -> None:
        """Run in a worker that received SIGABRT, usually because it timed out.

        - Process: worker. Once per worker. If it cannot run within a second, as with a blocked
          ``asgi`` event loop, the arbiter sends SIGKILL and no hook of the worker runs.
        - Never under: UvicornWorker.
        - Signal context: yes. It interrupts any line of the main thread, which may hold locks
          (under ``asgi`` it runs in the event loop): no metric updates, no locks, no logging.
          ``faulthandler.dump_traceback`` is fine.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged, or the application sees it as its own (``sync``:
          status 500); the worker exits anyway.
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
        - super(): first, and change what it returns. Without it, create your own context; counts
          do not depend on it.
        - Exception: not contained. ``sync``, ``gthread``: the connection fails; up to Gunicorn 23 a
          ``gthread`` worker ends with it. ``gevent``: workers crash and are replaced again and
          again. ``asgi``: it is logged, and the port serves plain HTTP.
        - Since: Gunicorn 21.

        Args:
            config: Gunicorn's configuration, not this class.
            default_ssl_context_factory: Creates the context that Gunicorn's settings describe.
        """
        return default_ssl_context_factory()

    def pre_request(self, worker: Worker, req: Request) -> None:
        """Run before each request; if it is overridden, each request costs one call more.

        - Process: worker. Once per request (HTTP/2: per stream), on the thread, greenlet or event
          loop that serves it, so several may run at once.
        - Never under: UvicornWorker, tornado, gevent_pywsgi, aiohttp. Skipped for websockets and
          for requests that cannot be parsed.
        - Signal context: no.
        - Base: logs method and path at debug level, as Gunicorn does without the hook.
        - super(): first. Without it, that line is missing; counts are never lost.
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
        - Never under: UvicornWorker, tornado, gevent_pywsgi, aiohttp. Skipped for websockets, for
          requests that cannot be parsed, and when the worker is killed in the middle of a request.
        - Signal context: no.
        - Base: nothing.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. It is logged; the client has its response already.
        - Since: every supported Gunicorn.

        Args:
            worker: The worker.
            req: The request.
            environ: Its WSGI environment; ``None`` under ``asgi`` without an access log.
            resp: The response; ``None`` if ``environ`` is ``None`` or ``pre_request`` raised.
                ``resp.status`` is ``None`` if the application raised before it answered.
        """

    # ---- Ending

    def worker_exit(self, server: Arbiter, worker: Worker) -> None:
        """Run in a worker that ends by itself or is stopped in an orderly way.

        Best effort. If something must happen for every worker, use ``child_exit``.

        - Process: worker. Once per worker; if it takes longer than ``graceful_timeout``, the worker
          is killed in the middle. Sometimes the arbiter (up to 25.3 after a failed boot) or a child
          of the arbiter runs it too: act only if ``os.getpid() == worker.pid``.
        - Never under: none. Skipped under ``UvicornWorker`` at a SIGTERM, after SIGKILL, after
          ``os._exit``, and in 25.3 under ``asgi`` at a SIGTERM once it has served a request.
        - Signal context: no.
        - Base: nothing. The core before it notes that the worker leaves.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. Gunicorn itself would log it and continue too.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter, as a copy that this worker got at the fork.
            worker: The worker.
        """

    def child_exit(self, server: Arbiter, worker: Worker) -> None:
        """Run in the arbiter when it has reaped a worker.

        - Process: arbiter. Once per worker, however it ended.
        - Never under: none. Skipped for a worker whose failure to boot stops the server, for
          workers that are killed after ``graceful_timeout`` when the server stops, and if the
          arbiter dies.
        - Signal context: before Gunicorn 24. There it interrupts the arbiter, other hooks and
          itself: no metric updates, no locks, no logging, no subprocesses. From 24 on it runs in
          the main loop, where a slow hook delays replacements, signals and time-outs.
        - Base: calls ``cleanup_worker``.
        - super(): last. Without it, other readers of the directory see the live gauges of ended
          workers for a little longer; counts are never lost.
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

        Best effort. Never rely on it for anything that the next start needs.

        - Process: arbiter. Once, when the workers have ended.
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

        ``when_ready`` does not run again. Use this hook for what a reload must renew.

        - Process: arbiter. Once per SIGHUP, just after ``nworkers_changed``, on a new instance of
          the class; the class is new as well, except with ``-c python:module``.
        - Never under: none.
        - Signal context: no. Before Gunicorn 24, ``child_exit`` can interrupt it.
        - Base: nothing. The core before it applies changed options to the exporter.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. Otherwise it would stop the server with exit code 255.
        - Since: every supported Gunicorn.

        Args:
            server: The arbiter; ``cfg`` is the new configuration. The old workers still serve.
        """

    def pre_exec(self, server: Arbiter) -> None:
        """Run at a SIGUSR2, in the process that is about to become the new arbiter.

        The environment of the new arbiter will be ``server.cfg.env_orig``. Add variables there;
        ``os.environ`` is not passed on.

        - Process: forked child of the arbiter. Once per SIGUSR2; the old arbiter still serves.
        - Never under: none. Skipped if the SIGUSR2 is ignored, for example during an upgrade.
        - Signal context: no.
        - Base: nothing. The core before it hands the multiprocess directory on, counts the upgrade,
          and has a server that was started by ``python -m`` started so again.
        - super(): last. Without it, mixins are skipped; counts are never lost.
        - Exception: contained. The upgrade continues; otherwise the child would stop the workers of
          the old arbiter and remove its pid file.
        - Since: every supported Gunicorn.

        Args:
            server: A copy of the old arbiter; ``server.pid`` is still the old pid.
        """

    # ---- Dirty workers

    def on_dirty_starting(self, arbiter: DirtyArbiter) -> None:
        """Run in the dirty arbiter before it forks its workers.

        - Process: dirty arbiter. Once; again if it has died and was forked again. The corresponding
          hook of the server's arbiter is ``on_starting``, which runs earlier.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty arbiter dies and is forked again and again, tens of
          times a second; the web workers continue to serve.
        - Since: Gunicorn 25.

        Args:
            arbiter: The dirty arbiter. A SIGHUP does not give it a new configuration.
        """

    def dirty_post_fork(self, arbiter: DirtyArbiter, worker: DirtyWorker) -> None:
        """Run after a dirty worker was forked, in its parent.

        If something should happen in the worker, use ``dirty_worker_init``: unlike ``post_fork``,
        this hook does not run there.

        - Process: dirty arbiter. Once per dirty worker, while it initializes its applications.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no. It runs in the event loop, so it must not block.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty arbiter dies and is forked again and again, tens of
          times a second; the web workers continue to serve.
        - Since: Gunicorn 25.

        Args:
            arbiter: The dirty arbiter.
            worker: The dirty worker; ``pid`` is set already.
        """

    def dirty_worker_init(self, worker: DirtyWorker) -> None:
        """Run in a dirty worker when it has initialized its applications.

        - Process: dirty worker. Once per dirty worker; ``post_fork`` and ``post_worker_init`` never
          run there.
        - Never under: none. Called only with ``dirty_apps`` and ``dirty_workers``.
        - Signal context: no.
        - Base: nothing.
        - super(): first. Without it, mixins are skipped; counts are never lost.
        - Exception: not contained. The dirty worker dies and is forked again and again, hundreds of
          times a second; the web workers continue to serve.
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
        """Log where metrics are kept; called by ``on_starting``.

        Override it to log more or nothing. The directory itself was chosen and prepared earlier, by
        the core of ``nworkers_changed``, which always runs.

        Args:
            server: The arbiter.
        """
        from obskit_gunicorn._store.membership import membership

        # Without prometheus-client there is nothing to keep, which was said already.
        if membership.is_led and server.log is not None:  # always true in a hook; not in the stubs
            server.log.info("obskit: %s", membership.describe())

    def cleanup_worker(self, server: Arbiter, worker: Worker) -> None:
        """Remove the live-gauge files of ended workers; called by ``child_exit``.

        For readers of the directory that do not know leases; our own collector ignores the live
        gauges of ended workers in any case. Does nothing without prometheus-client. Safe in signal
        context: it only works on files, and waits for nobody.

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
        """Receive an event after every run of a hook; does nothing unless overridden.

        Runs in the process and in the context of the hook. That is signal context for
        ``worker_int``, ``worker_abort`` and, before Gunicorn 24, ``child_exit``. If it is
        overridden, it is called for every hook, overridden or not, except ``pre_request`` and
        ``post_request``. An exception in it is logged, and does not change the outcome of the hook.

        Args:
            event: Which hook ran, when, where, how long, and what it raised.
        """
