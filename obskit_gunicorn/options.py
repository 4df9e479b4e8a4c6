"""The options of the configuration class: where they come from, and whether they are right.

For each option the environment wins over the class, and the class over the default. What is wrong
is said with its source and stops the start.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from obskit_gunicorn.config import ObskitGunicornConfig

__all__ = [
    "DIRECTORY_VARIABLE",
    "EXPORTED_VARIABLE",
    "LEASE_VARIABLE",
    "START_VARIABLE",
    "Options",
    "absolute",
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

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class Options(NamedTuple):
    """The options of one configuration, checked."""

    multiproc_dir: str | None
    """The multiprocess directory, absolute; ``None`` for a private one."""

    metrics_keep: bool
    """Whether the totals of earlier runs are kept at a start."""


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


def is_option(name: str) -> bool:
    """Return whether a class attribute is one of our options."""
    return name in Options._fields


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
    return Options(
        _directory(config, environment, source, base, exported),
        _flag(config, environment, "metrics_keep", source),
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
