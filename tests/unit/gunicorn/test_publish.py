"""Handing a configuration class to Gunicorn: what is published, and what is refused in words."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import types
from typing import TYPE_CHECKING, Any

import prometheus_client.values
import pytest
from gunicorn.config import Config as GunicornConfig

import obskit_gunicorn
from obskit_gunicorn import (
    ConfigurationError,
    ObskitGunicornConfig,
    ObskitGunicornWarning,
    adopt,
    as_options,
    expose,
    hooks,
)
from obskit_gunicorn._gunicorn import (
    checks,
    contract,
    dispatch,
    functions,
    handover,
    lifecycle,
    publish,
)
from obskit_gunicorn._log import log
from obskit_gunicorn._store.membership import Membership, membership

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KNOWN = checks.gunicorn_settings()


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a process that has loaded nothing, and an environment without our options."""
    monkeypatch.setattr(membership, "__dict__", vars(Membership()))
    monkeypatch.setattr(handover.handover, "__dict__", vars(handover.Handover()))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.ValueClass)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir", "OBSKIT_METRICS_KEEP"):
        monkeypatch.delenv(name, raising=False)


def test_settings_and_properties_are_published() -> None:
    """Class attributes and properties that are Gunicorn settings come out by name."""

    class Config(ObskitGunicornConfig):
        bind = "127.0.0.1:0"

        @property
        def workers(self) -> int:
            return 4

    options = as_options(Config)
    assert options["bind"] == "127.0.0.1:0"
    assert options["workers"] == 4
    assert "multiproc_dir" not in options


def test_what_is_published_passes_gunicorns_own_checks() -> None:
    """Every published name is accepted by the installed Gunicorn, which counts parameters."""

    class Config(ObskitGunicornConfig):
        def hook_event(self, event: obskit_gunicorn.HookEvent) -> None:
            """Have every hook published."""

    options = as_options(Config)
    config = GunicornConfig()
    for name, value in options.items():
        config.set(name, value)
    expected = {name for name in contract.PARAMETERS if name in KNOWN}
    assert expected <= set(options)


def test_a_hook_that_does_nothing_is_not_published() -> None:
    """A hook that nobody overrides and whose base does nothing stays Gunicorn's own."""

    class Config(ObskitGunicornConfig):
        metrics_requests = False

    published = set(as_options(Config)) & set(contract.PARAMETERS)
    assert published == set(lifecycle.CORES) | {"on_starting"}


def test_request_hooks_are_published_where_requests_are_counted() -> None:
    """Request hooks cost nothing unless requests are counted, or somebody overrides them."""

    class Config(ObskitGunicornConfig):
        pass

    assert {"pre_request", "post_request"} <= set(as_options(Config))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_post_request_may_take_two_three_or_four(count: int) -> None:
    """An override of post_request gets as many of Gunicorn's arguments as it takes."""
    seen: list[tuple[Any, ...]] = []

    class Two(ObskitGunicornConfig):
        def post_request(self, worker: Any, req: Any) -> None:  # type: ignore[override]
            seen.append((worker, req))

    class Three(ObskitGunicornConfig):
        def post_request(self, worker: Any, req: Any, environ: Any) -> None:  # type: ignore[override]
            seen.append((worker, req, environ))

    class Four(ObskitGunicornConfig):
        def post_request(
            self, worker: Any, req: Any, environ: Any = None, resp: Any = None
        ) -> None:
            seen.append((worker, req, environ, resp))

    config = {2: Two, 3: Three, 4: Four}[count]
    as_options(config)["post_request"]("worker", "req", "environ", "resp")
    assert seen == [("worker", "req", "environ", "resp")[:count]]


def test_an_override_may_have_more_parameters_with_defaults() -> None:
    """What Gunicorn's count of parameters would refuse is fine if it can be called."""
    seen: list[Any] = []

    class Config(ObskitGunicornConfig):
        def when_ready(self, server: Any, extra: int = 3) -> None:
            seen.append((server, extra))

    as_options(Config)["when_ready"]("server")
    assert seen == [("server", 3)]


def plain_hook(server: Any) -> None:
    """Stand for a function of another module."""


class TestRefused:
    """What is wrong stops the start: class, attribute, value, expectation, hint."""

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("workers", "four", "int"),
            ("bind", 3.5, "accepts"),
            ("when_ready", 3, "a method with the parameters (self, server)"),
            ("pre_fork", lambda self: None, "2 arguments (server, worker)"),
            ("when_ready", plain_hook, "staticmethod(plain_hook)"),
            ("post_request", lambda self, worker: None, "4 arguments"),
            ("metrics_keep", "yes", "True or False"),
            ("multiproc_dir", "", "the path of a directory"),
            ("multiproc_dir", 7, "the path of a directory"),
            ("when_ready", "no.such.module", "import string"),
        ],
    )
    def test_in_words(self, name: str, value: object, expected: str) -> None:
        """The error names class, attribute and value, and says what was expected."""
        config = type("Config", (ObskitGunicornConfig,), {name: value, "__module__": "company"})
        with pytest.raises(ConfigurationError) as caught:
            as_options(config)
        text = str(caught.value)
        assert f"Config.{name} in company" in text
        assert expected in text
        assert caught.value.hint

    def test_a_coroutine(self) -> None:
        """An async hook is refused, because Gunicorn never runs its body."""

        class Config(ObskitGunicornConfig):
            async def when_ready(self, server: Any) -> None:  # type: ignore[override]
                pass

        with pytest.raises(ConfigurationError, match="without async"):
            as_options(Config)

    @pytest.mark.parametrize("name", ["when_ready", "hook_event"])
    @pytest.mark.parametrize("kind", ["method", "object", "partial", "generator"])
    def test_what_is_called_and_never_runs(self, name: str, kind: str) -> None:
        """However it is written, what only returns a coroutine or a generator is refused."""

        async def method(self: Any, argument: Any) -> None: ...

        async def generator(self: Any, argument: Any) -> AsyncIterator[None]:
            yield

        class Object:
            async def __call__(self, argument: Any) -> None: ...

        hook = {
            "method": method,
            "object": Object(),
            "partial": staticmethod(functools.partial(Object())),
            "generator": generator,
        }[kind]
        with pytest.raises(ConfigurationError, match=f"Config.{name} .*without async"):
            as_options(type("Config", (ObskitGunicornConfig,), {name: hook}))

    def test_an_object_that_can_be_called(self) -> None:
        """An object with a plain ``__call__`` is a hook like any other."""
        seen: list[Any] = []

        class Object:
            def __call__(self, server: Any) -> None:
                seen.append(server)

        config = type("Config", (ObskitGunicornConfig,), {"when_ready": Object()})
        as_options(config)["when_ready"]("server")
        assert seen == ["server"]

    def test_a_method_in_place_of_a_setting(self) -> None:
        """A method named like a setting is refused with the hint to make it a property."""

        class Config(ObskitGunicornConfig):
            def workers(self) -> int:  # type: ignore[override]
                return 4

        with pytest.raises(ConfigurationError, match="@property above def workers"):
            as_options(Config)

    def test_a_property_that_raises(self) -> None:
        """An error in a property is said with the name of the property."""

        class Config(ObskitGunicornConfig):
            @property
            def workers(self) -> int:
                return int("many")

        with pytest.raises(ConfigurationError, match=r"Config\.workers .* raised ValueError"):
            as_options(Config)

    def test_a_class_that_needs_arguments(self) -> None:
        """A class whose __init__ needs arguments is refused."""

        class Config(ObskitGunicornConfig):
            def __init__(self, site: str) -> None:
                self.site = site

        with pytest.raises(ConfigurationError, match="called without arguments"):
            as_options(Config)

    def test_a_name_defined_by_module_and_class(self) -> None:
        """A setting in the file and in the class is one too many."""

        class Config(ObskitGunicornConfig):
            workers = 4

        with pytest.raises(ConfigurationError, match="Move it into the class"):
            expose(Config, {"workers": 3, "__file__": "gunicorn.conf.py"})

    def test_an_environment_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wrong value in the environment is said with the variable's name."""
        monkeypatch.setenv("OBSKIT_METRICS_KEEP", "perhaps")
        with pytest.raises(ConfigurationError, match="OBSKIT_METRICS_KEEP is 'perhaps'"):
            as_options(type("Config", (ObskitGunicornConfig,), {}))


class TestSuggested:
    """Names that are nothing, but nearly something, get a warning."""

    @pytest.mark.parametrize(
        ("name", "value", "meant"),
        [
            ("worker", 4, "workers"),
            ("works", 4, "workers"),
            ("Workers", 4, "workers"),
            ("on_start", lambda self, server: None, "on_starting"),
            ("worker_init", lambda self, worker: None, "post_worker_init"),
            ("post_forked", lambda self, server, worker: None, "post_fork"),
            ("metric_keep", True, "metrics_keep"),
        ],
    )
    def test_with_the_nearest_name(self, name: str, value: object, meant: str) -> None:
        """The warning says which name was probably meant."""
        config = type("Config", (ObskitGunicornConfig,), {name: value})
        with pytest.warns(ObskitGunicornWarning, match=f"Config.{name} .*did you mean .*{meant}"):
            as_options(config)

    @pytest.mark.parametrize(
        ("line", "wrong", "meant"),
        [
            ("worker = 4", "worker", "workers"),
            ("if True:\n    def on_start(server): pass", "on_start", "on_starting"),
            ("metric_bind: str = '127.0.0.1:9'", "metric_bind", "metrics_bind"),
            ("preload = True", "preload", "preload_app"),
            ("access_logfile = '-'", "access_logfile", "accesslog"),
        ],
    )
    def test_of_a_file(self, tmp_path: Path, line: str, wrong: str, meant: str) -> None:
        """A module-level name gets one too, and the line it is on."""
        namespace = self.run(tmp_path, f"{line}\n")
        with pytest.warns(ObskitGunicornWarning) as caught:
            adopt(namespace)
        (warning,) = caught
        assert f"{wrong} in" in str(warning.message)
        assert f"did you mean {meant}?" in str(warning.message)
        assert warning.filename == namespace["__file__"]
        assert warning.lineno == 1 + line.count("\n")

    def test_not_for_variables_of_a_file(self, tmp_path: Path) -> None:
        """What the file reads is a variable of its own; what is in capitals is a constant."""
        adopt(
            self.run(tmp_path, "worker = 4\nworkers = worker\nWORKERS = 4\n_bind = 1\nteam = 2\n")
        )

    @staticmethod
    def run(place: Path, text: str) -> dict[str, Any]:
        """Return the names of a file that has run."""
        file = place / "gunicorn.conf.py"
        file.write_text(text)
        namespace: dict[str, Any] = {"__name__": "company", "__file__": str(file)}
        exec(text, namespace)
        return namespace

    def test_not_for_what_is_ones_own(self) -> None:
        """Attributes that resemble nothing, and those with an underscore, are nobody's business."""

        class Config(ObskitGunicornConfig):
            team = "payments"
            _worker = 4

            def open_pool(self) -> None:
                """Do something of one's own."""

        assert "team" not in as_options(Config)

    def test_a_hook_that_this_gunicorn_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An override of a hook of later releases is not published, and that is said."""
        older = {name: known for name, known in KNOWN.items() if "dirty" not in name}
        monkeypatch.setattr(checks, "gunicorn_settings", lambda: older)

        class Config(ObskitGunicornConfig):
            def dirty_post_fork(self, arbiter: Any, worker: Any) -> None:
                """Never be called."""

        with pytest.warns(ObskitGunicornWarning, match="no such hook"):
            assert "dirty_post_fork" not in as_options(Config)


def test_expose_writes_names_and_takes_back_what_is_gone() -> None:
    """A second expose into one namespace removes what the class no longer has."""

    class Before(ObskitGunicornConfig):
        workers = 4
        threads = 2

    class After(ObskitGunicornConfig):
        workers = 5

    namespace: dict[str, Any] = {"__name__": "company"}
    expose(Before, namespace)
    assert (namespace["workers"], namespace["threads"]) == (4, 2)
    expose(After, namespace)
    assert namespace["workers"] == 5
    assert "threads" not in namespace


class TestAdopt:
    """``adopt(globals())``: ours run, then whatever stands there."""

    def test_keeps_every_kind_of_function(self) -> None:
        """A function, a lambda, a partial, a callable object, a bound method, an import string."""
        seen: list[Any] = []

        class Called:
            def __call__(self, server: Any) -> None:
                seen.append("object")

            def method(self, server: Any, worker: Any) -> None:
                seen.append("method")

        def on_reload(server: Any) -> None:
            seen.append("function")

        namespace: dict[str, Any] = {
            "__name__": "company",
            "workers": 3,
            "on_reload": on_reload,
            "on_exit": lambda server: seen.append("lambda"),
            "when_ready": Called(),
            "child_exit": Called().method,
            "worker_exit": functools.partial(lambda first, *rest: seen.append(first), "p"),
            "on_starting": f"{__name__}.plain_hook",
        }
        adopt(namespace)
        assert namespace["workers"] == 3
        assert set(contract.PARAMETERS) & set(namespace) >= set(lifecycle.CORES)
        for name in ("on_reload", "on_exit", "when_ready", "child_exit", "worker_exit"):
            namespace[name](*["given"] * len(contract.PARAMETERS[name]))
        namespace["on_starting"]("given")
        assert seen == ["function", "lambda", "object", "method", "p"]

    def test_twice_is_once(self) -> None:
        """A second call finds the functions in what the first one has written."""
        seen: list[str] = []
        namespace: dict[str, Any] = {"__name__": "company"}
        namespace["on_reload"] = lambda server: seen.append("reloaded")
        adopt(namespace)
        adopt(namespace)
        namespace["on_reload"]("server")
        assert seen == ["reloaded"]

    @pytest.mark.parametrize("function", [expose, adopt, as_options])
    def test_refuses_what_is_no_class_or_no_names(self, function: Any) -> None:
        """An instance in the place of a class, and anything in the place of globals()."""

        class Config(ObskitGunicornConfig):
            pass

        arguments: Any = {expose: (Config(), {}), adopt: (Config,), as_options: (Config(),)}
        with pytest.raises(ConfigurationError, match=r"Write (Config|globals\(\)) in its place"):
            function(*arguments[function])


def test_every_clash_is_in_one_error() -> None:
    """Class and file define names differently: all are named, with what to write for each."""

    class Config(ObskitGunicornConfig):
        workers = 4
        timeout = 20
        metrics_keep = True

        def on_exit(self, server: Any) -> None:
            pass

    namespace = {
        "__file__": "gunicorn.conf.py",
        "workers": 3,
        "timeout": 20,
        "metrics_keep": False,
        "on_exit": plain_hook,
        "when_ready": plain_hook,
    }
    with pytest.raises(ConfigurationError) as caught:
        expose(Config, namespace)
    text = str(caught.value)
    for words in (
        "workers: keep one",
        "metrics_keep: keep one",
        "on_exit: keep one",
        "write when_ready = staticmethod(when_ready) into the class",
    ):
        assert words in text
    assert "timeout" not in text


def test_a_global_that_has_moved_into_the_class_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A method that reads a setting as a global name would fail when it is called."""
    module = types.ModuleType("moved")
    monkeypatch.setitem(sys.modules, "moved", module)
    code = """
from obskit_gunicorn import ObskitGunicornConfig
timeout = 20
class Config(ObskitGunicornConfig):
    workers = 4
    def when_ready(self, server):
        print([workers for _ in range(timeout)])
    @property
    def threads(self):
        return self.workers
    @staticmethod
    def on_exit(server):
        print(timeout)
    bind = property(lambda self: f"127.0.0.1:{8000 + self.workers}")
"""
    exec(code, vars(module))
    with pytest.warns(ObskitGunicornWarning) as caught:
        publish._with_published(vars(module))
    (text,) = [str(warning.message) for warning in caught]
    assert "Config.when_ready in moved reads the global workers" in text
    assert "write self.workers" in text


def test_a_mixin_before_the_base_chains() -> None:
    """The override of a mixin runs, and its super() reaches the base."""
    seen: list[str] = []

    class Mixin(ObskitGunicornConfig):
        def post_worker_init(self, worker: Any) -> None:
            super().post_worker_init(worker)
            seen.append("mixin")

    class Config(Mixin, ObskitGunicornConfig):
        def post_worker_init(self, worker: Any) -> None:
            super().post_worker_init(worker)
            seen.append("config")

    as_options(Config)["post_worker_init"]("worker")
    assert seen == ["mixin", "config"]


class TestRunning:
    """The published function: containment and events."""

    @pytest.mark.parametrize("name", sorted(contract.CONTAINED - {"pre_exec", "nworkers_changed"}))
    def test_contained_hooks_log_and_go_on(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception in a contained hook is logged with its traceback and not raised."""

        def override(self: Any, *args: Any) -> None:
            raise ZeroDivisionError("in the override")

        function = as_options(type("Config", (ObskitGunicornConfig,), {name: override}))[name]
        function(*range(len(contract.PARAMETERS[name])))
        if lifecycle.is_signal_context(name):
            assert not caplog.records
            lifecycle.flush_failures()
        assert f"Config.{name} raised" in caplog.text
        assert "ZeroDivisionError: in the override" in caplog.text

    @pytest.mark.parametrize("name", ["on_starting", "when_ready", "post_fork", "worker_int"])
    def test_other_hooks_keep_gunicorns_meaning(self, name: str) -> None:
        """An exception in any other hook is Gunicorn's to handle."""

        def override(self: Any, *args: Any) -> None:
            raise ZeroDivisionError

        function = as_options(type("Config", (ObskitGunicornConfig,), {name: override}))[name]
        with pytest.raises(ZeroDivisionError):
            function(*range(len(contract.PARAMETERS[name])))

    def test_every_run_is_an_event(self) -> None:
        """hook_event gets a success or a failure with the hook, the time it took and the error."""
        events: list[obskit_gunicorn.HookEvent] = []

        class Config(ObskitGunicornConfig):
            def hook_event(self, event: obskit_gunicorn.HookEvent) -> None:
                events.append(event)

            def on_exit(self, server: Any) -> None:
                raise ZeroDivisionError

        options = as_options(Config)
        options["when_ready"]("server")
        options["on_exit"]("server")
        assert [(event.name, event.hook) for event in events] == [
            ("hook_success", "when_ready"),
            ("hook_failure", "on_exit"),
        ]
        assert isinstance(events[1].error, ZeroDivisionError)
        assert events[0].duration_seconds >= 0

    def test_an_error_in_hook_event_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """The outcome of a hook stands, whatever hook_event does."""

        class Config(ObskitGunicornConfig):
            def hook_event(self, event: obskit_gunicorn.HookEvent) -> None:
                raise ZeroDivisionError

        as_options(Config)["when_ready"]("server")
        assert "hook_event raised in when_ready" in caplog.text


class TestHooksModule:
    """The default hooks as plain functions."""

    def test_has_every_hook(self) -> None:
        """Each hook of every supported Gunicorn is there, and passes Gunicorn's check."""
        config = GunicornConfig()
        for name in contract.PARAMETERS:
            function = getattr(hooks, name)
            assert callable(function)
            if name in KNOWN:
                config.set(name, function)

    def test_star_import_brings_hooks_only(self) -> None:
        """``from obskit_gunicorn.hooks import *`` brings the hooks that act and nothing else."""
        namespace: dict[str, Any] = {}
        exec("from obskit_gunicorn.hooks import *", namespace)
        assert {name for name in namespace if not name.startswith("__")} == dispatch.ACTING

    def test_another_exporters_names(self) -> None:
        """The five names of gunicorn-prometheus-exporter are ours; no other hook has such a one."""
        for name in ("on_starting", "when_ready", "worker_int", "on_exit", "post_fork"):
            assert getattr(hooks, f"default_{name}") is getattr(hooks, name)
        with pytest.raises(AttributeError, match="default_pre_fork"):
            hooks.default_pre_fork  # noqa: B018 - the access is what is tested

    def test_ours_are_known_by_identity(self) -> None:
        """A decorator copies every mark of a function, and its result is the user's."""
        assert functions.is_ours(hooks.post_fork)

        @functools.wraps(hooks.post_fork)
        def wrapper(server: Any, worker: Any) -> None:
            hooks.post_fork(server, worker)

        assert not functions.is_ours(wrapper)
        assert not functions.is_ours(None)

    def test_a_call_while_a_configuration_is_published_does_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What the function stands for has been done by the published one, or will be."""
        config = GunicornConfig()
        for name, value in as_options(hooks.Config).items():
            config.set(name, value)
        hooks.when_ready(types.SimpleNamespace(cfg=config, log=log))
        assert not caplog.records

    def test_has_no_other_names(self) -> None:
        """A name that is no hook is an AttributeError."""
        with pytest.raises(AttributeError, match="on_start"):
            hooks.on_start  # noqa: B018 - the access is what is tested


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    """``import obskit_gunicorn`` loads neither prometheus_client nor Gunicorn."""
    code = "import sys, obskit_gunicorn; print({'prometheus_client','gunicorn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_works_without_prometheus_client(tmp_path: Path) -> None:
    """Without prometheus-client the class still publishes, and nothing raises."""
    code = textwrap.dedent("""
        import sys
        sys.modules["prometheus_client"] = None  # the import system then says: not installed
        from obskit_gunicorn import ObskitGunicornConfig, as_options
        class Config(ObskitGunicornConfig):
            workers = 4
        options = as_options(Config)
        worker = type("Worker", (), {"pid": 0, "aborted": False})()
        options["child_exit"]("server", worker)
        options["pre_fork"]("server", worker)
        options["post_worker_init"](worker)
        print(options["workers"])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("4", "")


def test_all_names_are_there() -> None:
    """Every public name of the package can be had."""
    for name in obskit_gunicorn.__all__:
        assert getattr(obskit_gunicorn, name) is not None
