"""Asking the exporter of a server, as Prometheus does, whether it answers and for whom.

Needs no prometheus_client.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from obskit_gunicorn._doctor.finding import Finding
from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.certificates import validity
from obskit_gunicorn._exporter.protocol import network

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_SECONDS = 5.0
_ANY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def ask(facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield whether an exporter answers, and what is wrong with its certificate; never raises.

    Args:
        facts: What its arbiter has recorded, see :meth:`protocol.Order.facts`.
    """
    try:
        address = Address.parse(str(facts["address"]), os.sep)
        path, directory = str(facts["path"]), str(facts["directory"])
        is_tls, is_mutual = bool(facts["tls"]), bool(facts["client_certificates"])
    except (KeyError, TypeError, ValueError):
        return  # another release wrote it in another way
    if facts.get("network") != network() and not address.path:
        text = f"the exporter listens at {address}, in another network than this: it was not asked"
        yield Finding(False, text)
        return
    where = f"{address}{path}"
    try:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(_connect(address))
            if is_tls:
                client = stack.enter_context(_anybody().wrap_socket(client))
                yield from _certificate(client, where)
            if is_mutual:
                text = f"the exporter answers at {where}; its page needs a client's certificate"
                yield Finding(False, text)
                return
            text = _get(client, f"{quote(path)}?name[]=obskit_gunicorn_info")
    except (OSError, http.client.HTTPException) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = f"the exporter cannot be reached at {where}: {problem}; "
        yield Finding(True, text + 'see the server\'s log for "exporter"')
        return
    if f'directory="{_escaped(directory)}"' in text:
        yield Finding(False, f"the exporter answers at {where}")
    else:
        text = f"{where} is answered by somebody else, not by this server's exporter: "
        yield Finding(True, text + "give each server a metrics_bind of its own")


def _connect(address: Address) -> socket.socket:
    if address.path:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(_TIMEOUT_SECONDS)
        try:
            client.connect(address.path)
        except BaseException:
            client.close()
            raise
        return client
    host = _ANY_INTERFACE.get(address.host, address.host)
    return socket.create_connection((host, address.port), timeout=_TIMEOUT_SECONDS)


def _anybody() -> ssl.SSLContext:
    """Return a context that takes any certificate: whether it is good is looked at afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _certificate(client: ssl.SSLSocket, where: str) -> Iterator[Finding]:
    found = validity(client.getpeercert(binary_form=True) or b"")
    if found is None:
        return
    now = time.time()
    if found.end <= now:
        text = f"the certificate at {where} has expired on {found.end_text()}: renew the file"
    elif found.start > now:
        text = f"the certificate at {where} is not valid yet: look at the clock of both machines"
    elif found.ends_soon(now):
        text = f"the certificate at {where} expires on {found.end_text()}: renew the file"
    else:
        yield Finding(False, f"the certificate at {where} is valid until {found.end_text()}")
        return
    yield Finding(True, f"{text}; it is used without a restart")


def _get(client: socket.socket, target: str) -> str:
    """Return a page.

    Raises:
        OSError: The connection failed.
        http.client.HTTPException: What came is not HTTP.
    """
    client.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    answer = http.client.HTTPResponse(client)
    try:
        answer.begin()
        return answer.read(1 << 20).decode("utf-8", "replace")
    finally:
        answer.close()


def _escaped(value: str) -> str:
    """Return the value of a label as the text format shows it."""
    text = value.encode(errors="replace").decode()
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
