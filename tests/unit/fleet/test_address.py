"""Addresses of stores: what may stand in them, what is shown of them, and that is no password."""

from __future__ import annotations

import re
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obskit_gunicorn._fleet.address import SCHEMES, StoreAddress
from obskit_gunicorn._fleet.store import Store

SECRET = "geheim"


PLAIN = {
    "user": "",
    "password": "",
    "node": ("cache", 6379),
    "socket": "",
    "sentinels": (),
    "service": "",
    "database": 0,
    "tls": None,
}
CHECKED = {"ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("url", "shown", "differs"),
    [
        ("redis://cache", "redis://cache", {}),
        ("REDIS://cache", "redis://cache", {}),
        (
            "redis://cache:7000/3",
            "redis://cache:7000/3",
            {"node": ("cache", 7000), "database": 3},
        ),
        ("redis://[::1]", "redis://[::1]", {"node": ("::1", 6379)}),
        (
            "redis://[fe80::1%25eth0]:7",
            "redis://[fe80::1%25eth0]:7",
            {"node": ("fe80::1%25eth0", 7)},
        ),
        ("redis://ann@cache", "redis://cache", {"user": "ann"}),
        ("redis://:geheim@cache/1", "redis://cache/1", {"password": SECRET, "database": 1}),
        ("redis://cache/1?db=4", "redis://cache/1", {"database": 4}),
        ("rediss://cache", "rediss://cache", {"tls": CHECKED}),
        (
            "rediss://cache?ssl_ca_certs=/a%20b.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
            "rediss://cache",
            {
                "tls": {
                    "ssl_ca_certs": "/a b.pem",
                    "ssl_certfile": "/c.pem",
                    "ssl_keyfile": "/k.pem",
                    **CHECKED,
                }
            },
        ),
        (
            "rediss://cache?ssl_cert_reqs=none",
            "rediss://cache",
            {"tls": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}},
        ),
        (
            "rediss://cache?ssl_check_hostname=No",
            "rediss://cache",
            {"tls": {"ssl_check_hostname": False}},
        ),
        (
            "unix:///run/redis.sock?db=2",
            "unix:///run/redis.sock",
            {"node": None, "socket": "/run/redis.sock", "database": 2},
        ),
        (
            "unix://ann:geheim@/r%20s.sock",
            "unix:///r%20s.sock",
            {"user": "ann", "password": SECRET, "node": None, "socket": "/r s.sock"},
        ),
        (
            "redis+sentinel://ann:geheim@one,two:7000/main/2",
            "redis+sentinel://one,two:7000/main/2",
            {
                "user": "ann",
                "password": SECRET,
                "node": None,
                "sentinels": (("one", 26379), ("two", 7000)),
                "service": "main",
                "database": 2,
            },
        ),
        (
            "rediss+sentinel://[::1],[::2]:7000/my%2Fmain",
            "rediss+sentinel://[::1],[::2]:7000/my%2Fmain",
            {
                "node": None,
                "sentinels": (("::1", 26379), ("::2", 7000)),
                "service": "my/main",
                "tls": CHECKED,
            },
        ),
    ],
)
def test_an_address(url: str, shown: str, differs: dict[str, object]) -> None:
    """It is taken apart, and shown without user, password and parameters."""
    address = StoreAddress.parse(url)
    assert address._asdict() == {"shown": shown, **PLAIN, **differs}
    assert address.has_password == (SECRET in url)


@pytest.mark.parametrize("password", ["a,b", "a@b", "[a]", "a:b", "a b%", "℀", "%", "a%2", "&=+"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+sentinel"])
def test_a_password_of_any_characters(scheme: str, password: str) -> None:
    """It may be encoded; of what is not, only /, ? and # have another meaning in a URL."""
    where = "/run/redis.sock" if scheme == "unix" else "cache/1"
    for written in {password.replace("%", "%25").replace(" ", "%20"), quote(password, safe="")}:
        address = StoreAddress.parse(f"{scheme}://ann:{written}@{where}")
        assert (address.user, address.password) == ("ann", password)
        assert address.shown == f"{scheme}://{where}"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "begins with none of redis://"),
        ("cache:6379", "begins with none of redis://"),
        ("http://cache", "begins with none of redis://"),
        ("redis:cache", "begins with none of redis://"),
        ("unix:/run/redis.sock", "begins with none of redis://"),
        ("redis://", "host"),
        ("redis://:6379", "a host is missing"),
        ("redis://[::1", "host"),
        ("redis://a b", "blank"),
        ("redis://a\n", "blank"),
        ("redis://cache:port", "host"),
        ("redis://ca%20che", "host"),
        ("redis://℀", "host"),
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
        ("redis+sentinel://one,/main", "a host is missing"),
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
    assert address.shown.isprintable()
    assert 0 <= address.database < 10**9
    for host, port in (*address.sentinels, *([address.node] if address.node else ())):
        assert host
        assert 0 < port < 65536
    assert StoreAddress.parse(address.shown).node == address.node
