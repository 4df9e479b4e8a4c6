"""The children of a metric with labels, in a dictionary that notices when some are removed.

prometheus_client's metric keeps its children by their label values, and ``remove()``,
``remove_by_labels()`` and ``clear()`` do no more than take them out: one by one, or by another
dictionary in its place. So this one is put into the metric when its first child is made, and says
what is taken out of it. Adding, finding and counting children stays what it is in any dictionary.

Whoever changes it holds the metric's lock.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn import _prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from obskit_gunicorn._prometheus import Parent

LabelValues = tuple[str, ...]

_MOST_DIVERTED = 64


class Removal(NamedTuple):
    """What was removed."""

    parent: Parent
    labels: LabelValues | None
    """The label values; ``None`` if all children were removed."""

    children: list[Any]
    """Those of them that this process had."""


class Source(NamedTuple):
    """What a dictionary of children asks and tells."""

    removed: Callable[[Removal], object]
    """Told what was removed, in the thread that removes it, which holds the metric's lock."""

    elsewhere: Callable[[Parent], Iterable[LabelValues]]
    """Asked for the label values that a metric has in other processes too."""


class Children(dict[LabelValues, Any]):
    """The children of one metric.

    Attributes:
        about: The metric.
        is_next_diverted: Whether the child that is being made has no place in the budget.
    """

    __slots__ = ("_diverted", "_parent", "_source", "about", "is_next_diverted")

    def __init__(self, parent: Any, about: Parent, source: Source) -> None:
        """Take over the children that a metric has."""
        super().__init__(_prometheus.children_of(parent))
        self._parent = weakref.ref(parent)
        self._source = source
        self._diverted: deque[LabelValues] = deque()
        self.about = about
        self.is_next_diverted = False

    def __setitem__(self, labels: LabelValues, child: Any) -> None:
        """Add a child. Of diverted ones only the newest stay; nobody can make too many."""
        super().__setitem__(labels, child)
        if self.is_next_diverted:
            self.is_next_diverted = False
            self._diverted.append(labels)
            if len(self._diverted) > _MOST_DIVERTED:
                # Whoever has kept it goes on with it; it counts where a new one would.
                super().pop(self._diverted.popleft(), None)

    def __delitem__(self, labels: LabelValues) -> None:
        """Remove a child: what ``remove()`` does."""
        child = self[labels]
        super().__delitem__(labels)
        self._source.removed(Removal(self.about, labels, [child]))

    def pop(self, labels: LabelValues, *default: Any) -> Any:
        """Remove a child: what ``remove_by_labels()`` does, also with those of other processes."""
        had = labels in self
        child = super().pop(labels, *default)
        self._source.removed(Removal(self.about, labels, [child] if had else []))
        return child

    def clear(self) -> None:
        """Remove all children."""
        children = list(self.values())
        super().clear()
        self._source.removed(Removal(self.about, None, children))

    def keys(self) -> Any:
        """Return the label values; for ``remove_by_labels()`` those of other processes too."""
        names = super().keys()
        if sys._getframe(1).f_code is not _prometheus.REMOVE_BY_LABELS:
            return names
        return [*names, *(each for each in self._source.elsewhere(self.about) if each not in self)]

    def __del__(self) -> None:
        """Notice ``clear()``, which puts another dictionary in the place of this one."""
        parent = self._parent()
        if parent is not None and _prometheus.children_of(parent) is not self:
            self._source.removed(Removal(self.about, None, list(self.values())))

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """Let copies be ordinary dictionaries."""
        return dict, (dict(self),)


def watch(parent: Any, source: Source) -> Children | None:
    """Have a metric keep its children in a dictionary that notices; the caller holds its lock.

    Args:
        parent: The metric.
        source: What is told and asked.

    Returns:
        The dictionary; ``None`` if this release of prometheus_client keeps them otherwise.
    """
    found = _prometheus.children_of(parent)
    if type(found) is Children:
        return found
    about = _prometheus.parent_of(parent)
    if type(found) is not dict or about is None:
        return None
    children = Children(parent, about, source)
    _prometheus.set_children(parent, children)
    _prometheus.allow_removal()
    return children
