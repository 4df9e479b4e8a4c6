"""The exporter of a server that is to be started: address, interpreter, certificate, secrets."""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import stat
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._doctor.apart import EndedError, apart
from obskit_gunicorn._doctor.running import is_answered, judge_certificate
from obskit_gunicorn._exporter import launch
from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.certificates import context_of, read_validity
from obskit_gunicorn._exporter.logs import settings_of
from obskit_gunicorn._exporter.passwords import MISSING, find_bcrypt
from obskit_gunicorn._exporter.protocol import SECRET_FILES
from obskit_gunicorn._exporter.secret_files import (
    read_file,
    summary,
    token_in,
    users_in,
    words,
)
from obskit_gunicorn._gunicorn.supervisor import cannot_listen, cannot_log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import private
from obskit_gunicorn._store.directory import SlotDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obskit_gunicorn._doctor.apart import User
    from obskit_gunicorn._doctor.finding import Finding
    from obskit_gunicorn._exporter.protocol import Options

_PART = "exporter"
_LEAST_TOKEN = 16


def examine(
    options: Options, settings: Any, user: User, source: str, directory: str | None
) -> Iterator[Finding]:
    """Yield whether an exporter can be started, and reached; leaves nothing behind.

    Args:
        options: Ours.
        settings: Gunicorn's.
        user: The user of the workers, who runs it.
        source: Where the option for the address is set.
        directory: The multiprocess directory; ``None`` for a private one.
    """
    if options.metrics_bind is None:
        yield finding.ok(_PART, "none is wanted: metrics_bind is None")
        return
    address = Address.parse(options.metrics_bind, os.sep)
    yield from _address(address, source, settings, directory)
    if _is_behind_a_pod(address) and not (options.metrics_push or options.metrics_redis):
        text = f"{address} is reached from inside this pod only, and Prometheus is outside"
        advice = f'set metrics_bind = "0.0.0.0:{address.port}" ({source})'
        yield finding.warning(_PART, Problem(text, advice))
    problem = launch.can_start(settings)
    if problem:
        advice = f"let {user} read and run the interpreter and its packages, or install them there"
        yield finding.error(_PART, Problem(launch.cannot_start(problem), advice))
    else:
        yield finding.ok(_PART, f"{user} may run the interpreter: {launch.interpreter()}")
    lost = settings_of(settings)[1]
    if lost:
        yield finding.warning(_PART, cannot_log(lost))
    if options.metrics_certfile:
        what = options.metrics_certfile
        yield from _tried(lambda: _certificate(options, user), user, what)
    yield from _authorisation(options, user, address)
    for name in options.metrics_collectors:
        yield from _tried(functools.partial(_collector, name, user), user, name)


def _address(
    address: Address, source: str, settings: Any, directory: str | None
) -> Iterator[Finding]:
    try:
        if any(_clashes(address, bound) for bound in _bound(settings)):
            words = "Address already in use, by the application itself (Gunicorn's setting bind)"
            raise OSError(errno.EADDRINUSE, words)
        address.try_out()
    except OSError as error:
        arbiter = _server_at(address, directory)
        if arbiter is not None and _runs_in(arbiter, settings.chdir):
            text = f"{address} is used by the exporter of the server that runs here (pid {arbiter})"
            yield finding.ok(_PART, text)
        else:
            yield finding.error(_PART, cannot_listen(address, error, source))
        return
    yield finding.ok(_PART, f"{address} is free")


def _bound(settings: Any) -> list[object]:
    """Return where the application will listen; nothing if that is an error, which was said."""
    try:
        return list(settings.address)
    except Exception:
        return []


def _clashes(address: Address, bound: object) -> bool:
    """Return whether nobody can listen at an address beside one of Gunicorn's, as it parses it."""
    if isinstance(bound, tuple):
        host, port = bound[:2]
        return address.port == port and (_covers(address.host, host) or _covers(host, address.host))
    if not address.path:
        return False
    return os.path.realpath(address.path) == os.path.realpath(str(bound))


def _covers(host: str, other: str) -> bool:
    """Return whether whoever listens at a host has all connections to another one."""
    return host in (other, "::") or (host in ("0.0.0.0", "") and ":" not in other)


def _server_at(address: Address, directory: str | None) -> int | None:
    """Return the pid of the arbiter whose exporter answers at an address, if there is one."""
    for path in [*([directory] if directory else []), *private.find()]:
        try:
            records = SlotDirectory(path).records().values()
        except OSError:
            continue
        for record in records:
            facts = record.get("exporter") if record is not None else None
            if record is None or not isinstance(facts, dict):
                continue
            # An arbiter that waits for the address has recorded it too.
            if facts.get("address") == str(address) and is_answered(facts):
                pid = record.get("pid")
                return pid if isinstance(pid, int) else None
    return None


def _runs_in(pid: int, folder: str) -> bool:
    """Return whether a process has a working directory: then it is most probably this server."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def _is_behind_a_pod(address: Address) -> bool:
    """Return whether only this pod can reach an address."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and not address.path and _is_local(address)


def _is_local(address: Address) -> bool:
    """Return whether only this machine can reach an address."""
    if address.path:
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def _tried(look: Callable[[], Iterator[Finding]], user: User, what: str) -> Iterator[Finding]:
    """Look in a process of its own, as the user who runs the exporter."""
    try:
        yield from apart(look, user=user)
    except EndedError as error:
        text = f"{what} cannot be tried as {user}: {error}"
        yield finding.error(_PART, Problem(text, "see what it does, and who may read it"))


def _authorisation(options: Options, user: User, address: Address) -> Iterator[Finding]:
    """Yield who may ask the exporter, and whether the files of that can be used."""
    named = [path for name in SECRET_FILES if (path := getattr(options, name))]
    for path in named:
        yield from _tried(functools.partial(_handed_over, path, user), user, path)
        yield from _secret_file(path, is_token=path == options.metrics_bearer_token_file)
    if options.metrics_auth_file and find_bcrypt() is None:
        problem, _, advice = MISSING.partition(": ")
        yield finding.error(_PART, Problem(problem, advice))
    if named and not options.metrics_certfile and not _is_local(address):
        text = f"tokens and passwords cross the network to {address} in the clear"
        advice = "set metrics_certfile, or let only those reach the address who may know them"
        yield finding.warning(_PART, Problem(text, advice))


def _handed_over(path: str, user: User) -> Iterator[Finding]:
    """Yield how the exporter comes by a file; runs as its user."""
    if os.access(path, os.R_OK):
        text, advice = f"{path} can be read by {user}; a renewed one is used at once", ""
    else:
        text = f"{path} is handed over by the arbiter, because {user} may not read it"
        advice = "send Gunicorn a SIGHUP after each change of it"
    yield finding.ok(_PART, text, advice)


def _secret_file(path: str, *, is_token: bool) -> Iterator[Finding]:
    """Yield what is wrong with a file of who may ask."""
    try:
        data, mode = read_file(path), os.stat(path).st_mode
        token = token_in(data) if is_token else b""
        wrong = [] if is_token else users_in(data).wrong
    except (OSError, ValueError) as error:
        problem = Problem(f"{path} cannot be used: {words(error)}", "nobody is let in with it")
        yield finding.error(_PART, problem)
        return
    if wrong:
        problem = Problem(f"{path}: {summary(wrong)}", "write it with `htpasswd -B`")
        yield finding.warning(_PART, problem)
    if is_token and len(token) < _LEAST_TOKEN:
        text = f"{path} holds a token of {len(token)} characters, which can be guessed"
        yield finding.warning(_PART, Problem(text, "make one with `openssl rand -hex 32`"))
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        verb = "changed" if mode & stat.S_IWOTH else "read"
        text = f"{path} can be {verb} by every user of this machine"
        yield finding.warning(_PART, Problem(text, f"chmod o-rwx {path}"))


def _certificate(options: Options, user: User) -> Iterator[Finding]:
    """Yield whether the exporter's files can be used."""
    named = (options.metrics_certfile, options.metrics_keyfile, options.metrics_ca_certs)
    try:
        context_of(*named)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        text = f"{' and '.join(filter(None, named))} cannot be used by {user}: {error}"
        advice = "let that user read them, and see that certificate and key belong together"
        yield finding.error(_PART, Problem(text, advice))
        return
    found = read_validity(options.metrics_certfile)
    if found is not None:
        yield judge_certificate(found, f"the certificate in {options.metrics_certfile}")


def _collector(name: str, user: User) -> Iterator[Finding]:
    """Yield whether a collector of the user can be imported; it is not asked for metrics."""
    from obskit_gunicorn._exporter.user_collectors import import_collector

    try:
        import_collector(name)
    except (Exception, SystemExit) as error:
        text = f"metrics_collectors: {name} cannot be imported: {type(error).__name__}: {error}"
        advice = "correct its name or its module: it is left out of scrapes while it fails"
        yield finding.error(_PART, Problem(text, advice))
    else:
        yield finding.ok(_PART, f"metrics_collectors: {name} can be imported by {user}")
