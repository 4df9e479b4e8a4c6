"""The contract between configuration classes and Gunicorn: the hooks, and their base class.

Does not import :mod:`obskit_gunicorn.config`. A configuration class is recognised by its base class
:class:`Configuration`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from obskit_gunicorn.errors import ConfigurationError

if TYPE_CHECKING:
    from obskit_gunicorn._exporter.protocol import Options

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
"""Every server hook of every supported Gunicorn, with its parameters."""

CONTAINED = frozenset(
    {"child_exit", "worker_exit", "nworkers_changed", "on_reload", "pre_exec", "on_exit"}
)
"""Hooks in which an exception is logged and counted, and a running server continues."""


class HookEvent(NamedTuple):
    """One run of a server hook, as handed to ``hook_event``; immutable."""

    name: Literal["hook_success", "hook_failure"]
    """``"hook_failure"`` if the hook raised an exception, else ``"hook_success"``."""

    hook: str
    """The hook that ran, such as ``"child_exit"``."""

    time: float
    """When it was called, in seconds since the Unix epoch."""

    duration_seconds: float
    """How long it took."""

    pid: int
    """The process in which it ran."""

    error: BaseException | None
    """What it raised; ``None`` if it raised nothing."""


class Configuration:
    """The base of the public base class of all configurations, and of nothing else."""

    def hook_event(self, event: HookEvent) -> None:
        """Receive every run of a hook; see :class:`obskit_gunicorn.ObskitGunicornConfig`."""


class FileOfFunctions:
    """Marks a class that was made of a configuration file which has none."""


class Publication(NamedTuple):
    """One configuration as Gunicorn gets it; each SIGHUP makes a new one."""

    config: Configuration
    """An instance of the user's class."""

    source: str
    """The file of the class, for messages."""

    options: Options
    """Our options, checked."""

    @property
    def class_name(self) -> str:
        """The name of the user's class."""
        return type(self.config).__name__

    @property
    def is_file(self) -> bool:
        """Whether the class was made of a file of functions, which knows nothing of a class."""
        return isinstance(self.config, FileOfFunctions)

    def name_of(self, name: str) -> str:
        """Return what the user calls an attribute of the class."""
        return name if self.is_file else f"{self.class_name}.{name}"

    def where(self, name: str) -> str:
        """Return how to name an attribute of the class in an error."""
        return f"{self.name_of(name)} in {self.source}"

    def parameters(self, name: str) -> str:
        """Return the parameters of a hook as the user writes them."""
        own = PARAMETERS[name] if self.is_file else ("self", *PARAMETERS[name])
        return f"({', '.join(own)})"

    def wrong(self, name: str, value: object, expected: str, hint: str) -> ConfigurationError:
        """Return the error that says what is wrong with an attribute of the class."""
        return ConfigurationError(where=self.where(name), value=value, expected=expected, hint=hint)


def is_configuration(value: object) -> bool:
    """Return whether something is a user's configuration class."""
    return (
        isinstance(value, type)
        and issubclass(value, Configuration)
        and Configuration not in (value, *value.__bases__)
    )


def public_class() -> type[Configuration]:
    """Return the class that users derive from: the one subclass of :class:`Configuration`."""
    return Configuration.__subclasses__()[0]


def base_class(config: type[Configuration]) -> type[Configuration]:
    """Return the class that the user's configuration classes derive from."""
    lineage = config.__mro__
    base: type[Configuration] = lineage[lineage.index(Configuration) - 1]
    return base


def overrides(config: Configuration, name: str) -> bool:
    """Return whether a configuration, its class or the instance, replaces a method of the base."""
    import inspect  # heavy; and `import obskit_gunicorn` loads this module

    base = vars(base_class(type(config)))[name]
    return inspect.getattr_static(config, name) is not base
