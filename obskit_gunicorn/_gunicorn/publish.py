"""Publishing a configuration class to Gunicorn.

Gunicorn reads module-level names from its configuration file and does not know about classes. When
it asks for the names, after the file has run, it gets those of the file and those that the
configuration class publishes: every class attribute that is a Gunicorn setting, and every hook that
does something.

Runs in the arbiter while it loads its configuration, and changes no file.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import checks, dispatch
from obskit_gunicorn._gunicorn.contract import PARAMETERS, Publication, is_configuration, overrides
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._gunicorn.lifecycle import sharing
from obskit_gunicorn._gunicorn.options import OPTIONS, normalize_environment, read_options
from obskit_gunicorn._log import log
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from obskit_gunicorn._gunicorn.contract import Configuration

_EXPOSED = "__obskit_exposed__"


def watch(cls: type[Configuration]) -> None:
    """Arrange that a class is published when Gunicorn asks for the names of its module.

    Called when the class is created. Publishing it then would be too early: decorators, assignments
    to the class, and names further down in the file are still to come.

    Args:
        cls: The new subclass.
    """
    # Watch the file that is being executed too: if it only imports a class, that is an error, and
    # nobody else would report it.
    for name in (cls.__module__, "__config__"):
        if not _watch_module(name):
            warnings.warn(
                f"module {name} cannot be watched for configuration classes; end it with "
                f"obskit_gunicorn.expose({cls.__name__}, globals())",
                ObskitGunicornWarning,
                stacklevel=3,
            )


def expose(config: type[Configuration], namespace: dict[str, Any]) -> None:
    """Publish a class explicitly: write the names that Gunicorn reads into a namespace.

    For a configuration file in which nothing should happen implicitly. Put it on the last line::

        expose(Config, globals())

    Args:
        config: The configuration class.
        namespace: The ``globals()`` of the configuration file.

    Raises:
        ConfigurationError: The class is wrong, or the file defines one of its names too.
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

    For a subclass of ``gunicorn.app.base.BaseApplication``, whose ``load_config`` passes each of
    them to ``self.cfg.set(name, value)``.

    Args:
        config: The configuration class.

    Returns:
        Settings and hooks by name.

    Raises:
        ConfigurationError: The class is wrong.
    """
    return _publish(config, {}, config.__module__)


def hook_function(config: type[Configuration], name: str) -> Callable[..., Any]:
    """Return one hook of a class as the function that Gunicorn would be given.

    Args:
        config: The configuration class.
        name: The hook.

    Raises:
        ConfigurationError: The class is wrong.
    """
    publication = _load(config, config.__module__)
    return dispatch.hook_function(publication, name, checks.checked_method(publication, name))


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
                # Another module may import the class, perhaps long after it was created.
                frame = sys._getframe(1)
                if frame.f_code.co_name == "<module>":
                    _watch_module(str(frame.f_globals.get("__name__")))
            return value

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _with_published(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return a module's names and those of its configuration class; does not change the module."""
    source = str(namespace.get("__file__") or namespace["__name__"])
    try:
        config = _choose(namespace, source)
        if config is None:
            return namespace
        published = _publish(config, namespace, source)
    except ConfigurationError as error:
        # A wrong configuration stops a start. At a SIGHUP it must not stop a running server.
        if membership.role != "arbiter" or handover.published is None:
            raise
        log.error("obskit: the configuration is wrong, the previous one stays in use: %s", error)
        return dict(handover.published)
    handover.published = {**namespace, **published}
    return dict(handover.published)


def _choose(namespace: dict[str, Any], source: str) -> type[Configuration] | None:
    """Return the class of a module that is to be published; ``None`` if the module has no class."""
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
            "but not the module that an imported class comes from, and would fall back to its "
            "own defaults",
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
            hint=f"Name the right one Config, as in: Config = {leaves[-1].__name__}",
        )
    return leaves[0]


def _load(config: type[Configuration], source: str) -> Publication:
    """Make an instance and read its options; changes only this process's memory."""
    # Until an arbiter has begun, no file changes, so that --check-config leaves no trace.
    membership.is_configuring = membership.role == "process" and not membership.has_ever_begun
    handover.take(os.environ)
    normalize_environment(os.environ, handover.started_in)
    try:
        instance = config()
    except TypeError as error:
        raise ConfigurationError(
            where=f"{config.__name__} in {source}",
            value=config,
            expected=f"a class that can be called without arguments ({error})",
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
    """Return the checked settings and hooks of a class by name, and install the value class."""
    publication = _load(config, source)
    known = checks.gunicorn_settings()
    checks.refuse_unrun(publication, "hook_event", publication.config.hook_event)
    published: dict[str, Any] = {}
    not_settings = {*PARAMETERS, *(option.name for option in OPTIONS)}
    # dir() of the instance: a dataclass keeps a field with a factory out of its class.
    for name in dir(publication.config):
        if name.startswith("_") or name in not_settings or name not in known:
            continue
        published[name] = checks.checked_setting(publication, name, known[name])
    for name in PARAMETERS:
        method = checks.checked_method(publication, name)
        if name in known:
            if dispatch.needs_publishing(publication, name):
                published[name] = dispatch.hook_function(publication, name, method)
        elif overrides(publication.config, name):
            checks.warn(
                publication,
                name,
                "this release of Gunicorn has no such hook and never calls it",
            )
    for name in published:
        if name in namespace:
            raise ConfigurationError(
                where=f"{name} in {source}",
                value=namespace[name],
                expected=f"one definition; class {config.__name__} publishes {name} too",
                hint=f"Move it into the class, or remove one of them: {name} belongs to "
                f"{config.__name__}.",
            )
    checks.suggest_names(publication, known)
    shared = sharing()
    stray = shared.install() if shared is not None else []
    if stray:
        checks.warn(
            publication,
            "multiproc_dir",
            "these metrics were made before the configuration was loaded and cannot be shared: "
            f"{', '.join(stray)}; import the application later, or obskit_gunicorn.multiprocess "
            "before it",
        )
    return published
