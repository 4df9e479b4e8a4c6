"""Checking a configuration class: values, signatures, and names that are nearly right.

What is wrong raises :class:`~obskit_gunicorn.errors.ConfigurationError`; what is probably a mistake
is a warning. Runs in the arbiter while it loads its configuration. Changes nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.contract import PARAMETERS, Publication, base_class
from obskit_gunicorn._gunicorn.options import OPTIONS
from obskit_gunicorn._log import log
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.errors import ObskitGunicornWarning

if TYPE_CHECKING:
    from collections.abc import Callable


def gunicorn_settings() -> dict[str, Any]:
    """Return the settings of the installed Gunicorn, hooks included, by name."""
    config = importlib.import_module("gunicorn.config")
    return {setting.name: setting for setting in config.KNOWN_SETTINGS}


def _read(publication: Publication, name: str) -> Any:
    try:
        return getattr(publication.config, name)
    except Exception as error:
        raise publication.wrong(
            name,
            inspect.getattr_static(publication.config, name),
            f"a value; reading it raised {type(error).__name__}: {error}",
            "Fix the property.",
        ) from error


def checked_setting(publication: Publication, name: str, setting: Any) -> Any:
    """Return a Gunicorn setting of a class after Gunicorn's own check."""
    value = _read(publication, name)
    if inspect.ismethod(value):
        raise publication.wrong(
            name, value, "a value, not a method", f"Put @property above def {name}."
        )
    try:
        setting().set(value)
    except Exception as error:
        kind = getattr(setting.type, "__name__", "")
        kind = f"a value of type {kind}" if kind else "a value"
        expected = f"{kind} that Gunicorn accepts ({error})"
        hint = f"Gunicorn's setting {name}: {setting.short}"
        raise publication.wrong(name, value, expected, hint) from error
    return value


def checked_method(publication: Publication, name: str) -> Callable[..., Any]:
    """Return a hook of a class, callable with the arguments that Gunicorn passes."""
    method = _read(publication, name)
    parameters = ", ".join(PARAMETERS[name])
    if isinstance(method, str):
        # Gunicorn accepts the import string of a function for a hook, so we do too.
        method = _import(publication, name, method)
    if not callable(method):
        raise publication.wrong(
            name,
            method,
            f"a method with the parameters (self, {parameters})",
            f"Write: def {name}(self, {parameters}): ...",
        )
    refuse_unrun(publication, name, method)
    if accepted_arguments(name, method) is None:
        hint = f"Write: def {name}(self, {parameters}): ... Make further parameters optional."
        if inspect.ismethod(method) and not inspect.getattr_static(
            publication.config, name
        ).__qualname__.startswith(tuple(c.__qualname__ for c in type(publication.config).__mro__)):
            hint = f"Write: {name} = staticmethod({method.__name__})"
        raise publication.wrong(
            name,
            f"{name}{inspect.signature(method)}",
            f"a method that can be called with {len(PARAMETERS[name])} arguments "
            f"({parameters}), as Gunicorn does",
            hint,
        )
    return method  # type: ignore[no-any-return]


def _import(publication: Publication, name: str, path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        expected = f"a method, or the import string of a function ({error})"
        hint = "Write it as package.module.function."
        raise publication.wrong(name, path, expected, hint) from error


def accepted_arguments(name: str, method: Callable[..., Any]) -> int | None:
    """Return how many of Gunicorn's arguments a method takes; ``None`` if it cannot be called.

    ``post_request`` may take two, three or four of them; every other hook takes all.
    """
    most = len(PARAMETERS[name])
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return most  # a builtin without a signature
    for count in range(most, (1 if name == "post_request" else most - 1), -1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return None


def refuse_unrun(publication: Publication, name: str, method: Callable[..., Any]) -> None:
    """Refuse a method that only returns a coroutine or a generator, which nobody would run."""
    called: Any = inspect.unwrap(method)
    while isinstance(called, functools.partial):
        called = inspect.unwrap(called.func)
    for function in (called, getattr(type(called), "__call__", None)):  # noqa: B004 - of the class
        if any(is_unrun(function) for is_unrun in _UNRUN):
            raise publication.wrong(
                name,
                method,
                "something plain to call: nobody runs the body of a coroutine or a generator",
                f"Write def {name} without async and without yield.",
            )


_UNRUN = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)


def suggest_names(publication: Publication, known: dict[str, Any]) -> None:
    """Warn of class attributes that have no meaning, but whose names are nearly right."""
    names = {*known, *PARAMETERS, *(option.name for option in OPTIONS)}
    ours = dir(base_class(type(publication.config)))
    for base in type(publication.config).__mro__:
        for name in vars(base):
            if name.startswith("_") or name in names or name in ours:
                continue
            near = [other for other in PARAMETERS if other.endswith(f"_{name}")][:1]
            near += difflib.get_close_matches(name.lower(), sorted(names), n=1, cutoff=0.8)
            if near:
                text = f"Gunicorn does not know and ignores it; did you mean {' or '.join(near)}?"
                warn(publication, name, f"{text} A leading underscore marks a name as your own")


def warn(publication: Publication, name: str, text: str) -> None:
    """Warn of an attribute: at the start on stderr, with its line; at a SIGHUP in the error log."""
    message = f"{publication.where(name)}: {text}"
    if membership.role == "arbiter":
        log.warning("obskit: %s", message)
        return
    file, line = _line_of(type(publication.config), name)
    warnings.warn_explicit(message, ObskitGunicornWarning, file, line)


def _line_of(config: type, name: str) -> tuple[str, int]:
    """Return the file of a class and the line on which an attribute of it is defined."""
    module = sys.modules.get(config.__module__)
    file = str(getattr(module, "__file__", None) or config.__module__)
    pattern = re.compile(rf"\s+(def\s+)?{re.escape(name)}\s*[:=(]")
    with contextlib.suppress(OSError, ValueError), open(file, encoding="utf-8") as source:
        for number, line in enumerate(source, 1):
            if pattern.match(line):
                return file, number
    return file, 1
