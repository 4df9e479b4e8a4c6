"""What is pushed and when, seen by an endpoint that decodes it by itself."""

from __future__ import annotations

import base64
import contextlib
import math
import socket
import ssl
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from obskit_gunicorn._fleet import push as module
from obskit_gunicorn._fleet import remote_write
from obskit_gunicorn._fleet.push import Push, PushError
from obskit_gunicorn._version import __version__
from tests.support.process import HOST, free_port
from tests.support.remote_write import STALE, Answer, Point, Receiver, Request, decode, receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "OBSKIT_METRICS_PUSH_TOKEN"
USER = "OBSKIT_METRICS_PUSH_USER"
PASSWORD = "OBSKIT_METRICS_PUSH_PASSWORD"
TARGET = {"instance": "web-1", "job": "gunicorn"}


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    """An endpoint that accepts everything."""
    with receiver() as running:
        yield running


class Source:
    """Metrics that a test changes."""

    def __init__(self, *families: Metric) -> None:
        self.families = list(families)

    def __call__(self) -> list[Metric]:
        """Collect them."""
        return self.families


def counter(value: float, name: str = "requests") -> Metric:
    """Return a counter."""
    return CounterMetricFamily(name, "Requests.", value)


def gauge(value: float, name: str = "load") -> Metric:
    """Return a gauge."""
    return GaugeMetricFamily(name, "Load.", value)


def pushing(endpoint: Receiver, *families: Metric, goes_on: bool = False) -> tuple[Push, Source]:
    """Return a push to an endpoint, and what it reads."""
    source = Source(*families)
    return Push(endpoint.url, "web-1", source, goes_on=goes_on), source


def labels_of(points: list[Point]) -> list[dict[str, str]]:
    """Return the labels of samples, after a check that they are in order."""
    for point in points:
        names = [name for name, _ in point.labels]
        assert names == sorted(set(names))
    return [dict(point.labels) for point in points]


# ------------------------------------------------------------------------------------------------
# What is sent


def test_a_request(endpoint: Receiver) -> None:
    """A request has the headers of remote write 1.0, and every sample at the time of the push."""
    before = int(time.time() * 1000)
    push, _ = pushing(endpoint, gauge(2.5))
    push.send()
    request = endpoint.requests[0]
    assert request.path == "/api/v1/write"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["content-encoding"] == "snappy"
    assert request.headers["x-prometheus-remote-write-version"] == "0.1.0"
    assert request.headers["user-agent"] == f"obskit-gunicorn/{__version__}"
    assert request.headers["host"] == f"{HOST}:{endpoint.port}"
    assert "authorization" not in request.headers
    (point,) = request.points
    assert dict(point.labels) == {"__name__": "load", **TARGET}
    assert point.value == 2.5
    assert before <= point.time_ms <= time.time() * 1000


def test_labels_that_the_target_has_too(endpoint: Receiver) -> None:
    """They are renamed as at a scrape; an empty label does not exist."""
    family = Metric("load", "Load.", "gauge")
    family.add_sample("load", {"job": "a", "exported_job": "b", "instance": "", "x": ""}, 1)
    push, _ = pushing(endpoint, family)
    push.send()
    assert labels_of(endpoint.requests[0].points) == [
        {"__name__": "load", "exported_exported_job": "a", "exported_job": "b", **TARGET}
    ]


texts = st.text(max_size=20) | st.sampled_from(["", "\ud800", "\x00", "é" * 200])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(["a", "b", "__c", "Z", "job", "le"]), texts),
            st.floats() | st.integers(-(2**70), 2**70),
        ),
        max_size=8,
    )
)
def test_every_label_and_value_arrives(
    samples: list[tuple[dict[str, str], float]],
) -> None:
    """What an independent decoder finds is what was read."""
    family = Metric("load", "Load.", "gauge")
    expected: dict[tuple[tuple[str, str], ...], float] = {}
    for labels, value in samples:
        family.add_sample("load", labels, value)
        shown = {
            "exported_job" if name == "job" else name: text.encode(errors="replace").decode()
            for name, text in labels.items()
            if text
        }
        key = tuple(sorted({**shown, **TARGET, "__name__": "load"}.items()))
        expected.setdefault(key, float(value))
    push = Push("http://nowhere.invalid/", "web-1", lambda: [family])
    at = int(time.time() * 1000)
    body = remote_write.request(((s.head, value) for s, value in push._points()), at)
    points, metadata = decode(body)
    assert not metadata
    labels_of(points)
    assert {point.time_ms for point in points} <= {at}
    assert len(points) == len(expected)
    for point in points:
        wanted = expected[point.labels]
        assert point.value == wanted or (math.isnan(wanted) and math.isnan(point.value))
        assert not point.is_stale


def test_a_nan_is_no_stale_marker(endpoint: Receiver) -> None:
    """A gauge that has exactly the bits of a stale marker stays a gauge that is not a number."""
    forged = struct.unpack("<d", struct.pack("<Q", STALE))[0]
    push, _ = pushing(endpoint, gauge(forged), gauge(math.nan, "other"))
    push.send()
    assert [point.bits for point in endpoint.points] == [0x7FF8000000000001] * 2


def test_two_samples_of_one_series(endpoint: Receiver) -> None:
    """The first counts, as at a scrape, even if the labels are in another order."""
    family = Metric("load", "Load.", "gauge")
    family.add_sample("load", {"a": "1", "b": "2"}, 1)
    family.add_sample("load", {"b": "2", "a": "1"}, 2)
    family.add_sample("load", {"b": "2", "a": "1", "c": ""}, 3)
    push, _ = pushing(endpoint, family)
    push.send()
    push.send()
    assert endpoint.values("load") == [1, 1]


def test_what_metrics_are(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, help texts and units are sent with the first push, and again after an hour."""
    push, _ = pushing(
        endpoint,
        counter(1),
        GaugeMetricFamily("size_bytes", "Size.", 1, unit="bytes"),
        InfoMetricFamily("build", "Build.", {"version": "1"}),
        HistogramMetricFamily("took", "Took.", [("+Inf", 1)], 1),
        Metric("odd", "Odd.", "unknown"),
    )
    push.send()
    found = endpoint.requests[-1].metadata
    assert found == [
        (1, "requests_total", "Requests.", ""),
        (2, "size_bytes", "Size.", "bytes"),
        (6, "build_info", "Build.", ""),
        (3, "took", "Took.", ""),
        (0, "odd", "Odd.", ""),
    ]
    push.send()
    assert not endpoint.requests[-1].metadata
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    push.send()
    assert endpoint.requests[-1].metadata == found


def test_an_endpoint_that_wants_no_metadata(endpoint: Receiver) -> None:
    """It may refuse them; the push has succeeded."""
    endpoint.answer = lambda request: Answer(400 if request.metadata else 204)
    push, _ = pushing(endpoint, counter(1))
    push.send()
    assert endpoint.requests[-1].metadata


# ------------------------------------------------------------------------------------------------
# The beginning of a series


def test_zeros_first(endpoint: Receiver) -> None:
    """All that only grows begins with a 0 a millisecond before; a gauge does not."""
    summary = SummaryMetricFamily("spent", "Spent.", count_value=3, sum_value=4)
    summary.add_sample("spent", {"quantile": "0.5"}, 1)
    created = Metric("requests", "Requests.", "counter")
    created.add_sample("requests_total", {}, 5)
    created.add_sample("requests_created", {}, 1e9)
    push, _ = pushing(
        endpoint,
        created,
        HistogramMetricFamily("took", "Took.", [("1.0", 2), ("+Inf", 3)], -1),
        summary,
        gauge(7),
        counter(0, "idle"),
    )
    push.send()
    for name, value in (
        ("requests_total", 5),
        ("took_count", 3),
        ("took_sum", -1),
        ("spent_count", 3),
        ("spent_sum", 4),
    ):
        (first, zero), (second, found) = endpoint.history(name)
        assert (zero, found) == (0, value)
        assert second == first + 1
    buckets = [point for point in endpoint.points if point.name == "took_bucket"]
    assert [(dict(p.labels)["le"], p.value) for p in buckets] == [
        ("1.0", 0),
        ("+Inf", 0),
        ("1.0", 2),
        ("+Inf", 3),
    ]
    for name in ("requests_created", "spent", "load", "idle_total"):
        assert len(endpoint.values(name)) == 1

    push.send()
    assert endpoint.values("requests_total") == [0, 5, 5]
    assert endpoint.values("idle_total") == [0, 0]


@pytest.mark.parametrize("status", [500, 429, 400, 401, None])
def test_a_first_push_that_failed(endpoint: Receiver, status: int | None) -> None:
    """No value follows before the zeros are accepted; after that, nothing is ever reset."""
    endpoint.answer = lambda _: status and Answer(status)  # type: ignore[assignment,return-value]
    push, source = pushing(endpoint, counter(5))
    for _ in range(2):
        with pytest.raises(PushError):
            push.send()
    assert set(endpoint.values("requests_total")) == {0}
    endpoint.answer = lambda _: Answer()
    source.families = [counter(6)]
    push.send()
    assert endpoint.values("requests_total")[-2:] == [0, 6]
    times = [at for at, _ in endpoint.history("requests_total")]
    assert times == sorted(set(times))


def test_values_that_failed_after_their_zeros(endpoint: Receiver) -> None:
    """Accepted zeros are not sent again, whatever happened to the values: that would be a reset."""

    def answer(request: Request) -> Answer | None:
        return Answer() if {point.value for point in request.points} == {0} else None

    endpoint.answer = answer
    push, source = pushing(endpoint, counter(5))
    with pytest.raises(PushError):
        push.send()
    endpoint.answer = lambda _: Answer()
    source.families = [counter(6)]
    push.send()
    assert endpoint.values("requests_total") == [0, 5, 6]


def test_what_was_accepted_is_known_for_each_request(
    endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the second of three requests fails, only the first one's zeros are not sent again."""
    monkeypatch.setattr(module, "_SERIES_A_REQUEST", 2)
    endpoint.answer = lambda _: Answer(503 if len(endpoint.requests) == 2 else 204)
    names = [f"c{i}" for i in range(5)]
    push, _ = pushing(endpoint, *(counter(5, name) for name in names))
    with pytest.raises(PushError, match="503"):
        push.send()
    assert len(endpoint.requests) == 2
    push.send()
    assert [endpoint.values(f"{name}_total") for name in names] == [
        [0, 5],
        [0, 5],
        [0, 0, 5],
        [0, 0, 5],
        [0, 5],
    ]


def test_counts_that_go_on(endpoint: Receiver) -> None:
    """What another process has pushed gets no zeros; what is new after that does."""
    push, source = pushing(endpoint, counter(100), goes_on=True)
    push.send()
    source.families = [counter(101), counter(3, "new")]
    push.send()
    assert endpoint.values("requests_total") == [100, 101]
    assert endpoint.values("new_total") == [0, 3]


# ------------------------------------------------------------------------------------------------
# The end of a series


def test_the_end_of_a_host(endpoint: Receiver) -> None:
    """The last values are followed by a stale marker a millisecond later, for each series."""
    push, source = pushing(endpoint, counter(5), gauge(1))
    push.send()
    source.families = [counter(8), gauge(2)]
    push.send(ended=True)
    assert endpoint.values("requests_total") == [0, 5, 8, "stale"]
    assert endpoint.values("load") == [1, 2, "stale"]
    (before, _), (after, _) = endpoint.history("load")[-2:]
    assert after == before + 1


def test_a_series_that_vanishes(endpoint: Receiver) -> None:
    """It gets one stale marker, even if the first try fails, and none at the end."""
    push, source = pushing(endpoint, gauge(1), gauge(2, "other"))
    push.send()
    source.families = [gauge(1)]
    endpoint.answer = lambda _: Answer(500)
    with pytest.raises(PushError):
        push.send()
    endpoint.answer = lambda _: Answer()
    push.send()
    push.send()
    push.send(ended=True)
    assert endpoint.values("other") == [2, "stale", "stale"]
    assert endpoint.values("load") == [1, 1, 1, 1, 1, "stale"]


def test_a_series_that_comes_back(endpoint: Receiver) -> None:
    """A counter that was away goes on, without a reset; a gauge begins again."""
    push, source = pushing(endpoint, counter(5), gauge(1))
    push.send()
    source.families = []
    push.send()
    source.families = [counter(6), gauge(1)]
    push.send()
    source.families = []
    push.send(ended=True)
    assert endpoint.values("requests_total") == [0, 5, "stale", 6, "stale"]
    assert endpoint.values("load") == [1, "stale", 1, "stale"]


def test_what_is_kept_is_bounded(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of series that are gone only so many are remembered, and of those alive nothing doubles."""
    monkeypatch.setattr(module, "_MOST_GONE", 10)
    push, source = pushing(endpoint)
    for i in range(30):
        source.families = [counter(1, f"c{i}"), gauge(1, f"g{i}")]
        push.send()
    assert len(push._gone) == 10
    assert len(push._by_sample) == len(push._by_identity) == 2


def test_a_clock_that_steps_back(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of each series rise strictly, whatever the clock says."""
    push, source = pushing(endpoint, counter(1), gauge(1))
    now = time.time()
    for step in (0, -3600, -3600, 0, 0.0005, 1e-9, -1e9):
        monkeypatch.setattr(time, "time", lambda step=step: now + step)
        source.families.append(counter(1, f"c{len(endpoint.requests)}"))
        push.send()
    push.send(ended=True)
    for name in {point.name for point in endpoint.points}:
        times = [at for at, _ in endpoint.history(name)]
        assert times == sorted(set(times)), name


def test_a_clock_that_was_ahead_and_was_refused(
    endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused for its time does not hold up the right time."""
    push, _ = pushing(endpoint, gauge(1))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e7)
    endpoint.answer = lambda _: Answer(400, "too far in the future")
    with pytest.raises(PushError, match="clock"):
        push.send()
    monkeypatch.setattr(time, "time", lambda: now)
    endpoint.answer = lambda _: Answer()
    push.send()
    assert endpoint.history("load")[-1][0] == int(now * 1000)


def test_a_clock_that_cannot_be_sent(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was never set works; one in the far future is an error."""
    push, _ = pushing(endpoint, counter(1))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    push.send()
    assert endpoint.values("requests_total") == [0, 1]
    monkeypatch.setattr(time, "time", lambda: 2.0**42)
    with pytest.raises(PushError, match="clock"):
        push.send()


# ------------------------------------------------------------------------------------------------
# Refusals


def refuse(*names: str) -> Callable[[Request], Answer]:
    """Return an endpoint's answer: as Prometheus, it takes nothing of a request with a bad one."""

    def answer(request: Request) -> Answer:
        is_bad = any(point.name in names for point in request.points)
        return Answer(400, "label value too long") if is_bad else Answer()

    return answer


def test_one_series_that_is_refused(endpoint: Receiver) -> None:
    """It is found, said once, and tried again alone and less and less often; all others arrive."""
    endpoint.answer = refuse("c77_total")
    push, source = pushing(endpoint, *(counter(3, f"c{i}") for i in range(200)))
    with pytest.raises(PushError, match=r"some metrics .* 400 \(label value too long\)"):
        push.send()
    for i in set(range(200)) - {77}:
        assert [v for v in endpoint.values(f"c{i}_total") if v] == [3]
    tries = []
    for number in range(2, 20):
        endpoint.requests.clear()
        push.send(ended=number == 2)
        assert push.held_back == 1
        tries += [number] * len(endpoint.values("c77_total"))
    assert tries == [3, 7, 15]

    endpoint.answer = lambda _: Answer()
    while push.held_back:
        endpoint.requests.clear()
        push.send()
    assert endpoint.values("c77_total") == [0, 3]
    endpoint.requests.clear()
    push.send()
    assert len(endpoint.requests) == 1

    endpoint.answer = refuse("c78_total")
    with pytest.raises(PushError):
        push.send()
    source.families = []
    push.send()
    assert not push.held_back
    assert len(push._by_identity) == 0


def test_an_endpoint_that_refuses_everything(endpoint: Receiver) -> None:
    """The search for the reason is short, is not repeated, and holds nothing back."""
    endpoint.answer = lambda _: Answer(400, "out of order sample")
    push, _ = pushing(endpoint, *(gauge(3, f"g{i}") for i in range(3000)))
    with pytest.raises(PushError, match="out of order"):
        push.send()
    assert len(endpoint.requests) <= 30
    endpoint.requests.clear()
    with pytest.raises(PushError):
        push.send()
    assert len(endpoint.requests) == 2
    endpoint.answer = lambda _: Answer()
    push.send()
    assert push.held_back == 0
    assert endpoint.values("g2999")[-1] == 3


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (301, "redirects are not followed"),
        (307, "redirects are not followed"),
        (401, TOKEN),
        (403, "rights"),
        (404, "--web.enable-remote-write-receiver"),
        (405, "path"),
        (415, "remote write 1.0"),
        (418, "log"),
        (429, "limits"),
        (500, "log"),
        (503, "next push"),
    ],
)
def test_other_answers(endpoint: Receiver, status: int, advice: str) -> None:
    """The error says what was answered, and what to do; nothing else is tried."""
    with receiver() as other:
        headers = (("Location", other.url),)
        endpoint.answer = lambda _: Answer(status, "so\nthere\x1b[1m", headers)
        push, _ = pushing(endpoint, *(gauge(1, f"g{i}") for i in range(3000)))
        with pytest.raises(PushError, match=advice) as caught:
            push.send()
        assert not other.requests
    text = str(caught.value)
    assert text.startswith(f"metrics cannot be pushed to {endpoint.url}: it answers {status} (so ")
    assert text.isprintable()
    assert len(endpoint.requests) == 1


# ------------------------------------------------------------------------------------------------
# The connection


def test_nobody_there() -> None:
    """The error says what the system said."""
    push = Push(f"http://{HOST}:{free_port()}/w", "web-1", Source(gauge(1)))
    with pytest.raises(PushError, match="Connection refused: see that it runs"):
        push.send()


def test_an_unknown_host() -> None:
    """The error points to the DNS."""
    push = Push("http://nowhere.invalid/w", "web-1", Source(gauge(1)))
    with pytest.raises(PushError, match=r"http://nowhere\.invalid/w: its host is not found"):
        push.send()


def test_a_slow_endpoint(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long as a whole is given up; what was accepted until then is known."""
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 2.0)

    def slow(_: Request) -> Answer:
        time.sleep(1.2)  # the first one is in time
        return Answer()

    endpoint.answer = slow
    push, _ = pushing(endpoint, counter(1))
    with pytest.raises(PushError, match=r"did not answer within 2 s"):
        push.send()
    endpoint.answer = lambda _: Answer()
    push.send()
    assert endpoint.values("requests_total") == [0, 1, 1]


def test_an_answer_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes in drops, each of them in time, is given up too."""
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 0.5)
    with socket.create_server((HOST, free_port())) as listener:

        def drip() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    client.sendall(b"x")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        push = Push(f"http://{HOST}:{listener.getsockname()[1]}/", "web-1", Source(gauge(1)))
        with pytest.raises(PushError, match=r"did not answer within 0\.5 s"):
            push.send()
        thread.join()


def test_an_endpoint_that_hangs_up_each_time(endpoint: Receiver) -> None:
    """A connection that ends after each request is opened again."""
    endpoint.answer = lambda _: Answer(200, "x" * 100_000, (("Connection", "close"),))
    push, _ = pushing(endpoint, counter(1))
    push.send()
    assert len(endpoint.requests) == 3
    endpoint.answer = lambda _: Answer(200, "x" * 100_000)
    push.send()
    assert endpoint.values("requests_total") == [0, 1, 1]


def test_no_proxy_of_the_environment(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the URL decides where requests go."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:1/")
    push, _ = pushing(endpoint, gauge(1))
    push.send()
    assert endpoint.values("load") == [1]


def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate is checked; its authority can be named as everywhere."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with receiver(context) as endpoint:
        push, _ = pushing(endpoint, counter(1))
        with pytest.raises(PushError, match=r"certificate is not accepted.*SSL_CERT_FILE"):
            push.send()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        push.send()
        assert endpoint.values("requests_total") == [0, 1]
    with receiver() as endpoint:
        push = Push(endpoint.url.replace("http:", "https:"), "web-1", Source(gauge(1)))
        with pytest.raises(PushError, match="TLS failed"):
            push.send()


# ------------------------------------------------------------------------------------------------
# URLs and secrets


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://host/api/v1/write", "https://host/api/v1/write"),
        ("http://host:9090", "http://host:9090"),
        ("https://[::1]:9/w?key=s3cret#s3cret", "https://[::1]:9/w"),
        ("https://me:s3cret@host:9/w", "https://host:9/w"),
        ("https://me:s3/cret@host:9/w", "the given URL"),
        ("https://me:1/s3cret@host:9/w", "the given URL"),
        ("https://me:s3cret@host:9\n/w w", "the given URL"),
        ("me:s3cret@host/w", "the given URL"),
        ("//me:s3cret@host/w", "the given URL"),
        ("https://[s3cret", "the given URL"),
        ("ftp://host/w", "the given URL"),
        ("https://host/w?key=s3 cret", "the given URL"),
        ("", "the given URL"),
    ],
)
def test_urls(url: str, where: str) -> None:
    """A URL is shown without its secrets; one that cannot be used says so when it is used."""
    push = Push(url, "web-1", Source(gauge(1)))
    assert push.where == where
    assert repr(push) == f"<Push to {where}>"
    if where == "the given URL" or "@" in url:
        with pytest.raises(PushError) as caught:
            push.send()
        assert str(caught.value).startswith(f"metrics cannot be pushed to {where}: it")
        assert "cret" not in str(caught.value)


def test_a_query_is_sent(endpoint: Receiver) -> None:
    """A query reaches the endpoint, and is in no error."""
    push = Push(f"{endpoint.url}?key=s3cret", "web-1", Source(gauge(1)))
    push.send()
    assert endpoint.requests[0].path == "/api/v1/write?key=s3cret"
    endpoint.answer = lambda _: Answer(500)
    with pytest.raises(PushError) as caught:
        push.send()
    assert "s3cret" not in str(caught.value)


def test_credentials(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are read at each push, from variables and from files."""
    push, _ = pushing(endpoint, gauge(1))

    def sent() -> str:
        push.send()
        return endpoint.requests[-1].headers["authorization"]

    monkeypatch.setenv(TOKEN, "one")
    assert sent() == "Bearer one"
    monkeypatch.delenv(TOKEN)
    (tmp_path / "token").write_text("two\n")
    monkeypatch.setenv(f"{TOKEN}_FILE", str(tmp_path / "token"))
    assert sent() == "Bearer two"
    (tmp_path / "token").write_text("three\n")
    assert sent() == "Bearer three"
    monkeypatch.delenv(f"{TOKEN}_FILE")
    monkeypatch.setenv(USER, "mé")
    (tmp_path / "password").write_text("p:w ü\n", encoding="utf-8")
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(tmp_path / "password"))
    assert sent() == "Basic " + base64.b64encode("mé:p:w ü".encode()).decode()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({TOKEN: "s3cret", USER: "me", PASSWORD: "s3cret"}, "both set"),
        ({TOKEN: "s3cret", f"{TOKEN}_FILE": "/nowhere"}, "both set"),
        ({f"{TOKEN}_FILE": "/nowhere/token"}, "/nowhere/token cannot be read"),
        ({TOKEN: "s3cret\r\nX: y"}, "set it anew"),
        ({TOKEN: "s3crét"}, "set it anew"),
        ({USER: "me"}, "belong together"),
        ({PASSWORD: "s3cret"}, "belong together"),
        ({USER: "me:s3cret", PASSWORD: "s3cret"}, "colon"),
    ],
)
def test_credentials_that_cannot_be_used(
    endpoint: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    words: str,
) -> None:
    """The error says what to set, without showing it; nothing is sent."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    push, _ = pushing(endpoint, gauge(1))
    with pytest.raises(PushError, match=words) as caught:
        push.send()
    assert "s3cr" not in str(caught.value)
    assert not endpoint.requests


@pytest.mark.parametrize(
    "environment", [{TOKEN: "s3cret-token"}, {USER: "me", PASSWORD: "s3cret-password"}]
)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_endpoint_that_repeats_the_credentials(
    endpoint: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    status: int,
) -> None:
    """They are not in the error, nor in what it was raised from."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    endpoint.answer = lambda request: Answer(
        status, f"{request.headers['authorization']} {environment.get(PASSWORD)}"
    )
    push, _ = pushing(endpoint, gauge(1))
    with pytest.raises(PushError, match=r"\*\*\*") as caught:
        push.send()
    shown = f"{caught.value!r} {caught.value.__cause__!r} {push!r}"
    sent = endpoint.requests[-1].headers["authorization"].split()[1]
    assert "s3cret" not in shown
    assert sent not in shown


# ------------------------------------------------------------------------------------------------
# What is missing or broken on our side


def test_without_the_extra(endpoint: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "cramjam", None)
    push, _ = pushing(endpoint, gauge(1))
    with pytest.raises(PushError, match=r'pip install "obskit-gunicorn\[push\]"'):
        push.send()


def test_metrics_that_cannot_be_read(endpoint: Receiver) -> None:
    """An error of a collector becomes a PushError, and the next push works."""
    source = Source(gauge(1))

    def read() -> list[Metric]:
        if not endpoint.requests:
            return source()
        raise RuntimeError("no luck")

    push = Push(endpoint.url, "web-1", read)
    push.send()
    with pytest.raises(PushError, match="they cannot be read: RuntimeError: no luck"):
        push.send()
    endpoint.requests.clear()
    push.send(ended=True)
    assert endpoint.values("load") == [1, "stale"]
