"""``metrics_collectors``: whatever a collector of the user's does, it costs its own families."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from prometheus_client.openmetrics import exposition, parser

from obskit_gunicorn._exporter import user_collectors
from obskit_gunicorn._exporter.user_collectors import UserCollector, UserCollectors
from obskit_gunicorn._scrape.formats import Families
from obskit_gunicorn._scrape.registry import SharedRegistry, generate_latest
from tests.support.process import parse_metrics, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = """
from prometheus_client import CollectorRegistry, Enum, Gauge, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

registry = CollectorRegistry()
info = Info("g_build", "Build.", registry=registry)
info.info({"commit": "abc"})
state = Enum("g_state", "State.", states=["up", "down"], registry=registry)
depth = Gauge("g_depth", "Depth.", registry=None)
depth.set_function(lambda: 7)


class Collector:
    made = 0

    def __init__(self):
        type(self).made += 1

    def collect(self):
        yield GaugeMetricFamily("g_made", "How often it was made.", self.made)


an_object = Collector()


class Place:
    class inner:
        it = an_object
"""

_names = itertools.count()

Write = Callable[[str], str]


@pytest.fixture(name="module")
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module of the user's, and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"guest_module_{next(_names)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture(name="patient", autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a collector have the time that it needs on a busy machine."""
    monkeypatch.setattr(user_collectors, "LONGEST_SECONDS", 30.0)


@pytest.fixture(name="quick")
def _quick(monkeypatch: pytest.MonkeyPatch, patient: None) -> Iterator[pytest.MonkeyPatch]:
    """Let a collector have half a second only, until this is undone."""
    with monkeypatch.context() as patched:
        patched.setattr(user_collectors, "LONGEST_SECONDS", 0.5)
        yield patched


def exposed(*names: str) -> SharedRegistry:
    """Return a registry as the exporter has it, with these collectors."""
    registry = SharedRegistry("/nowhere")
    registry.register(UserCollectors(names))
    return registry


def scrape(registry: SharedRegistry) -> dict[str, float]:
    """Return the samples of a scrape by name, those of the guests only."""
    return {
        name: value
        for (name, _), value in parse_metrics(generate_latest(registry).decode()).items()
        if name.startswith("g_")
    }


def openmetrics(registry: SharedRegistry) -> str:
    """Return a scrape in the OpenMetrics format."""
    return exposition.generate_latest(registry).decode()  # type: ignore[no-untyped-call,no-any-return]


def failures(registry: SharedRegistry, collector: str, reason: str) -> float:
    """Return how often a collector was left out."""
    name = "obskit_gunicorn_collector_failures_total"
    labels = frozenset({("collector", collector), ("reason", reason)})
    return parse_metrics(generate_latest(registry).decode())[name, labels]


class TestGood:
    """What may be named."""

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("info", {"g_build_info": 1}),
            ("state", {"g_state": 0}),
            ("depth", {"g_depth": 7}),
            ("registry", {"g_build_info": 1, "g_state": 0}),
            ("an_object", {"g_made": 1}),
            ("Place.inner.it", {"g_made": 1}),
        ],
    )
    def test_objects(self, module: Write, path: str, expected: dict[str, float]) -> None:
        """Metrics, registries and objects with collect() are exposed, wherever they stand."""
        assert scrape(exposed(f"{module(GOOD)}:{path}")) == expected

    def test_a_class(self, module: Write) -> None:
        """A class is made once, not at each scrape."""
        registry = exposed(f"{module(GOOD)}:Collector")
        for _ in range(3):
            assert scrape(registry) == {"g_made": 2}

    def test_nothing_is_imported_before_the_first_scrape(self, module: Write) -> None:
        """Naming collectors imports nothing."""
        name = module(GOOD)
        exposed(f"{name}:info")
        assert name not in sys.modules

    def test_slow_but_in_time(self, module: Write) -> None:
        """Slow ones run beside each other: a scrape takes as long as the slowest."""
        name = module(
            "import threading\nfrom prometheus_client.core import GaugeMetricFamily\n"
            "all_run = threading.Barrier(5)\n"
            "class Slow:\n"
            "    def __init__(self, name): self.name = name\n"
            "    def collect(self):\n"
            "        all_run.wait(20)\n"
            "        return [GaugeMetricFamily(self.name, 'Slow.', 1)]\n"
            "a, b, c, d, e = (Slow('g_' + x) for x in 'abcde')\n"
        )
        registry = exposed(*(f"{name}:{x}" for x in "abcde"))
        assert len(scrape(registry)) == 5


BAD = """
import sys, time
from prometheus_client.core import (
    CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric,
)
from prometheus_client.samples import Exemplar, Sample


def function():
    return []


number = 3


class Raises:
    def __init__(self, error): self.error = error
    def collect(self):
        yield GaugeMetricFamily("g_first", "First.", 1)
        raise self.error


class Unspeakable(Exception):
    def __str__(self): raise SystemExit(3)


half = Raises(ValueError("half way"))
leaves = Raises(SystemExit(3))
interrupts = Raises(KeyboardInterrupt())
unspeakable = Raises(Unspeakable())


class Returns:
    def __init__(self, *what): self.what = what
    def collect(self):
        if len(self.what) == 1 and not hasattr(self.what[0], "samples"):
            return self.what[0]
        return self.what


def family(name="g_bad", samples=(), kind="gauge", text="Bad."):
    found = Metric(name, text, kind)
    found.samples = list(samples)
    return found


def renamed(**fields):
    found = family(samples=[Sample("g_bad", {}, 1.0)])
    vars(found).update(fields)
    return found


none = Returns(None)
text = Returns("garbage")
strings = Returns(["a", "b"])
numbers = Returns([1, 2])
nothing = Returns([None])


class NeedsArguments:
    def __init__(self, this): pass
    def collect(self): return []


class Meta(type):
    def __str__(cls): raise ValueError
    __repr__ = __str__


class Strange(metaclass=Meta):
    pass


GOOD = GaugeMetricFamily("g_good", "Good.", 1)
no_number = Returns(GOOD, family(samples=[Sample("g_bad", {}, "many")]))
none_value = Returns(GOOD, family(samples=[Sample("g_bad", {}, None)]))
label_number = Returns(GOOD, family(samples=[Sample("g_bad", {"a": 1}, 1.0)]))
empty_label = Returns(GOOD, family(samples=[Sample("g_bad", {"": "x"}, 1.0)]))
newline_label = Returns(GOOD, family(samples=[Sample("g_bad", {"a\\n": "x"}, 1.0)]))
no_labels = Returns(GOOD, family(samples=[Sample("g_bad", None, 1.0)]))
empty_sample = Returns(GOOD, family(samples=[Sample("", {}, 1.0)]))
newline_sample = Returns(GOOD, family(samples=[Sample("g_bad\\n", {}, 1.0)]))
not_samples = Returns(GOOD, family(samples=[1, 2]))
empty_name = Returns(GOOD, renamed(name=""))
newline_name = Returns(GOOD, renamed(name="g_bad\\n"))
list_name = Returns(GOOD, renamed(name=["g_bad"]))
none_name = Returns(GOOD, renamed(name=None))
wrong_type = Returns(GOOD, renamed(type="gauge\\ng_injected 1"))
no_text = Returns(GOOD, renamed(documentation=None))
surrogate = Returns(GOOD, renamed(documentation="\\ud800"))
no_metric = Returns(GOOD, object())
gauge_exemplar = Returns(
    GOOD, family(samples=[Sample("g_bad", {}, 1.0, None, Exemplar({"a": "b"}, 1.0))])
)
bad_exemplar = Returns(
    GOOD,
    family(
        kind="counter",
        samples=[Sample("g_bad_total", {}, 1.0, None, Exemplar({"a": 1}, "x"))],
    ),
)
bad_timestamp = Returns(GOOD, family(samples=[Sample("g_bad", {}, 1.0, "yesterday")]))
"""


class TestBad:
    """What goes wrong in them."""

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("function", "no method collect()"),
            ("number", "no method collect()"),
            ("Strange", "no method collect()"),
            ("absent", "has no attribute 'absent'"),
            ("number.absent", "has no attribute 'absent'"),
            ("NeedsArguments", "missing 1 required positional argument"),
            ("half", "ValueError: half way"),
            ("leaves", "SystemExit: 3"),
            ("interrupts", "KeyboardInterrupt"),
            ("unspeakable", "Unspeakable: an object of Unspeakable"),
            ("none", "TypeError"),
            ("text", "its g cannot be exposed"),
            ("strings", "its a cannot be exposed"),
            ("numbers", "its 1 cannot be exposed"),
            ("nothing", "its None cannot be exposed"),
        ],
    )
    def test_collector(
        self, module: Write, path: str, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that fails is left out, counted at each scrape, and logged once, with the reason."""
        name = f"{module(BAD)}:{path}"
        registry = exposed(name, f"{module(GOOD)}:depth")
        for count in (1, 2, 3):
            assert scrape(registry) == {"g_depth": 7}
            # Each look is a scrape as well.
            assert failures(registry, name, "error") == 2 * count
        assert failures(registry, name, "timeout") == 0
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"metrics_collectors: {name} is left out")
        assert said in line

    @pytest.mark.parametrize(
        "path",
        [
            "no_number",
            "none_value",
            "label_number",
            "empty_label",
            "newline_label",
            "no_labels",
            "empty_sample",
            "newline_sample",
            "not_samples",
            "empty_name",
            "newline_name",
            "list_name",
            "none_name",
            "wrong_type",
            "no_text",
            "surrogate",
            "no_metric",
            "gauge_exemplar",
            "bad_exemplar",
            "bad_timestamp",
        ],
    )
    def test_family(self, module: Write, path: str, caplog: pytest.LogCaptureFixture) -> None:
        """One family that cannot be exposed in some format costs that family, in every format."""
        name = f"{module(BAD)}:{path}"
        registry = exposed(name)
        assert scrape(registry) == {"g_good": 1}
        text = openmetrics(registry)
        assert text.endswith("# EOF\n")
        families: Any = parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        assert [each.name for each in families if each.name.startswith("g_")] == ["g_good"]
        assert failures(registry, name, "error") == 3
        (line,) = [record.getMessage() for record in caplog.records]
        assert "cannot be exposed" in line

    def test_odd_but_good(self, module: Write) -> None:
        """What encoders can render is exposed, also where a strict reader would frown."""
        name = module(
            "from prometheus_client.core import Metric\n"
            "class Odd:\n"
            "    def collect(self):\n"
            "        found = Metric('g_odd', 'A counter without _total.', 'counter')\n"
            "        found.add_sample('g_odd', {'l': 'ä\\n\"'}, True)\n"
            "        found.add_sample('g_odd', {}, 3, 1.5)\n"
            "        yield found\n"
            "        yield Metric('g_empty', 'No samples.', 'histogram')\n"
        )
        registry = exposed(f"{name}:Odd")
        text = generate_latest(registry).decode()
        assert 'g_odd{l="ä\\n\\""} 1.0\n' in text
        assert "g_odd 3.0 1500\n" in text
        assert "g_odd 3.0 1.5\n" in openmetrics(registry)
        assert failures(registry, f"{name}:Odd", "error") == 0

    def test_import(self, module: Write, caplog: pytest.LogCaptureFixture) -> None:
        """A module that is missing, wrong or leaves by itself costs its collectors only."""
        names = [
            "no_such_module_here:x",
            f"{module('this is no Python')}:x",
            f"{module('raise SystemExit(3)')}:x",
            f"{module('import no_such_module_here')}:x",
        ]
        registry = exposed(*names, f"{module(GOOD)}:depth")
        assert scrape(registry) == {"g_depth": 7}
        for name in names:
            assert failures(registry, name, "error") >= 2
        assert len(caplog.records) == len(names)

    def test_comes_good(self, module: Write) -> None:
        """One that works later is exposed from then on."""
        name = module(
            "from prometheus_client.core import GaugeMetricFamily\n"
            "class Late:\n"
            "    calls = 0\n"
            "    def collect(self):\n"
            "        self.calls += 1\n"
            "        if self.calls < 3: raise OSError('not yet')\n"
            "        yield GaugeMetricFamily('g_late', 'Late.', self.calls)\n"
        )
        registry = exposed(f"{name}:Late")
        assert [scrape(registry) for _ in range(3)] == [{}, {}, {"g_late": 3}]

    def test_families_are_copied(self, module: Write) -> None:
        """What a collector does with its families afterwards changes no answer."""
        name = module(
            "from prometheus_client.core import GaugeMetricFamily\n"
            "family = GaugeMetricFamily('g_one', 'One.', labels=['l'])\n"
            "family.add_metric(['x'], 1)\n"
            "class Same:\n"
            "    def collect(self): return [family]\n"
        )
        collector = UserCollector(f"{name}:Same")
        (found,) = collector.families(collector.start())
        family = sys.modules[name].family
        family.samples[0].labels["l"] = object()
        family.samples.append(None)
        family.name = "other name"
        assert b'g_one{l="x"} 1.0' in prometheus_client.generate_latest(Families(lambda: [found]))


class TestNames:
    """Names that are taken."""

    def test_taken(self, module: Write, caplog: pytest.LogCaptureFixture) -> None:
        """A family whose name is ours or another collector's is left out, and logged once."""
        name = module(
            "from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily\n"
            "class Mine:\n"
            "    def collect(self):\n"
            "        yield GaugeMetricFamily('obskit_gunicorn_slots', 'Mine.', 99)\n"
            "        yield CounterMetricFamily('obskit_gunicorn_collector_failures', 'M.', 99)\n"
            "        yield GaugeMetricFamily('obskit_gunicorn_collector_failures_total', 'M', 99)\n"
            "        yield GaugeMetricFamily('g_depth', 'Mine.', 1)\n"
        )
        registry = exposed(f"{name}:Mine", f"{module(GOOD)}:depth")
        for _ in range(3):
            text = generate_latest(registry).decode()
            assert " 99.0" not in text
            assert "g_depth 1.0\n" in text
            assert "g_depth 7.0\n" not in text
            openmetrics(registry)
        assert "obskit_gunicorn_collector_failures_total{" in text
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 4
        assert all("is exposed once" in line for line in said)


HANGS = """
import threading
from prometheus_client.core import GaugeMetricFamily

go_on = threading.Event()
calls = 0


class Hangs:
    def collect(self):
        global calls
        calls += 1
        go_on.wait(20)
        return [GaugeMetricFamily("g_hung", "Hung.", calls)]
"""


class TestTime:
    """Collectors that do not come back, and scrapes at the same time."""

    def test_hangs(
        self, module: Write, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that hangs is waited for once; later scrapes are quick, and start no thread."""
        name = module(HANGS)
        registry = exposed(f"{name}:Hangs", f"{module(GOOD)}:depth")
        assert scrape(registry) == {"g_depth": 7}
        quick.undo()
        threads = threading.active_count()
        for _ in range(10):  # one that waits for it again gets its figures
            assert scrape(registry) == {"g_depth": 7}
        assert threading.active_count() <= threads
        assert sys.modules[name].calls == 1
        assert failures(registry, f"{name}:Hangs", "timeout") == 12
        assert len(caplog.records) == 1
        assert "it took longer than 0.5 s" in caplog.records[0].getMessage()
        sys.modules[name].go_on.set()
        wait_until(lambda: scrape(registry) == {"g_depth": 7, "g_hung": 2}, "it is back")

    def test_import_hangs(self, module: Write, quick: pytest.MonkeyPatch) -> None:
        """So is one whose import hangs; nothing else is imported later because of it."""
        events = module("import threading\ngo_on = threading.Event()\n")
        name = module(f"import {events}\n{events}.go_on.wait(20)\n{GOOD}")
        registry = exposed(f"{name}:depth", f"{name}:info", f"{module(GOOD)}:state")
        assert scrape(registry) == {"g_state": 0}
        quick.undo()
        assert scrape(registry) == {"g_state": 0}
        sys.modules[events].go_on.set()
        wait_until(lambda: len(scrape(registry)) == 3, "both are there")

    def test_scrapes_at_once(self, module: Write) -> None:
        """Scrapes that overlap share one call, and each gets its result."""
        name = module(
            "import time\nfrom prometheus_client.core import GaugeMetricFamily\n"
            "class Slow:\n"
            "    running = calls = most = 0\n"
            "    def collect(self):\n"
            "        self.calls += 1\n"
            "        self.running += 1\n"
            "        self.most = max(self.most, self.running)\n"
            "        time.sleep(0.01)\n"
            "        self.running -= 1\n"
            "        return [GaugeMetricFamily('g_slow', 'Slow.', 1)]\n"
            "slow = Slow()\n"
        )
        registry = exposed(f"{name}:slow")
        found: list[dict[str, float]] = []

        def ask() -> None:
            for _ in range(20):
                found.append(scrape(registry))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        slow: Any = sys.modules[name].slow
        assert found == [{"g_slow": 1}] * 160
        assert slow.most == 1
        assert slow.calls < 160

    def test_no_threads(self, module: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started collectors are left out, and the scrape is answered."""
        name = module(GOOD)
        registry = exposed(f"{name}:depth", f"{name}:info")

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            assert scrape(registry) == {}
            assert failures(registry, f"{name}:depth", "error") == 2
        assert len(scrape(registry)) == 2
