"""The address of a store: what may stand in ``metrics_redis``, and how it may be shown.

Imports no client of a store; the arbiter checks the option.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

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

_URL = re.compile(r"([A-Za-z+]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+[\w]*)\]|([A-Za-z0-9._~-]+))(?::([0-9]{1,9}))?")
"""A name, as far as they are of ASCII (others are xn--...), or an address."""

_CERTIFICATES = ("none", "optional", "required")
_TRUTHS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class StoreAddress(NamedTuple):
    """Where a store is.

    Read by this class alone: what the clients of stores make of a URL depends on their release.
    """

    shown: str
    """Without user, password and parameters, for the log."""

    user: str
    password: str
    """Both are empty if there is none."""

    node: tuple[str, int] | None
    """Its host and port; ``None`` if it is found otherwise."""

    socket: str
    """The path of its Unix socket, or nothing."""

    sentinels: tuple[tuple[str, int], ...]
    """Who knows where it is, or nobody."""

    service: str
    """Its name among the sentinels."""

    database: int

    tls: dict[str, str | bool] | None
    """How TLS is spoken, by the names that the clients have for it; ``None`` if it is not."""

    def __repr__(self) -> str:
        """Return what may be shown."""
        return f"StoreAddress({self.shown})"

    @property
    def has_password(self) -> bool:
        """Whether there is a password in it."""
        return bool(self.password)

    @classmethod
    def parse(cls, url: str) -> StoreAddress:
        """Read an address.

        Raises:
            ValueError: It is wrong; the text says what, and contains no password.
        """
        # Not by urllib: it knows one host only, and its errors may contain the password.
        found = _URL.fullmatch(url)
        full_scheme = found[1].lower() if found else ""
        if found is None or full_scheme not in SCHEMES:
            raise ValueError(f"it begins with none of {', '.join(f'{s}://' for s in SCHEMES)}")
        if not url.isprintable() or " " in url:
            raise ValueError("there is a blank or a line break in it")
        netloc, path, query = found[2], found[3], found[4] or ""
        scheme, _, by_sentinels = full_scheme.partition("+")
        parameters = _parameters(query, found[5], is_encrypted=scheme == "rediss")
        credentials, _, hosts = netloc.rpartition("@")
        user, _, password = (unquote(each) for each in credentials.partition(":"))
        socket, service, database = "", "", path.strip("/")
        addresses: tuple[tuple[str, int], ...] = ()
        if scheme == "unix":
            socket, database = unquote(path), ""
            if path in ("", "/") or hosts:
                raise ValueError("a socket has a path, as in unix:///run/redis.sock")
        else:
            default = _SENTINEL_PORT if by_sentinels else _PORT
            addresses = tuple(_host_and_port(each, default) for each in hosts.split(","))
        if by_sentinels:
            service, _, database = database.partition("/")
            service = unquote(service)
            if not service:
                raise ValueError("the name of the service is missing behind the sentinels")
        elif len(addresses) > 1:
            raise ValueError("it names several hosts; that is for redis+sentinel://")
        if database and not _is_number(database):
            raise ValueError("the number of the database is not a number")
        return cls(
            shown=f"{full_scheme}://{hosts}{path}",
            user=user,
            password=password,
            node=addresses[0] if addresses and not by_sentinels else None,
            socket=socket,
            sentinels=addresses if by_sentinels else (),
            service=service,
            database=int(parameters.pop("db", database) or 0),
            tls=_tls(parameters) if scheme == "rediss" else None,
        )


def _parameters(query: str, fragment: str | None, *, is_encrypted: bool) -> dict[str, str]:
    """Read what stands behind the question mark.

    Raises:
        ValueError: It is wrong.
    """
    known = f"only {', '.join(sorted(_PARAMETERS))} may stand behind the ?"
    if fragment is not None or "@" in query:
        # Perhaps a password that is not encoded: so it is not quoted.
        raise ValueError(f"there is a ? or # that must be written %3F or %23; {known}")
    found = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in found.items():
        if name not in _PARAMETERS:
            raise ValueError(
                f"{name if name.isidentifier() else 'a parameter'} is unknown; {known}"
            )
        if name != "db" and not is_encrypted:
            raise ValueError(f"{name} is for rediss:// only")
        if name == "db" and not _is_number(value):
            raise ValueError("db is not a number")
        if name == "ssl_cert_reqs" and value not in _CERTIFICATES:
            raise ValueError(f"ssl_cert_reqs is none of {', '.join(_CERTIFICATES)}")
        if name == "ssl_check_hostname" and value.lower() not in _TRUTHS:
            raise ValueError(f"ssl_check_hostname is none of {', '.join(_TRUTHS)}")
        if not value:
            raise ValueError(f"{name} is empty")
    return found


def _tls(parameters: dict[str, str]) -> dict[str, str | bool]:
    """Return how TLS is spoken.

    With the name in the certificate checked, unless it is said not to; some releases of the clients
    do not by themselves.
    """
    checks = _TRUTHS[parameters.pop("ssl_check_hostname", "true").lower()]
    is_any = parameters.get("ssl_cert_reqs") == "none"
    return {**parameters, "ssl_check_hostname": checks and not is_any}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    """Return a host and its port.

    Raises:
        ValueError: There is none.
    """
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("a host is missing, or not written as in cache:6379 or [::1]:6379")
    port = int(found[3] or default)
    if not 0 < port < 1 << 16:
        raise ValueError("its port is not a number from 1 to 65535")
    return found[1] or found[2], port
