"""What may be wrong with a store, and what to do: errors of its clients, by kind, in words.

The texts are for people at three in the morning. None of them contains a password.
"""

from __future__ import annotations

import re

PASSWORD = "OBSKIT_METRICS_REDIS_PASSWORD"
SENTINEL_PASSWORD = "OBSKIT_METRICS_REDIS_SENTINEL_PASSWORD"

_MOST_WORDS = 300

COMMANDS = "+evalsha +script|load +time +hget +hset +hdel +hincrby +del"
"""What a user of the store needs to be allowed, as ``ACL SETUSER`` has it. In a cluster
``+asking`` and ``+cluster|slots`` besides, to go on while a slot moves or a node is down."""


PASSWORDS = ("NOAUTH", "NOPASS")
CLOSING = (
    "CLUSTERDOWN",
    "CONNECTION",
    "MASTERDOWN",
    "PROTOCOL",
    "READONLY",
    "SENTINEL",
    "TIMEOUT",
    "TLS",
    *PASSWORDS,
)
"""After what the connection is not used any more."""

EXPLANATIONS = {
    "ASK": "its cluster is just being rearranged",
    "BUSY": "it is busy with a script of somebody else; SCRIPT KILL there ends that",
    "CLUSTERDOWN": "its cluster is down ({words}); CLUSTER INFO there says more",
    "CONNECTION": "it cannot be reached ({words}); check that it runs, that the address is right "
    "(rediss:// if it speaks TLS), and that this host may connect to it",
    "DAMAGED": "what the key {key} holds is not what this release writes ({words}); "
    "obskit-gunicorn fleet reset begins anew",
    "DATABASE": "it does not have this database ({words}); correct the number in the address",
    "FAILOVER": "what the sentinels name as the primary is a replica still; they are changing it",
    "LOADING": "it has just started, and still reads its data from its disk",
    "MASTERDOWN": "it is a replica that has lost its primary; metrics_redis must name the primary, "
    "or the sentinels",
    "MAXCLIENTS": "it accepts no more clients; raise its maxclients, or close other connections",
    "MISCONF": "it accepts no writes because it cannot save to its disk; its own log says why",
    "MOVED": "its cluster moves the key {key} again and again",
    "NOAUTH": f"it wants a password; set {PASSWORD} or {PASSWORD}_FILE",
    "NOPASS": f"it has no password, but {PASSWORD} or the address gives one; unset that, or set "
    "requirepass there",
    "NOPERM": "its user may not do all that is needed ({words}); allow it there: ACL SETUSER "
    f"<user> ~{{key}} {COMMANDS}",
    "NOREPLICAS": "it accepts no writes because too few replicas follow it "
    "(min-replicas-to-write); check the replicas",
    "NO_SENTINEL": "it is no sentinel that answers there, but a store; write redis:// in place of "
    "redis+sentinel://, or the port of the sentinels",
    "OOM": "it is full; raise its maxmemory, or remove other data from it",
    "PROTOCOL": "what answers there is neither Redis nor Valkey ({words}); correct the address",
    "READONLY": "it is a replica, which accepts no writes; metrics_redis must name the primary, "
    "or the sentinels",
    "SENTINEL": "no sentinel knows a primary named {service}; check the sentinels, and the name "
    "behind them in the address",
    "SENTINEL_PASSWORD": f"the sentinels want a password, or another one; set {SENTINEL_PASSWORD} "
    f"or {SENTINEL_PASSWORD}_FILE",
    "SOCKET": "it cannot be reached ({words}); check that it runs, and the path and permissions of "
    "its socket",
    "TIMEOUT": "no answer within {seconds:g} s; it is overloaded or stopped, or the network to it "
    "loses packets",
    "TIMEOUT_TLS": "no answer within {seconds:g} s; it is overloaded or stopped, the network to it "
    "loses packets, or its port does not speak TLS (then redis:// is right)",
    "TLS": "no TLS connection ({words}); ssl_ca_certs in the address names who signs its "
    "certificate, ssl_certfile and ssl_keyfile this host's own",
    "UNKNOWN": "it does not have a command that is needed ({words}); allow EVALSHA and SCRIPT "
    "LOAD there",
    "WRONGPASS": f"it does not accept the user or the password; correct {PASSWORD} or "
    f"{PASSWORD}_FILE, or the user in the address",
    "WRONGTYPE": "the key {key} holds something else; delete it there (DEL {key}), or choose "
    "another metrics_redis_name",
}

_BY_CLASS = {
    "AskError": "ASK",
    "AuthenticationError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "InvalidResponse": "PROTOCOL",
    "MasterDownError": "MASTERDOWN",
    "MasterNotFoundError": "SENTINEL",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TimeoutError": "TIMEOUT",
}
"""Kinds of errors that the clients know, by the name of the class. All others are found by their
text, and these too where Redis 6.2 has met them in a script, or a client does not know them."""

_BY_CODE = re.compile(
    r"(?:^|: -?)(ASK|BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|MOVED|NOREPLICAS|OOM|READONLY"
    r"|WRONGTYPE) "
)

_BY_PHRASE = (
    ("without any password configured", "NOPASS"),
    ("max number of clients", "MAXCLIENTS"),
    ("no permissions to", "NOPERM"),
    ("user executing the script can't", "NOPERM"),
    ("previous master is now a slave", "READONLY"),
    ("unknown command", "UNKNOWN"),
    ("unknown redis command", "UNKNOWN"),
    ("db index", "DATABASE"),
    ("select is not allowed", "DATABASE"),
    ("[ssl", "TLS"),
    ("[x509", "TLS"),
    ("_ssl.c", "TLS"),
    ("user_script", "DAMAGED"),
)


def kind_of(error: Exception) -> str:
    """Return what kind of error it is; empty if it is none that is explained."""
    text = str(error)
    for phrase, kind in _BY_PHRASE[:2]:
        if phrase in text:
            return kind
    for each in type(error).__mro__:
        if each.__name__ in _BY_CLASS:
            return _BY_CLASS[each.__name__]
    if code := _BY_CODE.search(text):
        return code[1]
    for phrase, kind in _BY_PHRASE[2:]:
        if phrase in text.lower():
            return kind
    is_connection = isinstance(error, (OSError, UnicodeError)) or any(
        each.__name__ == "ConnectionError" for each in type(error).__mro__
    )
    return "CONNECTION" if is_connection else ""


def words_of(error: Exception, *secrets: str | None) -> str:
    """Return what the client or the store has said, without scripts, arguments and secrets."""
    text = " ".join((str(error) or type(error).__name__).split())
    text = re.sub(r"^(ERR )?Error (running|compiling) script .*?@user_script", "@user_script", text)
    text = re.sub(r"^(@user_script: ?\d+: -?)+", "", text)
    text = re.sub(r",? script: ([0-9a-f]{40}, )?on @user_script.*$", "", text)
    text = re.sub(r",? with args beginning with: .*$", "", text)
    for each in secrets:
        if each:
            text = text.replace(each, "***")
    return text[:_MOST_WORDS].rstrip(" .")
