"""What Infos and Enums say, kept beside the slot's metric files when it is said.

Shown is what any process has set last. Who has only made one says what it says then, as long as
nobody has set it. What this process has said is remembered, one record for each series: it is
stored as soon as there is a place for it, and again in another place when this one is lost.

Safe with threads and forks. Must not run in signal context. Nothing here raises.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.directory import explain
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._store.states import SUFFIX, Removal, Said, State, is_text
from obskit_gunicorn._values import values

if TYPE_CHECKING:
    from obskit_gunicorn._store.states import Series, StatesFile
    from obskit_gunicorn._values.cells import Store

_own: dict[Series, Said] = {}
"""What this process has said, of each series what it has said last."""

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
    _prometheus.notice_states(_made, _told, _removed)
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

    def note(store: Store | None) -> None:
        for series, said in list(_own.items()):
            if isinstance(said.what, State) and removal.removes(said.what):
                del _own[series]
                _unsaved.discard(series)
        _note(Said(math.nextafter(max(began, _last), math.inf), removal), store)

    values.use_store(note)


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

    def note(store: Store | None) -> None:
        # Asked under the lock: of two threads the last one to say something is the last one here.
        now = _prometheus.told_by(metric) or told
        labels = tuple(sorted(now.labels.items()))
        content = tuple(now.content.items())
        what = State(now.type, now.name, now.help, labels, content, is_set)
        _note(Said(max(time.time(), math.nextafter(_last, math.inf)), what), store)

    values.use_store(note)


def _note(said: Said, store: Store | None) -> None:
    """Remember a record, and store it if that is possible now; the caller holds the lock."""
    global _last  # noqa: PLW0603
    _last = said.time
    _own[said.what.series] = said
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
    for series in [series for series in _own if series[-1] is None]:
        del _own[series]


def _start_over() -> None:
    """Forget what the parent has said, in a forked child: the parent keeps it."""
    global _own, _unsaved, _saved_to, _retry_at
    _saved_to, _retry_at = None, 0.0
    if not membership.is_configuring:  # as it is in a child that daemonizes
        _own, _unsaved = {}, set()


forks.in_child("states", _start_over)
