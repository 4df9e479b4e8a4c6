"""Where a server's processes would share their metrics, tried with the rights of its workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from obskit_gunicorn._doctor import finding, volume
from obskit_gunicorn._doctor.apart import EndedError, apart
from obskit_gunicorn._doctor.directory import access, look_into, write_in
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import private
from obskit_gunicorn._store.directory import SlotDirectory, explain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.apart import User
    from obskit_gunicorn._doctor.finding import Finding

_PART = "directory"


def examine(path: str | None, user: User, processes: int) -> Iterator[Finding]:
    """Yield whether a server could share its metrics; leaves nothing behind.

    Args:
        path: The directory; ``None`` for a private one.
        user: The user of the workers.
        processes: How many processes there will be.
    """
    if path is None:
        yield from _private(user, processes)
        return
    cleared = volume.cleared_at_logout(path, user.uid)
    if cleared is not None:
        yield cleared
    if os.path.lexists(path):
        yield from _existing(path, user, processes)
        return
    above = os.path.dirname(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    yield finding.ok(_PART, f"{path} is not there, and made at the start")
    yield from _as_made_in(above, path, user)
    with contextlib.suppress(OSError):
        yield from volume.examine(above, processes=processes)


def _existing(path: str, user: User, processes: int) -> Iterator[Finding]:
    try:
        os.listdir(path)
        is_given = SlotDirectory(path).will_be_given(user.uid, user.gid)
    except OSError as error:
        problem = explain(error, path)
        text = f"{problem.text} ({access(path)})"
        yield finding.error(_PART, Problem(text, problem.advice))
        return
    yield from look_into(path)
    yield from volume.examine(path, processes=processes)
    if is_given:
        yield finding.ok(_PART, f"{path} is given to {user} at the start")
        yield from _as_made_in(path, path, user)
    else:
        yield from _tried(path, user)


def _tried(path: str, user: User) -> Iterator[Finding]:
    try:
        yield from apart(lambda: write_in(path, by=str(user)), user=user)
    except EndedError as error:
        text = f"{path} cannot be tried as {user}: {error}"
        yield finding.error(_PART, Problem(text, "see that this process may become that user"))


def _as_made_in(above: str, path: str, user: User) -> Iterator[Finding]:
    """Try what the server does to make a directory, in another one beside it."""
    try:
        trial = tempfile.mkdtemp(prefix=".check-", dir=above)
    except OSError as error:
        error.filename = path
        problem = explain(error, path)
        text = f"{problem.text} ({access(above)})"
        yield finding.error(_PART, Problem(text, problem.advice))
        return
    try:
        if user.is_other:
            os.chown(trial, user.uid, user.gid)
        for each in _tried(trial, user):
            yield each._replace(text=each.text.replace(trial, path))
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _private(user: User, processes: int) -> Iterator[Finding]:
    """Yield about the first place where a private directory can be made."""
    refused: list[Finding] = []
    for place in private.places(user.uid):
        if not (os.path.isabs(place) and os.access(place, os.W_OK | os.X_OK)):
            continue
        found = list(_tried(place, user))
        if any(each.is_problem for each in found):
            refused += found
            continue
        yield finding.ok(_PART, f"a private directory in {place} is made at the start")
        yield from found
        yield from volume.examine(place, processes=processes)
        cleared = volume.cleared_at_logout(place, user.uid)
        if cleared is not None:
            yield cleared
        return
    if refused:
        yield from refused
        return
    yield finding.error(_PART, private.why_not(private.NoPlaceError(), user.uid))
