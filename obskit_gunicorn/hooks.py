"""The default hooks as plain functions, for those who write no class.

``gunicorn -c python:obskit_gunicorn.hooks myapp:app`` needs no configuration file. In a file of
module-level names, ``from obskit_gunicorn.hooks import *`` adds those that do something; a hook of
your own then calls the one it replaces::

    from obskit_gunicorn import hooks
    from obskit_gunicorn.hooks import *

    def post_fork(server, worker):
        hooks.post_fork(server, worker)
        ...

Each is the published function of a class that overrides nothing: it does what
``ObskitGunicornConfig`` does, and is documented there.
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


# Those that do something; the others cost nothing as long as Gunicorn does not find them.
__all__ = [name for name in PARAMETERS if name in ACTING]


def __getattr__(name: str) -> Callable[..., Any]:
    # Made when they are asked for, so that Gunicorn finds in vars() only those that do something.
    if name not in PARAMETERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _hook(name)


@functools.cache
def _hook(name: str) -> Callable[..., Any]:
    return hook_function(Config, name)
