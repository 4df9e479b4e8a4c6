"""The configuration class, its extras and its errors, without a running server."""

from __future__ import annotations

import inspect
import io
import logging
import os
import pickle
import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gunicorn
import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.config import KNOWN_SETTINGS, Config
from gunicorn.glogging import Logger
from gunicorn.http.parser import RequestParser
from gunicorn.workers.sync import SyncWorker

import obskit_gunicorn.config
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.config import HookEvent, ObskitGunicornConfig
from obskit_gunicorn.errors import (
    ConfigurationError,
    ObskitGunicornError,
    ObskitGunicornWarning,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(obskit_gunicorn.config.__file__).resolve().parents[1]

KNOWN_HOOKS = {
    str(setting.name): setting
    for setting in KNOWN_SETTINGS
    if setting.section in ("Server Hooks", "Dirty Arbiter Hooks")
}
"""The server hooks of the Gunicorn that is installed."""

EXTRAS = {"setup_multiprocess", "cleanup_worker", "hook_event"}
HOOKS = [
    name
    for name, value in vars(ObskitGunicornConfig).items()
    if inspect.isfunction(value) and not name.startswith("_") and name not in EXTRAS
]

FACTS = ("Process", "Never under", "Signal context", "Base", "super()", "Exception", "Since")


def facts(hook: str) -> dict[str, str]:
    """Return the lines of a hook's docstring that begin with a dash, by what they are about."""
    text = inspect.getdoc(getattr(ObskitGunicornConfig, hook)) or ""
    items = re.findall(r"^- ([A-Za-z() ]+): (.+(?:\n  .+)*)", text, re.MULTILINE)
    return {name: " ".join(value.split()) for name, value in items}


def first_sentence(text: str) -> str:
    """Return the short answer with which a fact begins."""
    return re.split(r"\.(?=\s|$)", text, maxsplit=1)[0]


def positional_parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names that Gunicorn's check of a hook counts."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


class StubApplication(BaseApplication):
    """What a worker needs of an application to be made."""

    def load_config(self) -> None:
        """Read no command line."""

    def load(self) -> Any:
        """Have nothing to serve."""


class Served(NamedTuple):
    """A worker with what it logs to and a request that it could serve."""

    worker: SyncWorker
    request: Any
    log: io.StringIO


@pytest.fixture(name="served")
def _served() -> Iterator[Served]:
    settings = Config()
    settings.set("loglevel", "debug")
    logger = Logger(settings)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.error_log.handlers[:] = [handler]
    worker = SyncWorker(1, os.getpid(), [], StubApplication(), 30, settings, logger)
    lines = [b"GET /orders?page=2 HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    yield Served(worker, next(RequestParser(settings, iter(lines), ("127.0.0.1", 0))), log)
    worker.tmp.close()
    logger.error_log.handlers.clear()


class FakeServer:
    """An arbiter with a log."""

    def __init__(self) -> None:
        self.log = logging.getLogger("tests.fake_server")


class FakeWorker:
    """A worker with a log."""

    def __init__(self) -> None:
        self.log = logging.getLogger("tests.fake_worker")


class FakeRequest:
    """A request with what the debug line shows."""

    method = "GET"
    path = "/orders"


def arguments(hook: str) -> list[Any]:
    """Return what a hook can be called with outside a server."""
    values: dict[str, Any] = {
        "server": FakeServer(),
        "arbiter": FakeServer(),
        "worker": FakeWorker(),
        "req": FakeRequest(),
        "environ": {},
        "resp": None,
        "new_value": 2,
        "old_value": 1,
        "config": Config(),
        "default_ssl_context_factory": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    }
    return [values[name] for name in positional_parameters(getattr(ObskitGunicornConfig(), hook))]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that has this package and nothing from site-packages."""
    prelude = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", prelude + code],
        capture_output=True,
        text=True,
        check=False,
    )


class TestDrift:
    """Our hooks are Gunicorn's hooks."""

    @pytest.mark.parametrize("hook", sorted(KNOWN_HOOKS))
    def test_every_hook_has_a_method_with_the_same_parameters(self, hook: str) -> None:
        """A hook that Gunicorn gains or changes is noticed here."""
        method = getattr(ObskitGunicornConfig(), hook)
        assert positional_parameters(method) == positional_parameters(KNOWN_HOOKS[hook].default)

    @pytest.mark.parametrize("hook", sorted(KNOWN_HOOKS))
    def test_base_method_passes_the_check_of_gunicorn(self, hook: str) -> None:
        """Gunicorn's own validator takes the bound base method."""
        settings = Config()
        settings.set(hook, getattr(ObskitGunicornConfig(), hook))
        assert getattr(settings, hook).__name__ == hook

    def test_methods_are_the_hooks_of_this_gunicorn_and_newer_ones(self) -> None:
        """What a Gunicorn lacks is what the docstrings say came later."""
        since = {hook: re.match(r"Gunicorn (\d+)", facts(hook)["Since"]) for hook in HOOKS}
        there = {
            hook
            for hook, version in since.items()
            if version is None or int(version[1]) <= gunicorn.version_info[0]
        }
        assert there == set(KNOWN_HOOKS)

    def test_no_base_method_takes_variable_or_keyword_only_arguments(self) -> None:
        """An editor that inserts the signature inserts one that Gunicorn accepts."""
        for hook in HOOKS:
            kinds = {
                p.kind
                for p in inspect.signature(vars(ObskitGunicornConfig)[hook]).parameters.values()
            }
            assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}, hook

    def test_post_request_can_be_called_without_environ_and_resp(self) -> None:
        """``super().post_request(worker, req)`` works from an override with two parameters."""
        ObskitGunicornConfig().post_request(*arguments("post_request")[:2])


class TestDocstrings:
    """Each hook states the same facts."""

    @pytest.mark.parametrize("hook", HOOKS)
    def test_hook_states_every_fact_once_and_in_order(self, hook: str) -> None:
        """Which process, which worker classes, signal context, base, super, exception, version."""
        assert tuple(facts(hook)) == FACTS

    @pytest.mark.parametrize("hook", HOOKS)
    def test_hook_documents_each_parameter(self, hook: str) -> None:
        """The ``Args`` are the parameters that Gunicorn passes, in their order."""
        text = inspect.getdoc(getattr(ObskitGunicornConfig, hook)) or ""
        section = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
        documented = re.findall(r"^    (\w+): ", section, re.MULTILINE)
        assert documented == positional_parameters(getattr(ObskitGunicornConfig(), hook))

    @pytest.mark.parametrize("hook", HOOKS)
    def test_hook_says_in_the_usual_words_where_it_runs(self, hook: str) -> None:
        """The process is one of those that Gunicorn has."""
        assert first_sentence(facts(hook)["Process"]) in {
            "arbiter",
            "worker",
            "forked child of the arbiter",
            "dirty arbiter",
            "dirty worker",
        }

    @pytest.mark.parametrize("hook", HOOKS)
    def test_hook_says_what_forgetting_super_loses(self, hook: str) -> None:
        """It goes first or last, and counts never depend on it."""
        assert re.match(r"(first|last)\b", facts(hook)["super()"])
        assert "counts" in facts(hook)["super()"]

    @pytest.mark.parametrize("hook", HOOKS)
    def test_hook_says_whether_an_exception_is_contained(self, hook: str) -> None:
        """The docstring and the published function agree."""
        from obskit_gunicorn._gunicorn.contract import CONTAINED

        said = first_sentence(facts(hook)["Exception"])
        assert said in {"contained", "contained once the server runs", "not contained"}
        assert said.startswith("contained") == (hook in CONTAINED)

    def test_signal_context_is_stated_for_the_three_hooks_that_have_it(self) -> None:
        """Two hooks always run there and one before Gunicorn 24."""
        stated = {hook: first_sentence(facts(hook)["Signal context"]) for hook in HOOKS}
        assert {hook: said for hook, said in stated.items() if said != "no"} == {
            "worker_int": "yes",
            "worker_abort": "yes",
            "child_exit": "before Gunicorn 24",
        }

    def test_worker_classes_that_skip_a_hook_are_named(self) -> None:
        """Uvicorn's worker calls five hooks never."""
        stated = {hook: first_sentence(facts(hook)["Never under"]) for hook in HOOKS}
        assert {hook: said.split(", ") for hook, said in stated.items() if said != "none"} == {
            "worker_int": ["UvicornWorker"],
            "worker_abort": ["UvicornWorker"],
            "ssl_context": ["UvicornWorker"],
            "pre_request": ["UvicornWorker", "tornado", "gevent_pywsgi", "aiohttp"],
            "post_request": ["UvicornWorker", "tornado", "gevent_pywsgi", "aiohttp"],
        }


class TestBaseMethods:
    """What the base methods do."""

    def test_pre_request_logs_what_gunicorn_logs(self, served: Served) -> None:
        """Overriding ``pre_request`` with a call of ``super()`` keeps Gunicorn's debug line."""
        KNOWN_HOOKS["pre_request"].default(served.worker, served.request)
        ObskitGunicornConfig().pre_request(served.worker, served.request)

        theirs, ours = served.log.getvalue().splitlines()
        assert theirs == ours == "DEBUG GET /orders"

    def test_ssl_context_returns_the_context_of_the_factory(self) -> None:
        """As Gunicorn's default, the base hands out the context that it was offered."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        settings = Config()
        for hook in (KNOWN_HOOKS["ssl_context"].default, ObskitGunicornConfig().ssl_context):
            assert hook(settings, lambda: context) is context

    @pytest.mark.parametrize("hook", sorted(set(HOOKS) - {"ssl_context"}))
    def test_other_hooks_return_none(self, hook: str, caplog: pytest.LogCaptureFixture) -> None:
        """No base method can be taken for one that refuses the start."""
        caplog.set_level(logging.DEBUG)
        assert getattr(ObskitGunicornConfig(), hook)(*arguments(hook)) is None

    @pytest.mark.parametrize("has_begun", [True, False])
    def test_on_starting_says_where_metrics_are_kept(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, has_begun: bool
    ) -> None:
        """One line at info level goes to the log of an arbiter that has looked for a directory."""
        caplog.set_level(logging.DEBUG)
        monkeypatch.setattr(membership, "_arbiter_pid", os.getpid() if has_begun else 0)
        ObskitGunicornConfig().on_starting(*arguments("on_starting"))
        line = ("tests.fake_server", logging.INFO, f"obskit: {membership.describe()}")
        assert caplog.record_tuples == [line] * has_begun

    def test_on_starting_calls_an_overridden_setup_multiprocess(self) -> None:
        """What hooks call are methods too."""
        seen: list[Any] = []

        class Quiet(ObskitGunicornConfig):
            def setup_multiprocess(self, server: Any) -> None:
                seen.append(server)

        (server,) = arguments("on_starting")
        Quiet().on_starting(server)
        assert seen == [server]

    def test_child_exit_cleans_up_after_the_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The base passes both arguments on to the clean-up of the multiprocess directory."""
        seen: list[tuple[Any, ...]] = []
        monkeypatch.setattr(
            ObskitGunicornConfig, "cleanup_worker", lambda _self, *args: seen.append(args)
        )

        server, worker = arguments("child_exit")
        ObskitGunicornConfig().child_exit(server, worker)
        assert seen == [(server, worker)]

    def test_cleanup_worker_imports_nothing(self) -> None:
        """In signal context nothing is loaded, whether prometheus_client is there or not."""
        done = run_python(
            "from obskit_gunicorn.config import ObskitGunicornConfig\n"
            "before = set(sys.modules)\n"
            "ObskitGunicornConfig().child_exit(None, None)\n"
            "print(sorted(set(sys.modules) - before))\n"
        )
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    def test_hook_event_does_nothing(self) -> None:
        """The base hears of events and keeps quiet."""
        quiet = ObskitGunicornConfig()
        quiet.hook_event(HookEvent("hook_success", "on_exit", 1.5, 0.25, 7, None))
        assert vars(quiet) == {}

    @pytest.mark.parametrize("hook", HOOKS)
    def test_mixins_before_the_base_chain(self, hook: str) -> None:
        """Two mixins and an override run in the order of their classes, down to the base."""
        order: list[str] = []

        def mixin(name: str) -> type:
            def method(self: Any, *args: Any) -> Any:
                order.append(name)
                return getattr(super(made, self), hook)(*args)

            made = type(name, (), {hook: method})
            return made

        chained = type("Chained", (mixin("First"), mixin("Second"), ObskitGunicornConfig), {})
        passed = arguments(hook)
        result = getattr(chained(), hook)(*passed)

        assert order == ["First", "Second"]
        assert (result is None) == (hook != "ssl_context")

    def test_init_subclass_of_a_mixin_gets_its_arguments(self) -> None:
        """Keyword arguments of the class statement reach whoever comes after the base."""
        seen: list[str] = []

        class Tagged:
            def __init_subclass__(cls, tag: str, **kwargs: Any) -> None:
                super().__init_subclass__(**kwargs)
                seen.append(tag)

        class _Tagged(ObskitGunicornConfig, Tagged, tag="blue"):
            pass

        assert seen == ["blue"]

    def test_options_have_their_defaults(self) -> None:
        """A class that sets nothing has a private directory, starts from zero and is scraped."""
        options = {
            name: value
            for name, value in vars(ObskitGunicornConfig).items()
            if not name.startswith("_") and not callable(value)
        }
        assert options == {
            "multiproc_dir": None,
            "metrics_keep": False,
            "metrics_bind": "127.0.0.1:9764",
            "metrics_path": "/metrics",
            "metrics_page": True,
            "metrics_certfile": None,
            "metrics_keyfile": None,
            "metrics_ca_certs": None,
            "metrics_bearer_token_file": None,
            "metrics_auth_file": None,
            "metrics_auth_probes": False,
            "metrics_collectors": (),
            "metrics_max_series": None,
            "metrics_max_bytes": None,
            "metrics_requests": True,
            "metrics_routes": False,
            "metrics_buckets": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            "metrics_exemplars": False,
            "metrics_standard": True,
            "metrics_redis": None,
            "metrics_redis_name": "default",
            "metrics_redis_interval": 5.0,
            "metrics_host": None,
            "metrics_fleet_path": "/metrics/fleet",
            "metrics_push": None,
        }

    def test_making_an_instance_has_no_side_effects(self) -> None:
        """``--check-config`` makes one too: no file, no variable, no thread, nothing loaded."""
        done = run_python(
            "import os\n"
            "from obskit_gunicorn.config import ObskitGunicornConfig\n"
            "before = dict(os.environ), set(sys.modules), os.listdir('/dev/fd')\n"
            "made = ObskitGunicornConfig()\n"
            "after = dict(os.environ), set(sys.modules), os.listdir('/dev/fd')\n"
            "print(before == after, vars(made))\n"
        )
        assert (done.returncode, done.stdout) == (0, "True {}\n"), done.stderr


class TestHookEvent:
    """The record that ``hook_event`` gets."""

    def test_fields_are_in_the_documented_order(self) -> None:
        """Each field has its place and its name."""
        assert HookEvent._fields == ("name", "hook", "time", "duration_seconds", "pid", "error")

    def test_event_is_immutable(self) -> None:
        """An override cannot change what the next one is told."""
        event = HookEvent("hook_success", "on_exit", 1.5, 0.25, 7, None)
        with pytest.raises(AttributeError):
            event.pid = 8  # type: ignore[misc]

    def test_event_pickles(self) -> None:
        """An event can be sent to another process, with its error."""
        error = ConfigurationError(where="a", value=1, expected="b", hint="c")
        event = HookEvent("hook_failure", "on_exit", 1.5, 0.25, 7, error)
        copy = pickle.loads(pickle.dumps(event))
        assert copy[:5] == event[:5]
        assert str(copy.error) == str(error)


class TestErrors:
    """What is raised when a configuration is wrong."""

    ERROR = ConfigurationError(
        where="Config.workers in gunicorn.conf.py",
        value="four",
        expected="a positive number",
        hint="Write for example workers = 4.",
    )

    def test_text_says_what_is_wrong_and_what_to_do(self) -> None:
        """Place, value, expectation and hint make readable sentences."""
        assert str(self.ERROR) == (
            "Config.workers in gunicorn.conf.py is 'four'; expected a positive number. "
            "Write for example workers = 4."
        )

    def test_parts_are_attributes(self) -> None:
        """A tool that shows the error need not parse its text."""
        assert (self.ERROR.where, self.ERROR.value) == (
            "Config.workers in gunicorn.conf.py",
            "four",
        )
        assert self.ERROR.expected == "a positive number"
        assert self.ERROR.hint == "Write for example workers = 4."

    def test_error_is_caught_as_ours_and_as_a_value_error(self) -> None:
        """Callers who know nothing of this package catch ``ValueError``."""
        assert isinstance(self.ERROR, ObskitGunicornError)
        assert isinstance(self.ERROR, ValueError)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_error_pickles(self, protocol: int) -> None:
        """Type, text and parts survive every pickle protocol."""
        copy = pickle.loads(pickle.dumps(self.ERROR, protocol))
        assert type(copy) is ConfigurationError
        assert str(copy) == str(self.ERROR)
        assert vars(copy) == vars(self.ERROR)

    def test_error_takes_its_parts_by_name_only(self) -> None:
        """Four strings in a row cannot be mixed up."""
        with pytest.raises(TypeError):
            ConfigurationError("a", 1, "b", "c")  # type: ignore[call-arg]

    def test_warning_can_be_filtered_as_ours(self) -> None:
        """Our warnings have a category of their own, which is a ``UserWarning``."""
        assert issubclass(ObskitGunicornWarning, UserWarning)


class TestImport:
    """What importing the package costs."""

    @pytest.mark.parametrize("module", ["obskit_gunicorn", "obskit_gunicorn.config"])
    def test_import_loads_neither_prometheus_client_nor_gunicorn(self, module: str) -> None:
        """prometheus_client chooses its value class when loaded, so it must not be loaded yet."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys, {module}; print(sorted({{'gunicorn', 'prometheus_client'}}"
                " & set(sys.modules)))",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    @pytest.mark.parametrize("module", ["obskit_gunicorn", "obskit_gunicorn.config"])
    def test_import_loads_no_heavy_module_of_the_library(self, module: str) -> None:
        """An import is cheap because of what it leaves out."""
        done = run_python(
            f"import {module}\n"
            "heavy = {'argparse', 'asyncio', 'dataclasses', 'http', 'inspect', 'logging', 'mmap',\n"
            "         'multiprocessing', 'socket', 'ssl', 'subprocess', 'tempfile', 'threading'}\n"
            "print(sorted(heavy & set(sys.modules)))\n"
        )
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    def test_package_says_that_it_is_typed(self) -> None:
        """Type checkers look for the marker beside the modules."""
        assert (Path(obskit_gunicorn.config.__file__).parent / "py.typed").read_bytes() == b""
