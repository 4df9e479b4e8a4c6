"""One correct, cheap ``/metrics`` for all workers of a Gunicorn server.

In ``gunicorn.conf.py``::

    from obskit_gunicorn import ObskitGunicornConfig

    class Config(ObskitGunicornConfig):
        bind = "0.0.0.0:8000"
        workers = 4

Importing this package loads neither prometheus_client nor Gunicorn. The names of
:mod:`obskit_gunicorn.multiprocess` are loaded at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obskit_gunicorn._version import __version__
from obskit_gunicorn.config import HookEvent, ObskitGunicornConfig
from obskit_gunicorn.errors import (
    ConfigurationError,
    ObskitGunicornError,
    ObskitGunicornWarning,
)

if TYPE_CHECKING:
    from obskit_gunicorn._gunicorn.publish import as_options, expose
    from obskit_gunicorn.multiprocess import (
        MultiProcessCollector,
        child_exit,
        generate_latest,
        is_multiprocess_mode,
        make_asgi_app,
        make_multiprocess_app,
        make_wsgi_app,
        mark_process_dead,
        replace_collector,
        replace_registry,
        setup_multiprocess_registry,
    )

__all__ = [
    "ConfigurationError",
    "HookEvent",
    "MultiProcessCollector",
    "ObskitGunicornConfig",
    "ObskitGunicornError",
    "ObskitGunicornWarning",
    "__version__",
    "as_options",
    "child_exit",
    "expose",
    "generate_latest",
    "is_multiprocess_mode",
    "make_asgi_app",
    "make_multiprocess_app",
    "make_wsgi_app",
    "mark_process_dead",
    "replace_collector",
    "replace_registry",
    "setup_multiprocess_registry",
]

_LAZY = {"as_options": "_gunicorn.publish", "expose": "_gunicorn.publish"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_LAZY.get(name, 'multiprocess')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
