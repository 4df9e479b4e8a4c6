"""Asking the exporter of a running server, as Prometheus does, whether it answers and for whom.

Needs no prometheus_client.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.certificates import Validity, validity
from obskit_gunicorn._exporter.protocol import NOT_AUTHORISED, network
from obskit_gunicorn._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.finding import Finding

_PART = "exporter"
_ANSWERS = "the exporter answers"
_TIMEOUT_SECONDS = 5.0
_CLOCKS_DIFFER_SECONDS = 60.0
_MANY_EXITS_PER_HOUR = 6
_QUERY = "&".join(
    f"name[]={name}"
    for name in (
        "obskit_gunicorn_info",
        "obskit_gunicorn_generation_start_time_seconds",
        "gunicorn_worker_exits_total",
    )
)
_SAMPLE = re.compile(r'^(\w+)(?:\{reason="(\w+)"\})? (\S+)$', re.MULTILINE)
_BAD_ENDS = {
    "killed": "were killed by a signal",
    "timeout": "were killed by Gunicorn, because they hung",
    "boot_error": "could not boot",
    "error": "ended with an error",
}
"""The reasons of a worker's end that are nobody's wish, see docs/metrics.md."""

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
        yield finding.ok(_PART, text)
        return
    where = f"{address}{path}"
    try:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(_connect(address))
            if is_tls:
                client = stack.enter_context(_anybody().wrap_socket(client))
                yield from _certificate(client, where)
            if is_mutual:
                text = f"{_ANSWERS} at {where}; its page needs a client's certificate"
                yield finding.ok(_PART, text)
                return
            sent, text = _get(client, f"{quote(path)}?{_QUERY}")
    except (OSError, http.client.HTTPException) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = f"the exporter cannot be reached at {where}: {problem}"
        advice = 'see the server\'s log for "exporter"'
        yield finding.error(_PART, Problem(text, advice))
        return
    if facts.get("authorisation") and text.startswith(NOT_AUTHORISED):
        # Not with the secret, which this process may know: somebody else may have the address.
        text = f"{_ANSWERS} at {where}; its page needs a token or a password"
        yield finding.ok(_PART, text)
        yield from _clock(sent)
    elif f'directory="{_escaped(directory)}"' in text:
        whom = " to a client that takes any certificate" if is_tls else ""
        yield finding.ok(_PART, f"{_ANSWERS} at {where}{whom}")
        yield from _clock(sent)
        yield from _exits(text)
    else:
        text = f"{where} is answered by somebody else, not by this server's exporter"
        yield finding.error(_PART, Problem(text, "give each server a metrics_bind of its own"))


def is_answered(facts: dict[str, Any]) -> bool:
    """Return whether an exporter answers, and for its own server; see :func:`ask`."""
    return any(found.text.startswith(_ANSWERS) for found in ask(facts))


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
    if found is not None:
        yield judge_certificate(found, f"the certificate at {where}")


def judge_certificate(found: Validity, which: str) -> Finding:
    """Return whether a certificate is valid, and for how long."""
    now = time.time()
    renew = "renew the file; it is used without a restart"
    if found.end <= now:
        problem = Problem(f"{which} has expired on {found.end_text()}", renew)
        return finding.error(_PART, problem)
    if found.start > now:
        advice = "look at the clock of both machines, or take another file"
        return finding.error(_PART, Problem(f"{which} is not valid yet", advice))
    if found.ends_soon(now):
        return finding.warning(_PART, Problem(f"{which} expires on {found.end_text()}", renew))
    return finding.ok(_PART, f"{which} is valid until {found.end_text()}")


def _clock(sent: str) -> Iterator[Finding]:
    """Compare the clock of the server with that of this process."""
    try:
        ahead = parsedate_to_datetime(sent).timestamp() - time.time()
    except ValueError:
        return
    if abs(ahead) > _CLOCKS_DIFFER_SECONDS:
        word = "ahead of" if ahead > 0 else "behind"
        text = f"the clock of the server is {abs(ahead):.0f} s {word} that of this process"
        advice = "it was set, or one of the two machines is wrong: look at both (timedatectl)"
        yield finding.warning(_PART, Problem(text, advice))


def _exits(text: str) -> Iterator[Finding]:
    """Say how many workers ended as nobody wished, and whether that is often."""
    start, ends = 0.0, {}
    for name, reason, number in _SAMPLE.findall(text):
        if name == "obskit_gunicorn_generation_start_time_seconds":
            start = float(number)
        elif name == "gunicorn_worker_exits_total" and float(number) and reason in _BAD_ENDS:
            ends[reason] = int(float(number))
    if not ends or not start:
        return
    hours = max(time.time() - start, 0.0) / 3600
    words = " and ".join(f"{ends[reason]} {_BAD_ENDS[reason]}" for reason in ends)
    when = f"since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(start))}"
    is_often = sum(ends.values()) > max(_MANY_EXITS_PER_HOUR * hours, 3)
    text, advice = f"of the workers {when}, {words}", "the server's log says more"
    if is_often:
        yield finding.warning("processes", Problem(text, advice))
    else:
        yield finding.ok("processes", text, advice)


def _get(client: socket.socket, target: str) -> tuple[str, str]:
    """Return when a page was sent, as HTTP says it, and the page.

    Raises:
        OSError: The connection failed.
        http.client.HTTPException: What came is not HTTP.
    """
    client.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    answer = http.client.HTTPResponse(client)
    try:
        answer.begin()
        return answer.getheader("Date", ""), answer.read(1 << 20).decode("utf-8", "replace")
    finally:
        answer.close()


def _escaped(value: str) -> str:
    """Return the value of a label as the text format shows it."""
    text = value.encode(errors="replace").decode()
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
