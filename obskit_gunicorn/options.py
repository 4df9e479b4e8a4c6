"""The options of the configuration class: where they come from, and whether they are right.

For each option the environment wins over the class, and the class over the default. What is wrong
is said with its source and stops the start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn.addresses import Address
from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from obskit_gunicorn.config import ObskitGunicornConfig

__all__ = [
    "BOOTED",
    "DIRECTORY_VARIABLE",
    "EXPORTED_VARIABLE",
    "HEALTHY_PATH",
    "LEASE_VARIABLE",
    "LISTENER_VARIABLE",
    "NAMES",
    "OPTION_VARIABLES",
    "READY_PATH",
    "START_VARIABLE",
    "STOP",
    "ExporterOptions",
    "Options",
    "absolute",
    "checked_import_string",
    "checked_metrics_path",
    "is_option",
    "normalize_environment",
    "read_options",
]

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that every user of prometheus_client knows."""

EXPORTED_VARIABLE = "OBSKIT_MULTIPROC_DIR"
"""Set beside it where an arbiter hands its directory to the one that SIGUSR2 starts.

What it names was exported by us and is not the user's wish.
"""

LEASE_VARIABLE = "OBSKIT_LEASE_FD"
"""The descriptor of the lease that is handed on with it."""

START_VARIABLE = "OBSKIT_START_DIR"
"""Where Gunicorn was first started, for relative paths: SIGUSR2 starts it in another directory."""

LISTENER_VARIABLE = "OBSKIT_LISTENER_FD"
"""The descriptor of the exporter's listening socket that is handed on with it, and its address."""

OPTION_VARIABLES = "OBSKIT_METRICS_"
"""What the environment variables of our options begin with."""

STOP = b"s"
"""What the arbiter says to an exporter whose time is over."""

BOOTED = b"b"
"""What a worker says to it that serves but could get no lease which shows that."""

HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class ExporterOptions(NamedTuple):
    """What an exporter serves, and where; checked."""

    bind: str
    """Where it listens, as :class:`~obskit_gunicorn.addresses.Address` reads it."""

    path: str
    """The path of the exposition."""

    certfile: str | None
    """The certificate chain, absolute; ``None`` for plain HTTP."""

    keyfile: str | None
    """Its private key, if that is not in the same file."""

    ca_certs: str | None
    """Whose client certificates are asked for and accepted; ``None`` to ask for none."""

    collectors: tuple[str, ...]
    """Import strings of collectors that run in the exporter."""


class Options(NamedTuple):
    """The options of one configuration, checked."""

    multiproc_dir: str | None
    """The multiprocess directory, absolute; ``None`` for a private one."""

    metrics_keep: bool
    """Whether the totals of earlier runs are kept at a start."""

    exporter: ExporterOptions | None
    """The exporter of this server; ``None`` for none."""

    buckets: tuple[float, ...] | None
    """Upper bounds of the durations of requests, in seconds; ``None`` not to count requests."""


def normalize_environment(environment: MutableMapping[str, str], base: str) -> None:
    """Make the directory that the user has put into the environment absolute, once.

    Gunicorn changes directory later, and every process and library that reads the variable shall
    find the same directory. The old lower-case spelling is read as prometheus_client reads it.

    Args:
        environment: ``os.environ`` of the process that loads the configuration.
        base: Where relative paths start.
    """
    wished = environment.get(DIRECTORY_VARIABLE) or environment.get("prometheus_multiproc_dir")
    if wished:
        environment[DIRECTORY_VARIABLE] = absolute(wished, base)


def absolute(path: str, base: str) -> str:
    """Return a path made absolute and plain, a relative one taken from ``base``."""
    return os.path.abspath(os.path.join(base, path))


NAMES = (
    "multiproc_dir",
    "metrics_keep",
    "metrics_bind",
    "metrics_path",
    "metrics_certfile",
    "metrics_keyfile",
    "metrics_ca_certs",
    "metrics_collectors",
    "metrics_requests",
    "metrics_buckets",
)
"""The class attributes that are our options."""


def is_option(name: str) -> bool:
    """Return whether a class attribute is one of our options."""
    return name in NAMES


def read_options(
    config: ObskitGunicornConfig,
    environment: Mapping[str, str],
    *,
    source: str,
    base: str,
    exported: Collection[str] = (),
) -> Options:
    """Read the options of a configuration; runs while Gunicorn loads it.

    A relative directory is made absolute here, before Gunicorn changes directory.

    Args:
        config: An instance of the user's class.
        environment: The process's environment.
        source: The file of the class, for errors.
        base: Where relative paths start.
        exported: The directories that we have exported ourselves, which are not the user's wish.

    Raises:
        ConfigurationError: A value is not what it must be.
    """
    found = _Found(config, environment, source, base)
    return Options(
        _directory(config, environment, source, base, exported),
        _flag(config, environment, "metrics_keep", source),
        found.exporter(),
        found.buckets() if _flag(config, environment, "metrics_requests", source) else None,
    )


class _Found(NamedTuple):
    """Where options are looked for."""

    config: ObskitGunicornConfig
    environment: Mapping[str, str]
    source: str
    base: str

    def exporter(self) -> ExporterOptions | None:
        """Return the options of the exporter; all are checked, also when there is to be none."""
        bind = self._bind()
        where, value = self._value("metrics_path")
        path = checked_metrics_path(value, where)
        certfile, keyfile, ca_certs = map(
            self._file, ("metrics_certfile", "metrics_keyfile", "metrics_ca_certs")
        )
        for name, other in (("metrics_keyfile", keyfile), ("metrics_ca_certs", ca_certs)):
            if other and not certfile:
                raise ConfigurationError(
                    where=self._value(name)[0],
                    value=other,
                    expected="a certificate to go with it, in metrics_certfile",
                    mend=f"Set metrics_certfile, or unset {name}.",
                )
        collectors = self._collectors()
        if bind is None:
            return None
        return ExporterOptions(bind, path, certfile, keyfile, ca_certs, collectors)

    def buckets(self) -> tuple[float, ...]:
        """Return the bounds of the durations of requests, without the infinite one."""
        where, value = self._value("metrics_buckets")
        if isinstance(value, str) and where.startswith("environment"):
            value = [part.strip() for part in value.split(",")]
        try:
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise TypeError("it is no list")
            bounds = tuple(float(part) for part in value)
            bounds = bounds[:-1] if bounds[-1:] == (math.inf,) else bounds
            if not bounds or list(bounds) != sorted(set(bounds)) or bounds[0] <= 0:
                raise ValueError("they must be positive and rise")
            if not all(map(math.isfinite, bounds)):
                raise ValueError("they must be finite")
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                where=where,
                value=value,
                expected=f"upper bounds in seconds, each larger than the one before ({error})",
                mend="Write for example metrics_buckets = (0.01, 0.1, 1, 10).",
            ) from None
        return bounds

    def _value(self, name: str) -> tuple[str, object]:
        """Return where an option was found and its value; the environment wins over the class."""
        variable = f"OBSKIT_{name.upper()}"
        text = self.environment.get(variable)
        # An empty variable counts as unset, but where it is the only way to say "none".
        if text or (text is not None and name == "metrics_bind"):
            return f"environment variable {variable}", text
        return _where(self.config, name, self.source), getattr(self.config, name)

    def _bind(self) -> str | None:
        where, value = self._value("metrics_bind")
        if value is None or (value == "" and where.startswith("environment")):
            return None
        try:
            if not isinstance(value, str):
                raise ValueError("it is no text")
            return str(Address.parse(value, self.base))
        except ValueError as error:
            raise ConfigurationError(
                where=where,
                value=value,
                expected="an address such as 127.0.0.1:9464, [::1]:9464 or unix:/run/metrics.sock, "
                f"or None for no exporter ({error})",
                mend='Write for example metrics_bind = "0.0.0.0:9464".',
            ) from None

    def _file(self, name: str) -> str | None:
        where, value = self._value(name)
        if value is None or value == "":
            return None
        path = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(path, str) and os.path.isfile(absolute(path, self.base)):
            return absolute(path, self.base)
        raise ConfigurationError(
            where=where,
            value=value,
            expected="the path of an existing PEM file, or None",
            mend="Mend the path, or see that the file is there before Gunicorn starts.",
        )

    def _collectors(self) -> tuple[str, ...]:
        where, value = self._value("metrics_collectors")
        if isinstance(value, str) and where.startswith("environment"):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(
                where=where,
                value=value,
                expected="a list of import strings",
                mend='Write for example metrics_collectors = ["myapp.metrics:queue_depth"].',
            )
        return tuple(checked_import_string(part, where) for part in value)


def checked_metrics_path(value: object, where: str) -> str:
    """Return the path of the exposition.

    Raises:
        ConfigurationError: It is none, or is taken.
    """
    taken = ("/", HEALTHY_PATH, READY_PATH)
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or not value.isprintable()
        or any(character in value for character in "?#% ")
        or value in taken
    ):
        raise ConfigurationError(
            where=where,
            value=value,
            expected=f"a path that begins with a slash and is not one of {', '.join(taken)}",
            mend='Write for example metrics_path = "/metrics".',
        )
    return value


def checked_import_string(value: object, where: str) -> str:
    """Return the import string of a collector; nothing is imported.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, str):
        module, colon, attribute = value.partition(":")
        parts = [*module.split("."), *attribute.split(".")]
        if colon and all(part.isidentifier() for part in parts):
            return value
    raise ConfigurationError(
        where=where,
        value=value,
        expected="import strings of objects with a method collect(), as package.module:name",
        mend='Write for example metrics_collectors = ["myapp.metrics:queue_depth"].',
    )


def _directory(
    config: ObskitGunicornConfig,
    environment: Mapping[str, str],
    source: str,
    base: str,
    exported: Collection[str],
) -> str | None:
    wished = environment.get(DIRECTORY_VARIABLE)
    if wished and wished not in exported:
        return absolute(wished, base)
    value: object = config.multiproc_dir
    if value is None:
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(
            where=_where(config, "multiproc_dir", source),
            value=value,
            expected="the path of a directory as text, or None for a private one",
            mend='Write for example multiproc_dir = "/metrics".',
        )
    return absolute(value, base)


def _flag(
    config: ObskitGunicornConfig, environment: Mapping[str, str], name: str, source: str
) -> bool:
    variable = f"OBSKIT_{name.upper()}"
    text = environment.get(variable)
    if text:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigurationError(
            where=f"environment variable {variable}",
            value=text,
            expected=f"one of {', '.join(_TRUE + _FALSE)}",
            mend=f"Set {variable}=true or {variable}=false, or unset it.",
        )
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ConfigurationError(
            where=_where(config, name, source),
            value=value,
            expected="True or False",
            mend=f"Write {name} = True or {name} = False.",
        )
    return value


def _where(config: ObskitGunicornConfig, name: str, source: str) -> str:
    return f"{type(config).__name__}.{name} in {source}"
