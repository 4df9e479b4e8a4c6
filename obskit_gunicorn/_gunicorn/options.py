"""The options of the configuration class: one row each in :data:`OPTIONS`.

A row defines an option, except for its default, which is the attribute of the class. The row gives
its environment variable, its flag of ``obskit-gunicorn serve``, and its help. The environment wins
over the class, and the class over the default. A wrong value stops the start with an error that
names its source.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.protocol import (
    HEALTHY_PATH,
    READY_PATH,
    SCRIPT_PATH,
    SECRET_FILES,
    STATUS_PATH,
    STYLE_PATH,
    Options,
)
from obskit_gunicorn._exporter.secret_files import read_file, token_in, users_in, words
from obskit_gunicorn._fleet.address import SCHEMES, StoreAddress
from obskit_gunicorn._fleet.secret import VARIABLES
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._values.budget import parse as parse_budget
from obskit_gunicorn.errors import ConfigurationError

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LEAST_SECONDS = 0.1
_MOST_SECONDS = 3600.0


class Found(NamedTuple):
    """The value of an option before it is checked."""

    value: object
    """The value; text if it comes from the environment."""

    where: str
    """Where it is set, for an error."""

    is_text: bool
    """Whether it comes from the environment."""

    base: str
    """Where relative paths start."""

    def wrong(self, expected: str, hint: str) -> ConfigurationError:
        """Return the error that says what is wrong with the value."""
        return ConfigurationError(where=self.where, value=self.value, expected=expected, hint=hint)

    @property
    def is_none(self) -> bool:
        """Whether it is ``None``, or an empty variable, which means the same."""
        return self.value is None or (self.is_text and self.value == "")

    def text(self) -> str:
        """Return the value as text.

        Raises:
            ValueError: It is something else.
        """
        if not isinstance(self.value, str):
            raise ValueError("it is not text")
        return self.value

    def without_secrets(self) -> Found:
        """Return the same for an error: without what stands before the host of an address."""
        text = str(self.value)
        scheme, separator, rest = text.partition("://")
        # The password may have a question mark in it, so what stands before the host goes first.
        rest = rest.rpartition("@")[2].partition("?")[0]
        return self._replace(value=f"{scheme}://{rest}" if separator else "...")

    def items(self) -> object:
        """Return the value; text is split at its commas."""
        if self.is_text and isinstance(self.value, str):
            return [part.strip() for part in self.value.split(",") if part.strip()]
        return self.value


def _directory(found: Found) -> str | None:
    value = found.value
    if value is None:
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise found.wrong(
            "the path of a directory as text, or None for a private one",
            'Write for example multiproc_dir = "/metrics".',
        )
    return absolute(value, found.base)


def _flag(found: Found) -> bool:
    if found.is_text and isinstance(found.value, str):
        text = found.value.lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise found.wrong(
            f"one of {', '.join(_TRUE + _FALSE)}", "Set it to true or false, or unset it."
        )
    if not isinstance(found.value, bool):
        raise found.wrong("True or False", "Write True or False.")
    return found.value


def _address(found: Found) -> str | None:
    if found.is_none:
        return None
    try:
        return str(Address.parse(found.text(), found.base))
    except ValueError as error:
        raise found.wrong(
            "an address such as 127.0.0.1:9764, [::1]:9764 or unix:/run/metrics.sock, or None for "
            f"no exporter ({error})",
            'Write for example metrics_bind = "0.0.0.0:9764".',
        ) from None


def _path(found: Found) -> str:
    taken = ("/", HEALTHY_PATH, READY_PATH, STATUS_PATH, SCRIPT_PATH, STYLE_PATH)
    value = found.value
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or not value.isprintable()
        or any(character in value for character in "?#% ")
        or value in taken
    ):
        raise found.wrong(
            f"a path that begins with a slash and is not one of {', '.join(taken)}",
            'Write for example "/metrics".',
        )
    return value


def _store(found: Found) -> str | None:
    if found.is_none:
        return None
    try:
        url = found.text()
        address = StoreAddress.parse(url)
        if address.has_password and not found.is_text:
            raise ValueError(
                "a password does not belong into a file of settings; it comes from "
                "OBSKIT_METRICS_REDIS_PASSWORD or OBSKIT_METRICS_REDIS_PASSWORD_FILE"
            )
    except ValueError as error:
        raise found.without_secrets().wrong(
            f"the address of a Redis or Valkey, which begins with one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}, or None ({error})",
            'Write for example metrics_redis = "redis://cache.internal:6379/0".',
        ) from None
    return url


def _push(found: Found) -> str | None:
    if found.is_none:
        return None
    try:
        url = found.text()
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its words may contain a password
            raise ValueError("its host or port is wrong") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it begins with neither http:// nor https:// and a host")
        if "@" in parts.netloc:
            raise ValueError(
                "who may push comes from OBSKIT_METRICS_PUSH_TOKEN, or from "
                "OBSKIT_METRICS_PUSH_USER and OBSKIT_METRICS_PUSH_PASSWORD"
            )
        if port == 0:
            raise ValueError("its port is 0")
    except ValueError as error:
        raise found.without_secrets().wrong(
            f"the URL of a remote-write endpoint, or None ({error})",
            'Write for example metrics_push = "http://prometheus:9090/api/v1/write".',
        ) from None
    return url


def _fleet_name(found: Found) -> str:
    if isinstance(found.value, str) and _NAME.fullmatch(found.value):
        return found.value
    raise found.wrong(
        "a name of letters, digits, dots, hyphens and underscores",
        'Write for example metrics_redis_name = "shop".',
    )


def _seconds(found: Found) -> float:
    value = found.value
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        if isinstance(value, str) and not found.is_text:
            raise ValueError
        seconds = float(value)
        if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
            raise ValueError
    except ValueError:
        raise found.wrong(
            f"seconds from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g}",
            "Write for example metrics_redis_interval = 5.",
        ) from None
    return seconds


def _host(found: Found) -> str:
    value = found.value
    if value is None:
        return socket.gethostname()
    if (
        isinstance(value, str)
        and value.isprintable()
        and value.strip() == value != ""
        and value not in ("0.0.0.0", "::")
    ):
        return value
    raise found.wrong(
        "the name of this host, or None for the host name",
        "Write for example the name of the pod. Where the exporter listens is metrics_bind.",
    )


def _file(found: Found) -> str | None:
    if found.value is None or found.value == "":
        return None
    value = os.fspath(found.value) if isinstance(found.value, os.PathLike) else found.value
    if isinstance(value, str) and os.path.isfile(absolute(value, found.base)):
        return absolute(value, found.base)
    raise found.wrong(
        "the path of an existing PEM file, or None",
        "Correct the path, or make sure that the file exists before Gunicorn starts.",
    )


def _secret_file(found: Found, parse: Callable[[bytes], object], expected: str) -> str | None:
    """Return the path of a file of who may ask the exporter, which is read here once.

    Raises:
        ConfigurationError: It cannot be read by this process, or holds something else.
    """
    if found.value is None or found.value == "":
        return None
    value = os.fspath(found.value) if isinstance(found.value, os.PathLike) else found.value
    problem = "it is no path"
    if isinstance(value, str):
        path = absolute(value, found.base)
        try:
            parse(read_file(path))
            return path
        except (OSError, ValueError) as error:
            problem = words(error)
    raise found.wrong(
        f"the path of a file with {expected}, or None ({problem})",
        "Correct the path or the file; whoever starts Gunicorn must be able to read it.",
    )


def _token_file(found: Found) -> str | None:
    return _secret_file(found, token_in, "one token of printable characters")


def _auth_file(found: Found) -> str | None:
    return _secret_file(found, users_in, "lines user:hash, as htpasswd -B writes them")


def _import_strings(found: Found) -> tuple[str, ...]:
    names = found.items()
    hint = 'Write for example metrics_collectors = ["myapp.metrics:queue_depth"].'
    if not isinstance(names, (list, tuple)):
        raise found.wrong("a list of import strings", hint)
    for name in names:
        module, colon, attribute = name.partition(":") if isinstance(name, str) else ("",) * 3
        if not colon or not all(p.isidentifier() for p in f"{module}.{attribute}".split(".")):
            raise found._replace(value=name).wrong(
                "import strings of objects with a method collect(), as package.module:name", hint
            )
    return tuple(names)


def _buckets(found: Found) -> tuple[float, ...]:
    parts = found.items()
    try:
        if isinstance(parts, str) or not isinstance(parts, Iterable):
            raise TypeError("it is not a list")
        bounds = tuple(float(part) for part in parts)
        bounds = bounds[:-1] if bounds[-1:] == (math.inf,) else bounds
        if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] <= 0:
            raise ValueError("they must be positive and ascending")
        if not all(map(math.isfinite, bounds)):
            raise ValueError("they must be finite")
    except (TypeError, ValueError) as error:
        raise found.wrong(
            f"upper bounds in seconds, each larger than the one before ({error})",
            "Write for example metrics_buckets = (0.01, 0.1, 1, 10).",
        ) from None
    return bounds


def _series(found: Found) -> dict[str, int]:
    try:
        value = found.value
        if isinstance(value, str) and not found.is_text:
            raise ValueError("it is text")
        return parse_budget(value)
    except ValueError as error:
        raise found.wrong(
            f"a positive number, a mapping of metrics to such numbers, or None ({error})",
            'Write for example metrics_max_series = 100, or {"*": 100, "http_requests": 1000}.',
        ) from None


def _size(found: Found) -> int | None:
    if found.is_none:
        return None
    value = found.value
    if found.is_text and isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise found.wrong(
            "a positive number of bytes, or None", "Write for example metrics_max_bytes = 67108864."
        )
    return value


class Option(NamedTuple):
    """An option of the configuration class."""

    name: str
    """The attribute of the class; the default is the value of the base class."""

    read: Callable[[Found], Any]
    """Returns the checked value; raises :class:`ConfigurationError`."""

    help: str
    """What it means, as part of a sentence."""

    example: str = ""
    """An example of a value, for errors."""

    is_exporters: bool = False
    """Whether the exporter uses it, so that ``obskit-gunicorn serve`` has a flag for it."""

    empty_is_none: bool = False
    """Whether an empty environment variable means ``None``; otherwise it counts as unset."""

    @property
    def variable(self) -> str:
        """The environment variable; it wins over the class."""
        if self.name == "multiproc_dir":
            return DIRECTORY_VARIABLE
        return f"OBSKIT_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of ``obskit-gunicorn serve``."""
        return "--" + self.name.removeprefix("metrics_").replace("_", "-")


OPTIONS = (
    Option(
        "multiproc_dir",
        _directory,
        "the directory in which the processes share their metrics (by default a private one in "
        "memory, removed when the server ends)",
        "/metrics",
    ),
    Option(
        "metrics_keep",
        _flag,
        "whether a start continues from the totals of earlier runs instead of from zero",
        "true",
    ),
    Option(
        "metrics_bind",
        _address,
        "where the exporter listens: host:port, [IPv6]:port or unix:path",
        "0.0.0.0:9764",
        is_exporters=True,
        empty_is_none=True,
    ),
    Option("metrics_path", _path, "the path of the exposition", "/metrics", is_exporters=True),
    Option(
        "metrics_page",
        _flag,
        "whether the exporter shows a live page at `/`, and its figures at `/-/status`",
        "false",
        is_exporters=True,
    ),
    Option(
        "metrics_certfile",
        _file,
        "a PEM file with the certificate chain, for TLS; a renewed one is used without a restart",
        "/tls/tls.crt",
        is_exporters=True,
    ),
    Option(
        "metrics_keyfile",
        _file,
        "a PEM file with the private key, where the certificate's file does not contain it",
        "/tls/tls.key",
        is_exporters=True,
    ),
    Option(
        "metrics_ca_certs",
        _file,
        "a PEM file with the authorities whose client certificates are accepted, for mutual TLS",
        "/tls/ca.crt",
        is_exporters=True,
    ),
    Option(
        "metrics_bearer_token_file",
        _token_file,
        "a file with the token that whoever asks the exporter must send; a renewed one is used "
        "without a restart",
        "/run/secrets/metrics-token",
        is_exporters=True,
    ),
    Option(
        "metrics_auth_file",
        _auth_file,
        "a file of users and passwords, as `htpasswd -B` writes it, one of which whoever asks the "
        "exporter must send; needs the extra `auth`",
        "/etc/shop/metrics.htpasswd",
        is_exporters=True,
    ),
    Option(
        "metrics_auth_probes",
        _flag,
        "whether `/-/healthy` and `/-/ready` need a token or a password too",
        "true",
        is_exporters=True,
    ),
    Option(
        "metrics_collectors",
        _import_strings,
        "import strings of collectors that run once, in the exporter; commas separate them",
        "myapp.metrics:queue_depth",
        is_exporters=True,
    ),
    Option(
        "metrics_max_series",
        _series,
        "how many label sets each metric may have in the directory; further ones are counted as "
        "`__other__`; `name=number` is for one metric, commas separate them",
        "100,http_requests=1000",
        empty_is_none=True,
    ),
    Option(
        "metrics_max_bytes",
        _size,
        "from which size of the metric files on, in bytes, new label sets are counted as "
        "`__other__`",
        "67108864",
        empty_is_none=True,
    ),
    Option("metrics_requests", _flag, "whether requests are counted", "false"),
    Option(
        "metrics_routes",
        _flag,
        "whether requests are counted by the template of their route, too",
        "true",
    ),
    Option(
        "metrics_buckets",
        _buckets,
        "upper bounds of the buckets of request durations, in seconds; commas separate them",
        "0.01,0.1,1,10",
    ),
    Option(
        "metrics_exemplars",
        _flag,
        "whether request durations carry the id of the trace as an exemplar, where OpenTelemetry "
        "is on",
        "true",
    ),
    Option(
        "metrics_standard",
        _flag,
        "whether `process_*`, `python_info` and `python_gc_*` are shown, as prometheus_client has "
        "them, for the whole server",
        "false",
        is_exporters=True,
    ),
    Option(
        "metrics_redis",
        _store,
        "the Redis or Valkey in which the metrics of many hosts come together; a password comes "
        "from $OBSKIT_METRICS_REDIS_PASSWORD or $OBSKIT_METRICS_REDIS_PASSWORD_FILE",
        "redis://cache.internal:6379/0",
        is_exporters=True,
        empty_is_none=True,
    ),
    Option(
        "metrics_redis_name",
        _fleet_name,
        "the name of the fleet: hosts with one name are added up",
        "shop",
        is_exporters=True,
    ),
    Option(
        "metrics_redis_interval",
        _seconds,
        "how often this host publishes to the store, or pushes, in seconds",
        "5",
        is_exporters=True,
    ),
    Option(
        "metrics_host",
        _host,
        "the name of this host among others (by default the host name)",
        "web-1",
        is_exporters=True,
    ),
    Option(
        "metrics_fleet_path",
        _path,
        "the path at which the metrics of all hosts are served",
        "/metrics/fleet",
        is_exporters=True,
    ),
    Option(
        "metrics_push",
        _push,
        "the remote-write endpoint to which this host's metrics are pushed; a token comes from "
        "$OBSKIT_METRICS_PUSH_TOKEN, a user from $OBSKIT_METRICS_PUSH_USER and "
        "$OBSKIT_METRICS_PUSH_PASSWORD",
        "http://prometheus:9090/api/v1/write",
        is_exporters=True,
        empty_is_none=True,
    ),
)
"""Every option of the configuration class."""


def normalize_environment(environment: MutableMapping[str, str], base: str) -> None:
    """Make the multiprocess directory that the environment names absolute.

    Gunicorn changes directory later, and every process and library that reads the variable must
    find the same directory. Like prometheus_client, this reads the old lower-case spelling too.

    Args:
        environment: ``os.environ`` of the process that loads the configuration.
        base: The directory that relative paths start from.
    """
    wished = environment.get(DIRECTORY_VARIABLE) or environment.get("prometheus_multiproc_dir")
    if wished:
        environment[DIRECTORY_VARIABLE] = absolute(wished, base)


def misnamed_variables(environment: Mapping[str, str], *, has_address: bool) -> list[Problem]:
    """Return a problem for each variable that nobody reads, but that was meant for us.

    Args:
        environment: The environment, before :mod:`handover` has taken its own variables from it.
        has_address: The configuration says where the exporter listens, so that the variables of
            another exporter may be there for that one.
    """
    if "GUNICORN_PID" in environment:
        # The arbiter of a SIGUSR2: what it was handed is ours, and the first one has said the rest.
        return []
    known = {option.variable: option.name for option in OPTIONS}
    known |= dict.fromkeys(VARIABLES, "")
    bind = next(variable for variable, name in known.items() if name == "metrics_bind")
    found = []
    for name in sorted(environment):
        prefix, _, rest = name.partition("_")
        meant = []
        if name in known or prefix not in ("OBSKIT", "PROMETHEUS"):
            continue
        if name in _ADDRESS_VARIABLES:
            if prefix == "OBSKIT" or not (has_address or bind in environment):
                meant = [f"{bind}={_address_in(environment)}"]
        else:
            # What has the other prefix and resembles nothing of ours belongs to somebody else.
            names = [DIRECTORY_VARIABLE, *(known if prefix == "OBSKIT" else ())]
            rests = {each.partition("_")[2]: each for each in names}
            meant = [rests[near] for near in difflib.get_close_matches(rest, rests, 1, 0.8)]
        found += [
            Problem(f"environment variable {name} has no meaning here", f"did you mean {each}?")
            for each in meant
        ]
    return found


_ADDRESS_VARIABLES = {
    "OBSKIT_METRICS_PORT": "port",
    "OBSKIT_METRICS_ADDRESS": "host",
    "PROMETHEUS_METRICS_PORT": "port",
    "PROMETHEUS_BIND_ADDRESS": "host",
}
"""Variables of other exporters for parts of an address. The last two are
gunicorn-prometheus-exporter's."""


def _address_in(environment: Mapping[str, str]) -> str:
    """Return the address that these variables were meant to give."""
    found = {"host": "0.0.0.0", "port": "9764"}  # where those exporters listen
    for name, part in _ADDRESS_VARIABLES.items():
        if environment.get(name):
            found[part] = environment[name]
    host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
    return f"{host}:{found['port']}"


def absolute(path: str, base: str) -> str:
    """Return a path as absolute and normalized; a relative path starts from ``base``."""
    return os.path.abspath(os.path.join(base, path))


def read_options(
    config: object,
    environment: Mapping[str, str],
    *,
    source: str,
    base: str,
    exported: Collection[str] = (),
    beside: Mapping[str, object] | None = None,
) -> Options:
    """Read the options of a configuration; runs while Gunicorn loads it.

    A relative path is made absolute here, before Gunicorn changes directory.

    Args:
        config: An instance of the user's class.
        environment: The process's environment.
        source: The file of the class, for errors.
        base: The directory that relative paths start from.
        exported: The directories that were put into the environment by us, not by the user.
        beside: Options that the file has as module-level names, where the class does not.

    Returns:
        The checked value of each row of :data:`OPTIONS`, under its name.

    Raises:
        ConfigurationError: A value is wrong.
    """
    found: dict[str, Found] = {}
    for option in OPTIONS:
        text = environment.get(option.variable)
        if option.variable == DIRECTORY_VARIABLE and text in exported:
            text = None
        if text or (text is not None and option.empty_is_none):
            where = f"environment variable {option.variable}"
            found[option.name] = Found(text, where, True, base)
            if not text and option.name == "metrics_bind":
                log.later(
                    f"obskit: {option.variable} is empty, so there is no exporter; unset it for "
                    f"the default"
                )
        elif beside and option.name in beside:
            where = f"{option.name} in {source}"
            found[option.name] = Found(beside[option.name], where, False, base)
        else:
            where = f"{type(config).__name__}.{option.name} in {source}"
            found[option.name] = Found(getattr(config, option.name), where, False, base)
    options = Options(**{option.name: option.read(found[option.name]) for option in OPTIONS})
    if options.metrics_fleet_path == options.metrics_path and options.metrics_redis:
        raise found["metrics_fleet_path"].wrong(
            f"another path than metrics_path, which is {options.metrics_path}",
            "Change one of them.",
        )
    if options.metrics_routes and not options.metrics_requests:
        raise found["metrics_routes"].wrong(
            "requests that are counted, and metrics_requests is False",
            "Set metrics_requests = True, or metrics_routes = False.",
        )
    if options.metrics_exemplars and not options.metrics_requests:
        raise found["metrics_exemplars"].wrong(
            "requests that are counted, and metrics_requests is False",
            "Set metrics_requests = True, or unset metrics_exemplars.",
        )
    for name in ("metrics_redis", "metrics_push"):
        if getattr(options, name) and options.metrics_bind is None:
            raise (
                found[name]
                .without_secrets()
                .wrong(
                    "an exporter, which publishes it, and metrics_bind is None",
                    'Set metrics_bind, for example to "127.0.0.1:9764".',
                )
            )
    for name in ("metrics_keyfile", "metrics_ca_certs"):
        if getattr(options, name) and not options.metrics_certfile:
            raise found[name].wrong(
                "a certificate that belongs to it, in metrics_certfile",
                f"Set metrics_certfile, or unset {name}.",
            )
    if options.metrics_auth_probes and not any(getattr(options, name) for name in SECRET_FILES):
        raise found["metrics_auth_probes"].wrong(
            "a file of who may ask, in metrics_bearer_token_file or metrics_auth_file",
            "Set one of them, or unset metrics_auth_probes.",
        )
    return options


def exporter_options(options: Options) -> Options | None:
    """Return the exporter's options; ``None`` if no exporter is wanted."""
    if options.metrics_bind is None:
        return None
    wanted = {row.name: getattr(options, row.name) for row in OPTIONS if row.is_exporters}
    return Options(**wanted, metrics_keep=options.metrics_keep)
