"""Errors and warnings of this package.

Errors are raised while Gunicorn loads its configuration, never while the server runs.
"""

from __future__ import annotations

import functools

__all__ = ["ConfigurationError", "ObskitGunicornError", "ObskitGunicornWarning"]


class ObskitGunicornError(Exception):
    """Base of every error that this package raises."""


class ConfigurationError(ObskitGunicornError, ValueError):
    """Something in a configuration is wrong; raised when it is loaded, and stops the start.

    Its text says what is wrong, the value found, what was expected, and how to fix it.

    Args:
        where: What is wrong, such as ``"Config.workers in gunicorn.conf.py"`` or
            ``"environment variable OBSKIT_METRICS_KEEP"``.
        value: The value found there.
        expected: What it must be, as the end of a sentence.
        hint: What to do about it, as a sentence.
    """

    where: str
    """What is wrong: a class attribute with its file, or an environment variable."""

    value: object
    """The value found there."""

    expected: str
    """What it must be."""

    hint: str
    """What to do about it."""

    def __init__(self, *, where: str, value: object, expected: str, hint: str) -> None:
        super().__init__(f"{where} is {value!r}; expected {expected}. {hint}")
        self.where = where
        self.value = value
        self.expected = expected
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the fields; by default an exception is created again from its text."""
        fields = {name: getattr(self, name) for name in ("where", "value", "expected", "hint")}
        return functools.partial(type(self), **fields), ()


class ObskitGunicornWarning(UserWarning):
    """Something in a configuration is probably not what was meant; the server starts.

    Its text says what, and what to do.
    """

    advice: str = ""
    """What to do about it: the end of the text."""
