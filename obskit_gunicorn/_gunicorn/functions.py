"""Configuration files without a class: what they import from us, and the class they become.

A function of :data:`HOOKS` stands in a file for what we do in a hook. When Gunicorn asks for the
names of the file, :func:`class_of` makes a class of it, which is published like any other: our core
runs before each function of the user. So a function of :data:`HOOKS` has nothing to do when it is
called, neither by a user's function nor by Gunicorn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import dispatch, lifecycle
from obskit_gunicorn._gunicorn.contract import PARAMETERS, FileOfFunctions, public_class
from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._gunicorn.contract import Configuration

_OF_STORE = "redis_when_ready"

OTHER_NAMES: Mapping[str, str] = {
    **{
        f"default_{name}": name
        for name in ("on_starting", "when_ready", "worker_int", "on_exit", "post_fork")
    },
    _OF_STORE: "when_ready",
}
"""What gunicorn-prometheus-exporter calls its hooks, and which hook each is."""

_ASKED = "__obskit_asked__"
"""In the names of a file: that it has asked for something of ours, and what that has replaced."""

_NAMES = (*PARAMETERS, "hook_event")


class _Said:
    """Whether this process, or the one that it was forked from, has said :data:`_TEXT`."""

    is_said = False


_TEXT = (
    "obskit: there are no metrics: {name} of obskit_gunicorn.hooks is called, but when the "
    "configuration was loaded, nothing showed that it wants us. Write on its last line: "
    "from obskit_gunicorn import adopt; adopt(globals()). In an application of your own, pass "
    "as_options(Config) to Gunicorn"
)


def _stand_in(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> None:
        if not _Said.is_said and not _is_published(args[0]):
            _say(name, args)

    dispatch.dress(run, name, name, f"Stand for {name} of ObskitGunicornConfig.")
    return run


def _is_published(giver: Any) -> bool:
    """Return whether the configuration in use was published: then every core runs by itself."""
    settings = getattr(giver, "cfg", giver)
    return hasattr(settings, "settings") and dispatch.publication_of(settings) is not None


def _say(name: str, args: tuple[Any, ...]) -> None:
    """Say once that a configuration is not ours; of all workers, the first one says it."""
    _Said.is_said = True
    worker = next((each for each in args if hasattr(each, "age")), None)
    if worker is not None and worker.pid == os.getpid() and worker.age > 1:
        return
    text = _TEXT.format(name=name)
    if lifecycle.is_signal_context(name):
        os.write(2, text.encode() + b"\n")
    else:
        giver = args[0]
        getattr(giver, "log", log).error("%s", text)


HOOKS: Mapping[str, Callable[..., Any]] = {name: _stand_in(name) for name in PARAMETERS}
"""What :mod:`obskit_gunicorn.hooks` gives out, by hook."""


def is_ours(value: Any) -> bool:
    """Return whether something stands for our part of a hook, or contains it."""
    stand_in = HOOKS.get(getattr(value, "__name__", ""))
    return (stand_in is not None and stand_in is value) or dispatch.is_made_here(value)


def asked(namespace: dict[str, Any], name: str, replaced_there: Any = None) -> None:
    """Note that a module takes one of our functions, before it has it.

    Args:
        namespace: The names of the module.
        name: What it asks for.
        replaced_there: What the name has replaced in the module that it comes from.
    """
    hook = OTHER_NAMES.get(name, name)
    before = namespace.get(hook)
    replaced = namespace.setdefault(_ASKED, {})
    if name == _OF_STORE:
        replaced[name] = None
    if replaced_there is not None:
        replaced[hook] = replaced_there
    elif before is not None and not is_ours(before) and hook in _NAMES:
        replaced[hook] = before


def replaced(namespace: Mapping[str, Any], name: str) -> Any:
    """Return the user's function that a name of ours has replaced in a module, or ``None``."""
    return namespace.get(_ASKED, {}).get(name)


def wants_us(namespace: Mapping[str, Any]) -> bool:
    """Return whether a file without a class has asked for anything of ours."""
    return _ASKED in namespace or any(map(is_ours, namespace.values()))


def wants_store(namespace: Mapping[str, Any]) -> bool:
    """Return whether a file has asked for the hook that brings many hosts together."""
    return _OF_STORE in namespace.get(_ASKED, {})


def class_of(namespace: Mapping[str, Any], source: str) -> type[Configuration]:
    """Return a configuration class with the hooks of a file.

    A user's function that an import of ours has replaced is put back, and a line says so.

    Args:
        namespace: The names of the file.
        source: The file, for the line.
    """
    body: dict[str, Any] = {"__module__": str(namespace.get("__name__"))}
    back = []
    for name in _NAMES:
        if name not in namespace:
            continue
        value = namespace[name]
        if is_ours(value):
            value = dispatch.users_part(value)
            if replaced(namespace, name) is not None:
                back.append(name)
                value = replaced(namespace, name)
            if value is None:
                continue
        # Gunicorn accepts the import string of a function, too.
        body[name] = value if isinstance(value, str) else staticmethod(value)
    if back:
        log.later(
            f"obskit: {', '.join(back)} in {source}: the functions above the import run, after ours"
        )
    return type("Functions", (FileOfFunctions, public_class()), body)


def without_ours(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of a file but for the hooks that are ours."""
    return {
        name: value
        for name, value in namespace.items()
        if not (name in PARAMETERS and is_ours(value))
    }
