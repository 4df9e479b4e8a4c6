"""Pushes what a host's exporter would expose to a remote-write endpoint.

For Prometheus (with ``--web.enable-remote-write-receiver``), VictoriaMetrics, Mimir and the like.

Values are absolute, so nothing waits in a queue: what one push could not send, the next one sends
with newer values. Three rules make the result exact:

- A counter begins with a 0 just before its first value, so that ``increase()`` sees all of it. The
  zeros are a request of their own, and the values follow when the endpoint has accepted it. After a
  time-out nobody knows what was stored; more zeros do no harm after zeros, but after a value they
  would be a reset, and the value would count twice.
- Times rise strictly, whatever the clock does: Prometheus refuses a request as a whole for one
  sample that is not newer than the last one of its series.
- A series that is gone, or whose host has ended, ends with a stale marker.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._fleet import remote_write
from obskit_gunicorn._fleet.endpoint import Endpoint, EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    from obskit_gunicorn._fleet.endpoint import Answer, Connection

_JOB = "gunicorn"
_TIMEOUT_SECONDS = 5.0
_SERIES_A_REQUEST = 2000
_REQUESTS_TO_FIND_REFUSED = 48
_MOST_REFUSALS = 8
_MOST_GONE = 10_000
_HOUR = 3600.0
_MINUTE_MS = 60_000
_GROWING = {
    "counter": {"", "_total"},
    "histogram": {"_bucket", "_count", "_sum"},
    "summary": {"_count", "_sum"},
}
"""What is added to the name of a family, by its type, in the series that only grow."""


class PushError(Exception):
    """A push has failed, as a whole or in part; says where to, what happened, and what to do."""


class _Series:
    """A series.

    Attributes:
        identity: The bytes of its labels.
        head: The bytes before a value.
        grows: Whether it is of a kind that only grows.
        needs_zero: Whether its first value still needs a 0 before it.
        is_open: Whether a value was sent that no stale marker follows.
        push: The number of the last push that had a value of it.
        refusals: How often, one after the other, the endpoint has refused it alone.
        held_until: The number of the push that tries it again, if it was refused.
    """

    __slots__ = (
        "grows",
        "head",
        "held_until",
        "identity",
        "is_open",
        "needs_zero",
        "push",
        "refusals",
    )

    def __init__(self, identity: bytes, *, grows: bool) -> None:
        self.identity, self.grows, self.needs_zero = identity, grows, grows
        self.head = remote_write.head(identity)
        self.is_open = False
        self.push = self.refusals = self.held_until = 0


_Point = tuple[_Series, bytes]


class Push:
    """Pushes metrics to a remote-write endpoint. Not thread-safe: one thread pushes.

    Credentials are read from the environment at each push, see :mod:`endpoint`.

    Attributes:
        where: The URL as it may be shown: without user information and query.
        held_back: How many series the last push has left out, because the endpoint refuses them.
            Each is tried again, alone, after 2, 4, 8 and at last every 256 pushes.
    """

    def __init__(
        self,
        url: str,
        host: str,
        read: Callable[[], Iterable[Metric]],
        *,
        goes_on: bool = False,
    ) -> None:
        """Prepare; nothing is read or sent.

        Args:
            url: The endpoint, as in ``https://host/api/v1/write``.
            host: The label ``instance`` of all series.
            read: Collects the metrics.
            goes_on: Whether the counts go on from what another process has pushed, as those of a
                directory whose exporter is a new one. What is there at the first push then gets no
                zeros: it would all count a second time.
        """
        self._endpoint = Endpoint(url)
        self.where = self._endpoint.where
        self.held_back = 0
        self._read = read
        self._goes_on = goes_on
        self._target = {"instance": host, "job": _JOB}
        self._by_sample: dict[tuple[Any, ...], _Series] = {}
        self._by_identity: dict[bytes, _Series] = {}
        self._gone: dict[bytes, None] = {}
        self._pushes = 0
        self._last_ms = self._refused_ms = 0
        self._next_metadata = -math.inf
        self._families: list[tuple[str, str, str, str]] = []
        self._may_search = True
        self._searches = 0
        self._refusal = ""

    def __repr__(self) -> str:
        return f"<Push to {self.where}>"

    def send(self, *, ended: bool = False) -> None:
        """Read the metrics and push them.

        Args:
            ended: Whether this host ends: after the last values every series ends too.

        Raises:
            PushError: Not all was accepted. What was not is sent with newer values next time.
        """
        self._refusal = ""
        self._searches = _REQUESTS_TO_FIND_REFUSED
        try:
            compress = _compressor()
            points = self._points()
            at = self._time()
            with self._endpoint.connected(_TIMEOUT_SECONDS) as connection:
                self._send(_Sender(connection, compress), points, at, ended=ended)
        except EndpointError as error:
            raise PushError(f"metrics cannot be pushed to {self.where}: {error}") from error
        if self._refusal:
            raise PushError(f"some metrics cannot be pushed to {self.where}: {self._refusal}")

    def _send(self, sender: _Sender, points: list[_Point], at: int, *, ended: bool) -> None:
        zero = remote_write.ZERO
        zeros = [(series, zero) for series, value in points if series.needs_zero and value != zero]
        for series, _ in self._deliver(sender, zeros, at - 1):
            series.needs_zero = False

        values = [point for point in points if not point[0].needs_zero or point[1] == zero]
        values += self._vanished()
        for series, value in self._deliver(sender, values, at):
            if value == remote_write.STALE:
                self._forget(series)
            else:
                series.needs_zero = False

        if ended:
            markers = [(s, remote_write.STALE) for s in self._by_identity.values() if s.is_open]
            for series, _ in self._deliver(sender, markers, at + 1):
                series.is_open = False

        now = time.monotonic()
        if now >= self._next_metadata and not self._refusal:
            self._next_metadata = now + _HOUR
            # Whatever the answer: not every endpoint wants them, and the samples are accepted.
            sender.post_anyway(remote_write.metadata(self._families))

    # --------------------------------------------------------------------------------------------
    # What is sent

    def _points(self) -> list[_Point]:
        """Read the metrics; return each series that is not held back, with its value.

        Raises:
            EndpointError: They cannot be read.
        """
        self._pushes += 1
        found, push = [], self._pushes
        by_sample, number = self._by_sample, remote_write.number
        families = []
        self.held_back = 0
        try:
            for family in self._read():
                families.append((family.name, family.type, family.documentation, family.unit))
                for sample in family.samples:
                    key: tuple[Any, ...] = (sample.name, *sample.labels.items())
                    series = by_sample.get(key) or self._series(family, key)
                    if series.push == push:
                        continue  # of two samples of one series the first counts, as at a scrape
                    series.push = push
                    if series.held_until > push:
                        self.held_back += 1
                    else:
                        found.append((series, number(sample.value)))
        except Exception as error:  # collectors of the user may raise anything
            text = f"they cannot be read: {type(error).__name__}: {error}"
            raise EndpointError(text) from error
        self._families = families
        self._goes_on = False
        return found

    def _series(self, family: Metric, key: tuple[Any, ...]) -> _Series:
        """Return the series of a sample that is new, or has its labels in another order."""
        name, *labels = key
        identity = remote_write.identity(name, dict(labels), self._target)
        series = self._by_identity.get(identity)
        if series is None:
            suffix = name.removeprefix(family.name)
            series = _Series(identity, grows=suffix in _GROWING.get(family.type, ()))
            if self._goes_on or identity in self._gone:
                series.needs_zero = False
            self._gone.pop(identity, None)
            self._by_identity[identity] = series
        self._by_sample[key] = series
        return series

    def _vanished(self) -> Iterator[_Point]:
        """Yield a stale marker for each series that is not there any more."""
        push = self._pushes
        gone = [series for series in self._by_identity.values() if series.push != push]
        for series in gone:
            if series.is_open:
                yield series, remote_write.STALE
            else:
                self._forget(series)
        if gone:
            self._by_sample = {k: s for k, s in self._by_sample.items() if s.push == push}

    def _forget(self, series: _Series) -> None:
        del self._by_identity[series.identity]
        if series.grows and not series.needs_zero:
            # If it comes back it goes on: from its last value, or from 0, and that is a reset which
            # the endpoint sees by itself.
            self._gone[series.identity] = None
            if len(self._gone) > _MOST_GONE:
                del self._gone[next(iter(self._gone))]

    def _time(self) -> int:
        """Return the time of the next push, in ms.

        Raises:
            EndpointError: It cannot be sent.
        """
        now = int(time.time() * 1000)
        last = self._last_ms
        if self._refused_ms < now + _MINUTE_MS:
            last = max(last, self._refused_ms)  # some endpoints refuse one part and take the rest
        # Otherwise the clock was ahead, and refused for that: it must not hold up the right one.
        at = max(now, last + 2, remote_write.TIMES.start + 1)
        if at + 1 not in remote_write.TIMES:
            raise EndpointError("the clock is wrong: it shows a year after 2109")
        return at

    # --------------------------------------------------------------------------------------------
    # How it is sent

    def _deliver(self, sender: _Sender, points: list[_Point], at: int) -> Iterator[_Point]:
        """Send values in as many requests as are needed; yield what has been accepted.

        Raises:
            EndpointError: An answer that does not depend on what was sent; the rest is not tried.
            OSError: As :meth:`Connection.post`.
            http.client.HTTPException: As :meth:`Connection.post`.
        """
        suspects = [point for point in points if point[0].refusals]
        if suspects:
            points = [point for point in points if not point[0].refusals]
        for start in range(0, len(points), _SERIES_A_REQUEST):
            yield from self._deliver_one(sender, points[start : start + _SERIES_A_REQUEST], at)
        for point in suspects:
            yield from self._deliver_one(sender, [point], at)

    def _deliver_one(self, sender: _Sender, points: list[_Point], at: int) -> Iterator[_Point]:
        """Send one request; if it is refused look for the series that are the reason.

        One series that is refused, for a label that is too long, must not take thousands along.
        """
        waiting = [points]
        refused: list[_Series] = []
        some_accepted = False
        while waiting:
            batch = waiting.pop()
            # Until it has refused them the endpoint may have them: an answer can get lost.
            before, self._last_ms = self._last_ms, at
            for series, _ in batch:
                series.is_open = True
            refusal = sender.post(remote_write.request(((s.head, v) for s, v in batch), at))
            if refusal is None:
                some_accepted = self._may_search = True
                for series, _ in batch:
                    series.refusals = 0
                yield from batch
                continue
            self._last_ms, self._refused_ms = before, at
            first = batch[0][0]
            if first.refusals:
                self._hold(first)  # this was said when it was found
                continue
            self._refusal = self._refusal or refusal
            if len(batch) == 1:
                refused.append(first)
                if not some_accepted:
                    # It is no single series: a clock, or another process that pushes the same.
                    self._may_search = False
            elif self._may_search and self._searches > 0:
                self._searches -= 2
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
        if some_accepted:
            for series in refused:
                self._hold(series)

    def _hold(self, series: _Series) -> None:
        """Leave a series out of the next pushes: soon it may be accepted, or it never is."""
        series.refusals = min(series.refusals + 1, _MOST_REFUSALS)
        series.held_until = self._pushes + 2**series.refusals
        series.is_open = False
        self.held_back += 1


def try_out(url: str) -> str:
    """Post a request without samples, which changes nothing; return where, as it may be shown.

    That an endpoint wants samples is no reason to refuse them.

    Raises:
        PushError: It cannot be reached, or does not take what is pushed.
    """
    endpoint = Endpoint(url)
    try:
        compress = _compressor()
        with endpoint.connected(_TIMEOUT_SECONDS) as connection:
            _Sender(connection, compress).post(b"")
    except EndpointError as error:
        raise PushError(f"metrics cannot be pushed to {endpoint.where}: {error}") from error
    return endpoint.where


class _Sender:
    """Compresses and posts requests."""

    def __init__(self, connection: Connection, compress: Callable[[bytes], bytes]) -> None:
        self._connection, self._compress = connection, compress

    def post(self, body: bytes) -> str | None:
        """Post a request; return ``None``, or why its content was refused and what to do.

        Raises:
            EndpointError: Another answer.
            OSError: As :meth:`Connection.post`.
            http.client.HTTPException: As :meth:`Connection.post`.
        """
        answer = self.post_anyway(body)
        if answer.is_accepted:
            return None
        text = f"it answers {answer.status}" + (f" ({answer.text})" if answer.text else "")
        if answer.is_refused:
            return (
                f"{text}; if that is about the order or the age of samples, look at the clock, and "
                "whether another host has the same name; otherwise at the limits of the endpoint"
            )
        raise EndpointError(f"{text}: {answer.advice()}")

    def post_anyway(self, body: bytes) -> Answer:
        """Post a request; return whatever is answered.

        Raises:
            OSError: As :meth:`Connection.post`.
            http.client.HTTPException: As :meth:`Connection.post`.
        """
        return self._connection.post(self._compress(body))


def _compressor() -> Callable[[bytes], bytes]:
    """Return snappy's block format.

    Raises:
        EndpointError: It is not installed.
    """
    try:
        from cramjam import snappy  # only who pushes needs it
    except ImportError as error:
        raise EndpointError(
            'cramjam is not installed: pip install "obskit-gunicorn[push]"'
        ) from error
    return lambda body: bytes(snappy.compress_raw(body))
