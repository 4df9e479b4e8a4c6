"""The address of a store: what may stand in ``metrics_redis``, and how it may be shown.

Imports no client of a store; the arbiter checks the option.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")

_PARAMETERS = frozenset(
    {
        "db",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
"""What may stand behind the question mark. No password: whoever may read the process list or the
class could read it."""

_PORT = 6379
_SENTINEL_PORT = 26379


class StoreAddress(NamedTuple):
    """Where a store is."""

    url: str
    """As it was given."""

    shown: str
    """Without password and parameters, for the log."""

    has_password: bool

    sentinels: tuple[tuple[str, int], ...]
    """Who knows where the store is; empty if it is at the address itself."""

    service: str
    """The name of the store among the sentinels."""

    @classmethod
    def parse(cls, url: str) -> StoreAddress:
        """Read an address.

        Raises:
            ValueError: It is wrong; the text says what, and contains no password.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"it begins with none of {', '.join(f'{s}://' for s in SCHEMES)}")
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(parameters.keys() - _PARAMETERS)
        if unknown or parts.fragment:
            raise ValueError(
                f"{unknown[0] if unknown else '#'} has no meaning there; only "
                f"{', '.join(sorted(_PARAMETERS))} have"
            )
        user, _at, hosts = parts.netloc.rpartition("@")
        has_password = ":" in user
        sentinels: tuple[tuple[str, int], ...] = ()
        service = ""
        path = parts.path
        if parts.scheme == "unix":
            if not path or path == "/" or hosts:
                raise ValueError("a socket has a path, as in unix:///run/redis.sock")
            return cls(url, f"unix://{path}", has_password, (), "")
        default = _SENTINEL_PORT if "sentinel" in parts.scheme else _PORT
        addresses = tuple(_host_and_port(each, default) for each in hosts.split(","))
        database = path.strip("/")
        if "sentinel" in parts.scheme:
            sentinels = addresses
            service, _, database = database.partition("/")
            service = unquote(service)
            if not service:
                raise ValueError("the name of the service is missing behind the sentinels")
        elif len(addresses) > 1:
            raise ValueError("it names several hosts; that is for redis+sentinel://")
        if database and not database.isdigit():
            raise ValueError("the number of the database is not a number")
        return cls(url, f"{parts.scheme}://{hosts}{path}", has_password, sentinels, service)


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    """Return a host and its port.

    Raises:
        ValueError: There is none.
    """
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is not a number from 0 to 65535") from None
    if not parts.hostname:
        raise ValueError("the host is missing")
    return parts.hostname, port or default
