"""Checking a configuration class: values, signatures, and names that are nearly right.

What is wrong raises :class:`~obskit_gunicorn.errors.ConfigurationError`, what is probably not meant
warns. Runs in the arbiter while it loads its configuration; touches nothing.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn import slots
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning
from obskit_gunicorn.options import NAMES, Options

if TYPE_CHECKING:
    from obskit_gunicorn.config import ObskitGunicornConfig

__all__ = [
    "PARAMETERS",
    "Publication",
    "accepted_arguments",
    "checked_method",
    "checked_setting",
    "gunicorn_settings",
    "overrides",
    "suggest_names",
    "warn",
]

PARAMETERS: dict[str, tuple[str, ...]] = {
    "on_starting": ("server",),
    "on_reload": ("server",),
    "when_ready": ("server",),
    "pre_fork": ("server", "worker"),
    "post_fork": ("server", "worker"),
    "post_worker_init": ("worker",),
    "worker_int": ("worker",),
    "worker_abort": ("worker",),
    "pre_exec": ("server",),
    "pre_request": ("worker", "req"),
    "post_request": ("worker", "req", "environ", "resp"),
    "child_exit": ("server", "worker"),
    "worker_exit": ("server", "worker"),
    "nworkers_changed": ("server", "new_value", "old_value"),
    "on_exit": ("server",),
    "ssl_context": ("config", "default_ssl_context_factory"),
    "on_dirty_starting": ("arbiter",),
    "dirty_post_fork": ("arbiter", "worker"),
    "dirty_worker_init": ("worker",),
    "dirty_worker_exit": ("arbiter", "worker"),
}
"""Every server hook of every supported Gunicorn, and what Gunicorn calls it with."""


class Publication(NamedTuple):
    """One configuration as it is handed to Gunicorn; each SIGHUP makes a new one."""

    config: ObskitGunicornConfig
    source: str
    options: Options

    @property
    def class_name(self) -> str:
        """The name of the user's class."""
        return type(self.config).__name__

    def where(self, name: str) -> str:
        """Return how to call an attribute of the class in an error."""
        return f"{self.class_name}.{name} in {self.source}"


def gunicorn_settings() -> dict[str, Any]:
    """Return the settings of the installed Gunicorn, hooks included, by name."""
    config = importlib.import_module("gunicorn.config")
    return {setting.name: setting for setting in config.KNOWN_SETTINGS}


def _gunicorn_version() -> str:
    return str(importlib.import_module("gunicorn").__version__)


def overrides(config: ObskitGunicornConfig, name: str) -> bool:
    """Return whether a configuration, by its class or by itself, replaces a method of the base."""
    from obskit_gunicorn.config import ObskitGunicornConfig

    base = vars(ObskitGunicornConfig)[name]
    return inspect.getattr_static(config, name) is not base


def _read(publication: Publication, name: str) -> Any:
    try:
        return getattr(publication.config, name)
    except Exception as error:
        raise ConfigurationError(
            where=publication.where(name),
            value=inspect.getattr_static(publication.config, name),
            expected=f"a value; reading it raised {type(error).__name__}: {error}",
            mend="Mend the property.",
        ) from error


def checked_setting(publication: Publication, name: str, setting: Any) -> Any:
    """Return a Gunicorn setting of a class after Gunicorn's own check."""
    value = _read(publication, name)
    if inspect.ismethod(value):
        raise ConfigurationError(
            where=publication.where(name),
            value=value,
            expected="a value, not a method",
            mend=f"Put @property above def {name}.",
        )
    try:
        setting().set(value)
    except Exception as error:
        kind = getattr(setting.type, "__name__", "")
        raise ConfigurationError(
            where=publication.where(name),
            value=value,
            expected=f"{f'a value of type {kind}' if kind else 'a value'} that Gunicorn "
            f"accepts ({error})",
            mend=f"Gunicorn's setting {name}: {setting.short}",
        ) from error
    return value


def checked_method(publication: Publication, name: str) -> Callable[..., Any]:
    """Return a hook of a class, callable with what Gunicorn passes."""
    method = _read(publication, name)
    where = publication.where(name)
    parameters = ", ".join(PARAMETERS[name])
    if isinstance(method, str):
        # Gunicorn takes the import string of a hook, so we do.
        method = _import(method, where)
    if not callable(method):
        raise ConfigurationError(
            where=where,
            value=method,
            expected=f"a method with the parameters (self, {parameters})",
            mend=f"Write: def {name}(self, {parameters}): ...",
        )
    unwrapped = inspect.unwrap(method)
    if inspect.iscoroutinefunction(unwrapped) or inspect.isgeneratorfunction(unwrapped):
        raise ConfigurationError(
            where=where,
            value=method,
            expected="a plain method: Gunicorn calls it and never runs the body of a coroutine "
            "or a generator",
            mend=f"Write def {name} without async and without yield.",
        )
    if accepted_arguments(name, method) is None:
        plain = inspect.ismethod(method) and not inspect.getattr_static(
            publication.config, name
        ).__qualname__.startswith(tuple(c.__qualname__ for c in type(publication.config).__mro__))
        raise ConfigurationError(
            where=where,
            value=f"{name}{_signature(method)}",
            expected=f"a method that can be called with {len(PARAMETERS[name])} arguments "
            f"({parameters}), as Gunicorn does",
            mend=f"Write: {name} = staticmethod({method.__name__})"
            if plain
            else f"Write: def {name}(self, {parameters}): ... Make further parameters optional.",
        )
    return method  # type: ignore[no-any-return]


def _import(path: str, where: str) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            where=where,
            value=path,
            expected=f"a method, or the import string of a function ({error})",
            mend="Write it as package.module.function.",
        ) from error


def _signature(method: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(method))
    except (TypeError, ValueError):
        return "(...)"


def accepted_arguments(name: str, method: Callable[..., Any]) -> int | None:
    """Return how many of Gunicorn's arguments a method takes, or ``None`` if it cannot be called.

    ``post_request`` may take two, three or four; every other hook takes them all.
    """
    most = len(PARAMETERS[name])
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return most  # a builtin that does not tell; Gunicorn will
    for count in range(most, (1 if name == "post_request" else most - 1), -1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return None


def suggest_names(publication: Publication, known: dict[str, Any]) -> None:
    """Warn of class attributes that are nothing, but nearly the name of something."""
    from obskit_gunicorn.config import ObskitGunicornConfig

    names = {*known, *PARAMETERS, *NAMES}
    ours = {name for base in ObskitGunicornConfig.__mro__ for name in vars(base)}
    for base in type(publication.config).__mro__:
        if base in ObskitGunicornConfig.__mro__:
            continue
        for name in vars(base):
            if name.startswith("_") or name in names or name in ours:
                continue
            near = [other for other in PARAMETERS if other.endswith(f"_{name}")][:1]
            near += difflib.get_close_matches(name.lower(), sorted(names), n=1, cutoff=0.8)
            if near:
                warn(
                    publication,
                    name,
                    "Gunicorn knows no such name and ignores it; did you mean "
                    f"{' or '.join(near)}? A leading underscore says that it is your own",
                )


def warn(publication: Publication, name: str, text: str) -> None:
    """Warn of an attribute: on stderr with its line at the start, in the error log at a SIGHUP."""
    message = f"{publication.where(name)}: {text}"
    if slots.process.role == "arbiter":
        slots.process.log.warning("obskit: %s", message)
        return
    file, line = _place_of(type(publication.config), name)
    warnings.warn_explicit(message, ObskitGunicornWarning, file, line)


def _place_of(config: type, name: str) -> tuple[str, int]:
    """Return the file of a class and the line on which an attribute of it is defined."""
    module = sys.modules.get(config.__module__)
    file = str(getattr(module, "__file__", None) or config.__module__)
    pattern = re.compile(rf"\s+(def\s+)?{re.escape(name)}\s*[:=(]")
    try:
        with open(file, encoding="utf-8") as source:
            for number, line in enumerate(source, 1):
                if name and pattern.match(line):
                    return file, number
    except (OSError, ValueError):
        pass
    return file, 1
