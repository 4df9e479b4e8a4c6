"""The address of a store: what may stand in ``metrics_redis``, and how it may be shown.

Imports no client of a store; the arbiter checks the option.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

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
_USER_CHARACTERS = "%:!$&'()*+,;=~"
"""What is not encoded in a user and a password: what is already, or needs not be."""

_CERTIFICATES = ("none", "optional", "required")
_TRUTHS = ("0", "1", "false", "no", "true", "yes")


class StoreAddress(NamedTuple):
    """Where a store is."""

    url: str
    """As clients of stores read it, without the sentinels."""

    shown: str
    """Without user, password and parameters, for the log."""

    password: str
    """The one in it, empty if there is none."""

    sentinels: tuple[tuple[str, int], ...]
    """Who knows where the store is; empty if it is at the address itself."""

    service: str
    """The name of the store among the sentinels."""

    def __repr__(self) -> str:
        """Return what may be shown."""
        return f"StoreAddress({self.shown})"

    @property
    def has_password(self) -> bool:
        """Whether there is a password in it."""
        return bool(self.password)

    @property
    def is_encrypted(self) -> bool:
        """Whether it is to be spoken to by TLS."""
        return self.url.startswith("rediss:")

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
        netloc, path, query, fragment = found[2], found[3], found[4] or "", found[5]
        scheme = full_scheme.partition("+")[0]
        _check(query, fragment, is_encrypted=scheme == "rediss")
        user, at, hosts = netloc.rpartition("@")
        user = quote(user, safe=_USER_CHARACTERS)
        if not hosts.isascii():
            raise ValueError("a host has ASCII characters only (xn--... if its name has others)")
        password = unquote(user.partition(":")[2])
        query = f"?{query}" if query else ""
        if scheme == "unix":
            if path in ("", "/") or hosts:
                raise ValueError("a socket has a path, as in unix:///run/redis.sock")
            return cls(f"unix://{user}{at}{path}{query}", f"unix://{path}", password, (), "")
        is_sentinel = full_scheme != scheme
        default = _SENTINEL_PORT if is_sentinel else _PORT
        addresses = tuple(_host_and_port(each, default) for each in hosts.split(","))
        database = path.strip("/")
        service = ""
        if is_sentinel:
            service, _, database = database.partition("/")
            service = unquote(service)
            if not service:
                raise ValueError("the name of the service is missing behind the sentinels")
        elif len(addresses) > 1:
            raise ValueError("it names several hosts; that is for redis+sentinel://")
        if database and not _is_number(database):
            raise ValueError("the number of the database is not a number")
        return cls(
            f"{scheme}://{user}{at}{hosts.partition(',')[0]}/{database}{query}",
            f"{full_scheme}://{hosts}{path}",
            password,
            addresses if is_sentinel else (),
            service,
        )


def _check(query: str, fragment: str | None, *, is_encrypted: bool) -> None:
    """Check what stands behind the question mark.

    Raises:
        ValueError: It is wrong.
    """
    known = f"only {', '.join(sorted(_PARAMETERS))} may stand behind the ?"
    if fragment is not None or "@" in query:
        # Perhaps a password that is not encoded: so it is not quoted.
        raise ValueError(f"there is a ? or # that must be written %3F or %23; {known}")
    for name, value in parse_qsl(query, keep_blank_values=True):
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    """Return a host and its port.

    Raises:
        ValueError: There is none.
    """
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is not a number from 1 to 65535")
    if not parts.hostname:
        raise ValueError("the host is missing")
    return parts.hostname, port or default
