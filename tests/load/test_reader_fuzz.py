"""A fuzz of the reader: real metric files, damaged in every way that a file can be.

A *history* is what one long-lived collector sees of one directory: files that are damaged, damaged
again, and restored. It follows from its seed alone; a failure names the seed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import random
import re
import shutil
import struct
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from obskit_gunicorn import multiprocess
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import HEADER_BYTES, pack_entry
from tests.support.forks import Nursery, act, join, run_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

MODES = ("all", "liveall", "livemax", "livemin", "livesum", "max", "min", "mostrecent", "sum")
WATCHDOG_SECONDS = 60.0
"""For one history, which takes some milliseconds; only a hang is longer."""

MOST_BYTES_PER_BYTE = 100
"""What the smallest entries, of 24 bytes, may cost in memory, with room to spare."""

MOST_BYTES_BESIDE = 2 << 20

NASTY_INTEGERS = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 32, 4088, 4095, 4096, 4097, 65536),
    *(-1, -2, -3, -4, -8, -16, -20, -24, -4096, -(1 << 31), -(1 << 31) + 8, (1 << 31) - 1),
    *((1 << 31) - 8, (1 << 31) - 20, (1 << 31) - 24, 1 << 30, 1 << 24, 1 << 20, 0x01010101),
)
NASTY_NUMBERS = (
    *(math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308),
    *(1e6, 999999.9999999999, 1e22, -1.0, 2.0**53 + 2, 1e-7),
)
NASTY_KEYS = (
    *(b"", b"\x00" * 40, b"\xff" * 40, b"[]", b"[" * 2000, b"null", b'"', b"{}", b"[1, 2, 3, 4]"),
    *(b'["a", "b", {"c": {}}, "d"]', b'["a", "b", {"c": 1}, "d"]', b'["", "", {}, ""]'),
    *(b'["x\\ny", "x\\ny", {}, ""]', b'["a b", "a b", {"c d": "e"}, "f"]', b'["1", "1", {}, ""]'),
    *(b'["m", "m", {"": ""}, ""]', b'["m", "", {}, ""]'),
    *(b'["m", "m", {"a\\"b": "\\"\\\\"}, "\\\\"]', b'["m\\"n\\\\", "m\\"n\\\\", {}, ""]'),
    *(b'["m", "m", {"a": "\\ud800"}, ""]', b'["m", "m", {"a": "\\u0000\\u2028\\r"}, "\\r\\n"]'),
    *(b'["h", "h_bucket", {"le": "nan"}, ""]', b'["h", "h_bucket", {"le": "NaN"}, ""]'),
    *(b'["h", "h_bucket", {"le": "-inf"}, ""]', b'["h", "h_bucket", {"le": "1_0"}, ""]'),
    *(b'["h", "h_bucket", {"le": " 1e1 "}, ""]', b'["h", "h_bucket", {"le": "x"}, ""]'),
    *(b'["h", "h_bucket", {"le": "1e999"}, ""]', b'["h", "h_sum", {"le": "1"}, ""]'),
    *(b'["h", "h_count", {}, ""]', b'["h", "h_sum", {}, ""]', b'["h", "h_created", {}, ""]'),
    *(b'["g", "g", {"pid": "1"}, ""]', b'["m", "m", {"a": "1", "a": "2"}, ""]'),
)


class Content(NamedTuple):
    """What a file holds: bytes, and how far it goes on with a hole."""

    data: bytes
    size: int

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Return the content of a file without a hole at its end."""
        return cls(data, len(data))


Corpus = dict[str, bytes]
"""Real metric files, by name."""


# ------------------------------------------------------------------------------------------------
# Real files


def use_every_metric(seed: int) -> None:
    """Use metrics of every type and mode, with several label sets; in a remote process."""
    rng = random.Random(seed)
    for number in range(1 + seed % 3):
        labels = {"path": f"/{'x' * rng.randrange(30)}{number}", "é": 'ü"\\\n'}
        labels = {"path": labels["path"]} if number % 2 else {**labels, "code": "200"}
        for kind in ("counter", "histogram", "summary", *(f"gauge_{mode}" for mode in MODES)):
            name = f"{kind}_{number % 2}"
            wanted = {"path": labels["path"]}
            method = {"counter": "inc", "histogram": "observe", "summary": "observe"}
            act(kind, name, method.get(kind, "set"), rng.randrange(1, 9), labels=wanted)
            act(kind, f"{kind}_plain", method.get(kind, "set"), rng.randrange(1, 9))


THEIRS = """if True:
    from prometheus_client import Counter, Gauge, Histogram, Summary
    Counter("counter_plain", "Help of counter_plain.").inc(2)
    Histogram("histogram_plain", "Help of histogram_plain.", buckets=(1, 2, 5)).observe(3)
    Summary("summary_plain", "Help of summary_plain.").observe(4)
    for mode in ("all", "max", "sum", "mostrecent", "livesum"):
        name = "gauge_" + mode + "_plain"
        Gauge(name, "Help of " + name + ".", multiprocess_mode=mode).set(5)
"""


@pytest.fixture(name="corpus")
def _corpus(nursery: Nursery, tmp_path: Path) -> Corpus:
    """Files of two slots and of a process that knows no slots."""
    path = tmp_path / "real"
    path.mkdir()
    holders = [nursery.start(), nursery.start()]
    for seed, holder in enumerate(holders, start=1):
        holder.call(join, str(path))
        holder.call(use_every_metric, seed)
    run_python(THEIRS, PROMETHEUS_MULTIPROC_DIR=str(path))
    nursery.forget_all()
    corpus = {file.name: file.read_bytes() for file in sorted(path.glob("*.db"))}
    assert len(corpus) == 2 * (3 + len(MODES)) + 8, sorted(corpus)
    shutil.rmtree(path)
    # What a file is called is of no consequence for a history, the pid in it would be.
    holder_names = sorted({name.removesuffix(".db").rpartition("_")[2] for name in corpus})
    pid = next(name for name in holder_names if name.isdigit())
    return {name.replace(f"_{pid}.", "_4711."): data for name, data in corpus.items()}


def whole(entries: bytes, number: bytes = b"good") -> bytes:
    """Return a metric file with these entries."""
    return struct.pack("i", HEADER_BYTES + len(entries)) + number + entries


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the lines about damaged files, which are many, out of a failure's report."""
    caplog.set_level(logging.ERROR, log.name)


NEIGHBOURS = {
    "counter_slot7.db": whole(
        pack_entry(b'["neighbour", "neighbour_total", {}, "Help."]', 5.0, 0.0)
    ),
    "counter_99.db": whole(
        pack_entry(b'["neighbour", "neighbour_total", {}, "Help."]', 2.0, 0.0), bytes(4)
    ),
    "histogram_slot7.db": whole(
        pack_entry(b'["near", "near_sum", {}, "Help."]', 3.0, 0.0)
        + pack_entry(b'["near", "near_bucket", {"le": "1.0"}, "Help."]', 1.0, 0.0)
        + pack_entry(b'["near", "near_bucket", {"le": "+Inf"}, "Help."]', 1.0, 0.0)
    ),
}
EXPECTED = {
    ("neighbour_total", frozenset[tuple[str, str]]()): 7.0,
    ("near_count", frozenset[tuple[str, str]]()): 2.0,
    ("near_sum", frozenset[tuple[str, str]]()): 3.0,
    ("near_bucket", frozenset({("le", "1.0")})): 1.0,
}


# ------------------------------------------------------------------------------------------------
# Damage


def used_of(content: Content) -> int:
    """Return what the header of a file says of how much is used."""
    return struct.unpack_from("i", content.data.ljust(4, b"\x00"))[0] or HEADER_BYTES


def has_header(content: Content) -> bool:
    """Return whether the header of a file makes sense, whatever is behind it."""
    used = used_of(content)
    return used % 8 == 0 and HEADER_BYTES <= used <= content.size


def entries_of(content: Content) -> tuple[list[tuple[int, int]], bool]:
    """Return where the entries of a file start and end, and whether all of it makes sense."""
    if not has_header(content):
        return [], False
    used = used_of(content)
    data = content.data.ljust(used, b"\x00")
    found: list[tuple[int, int]] = []
    position = HEADER_BYTES
    while position < used:
        (length,) = struct.unpack_from("i", data, position)
        end = position + 4 + length + (8 - (length + 4) % 8) + 16
        if length <= 0 or end > used:
            return found, False
        found.append((position, end))
        position = end
    return found, True


def keys_of(content: Content) -> list[bytes]:
    """Return the keys of a file, up to the first thing that is wrong."""
    return [content.data[start : end - 16] for start, end in entries_of(content)[0]]


def _bits(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    used = min(len(data), max(HEADER_BYTES, used_of(Content.of(bytes(data)))))
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if used:
            data[rng.randrange(used)] ^= 1 << rng.randrange(8)


def _run(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    start = rng.randrange(len(data) + 1)
    length = rng.choice((1, 2, 4, 8, 16, 100, 5000))
    filler = rng.choice((b"\x00", b"\xff", b" ", b'"', rng.randbytes(1)))
    run = rng.choice((filler * length, rng.randbytes(length)))
    data[start : start + length] = run[: len(data) - start]


def _header(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    near = len(data) + rng.choice((-8, -1, 0, 1, 8))
    data[0:4] = struct.pack("i", rng.choice((*NASTY_INTEGERS, near)))


def _length(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    found, _ = entries_of(Content.of(bytes(data)))
    if found:
        start, end = rng.choice(found)
        near = end - start + rng.choice((-24, -20, -16, -8, -1, 1, 8))
        data[start : start + 4] = struct.pack("i", rng.choice((*NASTY_INTEGERS, near)))


def _cut(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    used = min(len(data), max(HEADER_BYTES, used_of(Content.of(bytes(data)))))
    del data[rng.randrange(used + 1) :]


def _insert(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 3, 4, 8, 16, 24, 200)))


def _remove(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 3, 4, 8, 16, 24, 200))]


def _entries(rng: random.Random, data: bytearray, corpus: Corpus) -> None:
    """Repeat, drop, move or bring in entries, mostly with a header that knows of it."""
    found, _ = entries_of(Content.of(bytes(data)))
    pieces = [bytes(data[start:end]) for start, end in found]
    for _ in range(rng.choice((1, 1, 3, 40))):
        what = rng.randrange(4)
        if what == 0 and pieces:
            pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(pieces))
        elif what == 1 and pieces:
            pieces.pop(rng.randrange(len(pieces)))
        elif what == 2:
            rng.shuffle(pieces)
        else:
            other = rng.choice(list(corpus.values()))
            there, _ = entries_of(Content.of(other))
            pieces.extend(other[start:end] for start, end in there[: rng.randrange(4)])
    entries = b"".join(pieces)
    header = HEADER_BYTES + len(entries) if rng.random() < 0.8 else rng.choice(NASTY_INTEGERS)
    data[:] = struct.pack("i", header) + data[4:8] + entries


def _keys(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    """Write keys that are whole entries, and no metric's or a strange one's."""
    found, _ = entries_of(Content.of(bytes(data)))
    pieces = [bytes(data[start:end]) for start, end in found]
    for _ in range(rng.choice((1, 2, 5))):
        key = bytearray(rng.choice(NASTY_KEYS))
        if pieces and rng.random() < 0.5:
            key = bytearray(rng.choice(pieces)[4:-16].rstrip(b" "))
            at = rng.randrange(len(key) + 1)
            token = (b'"', b"\\", b",", b"{", b"}", b"[", b": ", b"\x80", b"\\u0000", b"0", b"_sum")
            key[at : at + rng.randrange(3)] = rng.choice(token)
        entry = pack_entry(bytes(key), rng.choice((1.0, *NASTY_NUMBERS)), 0.0)
        pieces.insert(rng.randrange(len(pieces) + 1), entry)
    entries = b"".join(pieces)
    data[:] = struct.pack("i", HEADER_BYTES + len(entries)) + data[4:8].ljust(4) + entries


def _numbers(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    for _, end in entries_of(Content.of(bytes(data)))[0]:
        if rng.random() < 0.3:
            at = end - rng.choice((8, 16))
            data[at : at + 8] = struct.pack("d", rng.choice(NASTY_NUMBERS))


def _swap(rng: random.Random, data: bytearray, corpus: Corpus) -> None:
    data[:] = rng.choice(list(corpus.values()))


def _fill(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    size = rng.choice((0, 1, 3, 4, 7, 8, 9, 24, 4096, 100_000))
    data[:] = rng.choice((bytes(size), b"\xff" * size, b"\x01" * size, rng.randbytes(size)))


def _another(rng: random.Random, data: bytearray, _corpus: Corpus) -> None:
    data[4:8] = rng.choice((bytes(4), rng.randbytes(4)))


DAMAGES: tuple[Callable[[random.Random, bytearray, Corpus], None], ...] = (
    *(_bits, _bits, _run, _header, _length, _length, _cut, _insert, _remove),
    *(_entries, _entries, _keys, _keys, _numbers, _swap, _fill, _another),
)


def damaged(rng: random.Random, content: Content, corpus: Corpus) -> Content:
    """Return another content that is damaged in one way or in several."""
    data = bytearray(content.data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(DAMAGES)(rng, data, corpus)
    size = len(data)
    if rng.random() < 0.05:
        # A hole: with what the header said, and, small enough to be read, with a header for it.
        size = rng.choice((1 << 12, 1 << 20, 1 << 30))
        data = data[:size]
        if size <= 1 << 20 and rng.random() < 0.5:
            data[0:4] = struct.pack("i", size)
        hole = Content(bytes(data), size)
        if not has_header(hole) or used_of(hole) > 1 << 20:
            size = len(data)  # it would be read as a whole
    return Content(bytes(data), size)


def put(rng: random.Random, path: str, content: Content) -> str:
    """Give a file a content, in one of the ways that others may do it; return which."""
    way = rng.choice(("in place", "in place", "replace", "anew"))
    if os.path.isdir(path):
        os.rmdir(path)
    elif os.path.lexists(path) and (
        way == "anew" or os.path.islink(path) or not os.path.isfile(path)
    ):
        os.unlink(path)
    written = path + ".written" if way == "replace" else path
    with open(written, "r+b" if os.path.exists(written) else "wb", buffering=0) as file:
        file.write(content.data)
        file.truncate(len(content.data))
        file.truncate(content.size)
    if way == "replace":
        os.replace(written, path)
    return way


def put_no_file(rng: random.Random, path: str) -> str:
    """Put something that is no regular file in the place of a file; return what."""
    if os.path.isdir(path):
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)
    what = rng.choice(("nothing", "a directory", "a pipe", "a link"))
    if what == "a directory":
        os.mkdir(path)
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a link":
        os.symlink(rng.choice(("nowhere", "/dev/zero", "counter_slot7.db")), path)
    return what


# ------------------------------------------------------------------------------------------------
# What must hold

PLAIN = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def flat(families: Iterable[Metric]) -> Samples:
    """Return the samples of families, and check that none occurs twice in its family."""
    found: Samples = {}
    for family in families:
        keys = [(sample.name, frozenset(sample.labels.items())) for sample in family.samples]
        assert len(keys) == len(set(keys)), f"a sample of {family} occurs twice"
        found.update(zip(keys, [sample.value for sample in family.samples], strict=True))
    return found


def check_text(text: bytes, samples: Samples) -> None:
    """Check that an exposition parses, says nothing twice, and has the neighbours right.

    Args:
        text: The exposition.
        samples: The same as families. The text format has no room for some of their names, and
            what stands in for these may meet others: then nothing is said of twins.
    """
    labels = {label for _, pairs in samples for label, _ in pairs}
    is_plain = all(map(PLAIN.fullmatch, {name for name, _ in samples} | labels))
    seen: set[str] = set()
    for line in text.decode().split("\n"):
        if line.startswith("# HELP"):
            seen.clear()
        elif line and not line.startswith("#"):
            name = line.rpartition(" ")[0]
            assert name not in seen or not is_plain, f"{name} occurs twice"
            seen.add(name)
    if any(re.sub(r"\W", "_", label).startswith("__") for label in labels):
        return  # it cannot be told from a reserved label, which the parser refuses
    families = list(text_string_to_metric_families(text.decode()))
    parsed = [sample for family in families for sample in family.samples]
    check_samples({(each.name, frozenset(each.labels.items())): each.value for each in parsed})


def check_samples(samples: Samples) -> None:
    """Check that the neighbours of damaged files are right."""
    for key, value in EXPECTED.items():
        assert samples.get(key) == value


def same(first: Samples, second: Samples) -> bool:
    """Return whether two scrapes say the same; not-a-number is the same as itself."""
    return sorted(map(repr, first.items())) == sorted(map(repr, second.items()))


@contextlib.contextmanager
def watched(what: str, place: Path) -> Iterator[None]:
    """End the process when the body hangs; where it did is in a file beside the metric files."""
    with Path(place, "hangs.txt").open("w") as file:
        print(what, file=file, flush=True)
        faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True, file=file)
        try:
            yield
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()


class History:
    """What one long-lived collector sees of one directory.

    Attributes:
        bytes_read: The sizes of all files that were damaged, together.
    """

    def __init__(self, seed: int, corpus: Corpus, path: str) -> None:
        """Fill the directory with some of the real files and the neighbours."""
        self.rng = random.Random(seed)
        self.corpus = corpus
        self.path = path
        self.names = self.rng.sample(sorted(corpus), self.rng.randrange(1, 7))
        self.now: dict[str, Content | None] = {}
        self.log: list[str] = []
        self.bytes_read = 0
        # Files whose keys a scrape has seen other than they are, and which nothing tells from the
        # restored ones: the same inode, and the same number in the header.
        self.doubtful: set[str] = set()
        os.mkdir(path)
        for name, data in NEIGHBOURS.items():
            Path(path, name).write_bytes(data)
        for name in self.names:
            self._put(name, Content.of(corpus[name]))
        self.collector = DirectoryCollector(path)

    def play(self) -> None:
        """Damage files, scrape, and restore them."""
        if self.rng.random() < 0.6:
            self.scrape()
        for _ in range(self.rng.randrange(1, 4)):
            for name in self.rng.sample(self.names, self.rng.randrange(1, len(self.names) + 1)):
                self._damage(name)
            self.scrape()
        for name in self.names:
            self._put(name, Content.of(self.corpus[name]))
        self.scrape()
        fresh = DirectoryCollector(self.path)
        healthy = flat(fresh.collect().metrics())
        assert fresh.skipped.total() == 0
        if not self.doubtful:
            assert same(flat(self.collector.collect().metrics()), healthy)
            assert self.collector.skipped.total() == 0

    def scrape(self) -> None:
        """Scrape in every way there is, and check what must hold of each."""
        snapshot = self.collector.collect()
        samples = flat(snapshot.metrics())
        check_samples(samples)
        check_text(snapshot.text(), samples)
        fresh = DirectoryCollector(self.path)
        samples = flat(fresh.collect().metrics())
        check_samples(samples)
        check_text(fresh.collect().text(), samples)
        wrong = [name for name, content in self.now.items() if content and not is_whole(content)]
        assert fresh.skipped.total() >= len(wrong), (wrong, fresh.skipped)
        # What a reader has parsed it need not look at again; a header it reads each time.
        headless = [
            name for name, content in self.now.items() if content and not has_header(content)
        ]
        assert self.collector.skipped.total() >= len(headless), (headless, self.collector.skipped)
        files = [os.path.join(self.path, name) for name in sorted(os.listdir(self.path))]
        check_samples(flat(multiprocess.MultiProcessCollector.merge(files)))
        list(multiprocess.MultiProcessCollector.merge(files, accumulate=False))
        samples = flat(multiprocess.MultiProcessCollector(None, self.path).collect())
        check_samples(samples)
        registry = multiprocess.setup_multiprocess_registry(self.path)
        check_text(multiprocess.generate_latest(registry), samples)
        for name, content in self.now.items():
            if content is not None:
                real = keys_of(Content.of(self.corpus[name]))
                if any(one != two for one, two in zip(keys_of(content), real, strict=False)):
                    self.doubtful.add(name)

    def _damage(self, name: str) -> None:
        if self.rng.random() < 0.05:
            self.now[name] = None
            self.log.append(f"{name} is {put_no_file(self.rng, os.path.join(self.path, name))}")
        else:
            before = self.now[name] or Content.of(self.corpus[name])
            self._put(name, damaged(self.rng, before, self.corpus))

    def _put(self, name: str, content: Content) -> None:
        way = put(self.rng, os.path.join(self.path, name), content)
        self.now[name] = content
        self.bytes_read += len(content.data)
        self.log.append(f"{name} has {content.size} bytes, {way}")


def is_whole(content: Content) -> bool:
    """Return whether everything in a file makes sense."""
    return entries_of(content)[1]


def play(seed: int, corpus: Corpus, tmp_path: Path) -> int:
    """Play one history; return how many bytes were damaged."""
    path = str(tmp_path / f"history-{seed}")
    with watched(f"history {seed}", tmp_path):
        history = History(seed, corpus, path)
        try:
            history.play()
        except Exception as error:
            log = "\n  ".join(history.log)
            raise AssertionError(f"{error}\nwhat happened:\n  {log}") from error
    shutil.rmtree(path)
    return history.bytes_read


@pytest.mark.parametrize("block", range(4))
def test_histories(corpus: Corpus, tmp_path: Path, block: int) -> None:
    """Whatever is done to files, scrapes succeed and are right about every other file."""
    for seed in range(block * 40, block * 40 + 40):
        play(seed, corpus, tmp_path)


@contextlib.contextmanager
def bounded_memory(most_bytes: int) -> Iterator[None]:
    """Check that the body never holds more memory than this."""
    tracemalloc.start()
    try:
        yield
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most_bytes


def scrape_everything(path: str, rounds: int = 1) -> None:
    """Scrape a directory as a whole, as text and as families."""
    collector = DirectoryCollector(path)
    for _ in range(rounds):
        snapshot = collector.collect()
        snapshot.text()
        list(snapshot.metrics())


@pytest.mark.parametrize("block", range(2))
def test_memory(corpus: Corpus, tmp_path: Path, block: int) -> None:
    """Damaged files cost memory in proportion to their size, whatever they say of themselves."""
    rng = random.Random(block)
    for number in range(40):
        path = tmp_path / str(number)
        path.mkdir()
        total = 0
        for name in rng.sample(sorted(corpus), 4):
            content = damaged(rng, Content.of(corpus[name]), corpus)
            put(rng, str(path / name), content)
            total += content.size if content.size <= 1 << 20 else len(content.data)
        with bounded_memory(MOST_BYTES_PER_BYTE * total + MOST_BYTES_BESIDE):
            scrape_everything(str(path), rounds=3)


@pytest.mark.parametrize("kind", ["counter", "gauge_max", "histogram"])
@pytest.mark.parametrize("is_metric", [True, False], ids=["metrics", "no metrics"])
def test_memory_of_many_entries(directory: str, tmp_path: Path, kind: str, is_metric: bool) -> None:
    """A file full of the smallest entries costs memory in proportion to its size."""
    keys = [b"%3x" % number for number in range(1 << 12)]
    if is_metric:
        keys = [b'["m","m",{"l":"%x"},""]' % number for number in range(1 << 11)]
    data = whole(b"".join([pack_entry(key, 1.0, 0.0) for key in keys]))
    Path(directory, f"{kind}_slot0.db").write_bytes(data)
    with watched("many entries", tmp_path), bounded_memory(MOST_BYTES_PER_BYTE * len(data)):
        scrape_everything(directory, rounds=2)


@pytest.mark.parametrize(
    ("used", "size", "most_bytes"),
    [
        (0, 1 << 30, 1 << 20),
        (4096, 1 << 30, 1 << 20),
        (1 << 23, 1 << 30, 1 << 25),
        (17, 1 << 26, (1 << 26) + (1 << 20)),
        ((1 << 31) - 8, 1 << 26, (1 << 26) + (1 << 20)),
    ],
    ids=["empty", "a page", "eight MiB", "no sense", "beyond the end"],
)
def test_holes(directory: str, tmp_path: Path, used: int, size: int, most_bytes: int) -> None:
    """Of a file with a hole no more is read than its header says, and never more than its size."""
    path = Path(directory, "counter_slot0.db")
    for name, data in NEIGHBOURS.items():
        Path(directory, name).write_bytes(data)
    entry = pack_entry(b'["good", "good_total", {}, "Help."]', 1.0, 0.0)
    path.write_bytes(struct.pack("i", used) + b"good" + (entry if used else b""))
    os.truncate(path, size)
    with watched("a hole", tmp_path), bounded_memory(most_bytes):
        scrape_everything(directory, rounds=2)
    samples = flat(DirectoryCollector(directory).collect().metrics())
    check_samples(samples)
    assert samples.get(("good_total", frozenset())) == (1.0 if used else None)


# ------------------------------------------------------------------------------------------------
# What histories have found, one by one


def entry(metric: str, sample: str, labels: dict[str, str], value: float = 1.0) -> bytes:
    """Return an entry of a metric file."""
    return pack_entry(json.dumps([metric, sample, labels, "Help."]).encode(), value, 0.0)


A = entry("a", "a_total", {}, 1.0)
B = entry("b", "b_total", {}, 2.0)
C = entry("c", "c_total", {}, 4.0)


def lines(directory: str, collector: DirectoryCollector | None = None) -> list[str]:
    """Return the lines of a scrape that are samples."""
    snapshot = (collector or DirectoryCollector(directory)).collect()
    flat(snapshot.metrics())
    text = snapshot.text().decode()
    list(text_string_to_metric_families(text))
    return [line for line in text.split("\n") if line and not line.startswith("#")]


@pytest.mark.parametrize("used", [17, 1 << 20], ids=["odd", "beyond the end"])
@pytest.mark.parametrize("kind", ["counter", "gauge_max"])
@pytest.mark.parametrize(
    "entries",
    [A + B + A, A + A, A + B + C + B, B + A + entry("b", "b_total", {}, 9.0) + C],
    ids=["first again", "at once again", "second again", "another value"],
)
def test_repeated_keys_behind_a_wrong_header(
    directory: str, used: int, kind: str, entries: bytes
) -> None:
    """A file whose header lies and whose keys repeat costs itself at most, not the scrape."""
    data = struct.pack("i", used) + b"good" + entries
    path = Path(directory, f"{kind}_slot0.db")
    path.write_bytes(data)
    for name, neighbour in NEIGHBOURS.items():
        Path(directory, name).write_bytes(neighbour)
    collector = DirectoryCollector(directory)
    for _ in range(2):
        check_samples(flat(collector.collect().metrics()))
    check_samples(flat(multiprocess.MultiProcessCollector.merge([str(path), *_neighbours(path)])))


def _neighbours(path: Path) -> list[str]:
    return [str(path.with_name(name)) for name in NEIGHBOURS]


@pytest.mark.parametrize("number", [b"good", bytes(4)], ids=["numbered", "without a number"])
@pytest.mark.parametrize("kind", ["counter", "gauge_max"])
def test_a_key_that_comes_late(directory: str, kind: str, number: bytes) -> None:
    """A key that a scrape has met unfinished is read once it is whole.

    As on a CPU that shows the stores of another one in another order.
    """
    path = Path(directory, f"{kind}_slot0.db")
    unfinished = B[:4] + bytes(len(B) - 20) + B[-16:]
    path.write_bytes(whole(A + unfinished, number))
    collector = DirectoryCollector(directory)
    assert len(lines(directory, collector)) == 1
    with path.open("r+b") as file:
        file.write(whole(A + B, number))
    assert len(lines(directory, collector)) == 2
    assert collector.skipped.total() == 0


@pytest.mark.parametrize("kind", ["counter", "gauge_max", "histogram"])
def test_keys_that_are_no_metrics_are_counted(directory: str, kind: str) -> None:
    """A file of which some entries are left out, because of their keys, counts as skipped."""
    strange = pack_entry(b'["x", "x_total", {"a": [', 1.0, 0.0)
    Path(directory, f"{kind}_slot0.db").write_bytes(whole(A + strange + B))
    collector = DirectoryCollector(directory)
    for _ in range(2):
        assert len(lines(directory, collector)) == 2
        assert collector.skipped.total() == 1


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("counter", entry("m", "m_total", {"__name__": "x"})),
        ("counter", entry("m", "m_total", {"__m": "x"})),
        ("counter", entry("m", "m_total", {"a": "1"}) + entry("m", "m_total", {"": "1"})),
        ("gauge_max", entry("m", "m", {"__name__": "x"})),
        ("counter", entry("m", "m_total\n", {})),
        ("gauge_max", entry("m", "m\n", {"a": "b"})),
        ("gauge_max", entry("m\n", "m", {})),
        ("counter", entry("m", "m_total", {"a\n": "b"})),
        ("counter", entry("m", "", {})),
        ("gauge_max", entry("m", "", {})),
        ("histogram", entry("m", "", {"a": "b"})),
        (
            "histogram",
            entry("h", "h_bucket", {"le": "nan"}) + entry("h", "h_bucket", {"le": "NaN"}),
        ),
        (
            "histogram",
            entry("h", "h_bucket", {"le": "1"}) + entry("h", "h_bucket", {"le": "1.00"}),
        ),
        ("gauge_all", entry("g", "g", {"pid": "1"}) + entry("g", "g", {"pid": "2"})),
    ],
    ids=[
        "__name__",
        "__m",
        "no label name",
        "__name__ of a gauge",
        "a line break",
        "a line break of a gauge",
        "a line break in the metric",
        "a line break in a label name",
        "no name",
        "no name of a gauge",
        "no name of a histogram",
        "nan",
        "1",
        "pid",
    ],
)
def test_strange_names(directory: str, kind: str, entries: bytes) -> None:
    """Names and labels that no writer writes leave a text that parses and says nothing twice."""
    Path(directory, f"{kind}_slot0.db").write_bytes(whole(entries))
    found = [line.rpartition(" ")[0] for line in lines(directory)]
    assert len(found) == len(set(found))


# ------------------------------------------------------------------------------------------------


@pytest.mark.load
@pytest.mark.timeout(900)
def test_many_histories(corpus: Corpus, tmp_path: Path) -> None:
    """What holds for some damaged files holds for millions of damaged bytes."""
    deadline = time.monotonic() + 300
    total = 0
    seed = 1_000_000
    while time.monotonic() < deadline:
        total += play(seed, corpus, tmp_path)
        seed += 1
    assert total > 10_000_000, f"only {total} bytes in {seed - 1_000_000} histories"
