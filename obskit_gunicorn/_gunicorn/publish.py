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

from obskit_gunicorn._gunicorn import checks, dispatch, functions
from obskit_gunicorn._gunicorn.contract import (
    PARAMETERS,
    Configuration,
    Publication,
    is_configuration,
    overrides,
    public_class,
)
from obskit_gunicorn._gunicorn.handover import handover
from obskit_gunicorn._gunicorn.lifecycle import sharing
from obskit_gunicorn._gunicorn.options import (
    OPTIONS,
    misnamed_variables,
    normalize_environment,
    read_options,
)
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store.membership import is_loading_configuration, membership
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping

_EXPOSED = "__obskit_exposed__"
"""In the names of a file: what :func:`expose` or :func:`adopt` has written there."""

_FILE = "__config__"
"""What Gunicorn calls the module of a configuration file."""

_front_doors: list[types.ModuleType] = []
"""The modules of ours whose import alone says that a file wants us."""


def watch(cls: type[Configuration]) -> None:
    """Arrange that a class is published when Gunicorn asks for the names of its module.

    Called when the class is created. Publishing it then would be too early: decorators, assignments
    to the class, and names further down in the file are still to come.

    Args:
        cls: The new subclass.
    """
    # Watch the file that is being executed too: if it only imports a class, that is an error, and
    # nobody else would report it.
    for name in (cls.__module__, _FILE):
        if not watch_module(name):
            warnings.warn(
                f"module {name} cannot be watched for configuration classes; end it with "
                f"obskit_gunicorn.expose({cls.__name__}, globals())",
                ObskitGunicornWarning,
                stacklevel=3,
            )


def watch_imports_of(module: str) -> None:
    """Have the import of a module of ours seen, not only that of its names.

    Args:
        module: The module, which is being imported.
    """
    _front_doors.append(sys.modules[module])
    watch_module(module.partition(".")[0])


def watch_importers(frame: types.FrameType | None) -> None:
    """Watch the module that asks for something of ours.

    While Gunicorn loads its configuration, also every module that is being executed: one of them is
    the configuration.

    Args:
        frame: Where something of ours is asked for.
    """
    executed = []
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] == "gunicorn":
            break
        if frame.f_code.co_name == "<module>":
            executed.append(name)
        frame = frame.f_back
    is_loading = frame is not None and frame.f_globals["__name__"] == "gunicorn.app.base"
    for name in executed if is_loading else executed[:1]:
        watch_module(name)


def expose(config: type[Configuration], namespace: dict[str, Any]) -> None:
    """Publish a class explicitly: write the names that Gunicorn reads into a namespace.

    For a configuration file in which nothing should happen implicitly. Put it on the last line::

        expose(Config, globals())

    Args:
        config: The configuration class.
        namespace: The ``globals()`` of the configuration file.

    Raises:
        ConfigurationError: The class is wrong, or the file defines one of its names too. While
            Gunicorn loads the file, it is raised when the file has run.
    """

    def make() -> dict[str, Any]:
        _check_class("expose", config, _source(namespace))
        before = _written_before(namespace)
        taken = {name: value for name, value in namespace.items() if name not in before}
        return _publish(config, taken, _source(namespace))

    _check_namespace("expose", namespace)
    _write(make, namespace)


def adopt(namespace: dict[str, Any]) -> None:
    """Adopt the functions of a configuration file without a class: ours run, then they.

    Put it on the last line::

        adopt(globals())

    It writes every hook that this package needs into the file. The functions that stand there,
    whatever they are and wherever they come from, run after ours. Our options may be module-level
    names.

    Args:
        namespace: The ``globals()`` of the configuration file.

    Raises:
        ConfigurationError: A function or an option is wrong, or there is a class. While Gunicorn
            loads the file, it is raised when the file has run.
    """

    def make() -> dict[str, Any]:
        source = _source(namespace)
        if _is_file_with_class(namespace):
            raise ConfigurationError(
                where=f"adopt(globals()) in {source}",
                value=[value for value in namespace.values() if is_configuration(value)],
                expected="a file without a configuration class",
                hint="Remove adopt: a class is published without it.",
            )
        return _publish_functions(namespace, source)

    _check_namespace("adopt", namespace)
    _write(make, namespace)


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
    _check_class("as_options", config, "the program")
    return _publish(config, {}, config.__module__)


def _check_class(function: str, config: object, source: str) -> None:
    if not (isinstance(config, type) and issubclass(config, Configuration)):
        is_instance = isinstance(config, Configuration)
        name = type(config).__name__ if is_instance else "Config"
        raise ConfigurationError(
            where=f"the first argument of {function} in {source}",
            value=config,
            expected="a class that derives from ObskitGunicornConfig"
            + (", not an instance of it" if is_instance else ""),
            hint=f"Write {name} in its place{', without ()' if is_instance else ''}.",
        )


def _check_namespace(function: str, namespace: object) -> None:
    if not isinstance(namespace, dict):
        raise ConfigurationError(
            where=f"the last argument of {function}",
            value=namespace,
            expected="the names of the configuration file",
            hint="Write globals() in its place.",
        )


def _write(make: Callable[[], dict[str, Any]], namespace: dict[str, Any]) -> None:
    """Write what is published into a file."""
    try:
        published = make()
    except ConfigurationError as error:
        name = str(namespace.get("__name__"))
        if not (is_loading_configuration() and name in sys.modules and watch_module(name)):
            raise
        # For when Gunicorn asks: raised here, it would come with a traceback, and end a server
        # that gets a SIGHUP.
        namespace[_EXPOSED] = error
        return
    before = _written_before(namespace)
    for name in (*before, *PARAMETERS):
        if name in before or functions.is_ours(namespace.get(name)):
            namespace.pop(name, None)
    namespace.update(published)
    namespace[_EXPOSED] = published


def _written_before(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier call has written into a file."""
    before = namespace.get(_EXPOSED)
    return before if isinstance(before, dict) else {}


def watch_module(name: str) -> bool:
    """Watch a module: what it imports of ours, and whether Gunicorn asks for its names.

    Returns:
        Whether that is possible.
    """
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
                if asking.partition(".")[0] == "gunicorn":
                    return _with_published(value)
            elif not name.startswith("__"):
                _asked(sys._getframe(1), name, value, super().__getattribute__("__dict__"))
            return value

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _asked(frame: types.FrameType, name: str, value: Any, source: dict[str, Any]) -> None:
    """Note that a name of a watched module was asked for, perhaps long after the name was made."""
    is_ours = functions.is_ours(value) or any(value is door for door in _front_doors)
    if is_ours or (isinstance(value, type) and issubclass(value, Configuration)):
        watch_importers(frame)
    elif frame.f_globals.get("__name__") == _FILE:
        watch_module(_FILE)  # it may be given our functions by one of that module
    if is_ours and frame.f_code.co_name == "<module>":
        functions.asked(frame.f_globals, name, functions.replaced(source, name))


def _with_published(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return what Gunicorn gets of a module; does not change the module."""
    source = _source(namespace)
    try:
        published = _published(namespace, source)
    except ConfigurationError as error:
        return _previous(error)
    if published is not None:
        handover.published = published
        return dict(published)
    if any(value is public_class() for value in namespace.values()):
        name = next(name for name, value in namespace.items() if value is public_class())
        text = f"{name} is imported in {source}, and nothing is made of it: there are no metrics"
        advice = f"write: class Config({name}): ... or: Config = {name}"
        checks.say(Problem(text, advice), source)
    return namespace


def _previous(error: ConfigurationError) -> dict[str, Any]:
    """Return what Gunicorn got before, if the server runs: a SIGHUP must not stop it.

    Raises:
        ConfigurationError: The server starts, and a wrong configuration stops the start.
    """
    if membership.role != "arbiter" or handover.published is None:
        raise error
    log.error("obskit: the configuration is wrong, the previous one stays in use: %s", error)
    return dict(handover.published)


def _published(namespace: dict[str, Any], source: str) -> dict[str, Any] | None:
    """Return the names of a module with what is published of it; ``None`` if nothing is."""
    exposed = namespace.get(_EXPOSED)
    if isinstance(exposed, ConfigurationError):
        raise exposed
    if exposed is not None:
        _check_exposed(exposed, namespace, source)
        return namespace
    known = checks.gunicorn_settings()
    for name, value in namespace.items():
        is_ours = isinstance(value, Configuration) or is_configuration(value)
        if is_ours and name in known:
            raise ConfigurationError(
                where=f"{name} in {source}",
                value=value,
                expected=f"a value of Gunicorn's setting {name}, which this name belongs to",
                hint="Define the class under the name Config, and make no instance of it.",
            )
    config = _choose(namespace, source)
    if config is not None:
        rest = functions.without_ours(namespace)
        published = _publish(config, rest, source)
        checks.warn_of_globals(config, namespace, published)
        return {**rest, **published}
    if functions.wants_us(namespace):
        rest = {name: value for name, value in namespace.items() if name not in PARAMETERS}
        return {**rest, **_publish_functions(namespace, source)}
    return None


def _publish_functions(namespace: dict[str, Any], source: str) -> dict[str, Any]:
    rest = {name: value for name, value in namespace.items() if name not in PARAMETERS}
    return _publish(functions.class_of(namespace, source), rest, source)


def _check_exposed(exposed: dict[str, Any], namespace: dict[str, Any], source: str) -> None:
    """Check that nothing below ``expose`` or ``adopt`` has replaced what they have written."""
    for name, value in exposed.items():
        if namespace.get(name) is not value:
            raise ConfigurationError(
                where=f"{name} in {source}",
                value=namespace.get(name),
                expected="what expose or adopt has written there",
                hint="Put the call on the last line of the file.",
            )


def _source(namespace: dict[str, Any]) -> str:
    return str(namespace.get("__file__") or namespace.get("__name__"))


def _is_file_with_class(namespace: dict[str, Any]) -> bool:
    return any(
        is_configuration(value) and value.__module__ == namespace.get("__name__")
        for value in namespace.values()
    )


def _choose(namespace: dict[str, Any], source: str) -> type[Configuration] | None:
    """Return the class of a module that is to be published; ``None`` if the module has no class."""
    classes: list[type[Configuration]] = []
    for value in namespace.values():
        if is_configuration(value) and value not in classes:
            classes.append(value)
    own = [found for found in classes if found.__module__ == namespace["__name__"]]
    if not own:
        if not classes:
            # Config = ObskitGunicornConfig, or imported under that name.
            return public_class() if namespace.get("Config") is public_class() else None
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


def _load(config: type[Configuration], namespace: Mapping[str, Any], source: str) -> Publication:
    """Make an instance and read its options; changes only this process's memory."""
    # Until an arbiter has begun, no file changes, so that --check-config leaves no trace.
    membership.is_configuring = membership.role == "process" and not membership.has_ever_begun
    environment = dict(os.environ)
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
    beside = {
        option.name: namespace[option.name]
        for option in OPTIONS
        if option.name in namespace and not overrides(instance, option.name)
    }
    options = read_options(
        instance,
        os.environ,
        source=source,
        base=handover.started_in,
        exported=handover.exported,
        beside=beside,
    )
    if functions.wants_store(namespace) and options.metrics_redis is None:
        advice = (
            "set metrics_redis, or the environment variable OBSKIT_METRICS_REDIS, to the address "
            "of the store, such as redis://cache.internal:6379/0"
        )
        checks.say(Problem("redis_when_ready alone brings no hosts together", advice), source)
    has_address = "metrics_bind" in beside or overrides(instance, "metrics_bind")
    for problem in misnamed_variables(environment, has_address=has_address):
        checks.say(problem, source)
    return Publication(instance, source, options)


def _publish(config: type[Configuration], namespace: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the checked settings and hooks of a class by name, and install the value class."""
    publication = _load(config, namespace, source)
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
                "remove it, or install a newer Gunicorn",
            )
    options = [each.name for each in OPTIONS if overrides(publication.config, each.name)]
    checks.check_clashes(publication, [*published, *options], namespace)
    checks.suggest_names(publication, known)
    checks.suggest_names_of_file(publication, namespace, known)
    shared = sharing()
    stray = shared.install() if shared is not None else []
    if stray:
        checks.warn(
            publication,
            "multiproc_dir",
            "these metrics were made before the configuration was loaded and cannot be shared: "
            f"{', '.join(stray)}",
            "import the application later, or obskit_gunicorn.multiprocess before it",
        )
    return published
