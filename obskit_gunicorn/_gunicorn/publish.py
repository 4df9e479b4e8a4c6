"""Handing a configuration class to Gunicorn.

Gunicorn reads module-level names from its configuration file and knows nothing of classes. When it
asks for the names, after the file has run, it is given those of the file and, beside them, those
of its configuration class: every class attribute that is a Gunicorn setting, and every hook that
does something.

Runs in the arbiter while it loads its configuration, and touches no file.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import dispatch
from obskit_gunicorn._gunicorn.checks import (
    checked_method,
    checked_setting,
    gunicorn_settings,
    suggest_names,
    warn,
)
from obskit_gunicorn._gunicorn.contract import (
    PARAMETERS,
    Configuration,
    Publication,
    is_configuration,
    overrides,
)
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._gunicorn.lifecycle import sharing
from obskit_gunicorn._gunicorn.options import OPTIONS, normalize_environment, read_options
from obskit_gunicorn._log import log
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

_EXPOSED = "__obskit_exposed__"


def watch(cls: type[Configuration]) -> None:
    """See to it that a class is published when Gunicorn asks for the names of its module.

    Called when the class is made. Publishing then would be too early: names further down in the
    file, decorators, and assignments to the class are still to come.

    Args:
        cls: The new subclass.
    """
    # The file that is being executed is watched too: a class that it merely imports is an error
    # that only we can report.
    for name in (cls.__module__, "__config__"):
        if not _watch_module(name):
            warnings.warn(
                f"module {name} cannot be watched for configuration classes; end it with "
                f"obskit_gunicorn.expose({cls.__name__}, globals())",
                ObskitGunicornWarning,
                stacklevel=3,
            )


def expose(config: type[Configuration], namespace: dict[str, Any]) -> None:
    """Publish a class explicitly, by writing the names that Gunicorn reads into a namespace.

    For a configuration file that wants nothing to happen behind its back; put it on the last line::

        expose(Config, globals())

    Args:
        config: The configuration class.
        namespace: The ``globals()`` of the configuration file.

    Raises:
        ConfigurationError: Something in the class, or a name that the file has too, is wrong.
    """
    before = namespace.get(_EXPOSED, ())
    taken = {name: value for name, value in namespace.items() if name not in before}
    published = _publish(config, taken, str(namespace.get("__file__", namespace.get("__name__"))))
    for name in before:
        namespace.pop(name, None)
    namespace.update(published)
    namespace[_EXPOSED] = tuple(published)


def as_options(config: type[Configuration]) -> dict[str, Any]:
    """Return what a class publishes, as options for a custom Gunicorn application.

    For a subclass of ``gunicorn.app.base.BaseApplication``, whose ``load_config`` passes each to
    ``self.cfg.set(name, value)``.

    Args:
        config: The configuration class.

    Returns:
        Settings and hooks by name.

    Raises:
        ConfigurationError: Something in the class is wrong.
    """
    return _publish(config, {}, config.__module__)


def hook_function(config: type[Configuration], name: str) -> Callable[..., Any]:
    """Return one hook of a class as the function that Gunicorn would be given.

    Args:
        config: The configuration class.
        name: The hook.

    Raises:
        ConfigurationError: Something in the class is wrong.
    """
    publication = _load(config, config.__module__)
    return dispatch.hook_function(publication, name, checked_method(publication, name))


def _watch_module(name: str) -> bool:
    module = sys.modules.get(name)
    if module is None or name == "__main__" or getattr(type(module), "_obskit_watched", False):
        return True
    try:
        module.__class__ = _watched(type(module))
    except TypeError:
        return False
    return True


def _watched(base: type[types.ModuleType]) -> type[types.ModuleType]:
    class Watched(base):  # type: ignore[valid-type, misc]
        """A module that gives Gunicorn the names of its configuration class as well."""

        _obskit_watched = True

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "__dict__":
                asking = str(sys._getframe(1).f_globals.get("__name__"))
                if asking.partition(".")[0] == "gunicorn" and _EXPOSED not in value:
                    return _with_published(value)
            elif is_configuration(value):
                # A module that imports a class from here, perhaps long after it was made.
                frame = sys._getframe(1)
                if frame.f_code.co_name == "<module>":
                    _watch_module(str(frame.f_globals.get("__name__")))
            return value

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _with_published(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return a module's names and those of its configuration class; the module stays as it is."""
    source = str(namespace.get("__file__") or namespace["__name__"])
    try:
        config = _choose(namespace, source)
        if config is None:
            return namespace
        published = _publish(config, namespace, source)
    except ConfigurationError as error:
        # At the start a wrong configuration stops the start. At a SIGHUP it must not stop a
        # service that runs.
        if membership.role != "arbiter" or handover.published is None:
            raise
        log.error("obskit: the configuration is wrong, the one before stays in force: %s", error)
        return dict(handover.published)
    handover.published = {**namespace, **published}
    return dict(handover.published)


def _choose(namespace: dict[str, Any], source: str) -> type[Configuration] | None:
    """Return the class of a module that is meant, or ``None`` if the module has none."""
    classes: list[type[Configuration]] = []
    for value in namespace.values():
        if is_configuration(value) and value not in classes:
            classes.append(value)
    own = [found for found in classes if found.__module__ == namespace["__name__"]]
    if not own:
        if not classes:
            return None
        name = classes[0].__name__
        raise ConfigurationError(
            where=f"{name} in {source}",
            value=classes[0],
            expected="a class that this file defines: at a SIGHUP Gunicorn runs the file again, "
            "but not the module that an imported class comes from, and would go on with its "
            "defaults",
            hint=f"Write: class Config({name}): pass",
        )
    chosen = namespace.get("Config")
    if chosen in own:
        return chosen  # type: ignore[no-any-return]
    leaves = [
        found
        for found in own
        if not any(other is not found and issubclass(other, found) for other in own)
    ]
    if len(leaves) > 1:
        names = ", ".join(sorted(found.__name__ for found in leaves))
        raise ConfigurationError(
            where=f"the configuration class in {source}",
            value=names,
            expected="one class",
            hint=f"Call the one that is meant Config, as in: Config = {leaves[-1].__name__}",
        )
    return leaves[0]


def _load(config: type[Configuration], source: str) -> Publication:
    """Make an instance and read its options; touches nothing but this process's memory."""
    # Until an arbiter has begun nothing is touched, so that --check-config leaves no trace.
    membership.is_configuring = membership.role == "process" and not membership.has_ever_begun
    handover.take(os.environ)
    normalize_environment(os.environ, handover.started_in)
    try:
        instance = config()
    except TypeError as error:
        raise ConfigurationError(
            where=f"{config.__name__} in {source}",
            value=config,
            expected=f"a class that can be made without arguments ({error})",
            hint="Give the parameters of __init__ defaults.",
        ) from error
    options = read_options(
        instance,
        os.environ,
        source=source,
        base=handover.started_in,
        exported=handover.exported,
    )
    return Publication(instance, source, options)


def _publish(config: type[Configuration], namespace: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the settings and hooks of a class by name, all checked."""
    publication = _load(config, source)
    known = gunicorn_settings()
    published: dict[str, Any] = {}
    not_settings = {*PARAMETERS, *(option.name for option in OPTIONS)}
    # Of the instance: a dataclass keeps a field with a factory out of its class.
    for name in dir(publication.config):
        if name.startswith("_") or name in not_settings or name not in known:
            continue
        published[name] = checked_setting(publication, name, known[name])
    for name in PARAMETERS:
        method = checked_method(publication, name)
        if name in known:
            if dispatch.needs_publishing(publication, name):
                published[name] = dispatch.hook_function(publication, name, method)
        elif overrides(publication.config, name):
            warn(publication, name, "this release of Gunicorn has no such hook, it is not called")
    for name in published:
        if name in namespace:
            raise ConfigurationError(
                where=f"{name} in {source}",
                value=namespace[name],
                expected=f"one definition; class {config.__name__} publishes {name} too",
                hint=f"Move it into the class, or remove one of them: {name} belongs to "
                f"{config.__name__}.",
            )
    suggest_names(publication, known)
    _install_values(publication)
    return published


def _install_values(publication: Publication) -> None:
    """Install the value class before the application is imported; touches no file."""
    shared = sharing()
    stray = shared.install() if shared is not None else []
    if stray:
        warn(
            publication,
            "multiproc_dir",
            "these metrics were made before the configuration was loaded and cannot be shared: "
            f"{', '.join(stray)}; import the application later, or obskit_gunicorn.multiprocess "
            "before it",
        )
