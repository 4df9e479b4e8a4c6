"""Noticing when children of a metric with labels are removed.

``remove()``, ``remove_by_labels()`` and ``clear()`` of a metric take children out of its dictionary
and no more. So a metric gets methods of its own with these names when its first child is made: they
call those of its class, and say what was removed. The dictionary stays an ordinary one, because any
other is slower at each ``labels()``; the classes of prometheus_client stay what they are.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn import _prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from obskit_gunicorn._prometheus import Parent

LabelValues = tuple[str, ...]

_MOST_DIVERTED = 64


class Removal(NamedTuple):
    """What was removed."""

    parent: Parent
    labels: Collection[LabelValues] | None
    """The label values; ``None`` if all children were removed."""

    children: list[Any]
    """Those of them that this process had."""


class Source(NamedTuple):
    """Whom the children of a metric ask and tell."""

    removed: Callable[[Removal], bool]
    """Told what was removed; returns whether any process had it."""

    elsewhere: Callable[[Parent], Iterable[LabelValues]]
    """Asked for the label values that a metric has in other processes too."""


class Diverted:
    """Children of one metric that have no place in a budget: it keeps only the newest of them.

    So nobody can make too many. Whoever has kept another one goes on with it: it counts where a new
    one would.
    """

    def __init__(self) -> None:
        """Know of none yet."""
        self._labels: deque[LabelValues] = deque()

    def note(self, labels: LabelValues, known: dict[LabelValues, Any]) -> None:
        """Note that one is made; the caller holds the metric's lock.

        Args:
            labels: Its label values.
            known: The children of the metric, from which the oldest goes.
        """
        if self._labels and self._labels[-1] == labels:
            return  # another value of the same child
        self._labels.append(labels)
        if len(self._labels) > _MOST_DIVERTED:
            known.pop(self._labels.popleft(), None)


class Children:
    """The children of one metric.

    Attributes:
        about: The metric.
    """

    def __init__(self, parent: Any, about: Parent, source: Source) -> None:
        """Notice what is removed of a metric; the caller holds its lock."""
        self.about = about
        self._parent = weakref.ref(parent)
        self._source = source
        self._diverted = Diverted()
        for name in ("remove", "remove_by_labels", "clear"):
            if hasattr(parent, name):
                setattr(parent, name, getattr(self, name))

    @property
    def _known(self) -> dict[LabelValues, Any]:
        found: dict[LabelValues, Any] = _prometheus.children_of(self._parent())
        return found

    def names(self) -> list[LabelValues]:
        """Return the label values of those that this process has; the caller holds the lock."""
        return list(self._known)

    def remove(self, *labelvalues: Any) -> None:
        """Remove the child with these label values, in all processes.

        Raises:
            ValueError: There are too many or too few.
            KeyError: No process has it, and this release of prometheus_client says so.
        """
        parent: Any = self._parent()
        labels = tuple(map(str, labelvalues))
        child = self._known.get(labels)
        missing: KeyError | None = None
        try:
            type(parent).remove(parent, *labelvalues)
        except KeyError as error:
            missing = error
        had = [] if child is None else [child]
        if not self._source.removed(Removal(self.about, [labels], had)) and missing is not None:
            raise missing

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove all children that have some labels, in all processes.

        Raises:
            TypeError: It is no dictionary.
            ValueError: A label is unknown.
        """
        parent: Any = self._parent()
        before = dict(self._known)
        type(parent).remove_by_labels(parent, labels)
        wanted = {self.about.labels.index(name): str(value) for name, value in labels.items()}
        if not wanted:
            return
        names = dict.fromkeys([*before, *self._source.elsewhere(self.about)])
        removed = [each for each in names if all(each[at] == value for at, value in wanted.items())]
        children = [before[each] for each in removed if each in before]
        self._source.removed(Removal(self.about, removed, children))

    def clear(self) -> None:
        """Remove all children, in all processes."""
        parent: Any = self._parent()
        before = list(self._known.values())
        type(parent).clear(parent)
        self._source.removed(Removal(self.about, None, before))

    def divert(self, labels: LabelValues) -> None:
        """Note that a child is made that has no place; the caller holds the metric's lock."""
        self._diverted.note(labels, self._known)


def watch(parent: Any, source: Source) -> Children | None:
    """Notice from now on what is removed of a metric; the caller holds its lock.

    Args:
        parent: The metric.
        source: Who is told and asked.

    Returns:
        Its children; ``None`` if this release of prometheus_client keeps them otherwise.
    """
    # Not by vars(): since Python 3.11 its attributes would be slower from then on.
    known = getattr(getattr(parent, "clear", None), "__self__", None)
    if isinstance(known, Children):
        return known
    about = _prometheus.parent_of(parent)
    if about is None or not isinstance(_prometheus.children_of(parent), dict):
        return None
    _prometheus.allow_removal()
    return Children(parent, about, source)
