"""How much room metrics take in the multiprocess directory, for ``sizeLimit`` of a volume.

For each kind of metric so many series are made in a fresh process, with labels and help texts of
ordinary length. A *series* is what one label set of one metric takes in one slot: a histogram's
holds all its buckets and its sum. Shown are the bytes that are written, and what the file system
gives to the metric file and to its column, for one slot; each slot that has used the series takes
the same again.

Run it with ``make bench``, or ``python -m benchmarks.volume``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

SERIES = (1, 100, 1_000, 10_000)

MEASURE = """
import json, os, sys
import obskit_gunicorn.multiprocess
from prometheus_client import Counter, Gauge, Histogram, Summary, values
assert "obskit" in values.ValueClass.__module__
kind, series = sys.argv[1], int(sys.argv[2])
labels = ["method", "path"]
if kind == "counter":
    metric = Counter("http_requests", "Requests by method and path.", labels)
elif kind == "gauge":
    metric = Gauge("http_requests_in_progress", "Requests being answered now.", labels,
                   multiprocess_mode="livesum")
elif kind == "summary":
    metric = Summary("http_request_size_bytes", "Size of requests.", labels)
else:
    metric = Histogram("http_request_duration_seconds", "Time to answer a request.", labels)
for number in range(series):
    child = metric.labels("GET", f"/api/v1/items/{number:05}")
    child.inc() if hasattr(child, "inc") else child.observe(0.1)
directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
(name,) = [name for name in os.listdir(directory) if name.endswith(".db")]
path = os.path.join(directory, name)
column = path.replace(".db", ".col")
with open(path, "rb") as file:
    used = int.from_bytes(file.read(4), sys.byteorder)
print(json.dumps([used, *(os.stat(each).st_blocks * 512 for each in (path, column))]))
"""


def measure(kind: str, series: int) -> tuple[int, int, int]:
    """Return the bytes written, and those of the file and of its column, in one slot."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, kind, str(series)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": path},
            check=True,
            capture_output=True,
            text=True,
        )
    written, file, column = json.loads(done.stdout)
    return written, file, column


def main() -> None:
    """Print the table."""
    print(
        f"{'':10} {'series':>7} {'bytes written':>14} {'a series':>9} {'file':>10} {'column':>10}"
    )
    for kind in ("counter", "gauge", "summary", "histogram"):
        for series in SERIES:
            written, file, column = measure(kind, series)
            each = (written - 8) / series
            print(
                f"{kind:10} {series:7} {written:14} {each:9.0f} {file // 1024:6} KiB "
                f"{column // 1024:6} KiB"
            )


if __name__ == "__main__":
    main()
