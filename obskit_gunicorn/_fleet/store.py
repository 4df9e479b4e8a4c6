"""The store: one hash in Redis or Valkey, and what may be done with it.

Runs in exporters and in the command ``obskit-gunicorn``, never in a worker. Takes redis-py or
valkey-py, whichever is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._fleet import scripts
from obskit_gunicorn._fleet.address import StoreAddress
from obskit_gunicorn._fleet.secret import secret
from obskit_gunicorn._fleet.store_errors import (
    CLOSING,
    EXPLANATIONS,
    PASSWORD,
    PASSWORDS,
    SENTINEL_PASSWORD,
    kind_of,
    words_of,
)
from obskit_gunicorn._scrape.bodies import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CALL_SECONDS = 1.0
"""How long to wait for an answer of the store."""

TOMB_SECONDS = 86400.0
"""How long the store knows what an incarnation that may return had counted when it was folded."""

_MOST_TOMBS = 1000
_MOST_KEYS_AT_ONCE = 500
_CLIENTS = (("redis", "Redis"), ("valkey", "Valkey"))
_OLDEST_CLIENT = 5


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


class Server(NamedTuple):
    """What a store is."""

    name: str
    """``redis`` or ``valkey``."""

    version: tuple[int, ...]
    """The first two numbers of its version."""


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

    One connection, on which one thread at a time has its turn: so whatever is to be done about a
    connection that fails is done once, and nobody holds on to one that is closed.

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
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._nodes: list[tuple[str, int]] = []
        self._node = 0

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
        try:
            size = self._call("MEMORY", "USAGE", self.key, "SAMPLES", "0")
        except _DeniedError:
            return None
        return None if size is None else int(size)

    def try_to_write(self) -> None:
        """Be refused where a publication would be; changes nothing.

        Raises:
            StoreError: Nothing can be written to the store.
        """
        self._call("HDEL", self.key, "what no release has ever written")

    def server(self) -> Server | None:
        """Return what the store is, or ``None`` if it does not say.

        Raises:
            StoreError: The store cannot be used.
        """
        try:
            facts = self._call("INFO", "server")
        except _DeniedError:
            return None
        for name in ("valkey", "redis"):  # what is compatible names the version of that too
            text = facts.get(f"{name}_version") if isinstance(facts, dict) else None
            if text:
                return Server(name, tuple(map(int, re.findall(r"\d+", str(text))[:2])))
        return None

    def close(self) -> None:
        """Let go of the connection; the next call connects again.

        Raises:
            StoreError: Others use it for too long.
        """
        with self._turn():
            self._let_go()

    def _run(self, script: str, *told: object) -> Any:
        """Run a script; return what it says after its first word, ``None`` if that is NO.

        It may be run twice if the connection breaks: each script is made for that.

        Raises:
            StoreError: The store cannot be used.
        """
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        word, *rest = self._call("EVALSHA", digest, 1, self.key, *told, script=script)
        if word == b"FORMAT":
            raise StoreError(
                f"{self.where} is written in format {rest[0].decode(errors='replace')}, and this "
                f"release knows format {scripts.FORMAT}: give the newer release another "
                "metrics_redis_name until all hosts run it"
            )
        return None if word == b"NO" else rest

    def _call(self, *command: Any, script: str = "") -> Any:
        """Send a command, and once more wherever that may help.

        Args:
            command: The command.
            script: What it runs.

        Raises:
            StoreError: The store cannot be used.
        """
        with self._turn():
            met: set[str] = set()
            # Its text only: an exception in a variable keeps the connection until it is found to
            # be garbage.
            reason: tuple[type[StoreError], str] | None = None
            while True:
                if self._link is None:
                    self._link = self._opened(self._next_node())
                link = self._link
                try:
                    return link.send(command, script)
                except (link.library.Error, OSError, ValueError) as error:
                    kind = kind_of(error)
                    if reason is None or kind not in ("MOVED", "ASK"):
                        reason = self._explained(kind, error, link)
                    # Each kind once: so this ends, and soon, because what has taken its time is
                    # not tried again.
                    if not self._goes_on_after(kind, error, link) or kind in met:
                        raise reason[0](reason[1]) from None
                    met.add(kind)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=3 * CALL_SECONDS):
            raise StoreError(f"{self.where}: no answer to those who have asked before")
        try:
            yield
        finally:
            self._lock.release()

    def _goes_on_after(self, kind: str, error: Exception, link: _Link) -> bool:
        """Do what may help against an error; return whether to try again at once."""
        if kind in ("MOVED", "ASK"):
            # It is a cluster: each node knows which one has the key.
            host, _, port = str(error).rpartition(" ")[2].rpartition(":")
            self._nodes = _nodes_of(link) or self._nodes
            self._let_go()
            if host in ("", "?"):  # the one that was asked, which does not know how it is called
                host = link.node[0] if link.node else ""
            node = (host.strip("[]"), int(port))
            self._link = self._opened(node, asks=kind == "ASK")
            return True
        if kind not in CLOSING:
            return False
        # Names lead elsewhere after a failover, sentinels know another primary, and passwords
        # change: what is opened next finds out.
        self._let_go()
        if kind in PASSWORDS:
            return _secret(self.where, PASSWORD) != link.password
        if kind in ("CLUSTERDOWN", "CONNECTION", "TIMEOUT"):
            self._node += 1
        return kind in ("CONNECTION", "READONLY")

    def _let_go(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _next_node(self) -> tuple[str, int] | None:
        """Return where to connect to; ``None`` for the address, or else a node of its cluster."""
        at = self._node % (len(self._nodes) + 1)
        return self._nodes[at - 1] if at else None

    def _opened(self, node: tuple[str, int] | None, *, asks: bool = False) -> _Link:
        """Return a connection, which is made when it is first used.

        Args:
            node: A node of the address's cluster.
            asks: It has the key before it is said to have it.

        Raises:
            StoreError: There is no client library, or a secret cannot be read.
        """
        library = _library()
        address = self._address
        password = _secret(self.where, PASSWORD)
        options: dict[str, Any] = {
            # Nothing is waited for longer, and nothing tried again but here.
            "socket_timeout": CALL_SECONDS,
            "socket_connect_timeout": CALL_SECONDS,
            "retry": library.Retry,
            "decode_responses": False,
            # Enough for what is asked, and understood by every server and proxy.
            "protocol": 2,
            **(address.tls or {}),
        }
        own = {
            **options,
            "db": address.database,
            "username": address.user or None,
            "password": address.password or None if password is None else password,
        }
        if address.sentinels:
            is_encrypted = {"ssl": address.tls is not None}
            sentinel = library.Sentinel(
                address.sentinels,
                sentinel_kwargs={
                    **options,
                    **is_encrypted,
                    "password": _secret(self.where, SENTINEL_PASSWORD),
                },
                **own,
                **is_encrypted,
            )
            client = sentinel.master_for(address.service)
            return _Link(library, client, [client, *sentinel.sentinels], password, None, asks)
        node = node or address.node
        if node is not None:
            own["connection_class"] = library.TLS if address.tls is not None else library.TCP
            own["host"], own["port"] = node
        else:
            own["connection_class"] = library.Unix
            own["path"] = address.socket
        client = library.Client(connection_pool=library.Pool(**own))
        return _Link(library, client, [client], password, node, asks)

    def _explained(self, kind: str, error: Exception, link: _Link) -> tuple[type[StoreError], str]:
        """Return what is wrong, and what to do."""
        words = words_of(error, self._address.password, link.password)
        fields = {
            "words": words,
            "key": self.key,
            "seconds": CALL_SECONDS,
            "service": self._address.service,
        }
        if kind == "CONNECTION" and self._address.socket:
            kind = "SOCKET"
        if kind == "TIMEOUT" and self._address.tls is not None:
            kind = "TIMEOUT_TLS"
        if kind == "NOAUTH" and (self._address.password or link.password):
            kind = "WRONGPASS"
        if kind in ("READONLY", "MASTERDOWN") and self._address.sentinels:
            kind = "FAILOVER"
        if kind == "SENTINEL" and re.search("auth", str(error), re.IGNORECASE):
            kind = "SENTINEL_PASSWORD"
        if kind == "UNKNOWN" and self._address.sentinels and "sentinel" in words.lower():
            kind = "NO_SENTINEL"
        text = EXPLANATIONS.get(kind, "{words}").format_map(fields)
        is_denied = kind in ("NOPERM", "UNKNOWN")
        return _DeniedError if is_denied else StoreError, f"{self.where}: {text}"


class _DeniedError(StoreError):
    """The store does not do what it was asked for."""


class _Library(NamedTuple):
    """A client library, by the names that redis-py gives what it has."""

    Client: Any
    Pool: Any
    Sentinel: Any
    Retry: Any
    Error: Any
    NoScriptError: Any
    TCP: Any
    TLS: Any
    Unix: Any


class _Link:
    """A connection to a store.

    Attributes:
        library: Whose it is.
        password: What it was opened with, unless that was in the address.
        node: The host and the port; ``None`` if they are not known.
    """

    def __init__(
        self,
        library: _Library,
        client: Any,
        clients: Sequence[Any],
        password: str | None,
        node: tuple[str, int] | None,
        asks: bool,
    ) -> None:
        self.library, self.password, self.node = library, password, node
        self._client, self._clients, self._asks = client, clients, asks

    def send(self, command: Sequence[Any], script: str = "") -> Any:
        """Send a command, which runs a script or not; return the answer."""
        try:
            return self._send(command)
        except self.library.NoScriptError:
            if not script:
                raise
            self._client.execute_command("SCRIPT", "LOAD", script)
            return self._send(command)

    def _send(self, command: Sequence[Any]) -> Any:
        if self._asks:
            self._client.execute_command("ASKING")
        return self._client.execute_command(*command)

    def close(self) -> None:
        """Close it."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
                client.connection_pool.disconnect()  # which not every release does by itself


def _library() -> _Library:
    """Import a client library.

    Raises:
        StoreError: There is none.
    """
    old = ""
    for name, prefix in _CLIENTS:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if int(module.__version__.partition(".")[0]) < _OLDEST_CLIENT:
            old = f"{name} {module.__version__} is too old: "
            continue
        client, connection, errors, retry, backoff, sentinel = (
            importlib.import_module(f"{name}.{each}")
            for each in ("client", "connection", "exceptions", "retry", "backoff", "sentinel")
        )
        return _Library(
            getattr(client, prefix),
            connection.ConnectionPool,
            sentinel.Sentinel,
            retry.Retry(backoff.NoBackoff(), 0),
            getattr(errors, f"{prefix}Error"),
            errors.NoScriptError,
            connection.Connection,
            connection.SSLConnection,
            connection.UnixDomainSocketConnection,
        )
    raise StoreError(
        f"metrics_redis needs a client of the store: {old}pip install 'obskit-gunicorn[redis]'"
    )


def _secret(where: str, name: str) -> str | None:
    """Return a secret.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        return secret(name)
    except ValueError as error:
        raise StoreError(f"{where}: {error}") from None


def _nodes_of(link: _Link) -> list[tuple[str, int]]:
    """Return the nodes of a cluster, as far as it says."""
    found: dict[tuple[str, int], None] = {}
    with contextlib.suppress(Exception):  # it may be denied; then the address must do
        # The clients make something of the answer to CLUSTER SLOTS, each release something else.
        for slots in link.send(("CLUSTER", "SLOTS")):
            for host, port, *_ in slots[2:]:
                name = (host or b"").decode() or (link.node[0] if link.node else "")
                found[name, int(port)] = None
    return list(found)


def _new() -> str:
    return uuid.uuid4().hex
