"""Where the exporter's lines go: where Gunicorn's own go.

The arbiter describes Gunicorn's settings for its log, and the exporter makes the same logger from
them. With plain settings that is a file or the standard error, in Gunicorn's format. With others it
is Gunicorn's logger itself, which is imported when there is something to log.
"""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = ("capture_output", "errorlog", "loglevel", "proc_name")
_OTHERS = (
    "logconfig",
    "logconfig_dict",
    "logconfig_json",
    "logger_class",
    "syslog",
    "syslog_addr",
    "syslog_facility",
    "syslog_prefix",
)
_PATHS = ("errorlog", "logconfig", "logconfig_json")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_STALLED_SECONDS = 1.0


def settings_of(settings: Any) -> tuple[dict[str, Any], list[str]]:
    """Describe Gunicorn's log to an exporter; runs in the arbiter.

    Args:
        settings: Gunicorn's settings.

    Returns:
        The settings that differ from their defaults, as values that JSON has; and the names of
        those that exist only in this process, such as a class that the configuration file defines.
    """
    found, lost = {}, []
    for name in (*_PLAIN, *_OTHERS):
        setting = settings.settings.get(name)
        value = None if setting is None else setting.get()
        if setting is None or value == setting.default:
            continue
        if name in _PATHS and isinstance(value, str) and value != "-":
            value = os.path.abspath(value)
        try:
            found[name] = json.loads(json.dumps(value, default=_reference))
        except (TypeError, ValueError, RecursionError):
            lost.append(name)
    return found, lost


def _reference(value: Any) -> str:
    """Return the name of a class or a function, as ``dictConfig`` takes it.

    Raises:
        TypeError: It cannot be imported by a name.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    is_there = getattr(sys.modules.get(str(module)), name, None) is value
    # Gunicorn calls the module of the configuration file so, and nobody can import it by that name.
    if module in ("__main__", "__config__") or not is_there:
        raise TypeError
    return f"ext://{module}.{name}"


def log_to(settings: Mapping[str, Any]) -> None:
    """Log to Gunicorn's log; to the standard error if that is impossible.

    Args:
        settings: The result of :func:`settings_of`; empty for the standard error.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, _patient(number))
    logger = logging.getLogger("obskit_gunicorn")
    handler = _plain_handler(settings.get("errorlog"))
    if not settings.keys() <= set(_PLAIN):
        handler = _GunicornHandler(settings, handler)
    logger.addHandler(handler)
    level = str(settings.get("loglevel")).upper()
    logger.setLevel(level if level in _LEVELS else logging.INFO)
    logger.propagate = False


class _Patient(io.FileIO):
    """A standard stream that may not block: it is shared with the arbiter, whose mode it has."""

    def write(self, data: Any) -> int:
        """Write, and wait a moment for a slow reader; what it does not take then is lost."""
        written = super().write(data)
        if written is None:
            poll = select.poll()
            poll.register(self, select.POLLOUT)
            poll.poll(_STALLED_SECONDS * 1000)
            written = super().write(data)
        return len(data) if written is None else written


def _patient(number: int) -> io.TextIOWrapper:
    """Return a standard stream; ``/dev/null`` if it is closed."""
    try:
        os.fstat(number)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    raw = _Patient(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)


def _plain_handler(path: str | None) -> logging.Handler:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        from logging.handlers import WatchedFileHandler  # half a megabyte, and seldom needed

        class LogFile(WatchedFileHandler):
            """Checks the file before each line, so that it follows a rotation."""

            def emit(self, record: logging.LogRecord) -> None:
                try:
                    super().emit(record)
                except OSError:  # the new file is not writable for this user
                    self.handleError(record)

        try:
            handler = LogFile(path)
        except OSError as error:
            print(f"obskit exporter: cannot log to {path}: {error}", file=sys.stderr)
    handler.setFormatter(
        logging.Formatter(
            "[%(asctime)s] [%(process)d] [%(levelname)s] obskit exporter: %(message)s",
            "%Y-%m-%d %H:%M:%S %z",
        )
    )
    return handler


class _GunicornHandler(logging.Handler):
    """Passes lines to Gunicorn's logger, which is made for the first one."""

    def __init__(self, settings: Mapping[str, Any], plain: logging.Handler) -> None:
        """Note how to make the logger.

        Args:
            settings: The result of :func:`settings_of`.
            plain: Takes the lines if the logger cannot be made or fails.
        """
        super().__init__()
        self._settings = settings
        self._plain = plain
        self._target: Any = None
        self._problem = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a line."""
        try:
            if self._target is None:
                self._target = self._made()
            if _has_moved():
                self._target.reopen_files()
            write = getattr(self._target, record.levelname.lower())
            write("obskit exporter: %s", record.getMessage(), exc_info=record.exc_info)
        except Exception as error:  # it is the application's
            if repr(error) != self._problem:
                self._problem = repr(error)
                text = f"obskit exporter: Gunicorn's log cannot be used here: {error!r}"
                print(text, file=sys.stderr)
            self._plain.handle(record)

    def _made(self) -> Any:
        from gunicorn.config import Config

        config = Config()
        for name, value in self._settings.items():
            is_class = name == "logger_class"
            config.set(name, value.removeprefix("ext://") if is_class else value)
        target = config.logger_class(config)
        logging.getLogger("obskit_gunicorn").disabled = False  # dictConfig disables what it can
        return target


def _has_moved() -> bool:
    """Return whether a file that is logged to was rotated away; nobody sends us a SIGUSR1."""
    for logger in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                try:
                    there = os.stat(handler.baseFilename)
                except OSError:
                    return True
                if not os.path.samestat(there, os.fstat(handler.stream.fileno())):
                    return True
    return False
