"""What the Infos and Enums of a directory say: of each series what any process has set last.

A directory without any costs a look at the names of its files; otherwise a scrape costs one look at
each file of states. Families are made and rendered only when something else is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from obskit_gunicorn._scrape import families
from obskit_gunicorn._scrape.beside import FilesBeside
from obskit_gunicorn._scrape.blocks import Block
from obskit_gunicorn._store.fileformat import Damage
from obskit_gunicorn._store.states import SUFFIX, StatesReader, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from obskit_gunicorn._scrape.formats import Format
    from obskit_gunicorn._store.states import State


class Stated:
    """What is shown of all that was said. Never changed.

    Attributes:
        metrics: The families.
    """

    def __init__(self, metrics: list[Metric]) -> None:
        """Keep families."""
        self.metrics = metrics
        self._blocks: dict[str, Block] = {}

    def block(self, format_: Format) -> Block:
        """Return the text of the families in a format."""
        block = self._blocks.get(format_.name)
        if block is None:
            block = self._blocks[format_.name] = Block(format_.render(self.metrics))
        return block


NOTHING = Stated([])


class States:
    """Reads what the Infos and Enums of a directory say, scrape after scrape. Not thread-safe."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._files = FilesBeside(SUFFIX, StatesReader)
        self._states: list[State] = []
        self._taken: frozenset[str] = frozenset()
        self._stated = NOTHING
        self._unshown: dict[str, Damage] = {}

    def refresh(
        self, directory: str, names: Iterable[str], skip: Callable[[str, Damage], object]
    ) -> None:
        """Read what has changed.

        Args:
            directory: The directory.
            names: The files in it.
            skip: Called with the name of a file that cannot be read, and why.
        """
        if self._files.refresh(directory, names, skip):
            self._states = shown(each for reader in self._files for each in reader.said.values())
            self._taken = frozenset("?")  # so that the families are made anew

    def stated(
        self, types: Callable[[], dict[str, str]], skip: Callable[[str, Damage], object]
    ) -> Stated:
        """Return what is to be shown beside other families.

        Args:
            types: Returns the type of each other family, by name; their names are taken.
            skip: Called with the name of a metric that cannot be shown, and why.
        """
        if not self._states:
            return NOTHING
        taken = families.names_of(types())
        if taken != self._taken:
            self._taken, self._unshown = taken, {}
            self._stated = Stated(list(self._families(set(taken))))
        for name, damage in self._unshown.items():
            skip(name, damage)
        return self._stated

    def _families(self, taken: set[str]) -> Iterable[Metric]:
        by_name: dict[tuple[str, str], list[State]] = {}
        for state in sorted(self._states, key=lambda each: (each.name, each.type, each.labels)):
            by_name.setdefault((state.type, state.name), []).append(state)
        for (type_, name), states in by_name.items():
            exposed = families.exposed_names(name, type_)
            if not taken.isdisjoint(exposed):
                self._unshown[name] = Damage("foreign", "another metric has its name")
                continue
            metric = Metric(name, states[-1].help, type_)
            for state in states:
                _add(metric, state)
            labels = {tuple(sorted(sample.labels)) for sample in metric.samples}
            if not families.may_be_exposed(name, metric.documentation, labels):
                self._unshown[name] = Damage(
                    "foreign", "its name, or one of its labels, is no name"
                )
                continue
            taken |= exposed
            yield metric


def _add(metric: Metric, state: State) -> None:
    """Add the samples of a series."""
    labels = dict(state.labels)
    if state.type == "info":
        metric.add_sample(f"{state.name}_info", labels | dict(state.content), 1.0)
        return
    for each, is_now in state.content:
        metric.add_sample(state.name, labels | {state.name: each}, float(is_now == "1"))
