"""What a metric call costs: ours against prometheus_client's multiprocess mode, in one run.

Each figure is CPU time, taken in a fresh interpreter, the two sides in turn, and the best of
several rounds is kept: on a shared machine the smallest time is the least disturbed one. Ratios are
ours / theirs.

Run it with ``make bench``, or ``python -m benchmarks.values``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile

ROUNDS = 7
SERIES = 10_000

MEASURE = """
import json, os, sys, time, timeit
if sys.argv[1] == "ours":
    import obskit_gunicorn.multiprocess
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client import values
assert ("obskit" in values.ValueClass.__module__) == (sys.argv[1] == "ours")
series = int(sys.argv[2])
counter = Counter("benchmark_events", "Events.")
histogram = Histogram("benchmark_seconds", "Durations.")
gauge = Gauge("benchmark_level", "A level.", multiprocess_mode="livesum")

def each(function, number=100_000):
    times = timeit.repeat(function, timer=time.process_time, number=number, repeat=5)
    return min(times) / number

figures = {
    "Value.inc()": each(lambda: counter._value.inc(1)),
    "Counter.inc()": each(counter.inc),
    "Histogram.observe()": each(lambda: histogram.observe(0.3)),
    "Gauge.set()": each(lambda: gauge.set(4)),
}

def make(kind, name, many):
    parent = kind(name, "Many.", ["method", "path"])
    labels = [("GET", f"/api/v1/items/{number}") for number in range(many)]
    start = time.process_time()
    for each in labels:
        parent.labels(*each)
    return (time.process_time() - start) / many

figures["making a child of a Counter"] = make(Counter, "benchmark_children", series // 2)
figures["making a child of a Histogram"] = make(Histogram, "benchmark_durations", series // 20)
parent = Counter("benchmark_series", "Many.", ["label"])
for number in range(series):
    parent.labels(str(number)).inc()
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    start = time.process_time()
    counter.inc()
    os.write(writer, json.dumps(time.process_time() - start).encode())
    os._exit(0)
os.waitpid(pid, 0)
figures[f"first inc() in a child, parent with {series} series"] = json.loads(os.read(reader, 100))
print(json.dumps(figures))
"""


def measure(side: str) -> dict[str, float]:
    """Return seconds by what was measured, for ``ours`` or ``theirs``."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, side, str(SERIES)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": path},
            check=True,
            capture_output=True,
        )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure both sides and print the ratios."""
    best: dict[str, dict[str, float]] = {"ours": {}, "theirs": {}}
    for _round in range(ROUNDS):
        for side, figures in best.items():
            for name, seconds in measure(side).items():
                figures[name] = min(seconds, figures.get(name, seconds))
    print(f"Python {platform.python_version()}, best of {ROUNDS} rounds")
    print(f"{'':<48}{'ours':>12}{'theirs':>12}{'ratio':>8}")
    for name, ours in best["ours"].items():
        theirs = best["theirs"][name]
        print(f"{name:<48}{ours * 1e6:>10.2f}us{theirs * 1e6:>10.2f}us{ours / theirs:>8.2f}")


if __name__ == "__main__":
    main()
