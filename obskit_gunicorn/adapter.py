"""Handing the methods of a configuration class to Gunicorn.

Gunicorn reads module-level names from its configuration file and knows nothing of classes. When it
asks for the names, after the file has run, it is given those of the file and, beside them, those
of its configuration class: every class attribute that is a Gunicorn setting, and every hook.

A published hook is the *core*, then the user's method. The core holds what the promises of this
package need, so an override that forgets ``super()`` loses the extras of the base method only. An
error in a core is logged and never reaches Gunicorn; one in a user's override keeps Gunicorn's
meaning, except for the hooks in :data:`CONTAINED` once the server runs.

Everything here runs in the arbiter while it loads its configuration, except the published
functions, which run where Gunicorn calls them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn import slots
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning
from obskit_gunicorn.options import (
    DIRECTORY_VARIABLE,
    EXPORTED_VARIABLE,
    Options,
    is_option,
    read_options,
)

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

    from obskit_gunicorn.config import ObskitGunicornConfig

__all__ = ["CONTAINED", "PARAMETERS", "as_options", "expose", "hook_function", "watch"]

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

CONTAINED = frozenset(
    {"child_exit", "worker_exit", "nworkers_changed", "on_reload", "pre_exec", "on_exit"}
)
"""Hooks in which an exception is logged and counted, and the server goes on, once it runs."""

_GATES = frozenset({"on_starting", "when_ready"})
_REQUEST_HOOKS = frozenset({"pre_request", "post_request"})
_BASE_METHODS_THAT_ACT = frozenset({"on_starting", "child_exit"})
_EXPOSED = "__obskit_exposed__"


class _Publication(NamedTuple):
    """One configuration as it was handed to Gunicorn; each SIGHUP makes a new one."""

    config: ObskitGunicornConfig
    where: str
    options: Options

    @property
    def class_name(self) -> str:
        return type(self.config).__name__


class _Loaded:
    """What this process remembers of the configurations it has loaded."""

    names: dict[str, Any] | None = None
    """What was last handed to Gunicorn, for a SIGHUP whose configuration is wrong."""

    exported: str | None = None
    """The directory that we have put into the environment ourselves."""

    server: Arbiter | None = None
    failures: list[tuple[str, str, bool]]
    """What could not be logged or counted in signal context: hook, text, whether to count it."""


_Loaded.failures = []


# ------------------------------------------------------------------------------------------------
# Publishing


def watch(cls: type[ObskitGunicornConfig]) -> None:
    """See to it that a class is published when Gunicorn asks for the names of its module.

    Called when the class is made. Publishing then would be too early: names further down in the
    file, decorators, and assignments to the class are still to come.

    Args:
        cls: The new subclass.
    """
    # The file that is being executed is watched too: a class that it merely imports is an error
    # that only we can report.
    for name in {cls.__module__, "__config__"} - {"__main__"}:
        module = sys.modules.get(name)
        if module is None or getattr(type(module), "_obskit_watched", False):
            continue
        try:
            module.__class__ = _watched(type(module))
        except TypeError:
            warnings.warn(
                f"module {name} cannot be watched for configuration classes; end it with "
                f"obskit_gunicorn.expose({cls.__name__}, globals())",
                ObskitGunicornWarning,
                stacklevel=3,
            )


def expose(config: type[ObskitGunicornConfig], namespace: dict[str, Any]) -> None:
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


def as_options(config: type[ObskitGunicornConfig]) -> dict[str, Any]:
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


def hook_function(config: type[ObskitGunicornConfig], name: str) -> Callable[..., Any]:
    """Return one hook of a class as the function that Gunicorn would be given.

    Args:
        config: The configuration class.
        name: The hook.

    Raises:
        ConfigurationError: Something in the class is wrong.
    """
    publication = _load(config, config.__module__)
    return _function(publication, name, _method(publication, name))


def _watched(base: type[types.ModuleType]) -> type[types.ModuleType]:
    names = base.__dict__["__dict__"] if "__dict__" in base.__dict__ else None
    real = names or types.ModuleType.__dict__["__dict__"]

    class Watched(base):  # type: ignore[valid-type, misc]
        """A module that gives Gunicorn the names of its configuration class as well."""

        _obskit_watched = True

        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            namespace: dict[str, Any] = real.__get__(self)
            asking = sys._getframe(1).f_globals.get("__name__", "")
            if asking.split(".")[0] != "gunicorn" or _EXPOSED in namespace:
                return namespace
            return _with_published(namespace)

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
        if _Loaded.server is None or _Loaded.names is None:
            raise
        _Loaded.server.log.error(
            "obskit: the configuration is wrong, the one before stays in force: %s", error
        )
        return dict(_Loaded.names)
    _Loaded.names = {**namespace, **published}
    return dict(_Loaded.names)


def _choose(namespace: dict[str, Any], source: str) -> type[ObskitGunicornConfig] | None:
    """Return the class of a module that is meant, or ``None`` if the module has none."""
    from obskit_gunicorn.config import ObskitGunicornConfig

    classes: list[type[ObskitGunicornConfig]] = []
    for value in namespace.values():
        if isinstance(value, type) and issubclass(value, ObskitGunicornConfig):
            if value is not ObskitGunicornConfig and value not in classes:
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
            mend=f"Write: class Config({name}): pass",
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
            mend=f"Call the one that is meant Config, as in: Config = {leaves[-1].__name__}",
        )
    return leaves[0]


def _load(config: type[ObskitGunicornConfig], source: str) -> _Publication:
    """Make an instance and read its options; touches nothing but this process's memory."""
    where = f"{config.__name__} in {source}"
    handed = os.environ.pop(EXPORTED_VARIABLE, None)
    if handed:
        _Loaded.exported = handed
    try:
        instance = config()
    except TypeError as error:
        raise ConfigurationError(
            where=where,
            value=config,
            expected=f"a class that can be made without arguments ({error})",
            mend="Give the parameters of __init__ defaults.",
        ) from error
    options = read_options(instance, os.environ, where=where, exported=_Loaded.exported)
    return _Publication(instance, where, options)


def _publish(
    config: type[ObskitGunicornConfig], namespace: dict[str, Any], source: str
) -> dict[str, Any]:
    """Return the settings and hooks of a class by name, all checked."""
    publication = _load(config, source)
    known = _known_settings()
    published: dict[str, Any] = {}
    # Of the instance: a dataclass keeps a field with a factory out of its class.
    for name in dir(publication.config):
        if name.startswith("_") or name in PARAMETERS or is_option(name) or name not in known:
            continue
        published[name] = _setting(publication, name, known[name])
    watches_events = _overrides(config, "hook_event")
    for name in PARAMETERS:
        if name not in known:
            if _overrides(config, name):
                _warn(publication, name, f"Gunicorn {_gunicorn_version()} has no such hook; "
                      "it will not be called")
            continue
        method = _method(publication, name)
        wanted = _overrides(config, name) or name in _BASE_METHODS_THAT_ACT or name in _CORES
        if wanted or (watches_events and name not in _REQUEST_HOOKS):
            published[name] = _function(publication, name, method)
    for name in published:
        if name in namespace:
            raise ConfigurationError(
                where=f"{name} in {source}",
                value=namespace[name],
                expected=f"one definition; class {config.__name__} publishes {name} too",
                mend=f"Move it into the class, or remove one of them: {name} belongs to "
                f"{config.__name__}.",
            )
    _suggest(publication, known)
    _install_values(publication)
    return published


def _install_values(publication: _Publication) -> None:
    """Install the value class before the application is imported; touches no file."""
    slots.process.is_configuring = slots.process.directory is None
    sharing = _sharing()
    if sharing is None:
        return
    stray = sharing.install()
    if stray:
        _warn(
            publication,
            "",
            "these metrics were made before the configuration was loaded and cannot be shared: "
            f"{', '.join(stray)}; import the application later, or after importing "
            "obskit_gunicorn.multiprocess",
        )


# ------------------------------------------------------------------------------------------------
# Checking


def _known_settings() -> dict[str, Any]:
    config = importlib.import_module("gunicorn.config")
    return {setting.name: setting for setting in config.KNOWN_SETTINGS}


def _gunicorn_version() -> str:
    return str(importlib.import_module("gunicorn").__version__)


def _overrides(config: type[ObskitGunicornConfig], name: str) -> bool:
    from obskit_gunicorn.config import ObskitGunicornConfig

    base = vars(ObskitGunicornConfig)[name]
    return inspect.getattr_static(config, name) is not base


def _read(publication: _Publication, name: str) -> Any:
    try:
        return getattr(publication.config, name)
    except Exception as error:
        raise ConfigurationError(
            where=f"{publication.where}: {name}",
            value=inspect.getattr_static(publication.config, name),
            expected=f"a value; reading it raised {type(error).__name__}: {error}",
            mend="Mend the property.",
        ) from error


def _setting(publication: _Publication, name: str, setting: Any) -> Any:
    """Return a Gunicorn setting of a class after Gunicorn's own check."""
    value = _read(publication, name)
    if inspect.ismethod(value):
        raise ConfigurationError(
            where=f"{publication.where}: {name}",
            value=value,
            expected="a value, not a method",
            mend=f"Put @property above def {name}.",
        )
    try:
        setting().set(value)
    except Exception as error:
        kind = getattr(setting.type, "__name__", "")
        raise ConfigurationError(
            where=f"{publication.where}: {name}",
            value=value,
            expected=f"{f'a value of type {kind}' if kind else 'a value'} that Gunicorn "
            f"accepts ({error})",
            mend=f"Gunicorn's setting {name}: {setting.short}",
        ) from error
    return value


def _method(publication: _Publication, name: str) -> Callable[..., Any]:
    """Return a hook of a class, callable with what Gunicorn passes."""
    method = _read(publication, name)
    where = f"{publication.where}: {name}"
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
    if _accepted(name, method) is None:
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


def _accepted(name: str, method: Callable[..., Any]) -> int | None:
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


def _suggest(publication: _Publication, known: dict[str, Any]) -> None:
    """Warn of class attributes that are nothing, but nearly the name of something."""
    from obskit_gunicorn.config import ObskitGunicornConfig

    names = {*known, *PARAMETERS, *Options._fields}
    ours = {name for base in ObskitGunicornConfig.__mro__ for name in vars(base)}
    for base in type(publication.config).__mro__:
        if base in ObskitGunicornConfig.__mro__:
            continue
        for name in vars(base):
            if name.startswith("_") or name in names or name in ours:
                continue
            near = difflib.get_close_matches(name.lower(), sorted(names), n=2, cutoff=0.8)
            if near:
                _warn(
                    publication,
                    name,
                    "Gunicorn knows no such name and ignores it; did you mean "
                    f"{' or '.join(near)}? A leading underscore says that it is your own",
                )


def _warn(publication: _Publication, name: str, text: str) -> None:
    message = f"{publication.where}: {name + ': ' if name else ''}{text}"
    if _Loaded.server is not None:
        _Loaded.server.log.warning("obskit: %s", message)
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


# ------------------------------------------------------------------------------------------------
# Running: the published function


def _function(
    publication: _Publication, name: str, method: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the function that Gunicorn calls for a hook: the core, then the method."""
    core = _CORES.get(name)
    accepted = _accepted(name, method)
    takes_fewer = accepted is not None and accepted < len(PARAMETERS[name])
    watches_events = name not in _REQUEST_HOOKS and _overrides(
        type(publication.config), "hook_event"
    )

    def run(*args: Any) -> Any:
        if core is not None:
            _run_core(name, core, publication, args)
        started, clock = time.time(), time.monotonic()
        error: Exception | None = None
        result = None
        try:
            result = method(*(args[:accepted] if takes_fewer else args))
        except Exception as raised:
            error = raised
        if watches_events:
            _tell(publication, name, started, time.monotonic() - clock, error)
        if error is not None:
            if not _is_contained(name, args):
                raise error
            _contain(publication, name, error)
        if name in _GATES and result is False:
            _abort(publication, name, args[0])
        return result

    function = _with_arity(len(PARAMETERS[name]), run)
    function.__name__ = name
    function.__qualname__ = f"{publication.class_name}.{name}"
    function.__doc__ = method.__doc__
    return function


def _with_arity(count: int, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with as many parameters as Gunicorn's check counts."""
    if count == 1:
        return lambda a: run(a)
    if count == 2:  # noqa: PLR2004 - these are the numbers themselves
        return lambda a, b: run(a, b)
    if count == 3:  # noqa: PLR2004
        return lambda a, b, c: run(a, b, c)
    return lambda a, b, c, d: run(a, b, c, d)


def _run_core(
    name: str, core: Callable[..., None], publication: _Publication, args: tuple[Any, ...]
) -> None:
    try:
        core(publication, *args)
    except Exception:
        # Whatever is wrong with us, it is not the service's fault.
        slots.process.log.exception("obskit: the core of %s failed; the server goes on", name)


def _is_contained(name: str, args: tuple[Any, ...]) -> bool:
    if name == "nworkers_changed" and args[2] is None:
        return False  # the server is starting
    return name in CONTAINED


def _is_signal_context(name: str) -> bool:
    if name == "child_exit":
        return importlib.import_module("gunicorn").version_info < (24,)  # type: ignore[no-any-return]
    return name in ("worker_int", "worker_abort")


def _contain(publication: _Publication, name: str, error: Exception) -> None:
    text = "".join(traceback.format_exception(error)).rstrip()
    message = f"obskit: {publication.class_name}.{name} raised; the server goes on\n{text}"
    _Loaded.failures.append((name, message, True))
    if not _is_signal_context(name):
        _flush_failures()


def _flush_failures() -> None:
    """Log and count what went wrong in signal context, now that this is none."""
    while _Loaded.failures:
        name, message, counts = _Loaded.failures.pop(0)
        slots.process.log.error("%s", message)
        if counts and _sharing() is not None:
            from obskit_gunicorn import telemetry

            telemetry.count_hook_failure(name)


def _tell(
    publication: _Publication,
    name: str,
    started: float,
    duration: float,
    error: Exception | None,
) -> None:
    from obskit_gunicorn.config import HookEvent

    event = HookEvent(
        name="hook_success" if error is None else "hook_failure",
        hook=name,
        time=started,
        duration_seconds=duration,
        pid=os.getpid(),
        error=error,
    )
    try:
        publication.config.hook_event(event)
    except Exception as raised:
        text = "".join(traceback.format_exception(raised)).rstrip()
        message = f"obskit: {publication.class_name}.hook_event raised in {name}\n{text}"
        _Loaded.failures.append((name, message, False))
        if not _is_signal_context(name):
            _flush_failures()


def _abort(publication: _Publication, name: str, server: Arbiter) -> None:
    """End a start that a gate has refused, with what Gunicorn has opened so far closed again."""
    server.log.error("obskit: %s.%s returned False: not starting", publication.class_name, name)
    server.stop()
    if server.pidfile is not None:
        server.pidfile.unlink()
    raise SystemExit(1)


# ------------------------------------------------------------------------------------------------
# Cores


def _sharing() -> Any:
    """Return :mod:`obskit_gunicorn.multiprocess`, or ``None`` without prometheus_client."""
    try:
        return importlib.import_module("obskit_gunicorn.multiprocess")
    except ImportError:
        return None


def _core_nworkers_changed(
    publication: _Publication, server: Arbiter, new_value: int, old_value: int | None
) -> None:
    # The first thing an arbiter calls: after daemonizing, before a preloaded application is
    # imported and before any fork. Called again at each SIGHUP, TTIN and TTOU, perhaps on the
    # control thread.
    _Loaded.server = server
    slots.process.log = server.log
    _flush_failures()
    sharing = _sharing()
    if sharing is None:
        if old_value is None:
            server.log.warning(
                "obskit: prometheus-client is not installed, there are no metrics; "
                "pip install prometheus-client"
            )
        return
    sharing.install()
    _begin(publication, server, sharing)


def _begin(publication: _Publication, server: Arbiter, sharing: Any) -> None:
    path = publication.options.multiproc_dir
    # raw_env is the environment too; Gunicorn applies it a little later.
    from_raw_env = server.cfg.env.get(DIRECTORY_VARIABLE)
    if from_raw_env:
        path = os.path.abspath(from_raw_env)
    if path is None:
        path = _private_path()
    keep = publication.options.metrics_keep
    sharing.begin(path, keep=keep, user=server.cfg.uid, group=server.cfg.gid)
    directory = slots.process.directory
    if directory is not None:
        if os.environ.get(DIRECTORY_VARIABLE) != directory.path:
            os.environ[DIRECTORY_VARIABLE] = _Loaded.exported = directory.path
    elif os.environ.get(DIRECTORY_VARIABLE) == _Loaded.exported:
        os.environ.pop(DIRECTORY_VARIABLE, None)


def _private_path() -> str | None:
    """Return the private directory to go on with, or ``None`` to make one."""
    process = slots.process
    if process.directory is not None and process.is_private:
        return process.directory.path
    # Handed on by the arbiter whose SIGUSR2 has started this one.
    handed = _Loaded.exported
    if handed and slots.SlotDirectory(handed).generation().get("private") is True:
        return handed
    return None


def _core_pre_fork(publication: _Publication, server: Arbiter, worker: Worker) -> None:
    _flush_failures()
    sharing = _sharing()
    if sharing is not None:
        # The arbiter is the one to notice that its directory was removed or cleaned.
        if slots.process.directory is not None:
            _begin(publication, server, sharing)
        sharing.child_exit(server, worker)


def _core_post_fork(publication: _Publication, server: Arbiter, worker: Worker) -> None:
    slots.process.role = "worker"


def _core_post_worker_init(publication: _Publication, worker: Worker) -> None:
    sharing = _sharing()
    if sharing is not None:
        sharing.take_lease(state="booted")


def _core_worker_exit(publication: _Publication, server: Arbiter, worker: Worker) -> None:
    # Gunicorn may call this in the arbiter, for a worker it could not find any more.
    if worker.pid == os.getpid():
        slots.process.note(state="leaving")


def _core_pre_exec(publication: _Publication, server: Arbiter) -> None:
    # In the child that becomes the new arbiter. It gets env_orig, a copy of the environment from
    # before the configuration file ran.
    directory = slots.process.directory
    environment = server.cfg.env_orig
    if directory is None or _Loaded.exported != directory.path:
        return
    environment[DIRECTORY_VARIABLE] = environment[EXPORTED_VARIABLE] = directory.path


def _core_on_exit(publication: _Publication, server: Arbiter) -> None:
    _flush_failures()


_CORES: dict[str, Callable[..., None]] = {
    "nworkers_changed": _core_nworkers_changed,
    "pre_fork": _core_pre_fork,
    "post_fork": _core_post_fork,
    "post_worker_init": _core_post_worker_init,
    "worker_exit": _core_worker_exit,
    "pre_exec": _core_pre_exec,
    "on_exit": _core_on_exit,
}
