"""What Infos and Enums say, kept beside the slot's metric files when it is said.

Shown is what any process has set last. Who has only made one says what it says then, as long as
nobody has set it. What this process has said is remembered, one record for each series: it is
stored as soon as there is a place for it, and again in another place when this one is lost.

Safe with threads and forks. Must not run in signal context. Nothing here raises.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
import weakref
from typing import TYPE_CHECKING, Any

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.admissions import OTHER
from obskit_gunicorn._store.directory import explain
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._store.states import SUFFIX, Removal, Said, State, is_text, shown_in
from obskit_gunicorn._values import values
from obskit_gunicorn._values.children import Diverted

if TYPE_CHECKING:
    from obskit_gunicorn._store.states import Series, StatesFile
    from obskit_gunicorn._values.cells import Store
    from obskit_gunicorn._values.children import LabelValues

_own: dict[Series, Said] = {}
"""What this process has said, of each series what it has said last."""

_removals: set[Series] = set()
"""Those of them that are removals."""

_diverted: weakref.WeakKeyDictionary[Any, Diverted] = weakref.WeakKeyDictionary()
"""The children without a place in the budget, by the metric that has made them."""

_unsaved: set[Series] = set()
_saved_to: StatesFile | None = None
_last = _retry_at = 0.0
_reported: set[object] = set()

_RETRY_SECONDS = 1.0


def install() -> None:
    """Notice from now on what Infos and Enums say, and look what those say that are there already.

    May be called again; then nothing happens.
    """
    if _keep in values.beside:
        return
    values.beside.append(_keep)
    _prometheus.notice_states(_made, _told, _removed, _is_shown)
    for metric in filter(_prometheus.is_state_metric, gc.get_objects()):
        _made(metric)


def _made(metric: Any) -> None:
    told = _prometheus.told_by(metric)
    if told is not None:
        _say(metric, told, is_set=_prometheus.is_told(told))


def _told(metric: Any) -> None:
    _say(metric, _prometheus.told_by(metric), is_set=True)


def _removed(metric: Any, began: float, labels: dict[str, str]) -> None:
    removal = Removal(metric._type, metric._name, tuple(sorted(labels.items())))

    about = _prometheus.parent_of(metric)
    is_of_one = about is not None and len(about.labels) == len(labels)

    def note(store: Store | None) -> None:
        one = [(*removal.series[:3], is_set) for is_set in (True, False)]
        for series in one if is_of_one else list(_own):
            said = _own.get(series)
            if said is not None and isinstance(said.what, State) and removal.removes(said.what):
                del _own[series]
                _unsaved.discard(series)
        _note(Said(math.nextafter(max(began, _last), math.inf), removal), store)

    values.use_store(note)


def _is_shown(metric: Any, labels: dict[str, str]) -> bool:
    """Return whether any process has said something of a series that is shown."""
    about, directory = _prometheus.parent_of(metric), membership.find_directory()
    if about is None or directory is None:
        return False
    series = about.kind, about.name, tuple(sorted(labels.items()))
    with contextlib.suppress(OSError):
        return any(each.series[:3] == series for each in shown_in(directory.path))
    return False


def _say(metric: Any, told: _prometheus.Told | None, *, is_set: bool) -> None:
    if told is None:
        return
    if not is_text((told.name, told.help, *told.labels.items(), *told.content.items())):
        if told.name not in _reported:
            _reported.add(told.name)
            log.warning(
                "obskit: what %s says is left out: it has characters that are not text", told.name
            )
        return
    is_diverted = bool(told.labels) and not _has_place(told)

    def note(store: Store | None) -> None:
        # Asked under the lock: of two threads the last one to say something is the last one here.
        now = _prometheus.told_by(metric) or told
        labels = tuple(sorted((n, OTHER if is_diverted else v) for n, v in now.labels.items()))
        content = tuple(now.content.items())
        what = State(now.type, now.name, now.help, labels, content, is_set)
        _note(Said(max(time.time(), math.nextafter(_last, math.inf)), what), store)

    values.use_store(note)


def _has_place(told: _prometheus.Told) -> bool:
    """Return whether a series has a place in the budget, or gets one now."""
    labels = tuple(told.labels.values())
    if values.has_place(told.name, tuple(told.labels), labels, _siblings):
        return True
    parent = _prometheus.parent_of_new_child()
    known = _prometheus.children_of(parent)
    if isinstance(known, dict):
        _diverted.setdefault(parent, Diverted()).note(labels, known)
    return False


def _siblings() -> list[LabelValues]:
    """Return the label values of the series beside the one that is made right now."""
    return list(_prometheus.children_of(_prometheus.parent_of_new_child()) or ())


def _note(said: Said, store: Store | None) -> None:
    """Remember a record, and store it if that is possible now; the caller holds the lock."""
    global _last  # noqa: PLW0603
    _last = said.time
    _own[said.what.series] = said
    if isinstance(said.what, Removal):
        _removals.add(said.what.series)
    _unsaved.add(said.what.series)
    if store is not None:
        _keep(store)


def _keep(store: Store) -> None:
    """Store what is not stored where readers find it; the caller holds the lock."""
    global _saved_to, _retry_at  # noqa: PLW0603
    if not _own or (not _unsaved and store.states is _saved_to is not None):
        return
    if _retry_at and time.monotonic() < _retry_at:
        return
    path = store.lease.path_beside(SUFFIX)
    try:
        file = store.states
        if file is None:
            file = store.open_states()
            if file.replaced is not None:
                line = f"obskit: {path} was damaged ({file.replaced}); made anew"
                values.note_later(logging.ERROR, line)
        if file is not _saved_to:
            _unsaved.update(_own)
        file.put(_own[series] for series in list(_unsaved) if series in _own)
    except OSError as error:
        _retry_at = time.monotonic() + _RETRY_SECONDS
        store.keep_beside()  # if somebody has closed or removed the file, it is opened again
        if error.errno not in _reported:
            _reported.add(error.errno)
            values.note_later(
                logging.ERROR,
                "obskit: what Infos and Enums of this process say is not shown for now: "
                f"{explain(error, path)}",
            )
        return
    _saved_to, _retry_at = file, 0.0
    _unsaved.clear()
    _forget_removals()


def _forget_removals() -> None:
    """Forget removals that are stored: what they remove is not said here again."""
    for series in _removals:
        _own.pop(series, None)
    _removals.clear()


def _start_over() -> None:
    """Forget what the parent has said, in a forked child: the parent keeps it."""
    global _own, _unsaved, _saved_to, _retry_at
    _saved_to, _retry_at = None, 0.0
    if not membership.is_configuring:  # as it is in a child that daemonizes
        _own, _unsaved = {}, set()
        _removals.clear()


forks.in_child("states", _start_over)
