"""The collector and its exposition, judged by prometheus_client, which reads the same files.

prometheus_client reads files in the order in which the file system happens to list them, and some
of its results depend on that: which of several help texts, types or gauge modes a metric has, and
which of several equal timestamps wins. There any order's result is right. Everything else must be
the same, sample by sample and line by line; floats whose sum has to be rounded are compared apart.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import prometheus_client
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, Summary
from prometheus_client import values as prometheus_values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import pack_entry
from obskit_gunicorn.multiprocess import (
    MultiProcessCollector,
    generate_latest,
    make_asgi_app,
    make_wsgi_app,
    mark_process_dead,
    setup_multiprocess_registry,
)
from tests.support import forks
from tests.support.forks import Nursery, RemoteProcess, act, metric, wait_until
from tests.support.promtool import run_promtool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

pytestmark = pytest.mark.conformance


def _takes_any_name() -> bool:
    try:
        Metric("metric.é", "", "gauge")
    except ValueError:
        return False
    return True


ANY_NAME = _takes_any_name()
"""Whether metrics and labels may have any UTF-8 name: prometheus_client 0.22 and newer."""

needs_any_name = pytest.mark.skipif(
    not ANY_NAME, reason="this prometheus_client knows no UTF-8 names"
)

MODES = ("all", "max", "min", "mostrecent", "sum")
GAUGES = (*[f"gauge_{mode}" for mode in MODES], *[f"gauge_live{mode}" for mode in MODES])
KINDS = ("counter", "histogram", "summary", *GAUGES)

NASTY = 'a "quote", a \\ and a \\n,\na line, {é="漢"} # 1 '


# ------------------------------------------------------------------------------------------------
# The judge

MOST_ORDERS = 720
"""How many orders of files are tried before a result is taken for wrong."""


def _families(paths: Sequence[str]) -> dict[str, Metric]:
    """Return prometheus_client's result of reading files in this order."""
    found: Iterable[Metric] = TheirCollector.merge(paths)  # type: ignore[no-untyped-call]
    return {family.name: family for family in found}


def _content(family: Metric) -> tuple[Any, ...]:
    """Return all there is to a family, in a form that is equal when what is exposed is."""
    samples = [
        (name, sorted(labels.items()), _written(value), *rest)
        for name, labels, value, *rest in family.samples
    ]
    return family.name, family.documentation, family.type, family.unit, sorted(samples)


def _written(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _text(families: Iterable[Metric]) -> bytes:
    return _as_written_now(
        prometheus_client.generate_latest(_Fixed(families))  # type: ignore[arg-type,unused-ignore]
    )


def _as_written_now(text: bytes) -> bytes:
    """Return a text with the numbers that releases before 0.26 write as 1e+010 as 1e+10."""
    return re.sub(rb"e\+0(\d\d)(?=[\n\"])", rb"e+\1", text)


def _lines(text: bytes) -> list[str]:
    """Return the lines; not those that str.splitlines sees in a label."""
    lines = text.decode().split("\n")
    assert lines.pop() == "", "the last line ends too"
    return lines


def _files(directory: str) -> list[str]:
    names = sorted(name for name in os.listdir(directory) if name.endswith(".db"))
    return [os.path.join(directory, name) for name in names]


def _like(
    family: Metric, paths: list[str], first: dict[str, Metric], *, was_asked_before: bool
) -> Metric:
    """Return prometheus_client's family of that name, from the order that gives ours if any does.

    Args:
        family: Our family.
        paths: The files.
        first: prometheus_client's result for them as they stand.
        was_asked_before: Whether our collector has read the directory before.
    """
    wanted = _content(family)
    if _content(first[family.name]) != wanted:
        concerned = [path for path in paths if family.name in _families([path])]
        for order in itertools.islice(itertools.permutations(concerned), MOST_ORDERS):
            found = _families(order)[family.name]
            if _content(found) == wanted:
                return found
        # Of several help texts in one file theirs is the first. A collector that has seen another
        # one before keeps it while a key has it.
        if was_asked_before and family.documentation in _helps(concerned, family.name):
            first[family.name].documentation = family.documentation
    return first[family.name]


def _helps(paths: list[str], name: str) -> set[str]:
    found = set()
    for path in paths:
        values: Any = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        for key, *_ in values:
            metric_name, _sample, _labels, help_text = json.loads(key)
            if metric_name == name:
                found.add(help_text)
    return found


def check(directory: str, *collectors: DirectoryCollector) -> None:
    """Compare what collectors find in a directory with what prometheus_client finds.

    Args:
        directory: The directory.
        *collectors: Collectors that have read it before; a new one is asked in any case.
    """
    paths = _files(directory)
    for collector in (*collectors, DirectoryCollector(directory)):
        theirs = _families(paths)
        snapshot = collector.collect()
        ours = list(snapshot.metrics())
        assert sorted(family.name for family in ours) == sorted(theirs)
        old = collector in collectors
        judges = [_like(family, paths, theirs, was_asked_before=old) for family in ours]
        for family, judge in zip(ours, judges, strict=True):
            assert _content(family) == _content(judge)
            _check_order(family)
        text = _as_written_now(snapshot.text())
        assert sorted(_lines(text)) == sorted(_lines(_text(judges)))
        # So each family's HELP and TYPE stand before its samples.
        assert text == _text(ours)
        assert not collector.skipped


def _check_order(family: Metric) -> None:
    """Check that the buckets of a histogram stand in order."""
    bounds: dict[str, list[float]] = {}
    for sample in family.samples if family.type == "histogram" else ():
        if sample.name == f"{family.name}_bucket" and "le" in sample.labels:
            others = sorted((name, text) for name, text in sample.labels.items() if name != "le")
            bounds.setdefault(str(others), []).append(float(sample.labels["le"]))
    for found in bounds.values():
        assert found == sorted(found)


# ------------------------------------------------------------------------------------------------
# Files of real metrics


@pytest.mark.parametrize("writers", ["slots", "pids", "both"])
def test_real_metrics(writers: str, nursery: Nursery, directory: str) -> None:
    """Every type and mode, written by several processes, gives prometheus_client's result."""
    collector = DirectoryCollector(directory)
    joins = {
        "slots": [forks.join] * 3,
        "pids": [_join_theirs] * 3,
        "both": [forks.join, _join_theirs, forks.join, _join_theirs],
    }[writers]
    check(directory, collector)
    for number, join in enumerate(joins):
        process = nursery.start()
        process.call(join, directory)
        process.call(_use_every_kind, number)
        check(directory, collector)
    for number, process in enumerate(nursery.started):
        process.call(_use_every_kind, 7 - 3 * number)
        check(directory, collector)
    expected = {f"{kind}_{mark}" for kind in KINDS for mark in ("plain", "labelled")}
    assert expected <= {family.name for family in collector.collect().metrics()}


def test_real_metrics_after_ends(nursery: Nursery, directory: str) -> None:
    """The same when processes have ended, and when others have taken their slots."""
    collector = DirectoryCollector(directory)
    processes = _use_metrics(nursery, directory)
    check(directory, collector)
    for process in processes[1:]:
        process.kill()
    # Of readers only ours knows that a slot is free; then their live gauges go.
    wait_until(lambda: not _live_gauges_are_left(directory), "live gauges of ended processes go")
    check(directory, collector)
    last = nursery.start()
    last.call(forks.join, directory)
    last.call(_use_every_kind, 5)
    check(directory, collector)


def test_real_metrics_of_a_fork(nursery: Nursery, directory: str) -> None:
    """The same when a process forks and both go on."""
    collector = DirectoryCollector(directory)
    parent = nursery.start()
    parent.call(forks.join, directory)
    parent.call(_use_every_kind, 1)
    check(directory, collector)
    child = parent.fork()
    child.call(_use_every_kind, 2)
    check(directory, collector)
    parent.call(_use_every_kind, 3)
    check(directory, collector)


def _live_gauges_are_left(directory: str) -> bool:
    mark_process_dead("slot0", directory)
    names = [name for name in os.listdir(directory) if re.match(r"gauge_live.*_slot", name)]
    return any("_slot0" not in name for name in names)


def _use_metrics(nursery: Nursery, directory: str) -> list[RemoteProcess]:
    """Let processes of both sorts use metrics of every type."""
    processes = []
    for number, join in enumerate((forks.join, _join_theirs, forks.join)):
        process = nursery.start()
        process.call(join, directory)
        process.call(_use_every_kind, number)
        processes.append(process)
    return processes


def _join_theirs(path: str) -> None:
    """Use prometheus_client's own value class, with no metric made yet."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    prometheus_values.ValueClass = prometheus_values.MultiProcessValue()  # type: ignore[no-untyped-call]
    forks.forget_metrics()


def _use_every_kind(number: int) -> None:
    """Use a metric of every type and mode; runs in a process of its own."""
    value = number / 4
    for kind in KINDS:
        action = "set" if kind.startswith("gauge") else "observe"
        if kind == "counter":
            action = "inc"
        act(kind, f"{kind}_plain", action, abs(value))
        for label in ("every", f"of {number}", NASTY):
            labels = {"zone": "b", "path": label, "empty": ""}
            act(kind, f"{kind}_labelled", action, abs(value) + 1, labels=labels)
        metric(kind, f"{kind}_unused", {"path": "made, not used"})
    odd = Counter("odd", "A \\ and\na line, said by everybody.", ["z", "a"], registry=None)
    odd.labels(NASTY, str(number % 2)).inc(abs(number) + 1)
    if ANY_NAME:
        act("counter", "http.requests é", "inc", abs(number), labels={"zone.ü": "1"})
        act("histogram", "http.seconds", "observe", abs(number), labels={"zone.ü": "1"})
        act("gauge_max", "http.most", "set", number, labels={"zone.ü": "1"})


# ------------------------------------------------------------------------------------------------
# Files of any content


class Entry(NamedTuple):
    """An entry of a metric file."""

    key: bytes
    value: float
    timestamp: float = 0.0


def entry(
    name: str,
    sample: str,
    value: float,
    labels: dict[str, str] | None = None,
    *,
    help_text: str = "Help.",
    timestamp: float = 0.0,
    ascii_only: bool = True,
) -> Entry:
    """Return an entry with the labels in the order in which they are given."""
    key = json.dumps([name, sample, labels or {}, help_text], ensure_ascii=ascii_only)
    return Entry(key.encode(), value, timestamp)


def write(directory: str, name: str, entries: Iterable[Entry], number: bytes = bytes(4)) -> None:
    """Write a metric file, in place if it is there.

    Args:
        directory: The multiprocess directory.
        name: The file's name, as in ``counter_slot0``.
        entries: What it holds; of one key the last entry counts.
        number: What stands in the header behind the length: zeros in prometheus_client's files.
    """
    last = {found.key: found for found in entries}
    content = b"".join(pack_entry(*found) for found in last.values())
    data = struct.pack("i", 8 + len(content)) + number + content
    descriptor = os.open(os.path.join(directory, f"{name}.db"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, -(-len(data) // 4096) * 4096)
        os.pwrite(descriptor, data, 0)
    finally:
        os.close(descriptor)


UNITS = (5e-324, 2.0**-30, 0.125, 1.0, 2.0**70)
"""What the numbers of one directory are multiples of, so that their sums need no rounding."""

specials = st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 0.0])
any_floats = st.one_of(
    specials,
    st.sampled_from([1e6, 999999.9999999999, 1000000.5, 1e16, 1e21, 123456789e12, 5e-324, 1e-7]),
    st.floats(),
)


def multiples(unit: float) -> st.SearchStrategy[float]:
    """Return numbers whose sums are exact."""
    near = st.sampled_from([999_999, 1_000_000, 1_000_001, 8_000_000, 7_999_999, 123_456_789])
    return st.one_of(st.integers(-9, 9), near, st.integers(-(2**40), 2**40)).map(
        lambda number: number * unit
    )


texts = st.one_of(
    st.sampled_from(["", "a", "b", "é", '"', "\\", "\n", "\\n", NASTY]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
names = (
    st.one_of(
        st.sampled_from(["n", "n.1", "n_1", "ü", "1", "with space", 'q"', "back\\slash", "new\nl"]),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).filter(
            lambda name: not name.endswith("\n") and not name.startswith("__")
        ),
    )
    if ANY_NAME
    else st.sampled_from(["n", "n_1", "N", "_", "n:1"])
)
label_names = st.one_of(
    st.sampled_from(["a", "b", "quantile"]),
    names.filter(lambda name: name != "le" and ":" not in name),
)
bounds = st.one_of(
    st.sampled_from(["1", "1.0", "1e0", "2.5", "2.50", "5", "0.30000000000000004"]),
    st.sampled_from(["1000000", "1e6", "1e+06", "1e+21", "+Inf", "inf", "Infinity", "-Inf"]),
    st.sampled_from(["-1", "0", "-0.0", " 7 "]),
)
helps = st.one_of(st.just("Help."), st.just("Help."), texts)


def labels_of(keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """Return label sets, mostly small ones that meet again, in any order."""
    common = [{}, {"a": "1"}, {"a": "2"}, {"a": "1", "b": "1"}, {"b": "1", "a": "1"}]
    return st.one_of(st.sampled_from(common), st.dictionaries(keys, texts, max_size=3))


ODD_SUFFIXES = ("", "_total", "_sum", "_count", "_bucket", "_created", "_gsum", "_gcount", "_info")


@st.composite
def entries_of(draw: st.DrawFn, kind: str, numbers: st.SearchStrategy[float]) -> list[Entry]:
    """Draw what one call of a metric, or something stranger, leaves in a file of a prefix."""
    # Mostly names that no file of another prefix has.
    own = [kind, f"{kind}.1" if ANY_NAME else f"{kind}_1"]
    name = draw(st.one_of(st.sampled_from(own), st.sampled_from(own), names))
    help_text = draw(helps)
    labels = draw(labels_of(label_names))
    ascii_only = draw(st.sampled_from([True, True, True, False]))
    if kind.startswith("gauge"):
        timestamps = st.sampled_from([0.0, 1.0, 2.0, 1.5e9])
        value, timestamp = draw(numbers), draw(timestamps)
        options: dict[str, Any] = {"timestamp": timestamp}
    else:
        value, options = draw(numbers), {}
    options |= {"help_text": help_text, "ascii_only": ascii_only}
    if draw(st.sampled_from([False] * 7 + [True])):
        sample = draw(st.one_of(st.sampled_from(ODD_SUFFIXES).map(lambda end: name + end), names))
        if draw(st.booleans()):
            labels = {**labels, "le": draw(bounds)}
        return [entry(name, sample, value, labels, **options)]
    if kind == "histogram":
        found = [entry(name, f"{name}_sum", value, labels, **options)]
        for bound in draw(st.lists(bounds, max_size=4)):
            place = draw(st.booleans())
            with_bound = {"le": bound, **labels} if place else {**labels, "le": bound}
            found.append(entry(name, f"{name}_bucket", draw(numbers), with_bound, **options))
        return found
    if kind == "summary":
        return [
            entry(name, f"{name}{end}", draw(numbers), labels, **options)
            for end in ("_count", "_sum")
        ]
    sample = f"{name}_total" if kind == "counter" else name
    return [entry(name, sample, value, labels, **options)]


ADDING = ("counter", "histogram", "summary", "gauge_sum", "gauge_livesum")


class Change(NamedTuple):
    """What happens to one file."""

    name: str
    how: str
    """``write`` to it or make it, ``replace`` it by another one, ``remove`` it."""

    entries: list[Entry]


@st.composite
def changes(draw: st.DrawFn, kinds: list[str], numbers: st.SearchStrategy[float]) -> Change:
    """Draw a change of one of a few files."""
    kind = draw(st.sampled_from(kinds))
    # That a live gauge's slot must be leased is another matter.
    holders = ["7", "40", "999"] if "live" in kind else ["7", "40", "slot0", "slot1"]
    name = f"{kind}_{draw(st.sampled_from(holders))}"
    how = draw(st.sampled_from(["write"] * 5 + ["replace", "remove"]))
    few = draw(st.lists(entries_of(kind, numbers), max_size=4))
    return Change(name, how, [found for part in few for found in part])


@st.composite
def scenes(draw: st.DrawFn) -> list[list[Change]]:
    """Draw what happens to a directory between scrapes."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True))
    exact = multiples(draw(st.sampled_from(UNITS)))
    numbers = draw(st.sampled_from([exact, exact, st.one_of(exact, exact, exact, specials)]))
    if not set(kinds) & set(ADDING):
        numbers = st.one_of(numbers, any_floats)
    parts = st.lists(changes(kinds, numbers), min_size=1, max_size=5)
    return draw(st.lists(parts, min_size=1, max_size=4))


class _Directory:
    """A multiprocess directory whose files a test writes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._contents: dict[str, list[Entry]] = {}
        self._numbers: dict[str, bytes] = {}
        self._drawn = itertools.count(1)

    def apply(self, change: Change) -> None:
        name = change.name
        if change.how != "write" and name in self._contents:
            os.unlink(os.path.join(self.path, f"{name}.db"))
            del self._contents[name]
        if change.how == "remove":
            return
        if name not in self._contents:
            drawn = next(self._drawn) if "slot" in name else 0
            self._contents[name] = []
            self._numbers[name] = struct.pack("i", drawn)
        self._contents[name] += change.entries
        write(self.path, name, self._contents[name], self._numbers[name])


SETTINGS = settings(
    max_examples=60,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(name="fresh")
def _fresh(tmp_path: Path) -> Callable[[], Any]:
    """Makes empty directories, one for each example."""
    return lambda: tempfile.TemporaryDirectory(dir=tmp_path)


@pytest.mark.timeout(900)  # a failure is made small before it is shown
@given(scene=scenes())
@settings(SETTINGS)
def test_any_files(scene: list[list[Change]], fresh: Callable[[], Any]) -> None:
    """Whatever files say, and however they change between scrapes, the result is theirs."""
    with fresh() as path:
        directory = _Directory(path)
        collector = DirectoryCollector(path)
        for part in scene:
            for change in part:
                directory.apply(change)
            check(path, collector)


@pytest.mark.timeout(900)
@given(scene=scenes(), accumulate=st.booleans(), data=st.data())
@settings(SETTINGS, max_examples=40)
def test_merge(
    scene: list[list[Change]], accumulate: bool, data: st.DataObject, fresh: Callable[[], Any]
) -> None:
    """``merge`` of files in a given order is theirs, with buckets added up or as they stand."""
    with fresh() as path:
        directory = _Directory(path)
        for change in itertools.chain.from_iterable(scene):
            directory.apply(change)
        paths = data.draw(st.permutations(_files(path)))
        theirs: Any = TheirCollector.merge(paths, accumulate)  # type: ignore[no-untyped-call]
        ours = MultiProcessCollector.merge(paths, accumulate)
        assert [_content(family) for family in ours] == [_content(family) for family in theirs]


@pytest.mark.timeout(900)
@given(
    data=st.data(),
    kind=st.sampled_from(ADDING),
    columns=st.lists(st.lists(st.floats(0, 1e300), min_size=8, max_size=8), min_size=2, max_size=5),
)
@settings(SETTINGS)
def test_rounded_sums(
    data: st.DataObject, kind: str, columns: list[list[float]], fresh: Callable[[], Any]
) -> None:
    """Sums that have to be rounded are theirs up to rounding; everything else is the same."""
    with fresh() as path:
        collector = DirectoryCollector(path)
        for holder, column in enumerate(columns):
            write(path, f"{kind}_{holder}", _entries_of_column(kind, column))
            (theirs,) = _families(_files(path)).values()
            snapshot = collector.collect()
            (ours,) = snapshot.metrics()
            assert _as_written_now(snapshot.text()) == _text([ours])
            assert _rounded(ours).keys() == _rounded(theirs).keys()
            for key, value in _rounded(ours).items():
                assert math.isclose(value, _rounded(theirs)[key], rel_tol=1e-12)
            without_values = [
                _content(_with_samples(family, [s._replace(value=0) for s in family.samples]))
                for family in (ours, theirs)
            ]
            assert without_values[0] == without_values[1]


def _entries_of_column(kind: str, column: list[float]) -> Iterator[Entry]:
    for at, value in enumerate(column):
        if kind == "histogram" and at:
            bound = "+Inf" if at == len(column) - 1 else str(float(at))
            yield entry("m", "m_bucket", value, {"le": bound})
        else:
            sample = {"counter": "m_total", "histogram": "m_sum", "summary": "m_sum"}.get(kind, "m")
            yield entry("m", sample, value, {} if kind == "histogram" else {"at": str(at)})


def _with_samples(family: Metric, samples: list[Any]) -> Metric:
    other = Metric(family.name, family.documentation, family.type)
    other.samples = samples
    return other


def _rounded(family: Metric) -> dict[str, float]:
    return {f"{s.name}{sorted(s.labels.items())}": s.value for s in family.samples}


# ------------------------------------------------------------------------------------------------
# Single things that are easy to get wrong

VALUES = (
    *[0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 2.5, 5e-324, 1e-300, 1e-7, 1e-5, 0.0001],
    *[999999.0, 999999.5, 999999.9999999999, 1e6, 1000000.5, 1000001.0, 1234567.0, -1e6, -1e7],
    *[1e7, 10.0**15, 1e16, 123456789012345680.0, 1e17, 1e20, 1e21, 1e22, 2.0**53, -1e21],
    *[1.7976931348623157e308, -1.7976931348623157e308, math.inf, -math.inf, math.nan],
)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_of_one_file(value: float, directory: str) -> None:
    """A single number is written as they write it, whatever the type."""
    for kind in KINDS:
        write(directory, f"{kind}_7", [_single(kind, value, 1.0)])
    check(directory)


@pytest.mark.parametrize(
    "numbers",
    [
        (-0.0, -0.0),
        (0.0, -0.0),
        (math.inf, -math.inf),
        (math.inf, math.inf),
        (-math.inf, 1.0),
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.nan, math.inf),
        (1.7e308, 1.7e308),
        (-1.7e308, -1.7e308),
        (1.7e308, 1.7e308, -math.inf),
        (999999.5, 0.5),
        (1e21, 1e21),
    ],
    ids=str,
)
def test_values_of_several_files(numbers: tuple[float, ...], directory: str) -> None:
    """So is what becomes of several numbers, zeros, infinities and no numbers among them."""
    collector = DirectoryCollector(directory)
    for holder, number in enumerate(numbers):
        for kind in KINDS:
            write(directory, f"{kind}_{holder}", [_single(kind, number, holder + 1.0)])
        check(directory, collector)


def _single(kind: str, value: float, timestamp: float) -> Entry:
    end = {"counter": "_total", "histogram": "_sum", "summary": "_sum"}.get(kind, "")
    return entry(kind, kind + end, value, timestamp=timestamp)


@pytest.mark.parametrize("numbers", [(-0.0,), (1.0, -0.0), (math.inf, -math.inf), (math.nan,)])
def test_values_of_buckets(numbers: tuple[float, ...], directory: str) -> None:
    """So are the added up buckets of a histogram."""
    entries = [
        entry("m", "m_bucket", number, {"le": str(float(at))}) for at, number in enumerate(numbers)
    ]
    write(directory, "histogram_7", entries)
    check(directory)
    write(directory, "histogram_40", entries[-1:])
    check(directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "samples",
    [
        ("m_created",),
        ("m_total", "m_created"),
        ("m_gsum", "m_gcount"),
        ("m_bucket", "m_sum", "m_count", "m_created"),
        ("m_gcount", "m", "m_total", "m_created", "m_gsum"),
        ("other_total",),
        ("m", "other", "mm_created", "m_total_created"),
        ("m_info",),
    ],
    ids="+".join,
)
def test_odd_samples(kind: str, samples: tuple[str, ...], fresh: Callable[[], Any]) -> None:
    """Samples with a suffix that they treat apart, or of another name, are written as theirs."""
    for name in ("m", "m_total", "m_created"):
        with fresh() as directory:
            collector = DirectoryCollector(directory)
            for holder in (7, 40):
                entries = [
                    entry(name, sample, holder + at, labels, timestamp=float(holder))
                    for at, sample in enumerate(samples)
                    for labels in ({}, {"a": "1"})
                ]
                write(directory, f"{kind}_{holder}", entries)
                check(directory, collector)
            write(directory, "counter_999", [entry("m", "m_total", 3), entry("z", "z_total", 4)])
            check(directory, collector)


def test_a_histogram_without_buckets(directory: str) -> None:
    """A count that stands in the file counts where there are no buckets, and only there."""
    collector = DirectoryCollector(directory)
    plain = [entry("m", "m_count", 5, {"a": a}) for a in "12"]
    write(directory, "histogram_7", [*plain, entry("m", "m_sum", 6, {"a": "1"})])
    check(directory, collector)
    write(directory, "histogram_40", [entry("m", "m_bucket", 2, {"a": "1", "le": "1"})])
    check(directory, collector)


def test_buckets_that_change(directory: str) -> None:
    """Buckets that differ, or are spelt in several ways, are merged as they merge them."""
    collector = DirectoryCollector(directory)
    versions = (("1", "5", "+Inf"), ("1.0", "2.5", "inf"), ("0.5", "1e0", "5.00", "10", "+Inf"))
    for holder, version in enumerate(versions):
        entries = [entry("m", "m_sum", 3.5)]
        entries += [entry("m", "m_bucket", at + 1, {"le": le}) for at, le in enumerate(version)]
        write(directory, f"histogram_{holder}", entries)
        check(directory, collector)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_named_pid(kind: str, directory: str) -> None:
    """A label that is named as the one that they add is treated as they treat it.

    Where that gives the same sample twice, it is exposed once: Prometheus would refuse the scrape.
    """
    collector = DirectoryCollector(directory)
    shows_processes = kind in ("gauge_all", "gauge_liveall")
    several: tuple[dict[str, str], ...] = ({}, {"pid": "1"}, {"pid": "2", "a": "1"})
    for holder in (7, 40):
        entries = [
            entry("m", "m", holder + at, labels, timestamp=float(holder))
            for at, labels in enumerate(several[1:] if shows_processes else several)
        ]
        write(directory, f"{kind}_{holder}", entries)
        check(directory, collector)
    if shows_processes:
        write(directory, f"{kind}_7", [entry("m", "m", 1, {"pid": at}) for at in ("1", "2")])
        assert collector.collect().text().count(b'm{pid="7"}') == 1


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", ["counter", "histogram", "gauge_max", "gauge_all", "gauge_sum"])
def test_types_that_change(first: str, second: str, directory: str) -> None:
    """A metric with several types or modes, in several files, is merged as they merge it."""
    collector = DirectoryCollector(directory)
    for kind, holder in ((first, 7), (second, 40), (first, 999)):
        entries = [
            entry("m", "m", holder, labels, timestamp=float(holder))
            for labels in ({}, {"a": "1"}, {"le": "5"})
        ]
        write(directory, f"{kind}_{holder}", [*entries, entry(kind, kind, 1, timestamp=1.0)])
        check(directory, collector)
    os.unlink(os.path.join(directory, f"{second}_40.db"))
    check(directory, collector)


def test_help_texts_that_change(directory: str) -> None:
    """Of the help texts of one file the first is shown, or the one that was shown before."""
    collector = DirectoryCollector(directory)
    new = entry("m", "m_total", 1, help_text="New.")
    write(directory, "counter_30", [new])
    check(directory, collector)
    old = entry("m", "m_total", 2, {"a": "1"}, help_text="Old.")
    write(directory, "counter_40", [old, new])
    check(directory, collector)
    os.unlink(os.path.join(directory, "counter_30.db"))
    (theirs,) = _families(_files(directory)).values()
    (fresh,) = DirectoryCollector(directory).collect().metrics()
    assert fresh.documentation == theirs.documentation == "Old."
    (ours,) = collector.collect().metrics()
    assert ours.documentation == "New."
    assert sorted(ours.samples, key=str) == sorted(theirs.samples, key=str)


def test_an_empty_directory(directory: str) -> None:
    """Files without an entry, and none at all, give no line."""
    collector = DirectoryCollector(directory)
    check(directory, collector)
    write(directory, "counter_7", [])
    write(directory, "gauge_max_7", [])
    Path(directory, "counter_40.db").write_bytes(bytes(4096))
    check(directory, collector)
    assert collector.collect().text() == b""


def test_many_series(directory: str) -> None:
    """Files of thousands of keys, that differ in a few, give their result while they grow."""
    collector = DirectoryCollector(directory)
    for count in (300, 1500, 1501):
        for holder in range(3):
            entries = [
                entry("m", "m_total", at + holder, {"at": str(at)})
                for at in range(count)
                if at % 100 != holder
            ]
            write(directory, f"counter_slot{holder}", entries, b"1234")
        check(directory, collector)


# ------------------------------------------------------------------------------------------------
# The text is read by others


def test_their_parser_reads_the_text(nursery: Nursery, directory: str) -> None:
    """Their parser finds the samples of the families in the text, each once."""
    _use_metrics(nursery, directory)
    snapshot = DirectoryCollector(directory).collect()
    found = _sample_list(parse_text(_as_written_now(snapshot.text()).decode()))
    assert found in _spellings(snapshot.metrics())
    assert len({str(sample[:2]) for sample in found}) == len(found)
    assert len(found) > 100


@pytest.mark.parametrize("version", ["0.0.1", "1.0.0"])
def test_their_parser_reads_openmetrics(version: str, nursery: Nursery, directory: str) -> None:
    """Their strict parser of OpenMetrics finds them in that format."""
    _use_metrics(nursery, directory)
    response = ask(
        make_wsgi_app(_recipe(MultiProcessCollector, directory)),
        accept=f"application/openmetrics-text;version={version}",
    )
    parse = parse_openmetrics if response.type.startswith("application/openmetrics") else parse_text
    found = _sample_list(parse(response.body.decode()))
    assert found in _spellings(DirectoryCollector(directory).collect().metrics())


@needs_any_name
@pytest.mark.parametrize("mime", ["text/plain", "application/openmetrics-text"])
def test_their_parsers_read_any_name(mime: str, nursery: Nursery, directory: str) -> None:
    """They find the names as they are in the formats that can say them."""
    _use_metrics(nursery, directory)
    response = ask(
        make_wsgi_app(_recipe(MultiProcessCollector, directory)),
        accept=f"{mime};version=1.0.0;escaping=allow-utf-8",
    )
    parse = parse_openmetrics if mime.startswith("application") else parse_text
    found = _sample_list(parse(response.body.decode()))
    assert found == _sample_list(DirectoryCollector(directory).collect().metrics())
    assert any(name == "http.requests é_total" for name, _labels, _value in found)


def _sample_list(families: Iterable[Metric]) -> list[tuple[str, list[tuple[str, str]], str]]:
    return sorted(
        (sample.name, sorted(sample.labels.items()), _written(sample.value))
        for family in families
        for sample in family.samples
    )


def _spellings(families: Iterable[Metric]) -> list[list[tuple[str, list[tuple[str, str]], str]]]:
    """Return the samples as they are, and with the names that are left where not any may be."""
    as_they_are = _sample_list(families)
    legacy = sorted(
        (
            re.sub("[^a-zA-Z0-9_:]", "_", name),
            sorted((re.sub("[^a-zA-Z0-9_]", "_", label), text) for label, text in labels),
            value,
        )
        for name, labels, value in as_they_are
    )
    return [legacy, as_they_are]


def test_promtool_accepts_the_text(nursery: Nursery, directory: str) -> None:
    """Prometheus's own checker finds no fault with well-named metrics, ours among them."""
    for number in range(2):
        process = nursery.start()
        process.call(forks.join, directory)
        process.call(_use_well_named_metrics, number)
    text = generate_latest(setup_multiprocess_registry(directory))
    assert b"obskit_gunicorn_slots_leased 2.0" in text
    assert run_promtool("check", "metrics", text=text.decode()) == (0, "")


def test_promtool_judges() -> None:
    """It does find faults where there are some, in the text and in the names."""
    for status, text in (
        (1, "# HELP a A.\n# TYPE a gauge\na{ 1\n"),
        (3, "# HELP a A.\n# TYPE a counter\na 1\n"),
    ):
        assert run_promtool("check", "metrics", text=text)[0] == status


def _use_well_named_metrics(number: int) -> None:
    """Use metrics that a checker of names has nothing to say about."""
    labels = ["path", "zone"]
    values = (f"/{number}", NASTY)
    Counter("http_requests", "Requests.", labels, registry=None).labels(*values).inc()
    Histogram("http_request_duration_seconds", "Their time.", labels, registry=None).labels(
        *values
    ).observe(number)
    Summary("http_response_size_bytes", "Their size.", labels, registry=None).labels(
        *values
    ).observe(number)
    for mode in (*MODES, *[f"live{mode}" for mode in MODES]):
        gauge = Gauge(
            f"{mode}_temperature_celsius",
            f"The \\ {mode}\ntemperature.",
            labels,
            registry=None,
            multiprocess_mode=mode,  # type: ignore[arg-type]
        )
        gauge.labels(*values).set(number)


# ------------------------------------------------------------------------------------------------
# Serving


class Response(NamedTuple):
    """What an application has answered."""

    status: str
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        """What the body is said to be."""
        return self.headers["Content-Type"]


def ask(
    application: Callable[..., Iterable[bytes]],
    *,
    accept: str | None = None,
    accept_encoding: str | None = None,
    query: str = "",
    method: str = "GET",
) -> Response:
    """Make a request to a WSGI application, and unpack what it has packed."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = "/metrics"
    if accept is not None:
        environ["HTTP_ACCEPT"] = accept
    if accept_encoding is not None:
        environ["HTTP_ACCEPT_ENCODING"] = accept_encoding
    answers: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(application(environ, lambda *answer: answers.append(answer)))
    ((status, headers),) = answers
    found = dict(headers)
    assert len(found) == len(headers)
    if method == "GET":
        assert int(found.get("Content-Length", len(body))) == len(body)
    if body and found.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return Response(status, found, body)


ACCEPTS: tuple[str | None, ...] = (
    None,
    "",
    "*/*",
    "text/html, */*;q=0.5",
    "text/plain",
    "text/plain;version=0.0.4",
    "text/plain; version=0.0.4; charset=utf-8, text/plain;version=1.0.0",
    "application/openmetrics-text",
    "application/openmetrics-text;version=0.0.1",
    "application/openmetrics-text;version=1.0.0",
    "application/openmetrics-text; version=2.0.0; escaping=allow-utf-8",
    *[
        f"{mime};version=1.0.0;escaping={escaping}"
        for mime in ("text/plain", "application/openmetrics-text")
        for escaping in ("allow-utf-8", "underscores", "dots", "values", "unheard-of")
    ],
    # What Prometheus asks.
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
)

QUERIES = (
    "",
    "name[]=requests_total",
    "name[]=requests",
    "name[]=seconds_bucket&name[]=each",
    "name%5B%5D=seconds_count&name[]=nobody&name[]=requests_total",
    "name[]=weight_sum",
    "name[]=nobody",
    "name[]=",
    "name=requests_total",
    "debug",
    *(["name[]=http.requests_total", "name[]=http.seconds.%C3%A9"] if ANY_NAME else []),
)


@pytest.fixture(name="served")
def _served(directory: str) -> str:
    """A directory with metrics of every type, whose exposition depends on no order of files."""
    for holder in (7, 40):
        labels = {"path": NASTY, "b": str(holder)}
        counters = [entry("requests", "requests_total", holder, labels)]
        gauges = [entry("each", "each", holder + 0.5), entry("size", "size", 1e6, labels)]
        if ANY_NAME:
            odd = {"path.é": "/"}
            counters.append(entry("http.requests", "http.requests_total", holder, odd))
            gauges.append(entry("http.seconds.é", "http.seconds.é", holder, odd))
        write(directory, f"counter_{holder}", counters)
        write(directory, f"gauge_all_{holder}", gauges)
        write(directory, f"gauge_sum_{holder}", [entry("together", "together", holder, labels)])
        write(
            directory,
            f"summary_{holder}",
            [entry("weight", f"weight_{end}", holder, labels) for end in ("sum", "count")],
        )
        write(
            directory,
            f"histogram_{holder}",
            [
                entry("seconds", "seconds_sum", 0.5, labels),
                *[
                    entry("seconds", "seconds_bucket", at, {**labels, "le": le})
                    for at, le in enumerate(("0.5", "1.0", "+Inf"))
                ],
            ],
        )
    return directory


class _Described(TheirCollector):
    """prometheus_client's collector, with the names that its registry needs to filter by them."""

    describe = TheirCollector.collect


def _recipe(collector: Callable[..., Any], directory: str) -> CollectorRegistry:
    """Return a registry with a collector, as prometheus_client's documentation makes it."""
    registry = CollectorRegistry()
    collector(registry, directory)
    return registry


def _without_facts(body: bytes) -> list[str]:
    facts = re.compile(r"(# (HELP|TYPE) )?(U__)?obskit_+gunicorn_+")
    return sorted(line for line in _lines(body) if not facts.match(line))


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_format(accept: str | None, served: str) -> None:
    """Every format has their headers and lines, filtered by name or not, packed or not."""
    theirs = prometheus_client.make_wsgi_app(_recipe(_Described, served))
    ours = make_wsgi_app(setup_multiprocess_registry(served))
    for query in QUERIES:
        for encoding in (None, "", "gzip", "deflate, GZIP;q=0.5", "br"):
            asked: dict[str, Any] = {"accept": accept, "accept_encoding": encoding, "query": query}
            expected, found = ask(theirs, **asked), ask(ours, **asked)
            assert found.status == expected.status
            assert expected.headers.items() <= found.headers.items()
            assert found.headers.keys() <= expected.headers.keys() | {"Content-Length"}
            assert _without_facts(found.body) == sorted(_lines(expected.body)), (accept, query)
            if "openmetrics" in found.type:
                assert found.body.endswith(b"\n# EOF\n") or found.body == expected.body


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_format_of_the_recipe(accept: str | None, served: str) -> None:
    """The usual recipe, our collector in a registry of one's own, gives just what theirs gives."""
    theirs = prometheus_client.make_wsgi_app(_recipe(TheirCollector, served))
    ours = make_wsgi_app(_recipe(MultiProcessCollector, served))
    in_theirs = prometheus_client.make_wsgi_app(_recipe(MultiProcessCollector, served))
    for query in QUERIES:
        expected = ask(theirs, accept=accept, query=query)
        for application in (ours, in_theirs):
            found = ask(application, accept=accept, query=query)
            assert found.type == expected.type
            assert sorted(_lines(found.body)) == sorted(_lines(expected.body))


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize("accept", [None, "application/openmetrics-text;version=1.0.0"])
def test_head(accept: str | None, encoding: str | None, served: str) -> None:
    """HEAD has the headers of GET and no body."""
    application = make_wsgi_app(_recipe(MultiProcessCollector, served))
    got = ask(application, accept=accept, accept_encoding=encoding)
    found = ask(application, accept=accept, accept_encoding=encoding, method="HEAD")
    assert found == Response(got.status, found.headers, b"")
    assert found.headers.keys() == got.headers.keys()
    assert found.headers["Content-Type"] == got.type


@pytest.mark.parametrize("query", ["", "name[]=requests_total"])
@pytest.mark.parametrize("accept", [None, *ACCEPTS[-3:]])
def test_asgi(accept: str | None, query: str, served: str) -> None:
    """The ASGI application answers as the WSGI application does."""
    expected = ask(
        make_wsgi_app(_recipe(MultiProcessCollector, served)), accept=accept, query=query
    )
    headers = [] if accept is None else [(b"accept", accept.encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "headers": headers,
        "query_string": query.encode(),
        "path": "/metrics",
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    application = make_asgi_app(_recipe(MultiProcessCollector, served))
    with pytest.raises(StopIteration):  # it waits for nothing
        application(scope, receive, send).__await__().__next__()
    start, body = sent
    assert start["status"] == 200
    assert {k.decode(): v.decode() for k, v in start["headers"]} == expected.headers
    assert body["body"] == expected.body
