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

import sys
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._version import __version__
from obskit_gunicorn.config import HookEvent
from obskit_gunicorn.errors import (
    ConfigurationError,
    ObskitGunicornError,
    ObskitGunicornWarning,
)

if TYPE_CHECKING:
    from obskit_gunicorn._gunicorn.publish import adopt, as_options, expose
    from obskit_gunicorn.config import ObskitGunicornConfig
    from obskit_gunicorn.multiprocess import (
        MultiProcessCollector,
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
    from obskit_gunicorn.multiprocess import (
        child_exit as child_exit,
    )

__all__ = [
    "ConfigurationError",
    "HookEvent",
    "MultiProcessCollector",
    "ObskitGunicornConfig",
    "ObskitGunicornError",
    "ObskitGunicornWarning",
    "__version__",
    "adopt",
    "as_options",
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

# child_exit is not in __all__: Gunicorn would take it for a hook of the file that has imported it
# with a star.
_LAZY = {
    "ObskitGunicornConfig": "config",
    "adopt": "_gunicorn.publish",
    "as_options": "_gunicorn.publish",
    "child_exit": "multiprocess",
    "expose": "_gunicorn.publish",
}


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_LAZY.get(name, 'multiprocess')}")
    value = getattr(module, name)
    if name == "ObskitGunicornConfig":
        # Not kept in vars(): a file that imports the class and never derives from it is told so.
        from obskit_gunicorn._gunicorn.publish import watch_importers

        watch_importers(sys._getframe(1))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})
