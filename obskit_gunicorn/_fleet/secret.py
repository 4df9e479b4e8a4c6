"""Secrets from the environment: in a variable, or in a file that a variable names."""

from __future__ import annotations

import os

_MOST_BYTES = 64 * 1024


def secret(name: str) -> str | None:
    """Return the secret in the variable ``NAME``, or in the file that ``NAME_FILE`` names.

    Read anew at each call, because secrets rotate. White space around what a file holds is not part
    of the secret; an empty variable counts as none. The secret is in no error.

    Args:
        name: The variable, as in ``OBSKIT_METRICS_PUSH_TOKEN``.

    Returns:
        The secret, or ``None`` if neither variable is set.

    Raises:
        ValueError: Both are set, or the file cannot be read, or holds no text. Says so in words.
    """
    value = os.environ.get(name)
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return value or None
    if value:
        raise ValueError(f"{name} and {name}_FILE are both set: unset one of them")
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        problem = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}_FILE: {path} cannot be read: {problem}") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{name}_FILE: {path} is too long for a secret")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        # Not chained: the original error holds the secret.
        raise ValueError(f"{name}_FILE: {path} is not UTF-8 text") from None
    if not text:
        raise ValueError(f"{name}_FILE: {path} is empty")
    return text
