"""Real stores that are more than one server: sentinels, clusters, and what stands in between."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.support.process import HOST, free_port, wait_until
from tests.support.stores import StoreServer, binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SLOTS = 16384


class Sentinel:
    """A sentinel of one primary, named main.

    Attributes:
        port: Its port.
    """

    def __init__(self, folder: Path, primary: StoreServer, *lines: str) -> None:
        """Start it; it need not have seen anybody yet."""
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "sentinel.conf"
        settings = [
            f"port {self.port}",
            f"bind {HOST}",
            f"dir {folder}",
            f"sentinel monitor main {HOST} {primary.port} 1",
            "sentinel down-after-milliseconds main 300",
            "sentinel failover-timeout main 3000",
            *lines,
        ]
        config.write_text("\n".join(settings) + "\n")
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary("redis-7"), str(config), "--sentinel"], stdout=log, stderr=log
            )

    def client(self, **options: Any) -> Any:
        """Return a client, which does not wait and try again by itself."""
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, socket_timeout=5, retry=retry, **options)

    def looks_often(self) -> None:
        """Ask the servers several times a second, not every ten."""
        wait_until(self._looks_often, "the sentinel listens")

    def _looks_often(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            self.client().execute_command("SENTINEL", "DEBUG", "info-period", "100")
            return True
        return False

    def knows_a_replica(self) -> bool:
        """Return whether it could fail over."""
        with contextlib.suppress(redis.RedisError):
            return any(
                each["master-link-status"] == "ok" for each in self.client().sentinel_slaves("main")
            )
        return False

    def fails_over_to(self, port: int) -> bool:
        """Return whether a server is the primary; have the sentinel make it that if it is not.

        The sentinel gives up if it has not heard from the replica within some tenths of a second,
        as on a busy machine; so this is asked again and again.
        """
        client = self.client()
        if client.sentinel_masters()["main"]["port"] == port:
            return True
        with contextlib.suppress(redis.ResponseError):  # it is on the way, or knows no replica
            client.execute_command("SENTINEL", "FAILOVER", "main")
        return False


@contextlib.contextmanager
def sentinel(folder: Path, primary: StoreServer, *lines: str) -> Iterator[Sentinel]:
    """Run a sentinel."""
    running = Sentinel(folder, primary, *lines)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGCONT)
        running.process.kill()
        running.process.wait()


class Cluster:
    """Nodes that share the slots evenly.

    Attributes:
        nodes: The nodes.
    """

    def __init__(self, nodes: Sequence[StoreServer]) -> None:
        """Name its nodes, which are not started."""
        self.nodes = nodes

    def owner(self, key: str) -> StoreServer:
        """Return the node that a key belonged to at the beginning."""
        share = -(-_SLOTS // len(self.nodes))
        return self.nodes[key_slot(key.encode()) // share]

    def other(self, key: str) -> StoreServer:
        """Return a node that a key did not belong to at the beginning."""
        return next(node for node in self.nodes if node is not self.owner(key))

    def start(self) -> None:
        """Start the nodes, and let them meet."""
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            node.start(probe=True)
            slots = range(number * share, min((number + 1) * share, _SLOTS))
            node.client().execute_command("CLUSTER", "ADDSLOTS", *slots)
            node.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = node.client().config_get("cluster-port")["cluster-port"]
            self.nodes[0].client().execute_command("CLUSTER", "MEET", HOST, node.port, bus)
        for node in self.nodes:
            wait_until(lambda node=node: self._is_ready(node), "the cluster is complete")  # type: ignore[misc]

    def _is_ready(self, node: StoreServer) -> bool:
        info = node.client().execute_command("CLUSTER INFO")
        known = int(info["cluster_known_nodes"])
        served = int(info["cluster_slots_ok"])
        return info["cluster_state"] == "ok" and (known, served) == (len(self.nodes), _SLOTS)

    def ids(self) -> dict[StoreServer, str]:
        """Return what the nodes call themselves."""
        return {node: node.client().execute_command("CLUSTER MYID").decode() for node in self.nodes}


@contextlib.contextmanager
def cluster(folder: Path, size: int, *options: str) -> Iterator[Cluster]:
    """Run a cluster."""
    running = Cluster(
        [
            StoreServer(
                folder / str(number),
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *options,
            )
            for number in range(size)
        ]
    )
    try:
        running.start()
        yield running
    finally:
        for node in running.nodes:
            node.stop(signal.SIGKILL)


class CuttingProxy:
    """A proxy that cuts the connection in the middle of an answer, if it is told to.

    Attributes:
        port: Where it listens.
        lets_through: How many bytes of answers come through before it cuts; ``None`` for all.
        cuts: How often it has cut.
    """

    def __init__(self, target: int) -> None:
        """Listen for connections to a port."""
        self._target = target
        self._listener = socket.create_server((HOST, free_port()))
        self.port: int = self._listener.getsockname()[1]
        self.lets_through: int | None = None
        self.cuts = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._target))
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
                threading.Thread(
                    target=self._pump, args=(server, client), kwargs={"cuts": True}, daemon=True
                ).start()

    def _pump(self, source: socket.socket, target: socket.socket, *, cuts: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if cuts and self.lets_through is not None:
                    data, is_cut = data[: self.lets_through], len(data) > self.lets_through
                    target.sendall(data)
                    self.lets_through -= len(data)
                    if is_cut:
                        self.lets_through = None
                        self.cuts += 1
                        break
                else:
                    target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut everything."""
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextlib.contextmanager
def cutting_proxy(target: int) -> Iterator[CuttingProxy]:
    """Run a proxy to a port."""
    proxy = CuttingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
