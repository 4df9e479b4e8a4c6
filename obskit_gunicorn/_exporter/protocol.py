"""What arbiter, workers and exporter say to each other.

An exporter is started with one :class:`Order`. Its standard input is one end of a pair of sockets;
the arbiter holds the other one, and so does every worker, by fork. Single bytes go through it; its
end of file says that the last of them has ended.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, NamedTuple

STOP = b"s"
"""Arbiter to exporter: finish what you answer, and end."""

BOOTED = b"b"
"""Worker to exporter: I serve, but could get no lease which shows that. The exporter passes it on
to the arbiter, for the exporter after this one."""

LISTENING = b"l"
"""Exporter to arbiter, with a descriptor: the address that was taken is free, I listen there."""

HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"


class Options(SimpleNamespace):
    """Checked options, each under the name that it has as an attribute of the class.

    Which there are, and what each can be, is said by the rows of
    :data:`obskit_gunicorn._gunicorn.options.OPTIONS`.
    """

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no option {name}")


class Order(NamedTuple):
    """What an exporter is told when it is started."""

    options: Options
    """What it serves, and where."""

    directory: str | None
    """The multiprocess directory; ``None`` if there is none to be had."""

    errorlog: str | None
    """The file that Gunicorn logs to; ``None`` for the standard error."""

    sys_path: list[str]
    """The arbiter's."""

    listener: int | None
    """The descriptor of the listening socket; ``None`` while the address is taken."""

    has_booted: bool
    """Whether a worker without a lease has said that it serves."""

    def to_json(self, **more: object) -> str:
        """Return the order as text, with what the start of the interpreter needs beside it."""
        order = {**self._asdict(), "options": vars(self.options)}
        return json.dumps({"order": order, **more})

    @classmethod
    def from_dict(cls, order: dict[str, Any]) -> Order:
        """Return the order that was sent as text."""
        return cls(**{**order, "options": Options(**order["options"])})
