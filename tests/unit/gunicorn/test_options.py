"""The options of the configuration class: where they come from, and whether they are right."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from obskit_gunicorn import cli
from obskit_gunicorn._gunicorn import options as gunicorn_options
from obskit_gunicorn._gunicorn.options import (
    OPTIONS,
    Option,
    exporter_options,
    misnamed_variables,
    normalize_environment,
    read_options,
)
from obskit_gunicorn._log import log
from obskit_gunicorn.config import ObskitGunicornConfig
from obskit_gunicorn.errors import ConfigurationError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class Config:
    """Stands for a configuration class: what is read of one are its attributes."""

    multiproc_dir: object = None
    metrics_keep: object = False
    metrics_bind: object = "127.0.0.1:9764"
    metrics_path: object = "/metrics"
    metrics_page: object = True
    metrics_certfile: object = None
    metrics_keyfile: object = None
    metrics_ca_certs: object = None
    metrics_bearer_token_file: object = None
    metrics_auth_file: object = None
    metrics_auth_probes: object = False
    metrics_collectors: object = ()
    metrics_max_series: object = None
    metrics_max_bytes: object = None
    metrics_requests: object = True
    metrics_routes: object = False
    metrics_buckets: object = (0.1, 1.0)
    metrics_exemplars: object = False
    metrics_standard: object = True
    metrics_redis: object = None
    metrics_redis_name: object = "default"
    metrics_redis_interval: object = 5.0
    metrics_host: object = None
    metrics_fleet_path: object = "/metrics/fleet"
    metrics_push: object = None


def options(environment: dict[str, str] | None = None, **values: object) -> Any:
    """Read the options of a configuration with these attributes."""
    exported: Any = values.pop("exported", ())
    config: Any = type("Config", (Config,), values)()
    return read_options(
        config,
        environment or {},
        source="gunicorn.conf.py",
        base=os.getcwd(),
        exported=exported,
    )


class TestDirectory:
    """``multiproc_dir`` and PROMETHEUS_MULTIPROC_DIR."""

    def test_private_by_default(self) -> None:
        """Nothing is named: a private directory."""
        assert options().multiproc_dir is None

    def test_class_over_default(self) -> None:
        """What the class names is taken."""
        assert options(multiproc_dir="/metrics").multiproc_dir == "/metrics"

    def test_environment_over_class(self) -> None:
        """What the environment names wins over the class."""
        found = options({VARIABLE: "/environment"}, multiproc_dir="/class")
        assert found.multiproc_dir == "/environment"

    def test_an_empty_variable_is_none(self) -> None:
        """A variable that is set to nothing does not count."""
        assert options({VARIABLE: ""}, multiproc_dir="/class").multiproc_dir == "/class"

    def test_our_own_export_is_no_wish(self) -> None:
        """What we exported at an earlier load does not hide a changed class attribute."""
        found = options({VARIABLE: "/before"}, multiproc_dir="/after", exported=("/before",))
        assert found.multiproc_dir == "/after"
        assert options({VARIABLE: "/before"}, exported=("/before",)).multiproc_dir is None

    @pytest.mark.parametrize("value", ["metrics", Path("metrics"), "./x/../metrics"])
    def test_relative_is_made_absolute(self, value: object) -> None:
        """A relative directory is taken from where Gunicorn was started."""
        assert options(multiproc_dir=value).multiproc_dir == os.path.abspath("metrics")

    def test_a_relative_variable_is_made_absolute(self) -> None:
        """So is one in the environment."""
        assert options({VARIABLE: "metrics"}).multiproc_dir == os.path.abspath("metrics")

    @pytest.mark.parametrize("value", [1, "", b"/metrics", ["/metrics"], "a\0b", True])
    def test_anything_else_is_an_error(self, value: object) -> None:
        """The error says where the value stands, what it is, what was expected and what to do."""
        with pytest.raises(ConfigurationError) as caught:
            options(multiproc_dir=value)
        error = caught.value
        assert error.where == "Config.multiproc_dir in gunicorn.conf.py"
        assert error.value == value
        assert "directory" in error.expected
        assert "multiproc_dir =" in error.hint
        for part in (error.where, repr(value), error.expected, error.hint):
            assert part in str(error)


class TestKeep:
    """``metrics_keep`` and OBSKIT_METRICS_KEEP."""

    def test_default(self) -> None:
        """Totals of earlier runs are not kept unless asked for."""
        assert options().metrics_keep is False
        assert options(metrics_keep=True).metrics_keep is True

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1", True),
            ("true", True),
            ("YES", True),
            ("On", True),
            ("0", False),
            ("False", False),
            ("no", False),
            ("off", False),
        ],
    )
    def test_environment_over_class(self, text: str, expected: bool) -> None:
        """The environment wins, in any of the usual spellings."""
        environment = {"OBSKIT_METRICS_KEEP": text}
        assert options(environment, metrics_keep=not expected).metrics_keep is expected

    def test_an_empty_variable_is_none(self) -> None:
        """A variable that is set to nothing does not count."""
        assert options({"OBSKIT_METRICS_KEEP": ""}, metrics_keep=True).metrics_keep is True

    def test_a_wrong_variable_is_an_error(self) -> None:
        """The error names the variable."""
        with pytest.raises(ConfigurationError, match="OBSKIT_METRICS_KEEP is 'maybe'"):
            options({"OBSKIT_METRICS_KEEP": "maybe"})

    @pytest.mark.parametrize("value", [1, 0, "true", None])
    def test_a_wrong_value_is_an_error(self, value: object) -> None:
        """Only True and False will do."""
        with pytest.raises(ConfigurationError, match=r"Config\.metrics_keep in gunicorn"):
            options(metrics_keep=value)


class TestEnvironment:
    """What stands in the environment after a configuration was loaded."""

    def test_is_made_absolute(self) -> None:
        """Every process finds the same directory, wherever it changes to."""
        environment = {VARIABLE: "metrics"}
        normalize_environment(environment, os.getcwd())
        assert environment == {VARIABLE: os.path.abspath("metrics")}

    def test_the_old_spelling_is_read(self) -> None:
        """The lower-case name that prometheus_client once had is understood."""
        environment = {"prometheus_multiproc_dir": "/old"}
        normalize_environment(environment, os.getcwd())
        assert environment[VARIABLE] == "/old"

    def test_the_new_spelling_wins(self) -> None:
        """Where both are set the documented one counts."""
        environment = {"prometheus_multiproc_dir": "/old", VARIABLE: "/new"}
        normalize_environment(environment, os.getcwd())
        assert environment[VARIABLE] == "/new"

    def test_nothing_stays_nothing(self) -> None:
        """An environment without the variable is left alone."""
        environment: dict[str, str] = {}
        normalize_environment(environment, os.getcwd())
        assert environment == {}


def test_each_row_is_an_attribute_of_the_class() -> None:
    """The rows and the class have the same options, and each default is right."""
    attributes = {
        name
        for name in vars(ObskitGunicornConfig)
        if name == "multiproc_dir" or name.startswith("metrics_")
    }
    assert attributes == {option.name for option in OPTIONS}
    found = read_options(ObskitGunicornConfig(), {}, source="defaults", base="/")
    assert vars(found).keys() == attributes


def test_an_option_is_a_row_and_an_attribute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new row has its environment variable, and, if it is the exporter's, a flag with help."""
    row = Option("metrics_flavour", lambda found: found.value, "what it tastes of", "sour", True)
    monkeypatch.setattr(gunicorn_options, "OPTIONS", (*OPTIONS, row))
    monkeypatch.setattr(cli, "OPTIONS", (*OPTIONS, row))
    monkeypatch.setattr(ObskitGunicornConfig, "metrics_flavour", "sweet", raising=False)

    assert options(metrics_flavour="bitter").metrics_flavour == "bitter"
    found = options({"OBSKIT_METRICS_FLAVOUR": "salty"}, metrics_flavour="bitter")
    assert found.metrics_flavour == "salty"
    given = exporter_options(found)
    assert given is not None
    assert given.metrics_flavour == "salty"
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--flavour" in shown
    assert "what it tastes of (default: $OBSKIT_METRICS_FLAVOUR, else sweet)" in shown


class TestExporter:
    """``metrics_bind`` and what goes with it."""

    def test_defaults(self) -> None:
        """By default it listens on the loopback interface, at the port of this kind of program."""
        found = exporter_options(options())
        assert found is not None
        assert vars(found) == {
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
            "metrics_standard": True,
            "metrics_redis": None,
            "metrics_redis_name": "default",
            "metrics_redis_interval": 5.0,
            "metrics_host": socket.gethostname(),
            "metrics_fleet_path": "/metrics/fleet",
            "metrics_push": None,
            "metrics_keep": False,
        }

    @pytest.mark.parametrize(
        ("value", "bind"),
        [
            ("0.0.0.0:9764", "0.0.0.0:9764"),
            ("localhost:1", "localhost:1"),
            (":9764", "0.0.0.0:9764"),
            ("[::1]:65535", "[::1]:65535"),
            ("[::]:9764", "[::]:9764"),
            ("unix:/run/metrics.sock", "unix:/run/metrics.sock"),
            ("unix:metrics.sock", f"unix:{os.path.abspath('metrics.sock')}"),
        ],
    )
    def test_addresses(self, value: str, bind: str) -> None:
        """TCP with names, IPv4 and IPv6, and Unix sockets, in the class and in the environment."""
        assert options(metrics_bind=value).metrics_bind == bind
        assert options({"OBSKIT_METRICS_BIND": value}).metrics_bind == bind

    def test_none(self) -> None:
        """None, and an empty variable, mean no exporter."""
        assert exporter_options(options(metrics_bind=None)) is None
        assert exporter_options(options({"OBSKIT_METRICS_BIND": ""})) is None
        assert options({"OBSKIT_METRICS_PATH": ""}).metrics_path == "/metrics"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(
                ("metrics_bind", value)
                for value in (
                    "",
                    "9764",
                    "localhost",
                    "localhost:",
                    "localhost:http",
                    "localhost:0",
                    "localhost:65536",
                    "::1:9764",
                    "a b:9764",
                    "unix:",
                    9764,
                    ["127.0.0.1:9764"],
                    False,
                )
            ),
            *(
                ("metrics_path", value)
                for value in ("", "metrics", "/", "/-/ready", "/-/status", "/a?b", "/a b", 1, None)
            ),
            ("metrics_certfile", "/nowhere/certificate.pem"),
            ("metrics_certfile", 1),
            ("metrics_keyfile", __file__),
            ("metrics_ca_certs", __file__),
            ("metrics_bearer_token_file", "/nowhere/token"),
            ("metrics_bearer_token_file", __file__),
            ("metrics_bearer_token_file", 1),
            ("metrics_auth_file", "/nowhere/users"),
            ("metrics_auth_file", __file__),
            ("metrics_auth_file", os.path.dirname(__file__)),
            ("metrics_auth_probes", "yes"),
            ("metrics_auth_probes", True),  # without a file that would close them
            ("metrics_collectors", "myapp:depth"),
            ("metrics_collectors", ["myapp.depth"]),
            ("metrics_collectors", ["myapp:"]),
            ("metrics_collectors", ["my app:depth"]),
            ("metrics_collectors", [1]),
            ("metrics_collectors", None),
            ("metrics_requests", 1),
            ("metrics_max_series", 0),
            ("metrics_max_series", True),
            ("metrics_max_series", 1.5),
            ("metrics_max_series", "100"),
            ("metrics_max_series", {"http_requests": 0}),
            ("metrics_max_series", {1: 1}),
            ("metrics_max_bytes", 0),
            ("metrics_max_bytes", "1000"),
            ("metrics_max_bytes", True),
            ("metrics_routes", "yes"),
            ("metrics_buckets", ()),
            ("metrics_buckets", "0.1"),
            ("metrics_buckets", 1),
            ("metrics_buckets", (1, 0.1)),
            ("metrics_buckets", (1, 1)),
            ("metrics_buckets", (0, 1)),
            ("metrics_buckets", (1, float("nan"))),
            ("metrics_buckets", (float("inf"),)),
            ("metrics_buckets", ("much",)),
        ],
    )
    def test_anything_else_is_an_error(self, name: str, value: object) -> None:
        """The error says where the value stands, what it is, what was expected and what to do."""
        with pytest.raises(ConfigurationError) as caught:
            options(None, **{name: value})
        error = caught.value
        assert error.where == f"Config.{name} in gunicorn.conf.py"
        assert error.expected
        assert error.hint

    def test_a_wrong_variable_is_named(self) -> None:
        """An error names the variable that the value comes from."""
        with pytest.raises(ConfigurationError) as caught:
            options({"OBSKIT_METRICS_BIND": "9764"})
        assert caught.value.where == "environment variable OBSKIT_METRICS_BIND"

    def test_files(self, tmp_path: Path) -> None:
        """Files of TLS are made absolute, and may be given as paths."""
        file = tmp_path / "certificate.pem"
        file.touch()
        relative = os.path.relpath(file)
        found = options(metrics_certfile=file, metrics_keyfile=relative, metrics_ca_certs=str(file))
        files = (found.metrics_certfile, found.metrics_keyfile, found.metrics_ca_certs)
        assert files == (str(file),) * 3

    def test_files_of_who_may_ask(self, tmp_path: Path) -> None:
        """They are read once, made absolute, and each closes probes where that is wished."""
        token, users = tmp_path / "token", tmp_path / "users"
        token.write_text("some-token\n")
        users.write_text(f"prometheus:$2y$10${'a' * 53}\n")
        relative = os.path.relpath(token)
        found = options({"OBSKIT_METRICS_BEARER_TOKEN_FILE": relative}, metrics_auth_file=users)
        files = (found.metrics_bearer_token_file, found.metrics_auth_file)
        assert files == (str(token), str(users))
        assert options(metrics_auth_file=users, metrics_auth_probes=True).metrics_auth_probes
        assert options({"OBSKIT_METRICS_AUTH_FILE": ""}).metrics_auth_file is None

    def test_collectors(self) -> None:
        """Collectors are import strings, in the environment separated by commas."""
        names = ["app.metrics:depth", "app:Collectors.queue"]
        assert options(metrics_collectors=names).metrics_collectors == tuple(names)
        found = options({"OBSKIT_METRICS_COLLECTORS": " , ".join(names)})
        assert found.metrics_collectors == tuple(names)


class TestRequests:
    """``metrics_requests``, ``metrics_buckets`` and ``metrics_exemplars``."""

    def test_buckets(self) -> None:
        """Bounds are numbers; the infinite one need not be said."""
        assert options(metrics_buckets=[1, 2.5]).metrics_buckets == (1.0, 2.5)
        assert options(metrics_buckets=(1, float("inf"))).metrics_buckets == (1.0,)
        assert options({"OBSKIT_METRICS_BUCKETS": "0.5, 1,+Inf"}).metrics_buckets == (0.5, 1.0)

    def test_none(self) -> None:
        """Requests need not be counted."""
        assert options(metrics_requests=False).metrics_requests is False
        assert options({"OBSKIT_METRICS_REQUESTS": "no"}).metrics_requests is False

    def test_routes(self) -> None:
        """They are asked for, and need requests that are counted."""
        assert options().metrics_routes is False
        assert options({"OBSKIT_METRICS_ROUTES": "on"}).metrics_routes is True
        with pytest.raises(ConfigurationError, match="metrics_requests is False"):
            options(metrics_routes=True, metrics_requests=False)

    def test_exemplars(self) -> None:
        """They need requests that are counted."""
        assert options(metrics_exemplars=True).metrics_exemplars is True
        assert options({"OBSKIT_METRICS_EXEMPLARS": "on"}).metrics_exemplars is True
        for wrong in ({"metrics_exemplars": 1}, {"metrics_exemplars": "yes"}):
            with pytest.raises(ConfigurationError, match="True or False"):
                options(**wrong)
        with pytest.raises(ConfigurationError, match="metrics_requests is False"):
            options(metrics_exemplars=True, metrics_requests=False)


class TestFleet:
    """Where many hosts come together, and what this one is called there."""

    @pytest.mark.parametrize(
        "url",
        [
            "redis://cache.internal",
            "redis://user@cache.internal:6379/3",
            "rediss://cache.internal/0?ssl_ca_certs=/ca.pem",
            "unix:///run/redis.sock",
            "redis+sentinel://one:26379,two:26379/main/0",
        ],
    )
    def test_stores(self, url: str) -> None:
        """Every kind of address, in the class and in the environment."""
        assert options(metrics_redis=url).metrics_redis == url
        assert options({"OBSKIT_METRICS_REDIS": url}).metrics_redis == url

    def test_password(self) -> None:
        """A password may stand in the environment, and not in the class; no error shows it."""
        url = "redis://user:hunter2@cache.internal"
        assert options({"OBSKIT_METRICS_REDIS": url}).metrics_redis == url
        with pytest.raises(ConfigurationError) as error:
            options(metrics_redis=url)
        assert "hunter2" not in str(error.value)
        assert "OBSKIT_METRICS_REDIS_PASSWORD_FILE" in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("metrics_redis", "cache.internal:6379"),
            ("metrics_redis", "http://cache.internal"),
            ("metrics_redis", "redis://cache.internal?password=hunter2"),
            ("metrics_redis", "redis://user:hunter2?x@cache.internal"),
            ("metrics_redis", "redis://cache.internal:port"),
            ("metrics_redis", "redis+sentinel://one,two"),
            ("metrics_redis", 6379),
            ("metrics_redis_name", ""),
            ("metrics_redis_name", "a b"),
            ("metrics_redis_name", 1),
            ("metrics_redis_interval", 0),
            ("metrics_redis_interval", "5"),
            ("metrics_redis_interval", True),
            ("metrics_redis_interval", float("nan")),
            ("metrics_redis_interval", 10_000),
            ("metrics_host", ""),
            ("metrics_host", " web"),
            ("metrics_host", "a\nb"),
            ("metrics_host", "0.0.0.0"),
            ("metrics_host", 1),
            ("metrics_fleet_path", "fleet"),
            ("metrics_fleet_path", "/-/ready"),
            ("metrics_push", "prometheus:9090"),
            ("metrics_push", "https://user:hunter2@prometheus/api/v1/write"),
            ("metrics_push", "https://user:hunter2?x@prometheus/api/v1/write"),
            ("metrics_push", 9090),
        ],
    )
    def test_wrong(self, name: str, value: Any) -> None:
        """A wrong value stops the start, says where it is set, and shows no password."""
        with pytest.raises(ConfigurationError) as error:
            options(**{name: value})
        assert name in error.value.where
        assert error.value.expected
        assert error.value.hint
        assert "hunter2" not in str(error.value)

    @pytest.mark.parametrize("text", ["0.1", "5", "3600", "2.5"])
    def test_interval_from_the_environment(self, text: str) -> None:
        """The environment has text."""
        found = options({"OBSKIT_METRICS_REDIS_INTERVAL": text}).metrics_redis_interval
        assert found == float(text)

    def test_one_path_for_two_pages(self) -> None:
        """The fleet's page and this host's are at two paths."""
        with pytest.raises(ConfigurationError, match="metrics_fleet_path"):
            options(metrics_redis="redis://cache", metrics_path="/x", metrics_fleet_path="/x")
        options(metrics_path="/x", metrics_fleet_path="/x")

    @pytest.mark.parametrize(
        "values", [{"metrics_redis": "redis://cache"}, {"metrics_push": "http://prometheus/write"}]
    )
    def test_no_exporter_to_do_it(self, values: dict[str, Any]) -> None:
        """An option that would do nothing is refused."""
        with pytest.raises(ConfigurationError, match="metrics_bind"):
            options(metrics_bind=None, **values)

    def test_empty_variable(self) -> None:
        """An empty variable takes away what the class has."""
        assert (
            options({"OBSKIT_METRICS_REDIS": ""}, metrics_redis="redis://c").metrics_redis is None
        )


class TestMisnamed:
    """Variables that nobody reads, but that were meant for us."""

    @pytest.mark.parametrize(
        ("environment", "meant"),
        [
            ({"OBSKIT_METRICS_PORT": "9100"}, ["OBSKIT_METRICS_BIND=0.0.0.0:9100"]),
            ({"OBSKIT_METRICS_ADDRESS": "::1"}, ["OBSKIT_METRICS_BIND=[::1]:9764"]),
            ({"OBSKIT_METRICS_REDIS_URL": "redis://cache"}, ["OBSKIT_METRICS_REDIS"]),
            ({"OBSKIT_METRIC_BIND": "127.0.0.1:1"}, ["OBSKIT_METRICS_BIND"]),
            ({"OBSKIT_METRICS_REQUEST": "no"}, ["OBSKIT_METRICS_REQUESTS"]),
            ({"OBSKIT_MULTIPROC_DIR": "/metrics"}, ["PROMETHEUS_MULTIPROC_DIR"]),
            ({"PROMETHEUS_MULTIPROCESS_DIR": "/metrics"}, ["PROMETHEUS_MULTIPROC_DIR"]),
            ({"PROMETHEUS_METRICS_PORT": "9091"}, ["OBSKIT_METRICS_BIND=0.0.0.0:9091"]),
            (
                {"PROMETHEUS_METRICS_PORT": "9091", "PROMETHEUS_BIND_ADDRESS": "10.0.0.1"},
                ["OBSKIT_METRICS_BIND=10.0.0.1:9091"] * 2,
            ),
        ],
    )
    def test_get_the_one_that_was_meant(
        self, environment: dict[str, str], meant: list[str]
    ) -> None:
        """Each has one sentence with its name and what to write."""
        found = misnamed_variables(environment, has_address=False)
        assert len(found) == len(environment)
        for sentence, name, write in zip(found, sorted(environment), meant, strict=True):
            assert f"variable {name} has no meaning" in sentence.text
            assert f"did you mean {write}?" in sentence.advice

    @pytest.mark.parametrize(
        "environment",
        [
            {option.variable: "x" for option in OPTIONS},
            {"OBSKIT_SERVICE_NAME": "shop", "PROMETHEUS_URL": "http://prometheus"},
            {"PROMETHEUS_METRICS_PATH": "/metrics", "PROMETHEUS_METRICS_KEEP": "1"},
            {"OBSKIT_MULTIPROC_DIR": "/handed-on", "GUNICORN_PID": "7"},
        ],
    )
    def test_not_what_is_read_or_belongs_to_others(self, environment: dict[str, str]) -> None:
        """What resembles nothing, and what one arbiter hands on to the next, is left alone."""
        assert misnamed_variables(environment, has_address=False) == []

    @pytest.mark.parametrize("bind", [None, "", "0.0.0.0:9091"])
    def test_another_exporters_only_without_an_address(self, bind: str | None) -> None:
        """Once we have an address, that exporter's variables may be there for it."""
        environment = {"PROMETHEUS_METRICS_PORT": "9091"}
        if bind is not None:
            environment["OBSKIT_METRICS_BIND"] = bind
        assert misnamed_variables(environment, has_address=bind is None) == []


def test_names_of_the_file_count_beside_the_class() -> None:
    """An option may be a module-level name; the environment wins over it."""
    environment = {"OBSKIT_METRICS_PATH": "/numbers"}
    beside = {"metrics_keep": True, "metrics_path": "/all"}
    found = read_options(Config(), environment, source="gunicorn.conf.py", base="/", beside=beside)
    assert (found.metrics_keep, found.metrics_path) == (True, "/numbers")
    with pytest.raises(ConfigurationError, match=r"^metrics_keep in gunicorn.conf.py is 7"):
        read_options(Config(), {}, source="gunicorn.conf.py", base="/", beside={"metrics_keep": 7})


def test_an_empty_address_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty OBSKIT_METRICS_BIND means no exporter, which is said once Gunicorn has a log."""
    lines: list[str] = []
    monkeypatch.setattr(log, "later", lines.append)
    assert options({"OBSKIT_METRICS_BIND": "", "OBSKIT_METRICS_PATH": ""}).metrics_bind is None
    (line,) = lines
    assert "OBSKIT_METRICS_BIND is empty" in line


class TestBudget:
    """``metrics_max_series`` and ``metrics_max_bytes``."""

    @pytest.mark.parametrize(
        ("value", "text", "expected"),
        [
            (None, "", {}),
            (100, "100", {"*": 100}),
            ({"*": 7, "a": 5}, " 7 , a = 5,", {"*": 7, "a": 5}),
            ({"http_requests_total": 5}, "http_requests_total=5", {"http_requests": 5}),
        ],
    )
    def test_values(self, value: object, text: str, expected: dict[str, int]) -> None:
        """A number, or one for each metric; a counter's name may have its ``_total``."""
        assert options(metrics_max_series=value).metrics_max_series == expected
        environment = {"OBSKIT_METRICS_MAX_SERIES": text}
        assert options(environment, metrics_max_series=1).metrics_max_series == expected

    @pytest.mark.parametrize("text", ["many", "a=", "1,2", "a=1,a=2", "-1", "a=0"])
    def test_wrong_texts(self, text: str) -> None:
        """What the environment says wrongly stops the start, and is named."""
        with pytest.raises(ConfigurationError, match=r"OBSKIT_METRICS_MAX_SERIES is "):
            options({"OBSKIT_METRICS_MAX_SERIES": text})

    def test_size(self) -> None:
        """A number of bytes."""
        assert options().metrics_max_bytes is None
        assert options(metrics_max_bytes=4096).metrics_max_bytes == 4096
        assert options({"OBSKIT_METRICS_MAX_BYTES": "4096"}).metrics_max_bytes == 4096
        unset = options({"OBSKIT_METRICS_MAX_BYTES": ""}, metrics_max_bytes=1)
        assert unset.metrics_max_bytes is None
        with pytest.raises(ConfigurationError, match=r"OBSKIT_METRICS_MAX_BYTES is '64M'"):
            options({"OBSKIT_METRICS_MAX_BYTES": "64M"})
