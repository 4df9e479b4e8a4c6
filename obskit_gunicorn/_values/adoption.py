"""Taking over metrics that were created before the value class was installed.

Their values are prometheus_client's own. Each metric creates its values again, which are then ours
and continue from the old numbers. Runs once in each process, when sharing begins.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any

from obskit_gunicorn import _prometheus
from obskit_gunicorn._store.locks import open_directory
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE


def take_over() -> list[str]:
    """Replace prometheus_client's own values in existing metrics with ours.

    Returns:
        The names of the metrics that could not be taken over, because other code keeps their values
        where we cannot find them.
    """
    if not _strays():
        return []
    for metric in filter(_prometheus.is_their_metric, gc.get_objects()):
        _take_over_metric(metric)
    # Remove the files of the old values: our files continue from their numbers.
    _prometheus.close_their_files()
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        with contextlib.suppress(OSError):
            _remove_own_files(os.path.abspath(directory))
    return sorted(set(map(_name_of, _strays())))


def _remove_own_files(directory: str) -> None:
    """Remove the files that carry this process's pid, and nothing that a link leads to."""
    opened = open_directory(directory)
    try:
        for name in os.listdir(directory):
            if name.endswith(f"_{os.getpid()}.db"):
                os.unlink(name, dir_fd=opened)
    finally:
        os.close(opened)


def _strays() -> list[Any]:
    return list(filter(_prometheus.is_their_value, gc.get_objects()))


def _take_over_metric(metric: Any) -> None:
    before = dict(vars(metric))
    held = {name: value for name, value in before.items() if _holds_their_values(value)}
    if not held or not _prometheus.make_values_anew(metric):
        return
    for name, value in before.items():
        if name not in held:
            setattr(metric, name, value)
            continue
        old = value if isinstance(value, list) else [value]
        new = getattr(metric, name)
        for theirs, ours in zip(old, new if isinstance(new, list) else [new], strict=True):
            if theirs.get():
                ours.set(theirs.get(), getattr(theirs, "_timestamp", None))


def _holds_their_values(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_prometheus.is_their_value, value))
    return _prometheus.is_their_value(value)


def _name_of(value: Any) -> str:
    params = getattr(value, "_params", None)
    if params:
        return str(params[1])
    owners = {type(owner).__qualname__ for owner in gc.get_referrers(value)}
    return "a value held by " + ", ".join(sorted(owners - {"list", "frame"}) or ["nobody known"])
