"""Addresses of stores: what may stand in them, what is shown of them, and that is no password."""

from __future__ import annotations

import re
import traceback
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import connection

from obskit_gunicorn._fleet.address import SCHEMES, StoreAddress
from obskit_gunicorn._fleet.store import Store

SECRET = "geheim"


def client_options(url: str) -> dict[str, Any]:
    """Return what a client makes of an address."""
    found: dict[str, Any] = connection.parse_url(url)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize(
    ("url", "client_url", "shown"),
    [
        ("redis://cache", "redis://cache/", "redis://cache"),
        ("redis://cache:7000/3", "redis://cache:7000/3", "redis://cache:7000/3"),
        ("redis://[::1]:7000", "redis://[::1]:7000/", "redis://[::1]:7000"),
        ("redis://ann@cache", "redis://ann@cache/", "redis://cache"),
        ("redis://:geheim@cache/1", "redis://:geheim@cache/1", "redis://cache/1"),
        (
            "rediss://cache?ssl_ca_certs=/ca.pem",
            "rediss://cache/?ssl_ca_certs=/ca.pem",
            "rediss://cache",
        ),
        ("redis://cache?db=4", "redis://cache/?db=4", "redis://cache"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("unix://ann:geheim@/r.sock", "unix://ann:geheim@/r.sock", "unix:///r.sock"),
        (
            "redis+sentinel://ann:geheim@one,two:7000/main/2",
            "redis://ann:geheim@one/2",
            "redis+sentinel://one,two:7000/main/2",
        ),
        ("REDIS://cache", "redis://cache/", "redis://cache"),
    ],
)
def test_an_address(url: str, client_url: str, shown: str) -> None:
    """It is handed on in the form that clients read, and shown without user and password."""
    address = StoreAddress.parse(url)
    assert address.url == client_url
    assert address.shown == shown
    assert address.has_password == (SECRET in url)
    assert address.password == (SECRET if SECRET in url else "")
    assert address.is_encrypted == url.startswith("rediss")


@pytest.mark.parametrize("password", ["a,b", "a@b", "[a]", "a:b", "a b%", "℀", "%", "a%2", "&=+"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+sentinel"])
def test_a_password_of_any_characters(scheme: str, password: str) -> None:
    """It may be encoded; of what is not, only /, ? and # have another meaning in a URL."""
    where = "/run/redis.sock" if scheme == "unix" else "cache/1"
    for written in {password.replace("%", "%25").replace(" ", "%20"), quote(password, safe="")}:
        address = StoreAddress.parse(f"{scheme}://ann:{written}@{where}")
        assert address.password == password
        options = client_options(address.url)
        assert (options["username"], options["password"]) == ("ann", password)


def test_sentinels() -> None:
    """The sentinels have their own default port; the service may have any name."""
    address = StoreAddress.parse("rediss+sentinel://one,[::1]:7000/my%2Fmain/5")
    assert address.sentinels == (("one", 26379), ("::1", 7000))
    assert address.service == "my/main"
    assert address.is_encrypted


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "begins with none of redis://"),
        ("cache:6379", "begins with none of redis://"),
        ("http://cache", "begins with none of redis://"),
        ("redis:cache", "begins with none of redis://"),
        ("unix:/run/redis.sock", "begins with none of redis://"),
        ("redis://", "host is missing"),
        ("redis://:6379", "host is missing"),
        ("redis://[::1", "port"),
        ("redis://a b", "blank"),
        ("redis://a\n", "blank"),
        ("redis://cache:port", "port"),
        ("redis://cache:0", "port"),
        ("redis://cache:65536", "port"),
        ("redis://one,two", "several hosts"),
        ("redis://cache/main", "database"),
        ("redis://cache/-1", "database"),
        ("redis://cache/²", "database"),
        ("redis://cache?db=x", "db is not a number"),
        ("redis://cache?db=", "db is not a number"),
        ("redis://cache?timeout=5", "timeout is unknown"),
        ("redis://cache?ssl_ca_certs=/ca.pem", "for rediss:// only"),
        ("unix:///r.sock?ssl_certfile=/c.pem", "for rediss:// only"),
        ("rediss://cache?ssl_ca_certs=", "ssl_ca_certs is empty"),
        ("rediss://cache?ssl_cert_reqs=maybe", "ssl_cert_reqs is none of"),
        ("rediss://cache?ssl_check_hostname=perhaps", "ssl_check_hostname is none of"),
        ("unix://", "a socket has a path"),
        ("unix:///", "a socket has a path"),
        ("unix://run/redis.sock", "a socket has a path"),
        ("redis+sentinel://one", "service is missing"),
        ("redis+sentinel://one,/main", "host is missing"),
        ("redis+sentinel://one/main/x", "database"),
    ],
)
def test_a_wrong_address(url: str, problem: str) -> None:
    """What is wrong is said in words."""
    with pytest.raises(ValueError, match=re.escape(problem)):
        StoreAddress.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:geheim?x@cache:6379/0",
        "redis://:x?geheim@cache:6379/0",
        "redis://:x?geheim=1@cache:6379/0",
        "redis://:geheim#x@cache:6379/0",
        "redis://:x#geheim@cache:6379/0",
        "redis://:geheim/x@cache:6379/0",
        "redis://:x/geheim@cache:6379/0",
        "redis://ann:1/geheim@cache:6379/0",
        "redis://:geheim@℀:6379/0",
        "redis://:[x@cache:geheim",
        "redis://cache?password=geheim",
        "redis://cache?geheim%20",
        "redis+sentinel://:geheim@one,two",
    ],
)
def test_a_password_is_in_no_error(url: str) -> None:
    """Whatever is wrong with an address, and however it is read: the password is not repeated."""
    with pytest.raises(ValueError, match=" ") as caught:
        StoreAddress.parse(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(repr(url), "")


def test_a_password_is_in_nothing_that_is_shown() -> None:
    """Neither in what is shown of an address or a store, nor where they are looked at."""
    url = "redis://ann:geheim@cache"
    address, store = StoreAddress.parse(url), Store(url, "default")
    assert SECRET not in f"{address!r} {address} {address.shown} {store!r} {store.where}"


@given(
    st.sampled_from(SCHEMES),
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=40),
)
def test_any_text(scheme: str, rest: str) -> None:
    """Any text is read, or refused with a ValueError; and what was read is read again alike."""
    try:
        address = StoreAddress.parse(f"{scheme}://{rest}")
    except ValueError:
        return
    assert address.url.isprintable()
    if not address.sentinels:
        assert StoreAddress.parse(address.url).url == address.url
    options = client_options(address.url)
    assert options.get("password", "") == address.password
