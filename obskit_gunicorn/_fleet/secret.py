"""Secrets from the environment: in a variable, or in a file that a variable names."""

from __future__ import annotations

import base64
import os
import re

NAMES = (
    "OBSKIT_METRICS_PUSH_PASSWORD",
    "OBSKIT_METRICS_PUSH_TOKEN",
    "OBSKIT_METRICS_PUSH_USER",
    "OBSKIT_METRICS_REDIS_PASSWORD",
    "OBSKIT_METRICS_REDIS_SENTINEL_PASSWORD",
)
"""Every secret that there is."""

VARIABLES = tuple(name + suffix for name in NAMES for suffix in ("", "_FILE"))
"""The variables of the secrets. No option reads them: only the exporter does, when it needs one."""

_MOST_BYTES = 64 * 1024
_PRINTABLE = re.compile(r"[!-~]+")


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


def authorisation(prefix: str) -> tuple[str, tuple[str, ...]]:
    """Return the header ``Authorization`` for the secrets in the environment.

    They are a token in ``PREFIX_TOKEN``, or a user and a password in ``PREFIX_USER`` and
    ``PREFIX_PASSWORD``; see :func:`secret`.

    Args:
        prefix: What the variables begin with, as in ``OBSKIT_METRICS_PUSH``.

    Returns:
        The header's value, empty if there is no secret; and what must not be shown.

    Raises:
        ValueError: They cannot be used. Says so in words.
    """
    names = [f"{prefix}_{end}" for end in ("TOKEN", "USER", "PASSWORD")]
    token, user, password = map(secret, names)
    token_name, user_name, password_name = names
    if token is not None:
        if user is not None or password is not None:
            raise ValueError(f"{token_name} and {user_name} are both set: unset one of them")
        if not _PRINTABLE.fullmatch(token):
            raise ValueError(f"{token_name} holds characters that no token has: set it anew")
        return f"Bearer {token}", (token,)
    if user is None and password is None:
        return "", ()
    if user is None or password is None:
        raise ValueError(f"{user_name} and {password_name} belong together: set both, or none")
    if ":" in user:
        raise ValueError(f"{user_name} has a colon, which no user of HTTP may have")
    both = base64.b64encode(f"{user}:{password}".encode(errors="surrogateescape")).decode()
    return f"Basic {both}", (password, both)
