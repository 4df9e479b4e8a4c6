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

from obskit_gunicorn._gunicorn.contract import PARAMETERS, Publication, base_class, overrides
from obskit_gunicorn._gunicorn.options import OPTIONS
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator, Mapping

    from obskit_gunicorn._gunicorn.contract import Configuration


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
    kind = "function" if publication.is_file else "method"
    signature = publication.parameters(name)
    if isinstance(method, str):
        # Gunicorn accepts the import string of a function for a hook, so we do too.
        method = _import(publication, name, method)
    if not callable(method):
        raise publication.wrong(
            name,
            method,
            f"a {kind} with the parameters {signature}",
            f"Write: def {name}{signature}: ...",
        )
    refuse_unrun(publication, name, method)
    if accepted_arguments(name, method) is None:
        hint = f"Write: def {name}{signature}: ... Make further parameters optional."
        if not publication.is_file and _is_foreign(publication, name, method):
            hint = f"Write: {name} = staticmethod({method.__name__})"
        raise publication.wrong(
            name,
            f"{name}{inspect.signature(method)}",
            f"a {kind} that can be called with {len(PARAMETERS[name])} arguments "
            f"({', '.join(PARAMETERS[name])}), as Gunicorn does",
            hint,
        )
    return method  # type: ignore[no-any-return]


def _is_foreign(publication: Publication, name: str, method: Any) -> bool:
    """Return whether a method is a function that was not written in the class."""
    written_in = tuple(each.__qualname__ for each in type(publication.config).__mro__)
    function = inspect.getattr_static(publication.config, name)
    return inspect.ismethod(method) and not function.__qualname__.startswith(written_in)


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


def check_clashes(
    publication: Publication, published: list[str], namespace: Mapping[str, Any]
) -> None:
    """Check that a class and its file do not define the same name differently.

    Raises:
        ConfigurationError: They do; it names all that clash, and what to write for each.
    """
    config, name_of_class = publication.config, publication.class_name
    clashes = [
        name
        for name in published
        if name in namespace and not _is_same(getattr(config, name), namespace[name])
    ]
    if not clashes:
        return
    hints = []
    for name in clashes:
        if name not in PARAMETERS or overrides(config, name):
            hints.append(f"{name}: keep one of the two")
        else:
            hints.append(f"{name}: write {name} = staticmethod({name}) into the class")
    values = [namespace[name] for name in clashes]
    raise ConfigurationError(
        where=f"{', '.join(clashes)} in {publication.source}",
        value=values[0] if len(values) == 1 else values,
        expected=f"one definition of each; class {name_of_class} publishes "
        f"{'it' if len(clashes) == 1 else 'them'} too",
        hint=f"Move it into the class, or: {'; '.join(hints)}. Or write no class, and "
        f"adopt(globals()) on the last line.",
    )


def _is_same(one: Any, other: Any) -> bool:
    """Return whether a class only repeats what its file says, as in ``workers = workers``."""
    try:
        return one is other or bool(type(one) is type(other) and one == other)
    except Exception:  # whatever a comparison of the user's objects may raise
        return False


def suggest_names(publication: Publication, known: Mapping[str, Any]) -> None:
    """Warn of class attributes that have no meaning, but whose names are nearly right."""
    names = {*known, *PARAMETERS, *(option.name for option in OPTIONS)}
    ours = dir(base_class(type(publication.config)))
    for base in type(publication.config).__mro__:
        for name in vars(base):
            if name.startswith("_") or name in names or name in ours:
                continue
            meant = " or ".join(near(name, known))
            if meant:
                warn(publication, name, _IGNORED, _meant(meant))


_IGNORED = "Gunicorn does not know and ignores it"


def _meant(names: str) -> str:
    return f"did you mean {names}? A leading underscore marks a name as your own"


def suggest_names_of_file(
    publication: Publication, namespace: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Warn of module-level names that have no meaning, but whose names are nearly right.

    Only of those that the file never reads: the others are variables of its own.
    """
    import ast  # heavy

    try:
        with open(str(namespace["__file__"]), encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (KeyError, OSError, SyntaxError, ValueError):
        return
    names = {*known, *PARAMETERS, *(option.name for option in OPTIONS)}
    read = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name, line in _bound(tree.body):
        if name.startswith("_") or name.isupper() or name in names or name in read:
            continue
        meant = " or ".join(near(name, known))
        if meant:
            problem = Problem(f"{name} in {publication.source}: {_IGNORED}", _meant(meant))
            say(problem, publication.source, line)


def _bound(statements: list[Any]) -> Iterator[tuple[str, int]]:
    """Yield the names that the statements of a file define, and the lines."""
    import ast

    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name, statement.lineno
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((each.id, each.lineno) for each in targets if isinstance(each, ast.Name))
        elif not isinstance(statement, ast.ClassDef):
            for block in ("body", "orelse", "handlers", "finalbody"):
                yield from _bound(getattr(statement, block, []))


def near(name: str, known: Mapping[str, Any]) -> list[str]:
    """Return the names that were probably meant, the best first; none if none is near."""
    flags = {
        flag.lstrip("-").replace("-", "_"): setting.name
        for setting in known.values()
        for flag in setting.cli or ()
    }
    if len(name) > _SHORT and name in flags:
        return [str(flags[name])]
    found = [other for other in PARAMETERS if other.endswith(f"_{name}")][:1]
    names = sorted({*known, *PARAMETERS, *(option.name for option in OPTIONS)})
    found += difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    return list(dict.fromkeys(found))


_SHORT = 4
"""Up to so many letters, a name that is a flag of Gunicorn's is more probably the user's own."""


def warn_of_globals(
    config: type[Configuration], namespace: Mapping[str, Any], published: Mapping[str, Any]
) -> None:
    """Warn of methods that read a setting as a global name, which has moved into the class."""
    source = str(namespace.get("__file__") or config.__module__)
    for base in config.__mro__[: config.__mro__.index(base_class(config))]:
        for name, value in vars(base).items():
            function = inspect.unwrap(getattr(value, "fget", None) or value)
            if not inspect.isfunction(function):
                continue
            moved = [
                each
                for each in sorted(_globals_of(function.__code__))
                if each in published and each not in PARAMETERS and each not in function.__globals__
            ]
            if moved:
                text = f"{base.__name__}.{name} in {source} reads the global {', '.join(moved)}, "
                problem = Problem(f"{text}which is in the class", f"write self.{moved[0]}")
                say(problem, source, function.__code__.co_firstlineno)


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the names that a function looks up globally, its inner functions included."""
    import dis

    found = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, type(code)):
            found |= _globals_of(inner)
    return found


def warn(publication: Publication, name: str, text: str, advice: str) -> None:
    """Warn of an attribute, see :func:`say`."""
    file, line = _line_of(type(publication.config), name)
    say(Problem(f"{publication.where(name)}: {text}", advice), file, line)


def say(problem: Problem, file: str, line: int = 1) -> None:
    """Warn: at the start on stderr, with a line of a file; at a SIGHUP in the error log."""
    if membership.role == "arbiter":
        log.warning("obskit: %s", problem)
    else:
        warning = ObskitGunicornWarning(str(problem))
        warning.advice = problem.advice
        warnings.warn_explicit(warning, ObskitGunicornWarning, file, line)


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
