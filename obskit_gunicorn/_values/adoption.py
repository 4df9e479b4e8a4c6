"""Taking over metrics whose values are not ours.

They were created before the value class was installed, or after other code had replaced it. Their
values are prometheus_client's own. Each metric creates its values again, which are then ours and
continue from the old numbers.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any

from prometheus_client import Gauge

from obskit_gunicorn import _prometheus
from obskit_gunicorn._store.locks import open_directory
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership


def take_over() -> list[Any]:
    """Replace prometheus_client's own values in existing metrics with ours.

    Values in files that are not named after this process stay as they are: such a file may hold
    what other processes have counted, so its numbers cannot move.

    Returns:
        The values that are left and that no scrape sees, because other code keeps them where we
        cannot find them, or because their files are elsewhere.
    """
    files = {value: _file_of(value) for value in _strays()}
    if not files:
        return []
    staying = {type(value) for value, path in files.items() if not _is_of_this_process(path)}
    for metric in filter(_prometheus.is_their_metric, gc.get_objects()):
        _take_over_metric(metric, staying)
    # Remove the files of the old values: our files continue from their numbers.
    for path in {path for value, path in files.items() if path and type(value) not in staying}:
        with contextlib.suppress(OSError):
            _remove(path)
    kinds = {type(value) for value in files} - staying
    files.clear()
    return _forget(kinds)


def names_of(strays: list[Any]) -> list[str]:
    """Return the names of the metrics that values belong to."""
    return sorted(set(map(_name_of, strays)))


def count_of(kind: type) -> int:
    """Return how many instances of a value class there are."""
    return sum(type(found) is kind for found in gc.get_objects())


def has_values_in(directory: str | None) -> bool:
    """Return whether values that are not ours are in files of a directory."""
    return any(_is_in(_file_of(value), directory) for value in _strays())


def redirect_collectors(path: str, to: str) -> None:
    """Make existing collectors of a directory read another one."""
    for found in gc.get_objects():
        if _prometheus.is_collector(found) and _prometheus.collector_path(found) == path:
            _prometheus.set_collector_path(found, to)


def _forget(kinds: set[type]) -> list[Any]:
    """Make value classes forget the values that were taken over; return those that are left."""
    for kind in kinds:
        _prometheus.kept_values(kind).clear()
    strays = _strays()
    for kind in kinds:
        # Those that other code uses must go on working, also after a fork.
        left = [value for value in strays if type(value) is kind]
        _prometheus.kept_values(kind).extend(left)
        if not left:
            _prometheus.close_files(kind)
    return [value for value in strays if type(value) in kinds or not _is_shared(value)]


def _remove(path: str) -> None:
    """Remove a file, but nothing that another user's link leads to.

    Raises:
        OSError: It cannot be removed.
    """
    directory = open_directory(os.path.dirname(os.path.abspath(path)))
    try:
        os.unlink(os.path.basename(path), dir_fd=directory)
    finally:
        os.close(directory)


def _strays() -> list[Any]:
    return list(filter(_prometheus.is_their_value, gc.get_objects()))


def _file_of(value: Any) -> str | None:
    """Return the path of a value's file; empty if it cannot be opened."""
    try:
        return _prometheus.file_of(value)
    except Exception:  # whatever their class raises in a child whose directory is gone
        return ""


def _is_of_this_process(path: str | None) -> bool:
    return path is None or path.endswith(f"_{os.getpid()}.db")


def _is_shared(value: Any) -> bool:
    """Return whether a value is in a file that scrapes read."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if membership.directory is not None:
        directory = membership.directory.path
    return _is_in(_file_of(value), directory)


def _is_in(path: str | None, directory: str | None) -> bool:
    if not path or not directory:
        return False
    return os.path.realpath(os.path.dirname(path)) == os.path.realpath(directory)


def _take_over_metric(metric: Any, staying: set[type]) -> None:
    before = dict(vars(metric))
    held = {name: value for name, value in before.items() if _holds_values(value, staying)}
    if not held or not _prometheus.make_values_anew(metric):
        return
    for name, value in before.items():
        if name not in held:
            setattr(metric, name, value)
            continue
        old = value if isinstance(value, list) else [value]
        new = getattr(metric, name)
        for theirs, ours in zip(old, new if isinstance(new, list) else [new], strict=True):
            number = theirs.get()
            if number and issubclass(type(metric), Gauge):
                ours.set(number, getattr(theirs, "_timestamp", None))
            elif number:
                ours.inc(number)  # a thread of the application may have counted in between


def _holds_values(value: object, staying: set[type]) -> bool:
    """Return whether an attribute of a metric has values that can be taken over."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(
        _prometheus.is_their_value(each) and type(each) not in staying for each in values
    )


def _name_of(value: Any) -> str:
    params = getattr(value, "_params", None)
    if params:
        return str(params[1])
    owners = {type(owner).__qualname__ for owner in gc.get_referrers(value)}
    return "a value held by " + ", ".join(sorted(owners - {"list", "frame"}) or ["nobody known"])
