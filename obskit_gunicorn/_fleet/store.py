"""The store: one hash in Redis or Valkey, and what may be done with it.

Runs in exporters and in the command ``obskit-gunicorn``, never in a worker. Takes redis-py or
valkey-py, whichever is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._fleet import scripts
from obskit_gunicorn._fleet.address import StoreAddress
from obskit_gunicorn._fleet.secret import secret
from obskit_gunicorn._scrape.bodies import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

CALL_SECONDS = 1.0
"""How long to wait for an answer of the store."""

PASSWORD = "OBSKIT_METRICS_REDIS_PASSWORD"
SENTINEL_PASSWORD = "OBSKIT_METRICS_REDIS_SENTINEL_PASSWORD"

TOMB_SECONDS = 86400.0
"""How long the store knows what an incarnation that may return had counted when it was folded."""

_MOST_TOMBS = 1000
_MOST_KEYS_AT_ONCE = 500
_COMMANDS = "EVALSHA, SCRIPT|LOAD, TIME, HGET, HSET, HDEL, HINCRBY and DEL"


class StoreError(UnavailableError):
    """The store cannot be used now; the text says why, and contains no password."""


class Entry(NamedTuple):
    """What the store knows about an incarnation."""

    epoch: str
    sequence: int
    base: bytes
    folded_at: int | None
    folded_data: bytes
    folded_base: bytes


class HostRecord(NamedTuple):
    """An incarnation as it was fetched; what was known already is empty."""

    incarnation: str
    head: str
    data: bytes
    figures: bytes


class Fetched(NamedTuple):
    """What has changed since the last time."""

    epoch: str
    now: float
    begun: float
    rev: int
    retired: bytes
    hosts: list[HostRecord]
    keys: list[bytes]


class Store:
    """A store, by its address and a name in it. Thread-safe; connects when it is first used.

    Attributes:
        where: The address as it may be shown, and the name.
    """

    def __init__(self, url: str, name: str) -> None:
        """Name the store; nothing is opened.

        Args:
            url: Its address, which :meth:`StoreAddress.parse` accepts.
            name: The fleet's.
        """
        self._address = StoreAddress.parse(url)
        self.key = f"obskit:{name}"
        self.where = f"{self._address.shown} ({name})"
        self._client: Any = None
        self._library: Any = None
        self._scripts: dict[str, Any] = {}

    def enter(self, incarnation: str) -> Entry:
        """Return what is known about an incarnation; begin an epoch if there is none.

        Raises:
            StoreError: The store cannot be used.
        """
        epoch, sequence, base, folded, data, folded_base = self._run(
            scripts.ENTER, _new(), incarnation
        )
        return Entry(
            epoch.decode(),
            int(sequence),
            base,
            int(folded) if folded else None,
            data,
            folded_base,
        )

    def numbers_of(
        self, keys: Sequence[tuple[bytes, bytes]], *, deadline: float
    ) -> tuple[str, list[int]]:
        """Return the epoch, and the numbers of keys in it, as far as they came in time.

        Args:
            keys: A digest and the key of each.
            deadline: By :func:`time.monotonic`.

        Raises:
            StoreError: The store cannot be used.
        """
        known = ""
        numbers: list[int] = []
        for at in range(0, len(keys), _MOST_KEYS_AT_ONCE):
            some = [part for pair in keys[at : at + _MOST_KEYS_AT_ONCE] for part in pair]
            epoch, *found = self._run(scripts.INTERN, _new(), *some)
            if known and epoch.decode() != known:
                return epoch.decode(), []
            known = epoch.decode()
            numbers += found
            if time.monotonic() > deadline:
                break
        return known, numbers

    def publish(
        self,
        epoch: str,
        incarnation: str,
        sequence: int,
        *,
        ended: bool,
        facts: str,
        data: bytes,
        base: bytes,
        figures: bytes,
    ) -> bool:
        """Set what a host has counted; return whether everything was as the caller believes.

        Raises:
            StoreError: The store cannot be used; it is unknown whether it was set.
        """
        told = (epoch, incarnation, sequence, int(ended), facts, data, base, figures)
        return self._run(scripts.PUBLISH, *told) is not None

    def fetch(self, epoch: str, keys: int, rev: int, known: Sequence[Any]) -> Fetched:
        """Return what has changed.

        Args:
            epoch: The epoch that is known.
            keys: How many keys are known.
            rev: The revision of the retired sums that is known.
            known: Each incarnation that is known, its sequence, and the one of its data.

        Raises:
            StoreError: The store cannot be used.
        """
        found, now, begun, new_rev, retired, flat, new_keys = self._run(
            scripts.FETCH, epoch, keys, rev, *known
        )
        hosts = [
            HostRecord(flat[at].decode(), flat[at + 1].decode(), flat[at + 2], flat[at + 3])
            for at in range(0, len(flat), 4)
        ]
        return Fetched(
            found.decode(), float(now), float(begun or 0), int(new_rev), retired, hosts, new_keys
        )

    def fold(
        self, epoch: str, rev: int, retired: bytes, gone: Sequence[tuple[str, int, float]]
    ) -> bool:
        """Put incarnations to the retired sums; return whether everything was as believed.

        Args:
            epoch: The epoch.
            rev: The revision of the retired sums that these ones are made from.
            retired: The retired sums with these incarnations.
            gone: Each incarnation, its sequence, and for how many seconds the store is to know
                what it had counted.

        Raises:
            StoreError: The store cannot be used; it is unknown whether it was done.
        """
        told = (epoch, rev, retired, _MOST_TOMBS, *(part for each in gone for part in each))
        return self._run(scripts.FOLD, *told) is not None

    def reset(self, lost: str = "") -> str:
        """Begin a new epoch, and return it.

        Args:
            lost: Only if this is the epoch still; somebody else may have begun one.

        Raises:
            StoreError: The store cannot be used.
        """
        (epoch,) = self._run(scripts.RESET, lost, _new())
        return str(epoch.decode())

    def size(self) -> int | None:
        """Return how many bytes the store needs for all of it, or ``None`` if it does not say.

        Raises:
            StoreError: The store cannot be used.
        """
        client = self._connect()
        try:
            size = client.execute_command("MEMORY", "USAGE", self.key, "SAMPLES", "0")
        except self._library.exceptions.ResponseError:
            return None
        except (self._library.exceptions.RedisError, OSError) as error:
            raise self._explained(error) from error
        return None if size is None else int(size)

    def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def _run(self, script: str, *told: object) -> Any:
        """Run a script; return what it says after its first word, ``None`` if that is NO.

        It is run once more if the connection was found closed: each of them may be.

        Raises:
            StoreError: The store cannot be used.
        """
        client = self._connect()
        errors = self._library.exceptions
        for is_last in (False, True):
            try:
                return self._answer(self._script(client, script)(keys=[self.key], args=told))
            except errors.MovedError:
                if is_last:
                    raise StoreError(f"{self.where}: the cluster has no stable place") from None
                client = self._use_cluster()
            except (errors.TimeoutError, TimeoutError) as error:
                raise self._explained(error) from None
            except (errors.ConnectionError, OSError) as error:
                if is_last or isinstance(error, errors.AuthenticationError):
                    self.close()  # the password may be another one by now
                    raise self._explained(error) from None
            except errors.RedisError as error:
                if isinstance(error, (errors.AuthenticationError, errors.NoPermissionError)):
                    self.close()
                raise self._explained(error) from None
        raise AssertionError("unreachable")

    def _answer(self, answer: Any) -> Any:
        word, *rest = answer
        if word == b"FORMAT":
            raise StoreError(
                f"{self.where} is written in format {rest[0].decode(errors='replace')}, and this "
                f"release knows format {scripts.FORMAT}: give the newer release another "
                "metrics_redis_name until all hosts run it"
            )
        return None if word == b"NO" else rest

    def _script(self, client: Any, script: str) -> Any:
        found = self._scripts.get(script)
        if found is None:
            found = self._scripts[script] = client.register_script(script)
        return found

    def _connect(self) -> Any:
        if self._client is None:
            library = _library()
            self._library = library
            try:
                self._client = self._open(library)
            except library.exceptions.RedisError as error:
                raise self._explained(error) from None
            except (OSError, ValueError) as error:
                raise StoreError(f"{self.where}: {error}") from None
            self._scripts = {}
        return self._client

    def _open(self, library: Any) -> Any:
        """Return a client.

        Raises:
            ValueError: A secret cannot be read.
        """
        address = self._address
        limits = _limits(library)
        password = secret(PASSWORD)
        if password is not None:
            limits["password"] = password
        if not address.sentinels:
            return library.Client.from_url(address.url, **limits)
        scheme, _, rest = address.url.partition("+sentinel://")
        user = rest.rpartition("@")[0]
        path = rest.rpartition("@")[2].partition("/")[2].partition("/")[2]
        # The client reads user, database and TLS parameters from an address of the usual form.
        options = library.parse_url(f"{scheme}://{user + '@' if user else ''}any/{path}")
        for name in ("host", "port", "connection_class"):
            options.pop(name, None)
        if scheme == "rediss":
            options["ssl"] = True
        sentinel_options = {**options, **_limits(library)}
        for name in ("username", "password", "db"):
            sentinel_options.pop(name, None)
        sentinel_password = secret(SENTINEL_PASSWORD)
        if sentinel_password is not None:
            sentinel_options["password"] = sentinel_password
        sentinel = library.Sentinel(
            list(address.sentinels), sentinel_kwargs=sentinel_options, **{**options, **limits}
        )
        return sentinel.master_for(address.service)

    def _use_cluster(self) -> Any:
        """Return a client of the cluster that the address is a node of."""
        self.close()
        limits = _limits(self._library)
        limits.pop("retry", None)
        password = secret(PASSWORD)
        if password is not None:
            limits["password"] = password
        try:
            self._client = self._library.Cluster.from_url(self._address.url, **limits)
        except (self._library.exceptions.RedisError, OSError) as error:
            raise self._explained(error) from None
        self._scripts = {}
        return self._client

    def _explained(self, error: Exception) -> StoreError:
        """Return what is wrong, and what to do."""
        errors = self._library.exceptions
        text = str(error) or type(error).__name__
        if isinstance(error, errors.NoPermissionError):
            hint = f"; its user needs {_COMMANDS} on the key {self.key}"
        elif isinstance(error, errors.AuthenticationError) or "NOAUTH" in text:
            hint = f"; set {PASSWORD} or {PASSWORD}_FILE"
        elif isinstance(error, errors.ReadOnlyError):
            hint = "; it is a replica: name the primary, or the sentinels"
        elif text.startswith(("OOM", "MISCONF")) or "used memory > 'maxmemory'" in text:
            hint = "; it is full, or cannot write to its disk"
        elif isinstance(error, (errors.TimeoutError, TimeoutError)):
            text, hint = f"no answer within {CALL_SECONDS:g} s", ""
        else:
            hint = ""
        return StoreError(f"{self.where}: {text}{hint}")


class _Client(NamedTuple):
    """A client library, by the names that redis-py gives what it has."""

    Client: Any
    Cluster: Any
    Sentinel: Any
    Retry: Any
    exceptions: Any
    parse_url: Any


def _library() -> _Client:
    """Import a client library.

    Raises:
        StoreError: There is none.
    """
    for name, prefix in (("redis", "Redis"), ("valkey", "Valkey")):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        import_module = importlib.import_module
        retry = import_module(f"{name}.retry").Retry(
            import_module(f"{name}.backoff").NoBackoff(), 0
        )
        return _Client(
            getattr(module, prefix),
            getattr(import_module(f"{name}.cluster"), f"{prefix}Cluster"),
            import_module(f"{name}.sentinel").Sentinel,
            retry,
            _Exceptions(import_module(f"{name}.exceptions"), f"{prefix}Error"),
            import_module(f"{name}.connection").parse_url,
        )
    raise StoreError(
        "metrics_redis needs a client of the store: pip install 'obskit-gunicorn[redis]'"
    )


class _Exceptions:
    """The exceptions of a client library, with redis-py's name for the base of all."""

    def __init__(self, module: Any, base: str) -> None:
        self._module = module
        self.RedisError = getattr(module, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _limits(library: _Client) -> dict[str, Any]:
    """Return arguments of a client that keep it from waiting, and from trying again by itself."""
    return {
        "socket_timeout": CALL_SECONDS,
        "socket_connect_timeout": CALL_SECONDS,
        "retry": library.Retry,
        "decode_responses": False,
    }


def _new() -> str:
    return uuid.uuid4().hex
