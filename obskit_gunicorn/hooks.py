"""The default hooks by name, for configuration files without a class.

``gunicorn -c python:obskit_gunicorn.hooks myapp:app`` needs no configuration file. In a file of
module-level names, one name imported from here is enough::

    from obskit_gunicorn.hooks import when_ready

    def post_fork(server, worker):
        ...

When Gunicorn asks for the names of the file, its functions become the hooks of a configuration, and
all that ``ObskitGunicornConfig`` does is done before each of them. So a function of this module has
nothing to do when it is called. If the file was not recognised when it was loaded, one line in the
error log says so, and that :func:`obskit_gunicorn.adopt` is the way out.

Names that begin with ``default_``, and ``redis_when_ready``, are those of
gunicorn-prometheus-exporter. What brings many hosts together is the option ``metrics_redis``;
``redis_when_ready`` does what ``when_ready`` does, and a line says so if the option is not set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import functions, publish
from obskit_gunicorn._gunicorn.contract import PARAMETERS
from obskit_gunicorn._gunicorn.dispatch import ACTING
from obskit_gunicorn.config import ObskitGunicornConfig

if TYPE_CHECKING:
    from collections.abc import Callable


class Config(ObskitGunicornConfig):
    """What ``-c python:obskit_gunicorn.hooks`` runs."""


# The hooks that do something. The others cost nothing as long as Gunicorn does not find them.
__all__ = [name for name in PARAMETERS if name in ACTING]

# For `from obskit_gunicorn import hooks`.
publish.watch_imports_of(__name__)


def __getattr__(name: str) -> Callable[..., Any]:
    # Nothing of this is kept in vars(): each import must come here, for the importing module to be
    # seen, and Gunicorn reads vars() where this module is the configuration.
    hook = functions.OTHER_NAMES.get(name, name)
    if hook not in functions.HOOKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functions.HOOKS[hook]
