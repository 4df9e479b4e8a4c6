"""The messages between arbiter, workers and exporter.

An exporter is started with one :class:`Order`. Its standard input is one end of a pair of sockets.
The arbiter holds the other end, and so does every worker, because it is forked. Messages are single
bytes; the end of file means that the last of these processes has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STOP = b"s"
"""Arbiter, or the next exporter, to exporter: finish the answers that are under way, then end."""

BOOTED = b"b"
"""Worker to exporter: I serve, but could get no lease that shows it. The exporter passes it on to
the arbiter, for the next exporter."""

LISTENING = b"l"
"""Exporter to arbiter, with a descriptor: the address is free now, and I listen there."""

LOST = b"d"
"""Exporter to arbiter: your directory was taken away. It wakes the arbiter, like every message."""

MOVED = b"m"
"""Arbiter to exporter, with a path and a zero byte behind it: I go on in this directory."""

SERVING = b"r"
"""Exporter to arbiter: I serve. One that ends without having said so could not be started."""

HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"
STATUS_PATH = "/-/status"
SCRIPT_PATH = "/-/page.js"
STYLE_PATH = "/-/page.css"


NOT_AUTHORISED = "Not authorised"
"""What the body of a 401 begins with."""

SECRET_FILES = ("metrics_bearer_token_file", "metrics_auth_file")
"""The options that name files of who may ask. Root may have them for itself alone."""


class Options(SimpleNamespace):
    """Checked options, each under its name as an attribute of the class.

    The rows of :data:`obskit_gunicorn._gunicorn.options.OPTIONS` say which options there are. Those
    below are missing where an arbiter of an older release has started the exporter.
    """

    metrics_page: bool = True
    metrics_bearer_token_file: str | None = None
    metrics_auth_file: str | None = None
    metrics_auth_probes: bool = False
    metrics_redis: str | None = None
    metrics_push: str | None = None


class Order(NamedTuple):
    """What an exporter is told when it is started."""

    options: Options
    """What to serve, and where."""

    directory: str | None
    """The multiprocess directory; ``None`` if there is none."""

    logging: Mapping[str, Any] = MappingProxyType({})
    """Gunicorn's settings for its log, see :func:`obskit_gunicorn._exporter.logs.settings_of`."""

    version: str = __version__
    """The arbiter's release of this package; a deployment may have changed the exporter's."""

    ended: str = ""
    """How the exporter before this one has ended, if it did so by itself and that is to be said."""

    sys_path: Sequence[str] = ()
    """The arbiter's."""

    listener: int | None = None
    """The descriptor of the listening socket; ``None`` while the address is taken."""

    predecessor: int | None = None
    """The descriptor of the arbiter's end of another exporter's socket: tell it to stop when this
    one serves. Not left to the arbiter, whose handler of SIGCHLD an application may replace."""

    has_booted: bool = False
    """Whether a worker without a lease has reported that it serves."""

    secrets: Sequence[tuple[int, ...]] = ()
    """What changes with the files of :data:`SECRET_FILES`, where only the arbiter may read them."""

    descriptors: Mapping[str, int] = MappingProxyType({})
    """Those files, opened by the arbiter: descriptors by option."""

    def facts(self) -> dict[str, object]:
        """Return what the arbiter records for who wants to know where the exporter serves."""
        return {
            "address": self.options.metrics_bind,
            "path": self.options.metrics_path,
            "directory": self.directory,
            "tls": bool(self.options.metrics_certfile),
            "client_certificates": bool(self.options.metrics_ca_certs),
            "authorisation": any(getattr(self.options, name) for name in SECRET_FILES),
            "network": network(),
        }

    def to_json(self, **more: object) -> str:
        """Return the order as text, together with what the start of the interpreter needs."""
        order = self._asdict() | {
            "options": vars(self.options),
            "logging": dict(self.logging),
            "descriptors": dict(self.descriptors),
        }
        del order["secrets"]
        return json.dumps({"order": order, **more})

    @classmethod
    def from_dict(cls, order: dict[str, Any]) -> Order:
        """Return the order from what :meth:`to_json` has written, perhaps in another release.

        What this release does not know is left out, and what the other one did not know has its
        default.
        """
        known = {name: order[name] for name in cls._fields if name in order}
        return cls(**{**known, "options": Options(**order["options"])})


def network() -> str | None:
    """Return what tells the network of this process from that of another container, if known."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/net")
    return None
