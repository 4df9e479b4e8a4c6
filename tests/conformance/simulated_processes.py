"""Runs prometheus_client's own multiprocess tests on our value class and collector.

Those tests simulate processes: they call ``MultiProcessValue(lambda: pid)`` several times in one
process, and change what the function returns to simulate a fork. Here each such call gets a private
copy of our modules, with a lease on a slot that is named by the function, and a change of the name
is answered by what our fork handlers do.

``python simulated_processes.py ours PATH`` runs the tests in a file and prints, as JSON, how each
ended; with ``theirs`` in the place of ``ours`` they run unchanged. The prometheus_client that is
found first is the one that is tested.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import unittest
from typing import TYPE_CHECKING, Any

import prometheus_client.multiprocess
import prometheus_client.values

import obskit_gunicorn.multiprocess
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.leases import Lease
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.membership import Membership

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

_numbers = itertools.count()


def simulated_process(process_identifier: Callable[[], object] = os.getpid) -> type[Any]:
    """Stand in for ``prometheus_client.values.MultiProcessValue``.

    Args:
        process_identifier: Says in which simulated process a value is used.

    Returns:
        A value class that takes the place of prometheus_client's.
    """
    values = _private_copy("_values.values")
    membership = values.membership = Membership()
    inherited: list[int] = []
    seen = [process_identifier()]

    class SlotNamedByTheTest(SlotDirectory):
        """A directory whose only slot for this process is the one that the test says."""

        def acquire(self, role: Any, **options: Any) -> Any:
            """Take the lease of that slot."""
            with self.locked(**options):
                slot = str(process_identifier())
                file = LockedFile(os.path.join(self.path, f"{slot}.lease"), os.O_RDWR | os.O_CREAT)
                assert file.lock(), f"{slot} is leased"
                return Lease(slot, file, role)

    def look_for_a_fork() -> None:
        if membership.directory is None:
            # As prometheus_client does, at the first value and not before.
            path = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
            membership.directory = SlotNamedByTheTest(path) if path else None
        if process_identifier() == seen[0]:
            return
        seen[0] = process_identifier()
        if membership.lease is not None:
            # The simulated parent lives on with its lease.
            inherited.append(os.dup(membership.lease._file.descriptor))
        membership.start_over()
        values._start_over()

    class SimulatedValue:
        """Our value, which looks for a fork whenever it is used."""

        _multiprocess = True

        def __init__(self, *arguments: Any, **options: Any) -> None:
            look_for_a_fork()
            self._value = values.Value(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            look_for_a_fork()
            return getattr(self._value, name)

    cleanups = getattr(prometheus_client.values, "_multi_process_cleanups", None)
    if cleanups is not None:
        cleanups.append(values.close_files)
    return SimulatedValue


def _private_copy(name: str) -> Any:
    original = sys.modules[f"obskit_gunicorn.{name}"]
    assert original.__file__ is not None
    spec = importlib.util.spec_from_file_location(
        f"simulated_{name}_{next(_numbers)}", original.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    own = dict(forks._steps)
    spec.loader.exec_module(copy)
    forks._steps.update(own)  # what starts over in a real fork is the original
    return copy


def replace_theirs() -> None:
    """Put our names into the place of prometheus_client's."""
    theirs: Any = prometheus_client.multiprocess
    theirs.MultiProcessCollector = obskit_gunicorn.multiprocess.MultiProcessCollector
    theirs.mark_process_dead = obskit_gunicorn.multiprocess.mark_process_dead
    prometheus_client.values.MultiProcessValue = simulated_process


def load(path: str) -> types.ModuleType:
    """Load prometheus_client's tests."""
    spec = importlib.util.spec_from_file_location("their_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str) -> None:
    """Run the tests in a file and print how each ended."""
    result = unittest.TestResult()
    tests = list(_tests(unittest.defaultTestLoader.loadTestsFromModule(load(path))))
    unittest.TestSuite(tests).run(result)
    outcomes = {_name(test): "" for test in tests}
    outcomes.update((_name(test), text) for test, text in (*result.failures, *result.errors))
    print(json.dumps(outcomes))


def _tests(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    found: list[unittest.TestCase] = []
    for test in suite:
        found += _tests(test) if isinstance(test, unittest.TestSuite) else [test]
    return found


def _name(test: Any) -> str:
    return f"{type(test).__name__}.{test._testMethodName}"


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        replace_theirs()
    main(sys.argv[2])
