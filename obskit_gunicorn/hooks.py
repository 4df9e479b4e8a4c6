"""The default hooks as plain functions, for configurations without a class.

``gunicorn -c python:obskit_gunicorn.hooks myapp:app`` needs no configuration file. In a file of
module-level names, ``from obskit_gunicorn.hooks import *`` adds the hooks that do something. If you
define one of them yourself, call the default one from it::

    from obskit_gunicorn import hooks
    from obskit_gunicorn.hooks import *

    def post_fork(server, worker):
        hooks.post_fork(server, worker)
        ...

Each function does what the hook of ``ObskitGunicornConfig`` does, which documents it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn.contract import PARAMETERS
from obskit_gunicorn._gunicorn.dispatch import ACTING
from obskit_gunicorn._gunicorn.publish import hook_function
from obskit_gunicorn.config import ObskitGunicornConfig

if TYPE_CHECKING:
    from collections.abc import Callable


class Config(ObskitGunicornConfig):
    """The configuration behind the functions of this module."""


# The hooks that do something. The others cost nothing as long as Gunicorn does not find them.
__all__ = [name for name in PARAMETERS if name in ACTING]


def __getattr__(name: str) -> Callable[..., Any]:
    # Made on demand: Gunicorn reads vars(), and must find only the hooks that do something there.
    if name not in PARAMETERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _hook(name)


@functools.cache
def _hook(name: str) -> Callable[..., Any]:
    return hook_function(Config, name)
