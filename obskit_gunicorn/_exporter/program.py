"""The program of the exporter.

Under Gunicorn the arbiter starts it (:mod:`obskit_gunicorn._exporter.launch`). ``obskit-gunicorn
serve`` is the same program, for another container that shares the volume. It reads the multiprocess
directory and never writes to it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.logs import log_to
from obskit_gunicorn._exporter.pages import Pages
from obskit_gunicorn._exporter.protocol import (
    BOOTED,
    LISTENING,
    LOST,
    MOVED,
    SECRET_FILES,
    SERVING,
    STOP,
    Options,
    Order,
)
from obskit_gunicorn._exporter.server import MetricsServer
from obskit_gunicorn._exporter.tls import TlsFiles
from obskit_gunicorn._log import log
from obskit_gunicorn._store import forks
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from obskit_gunicorn._exporter.server import Application

_RETRY_SECONDS = 1.0
_DRAIN_SECONDS = 3.0

_SWITCH_SECONDS = 0.0001
"""How long a thread keeps the interpreter while another one wants it: a fiftieth of the default.

A probe is answered in about twenty turns. Under 64 clients who ask for large bodies it takes less
than 0.2 s so, and more than 0.5 s with the default.
"""
_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")


def serve(
    pages: Pages,
    options: Options,
    listener: socket.socket,
    wait: Callable[[], object],
    descriptors: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Serve until ``wait`` returns, then finish the answers that are under way.

    Args:
        pages: The application.
        options: The options, which name the certificate, and the files of who may ask.
        listener: A listening socket.
        wait: Returns when it is time to end.
        descriptors: Files of who may ask that another process has opened for this one, by option.
    """
    tls = None
    if options.metrics_certfile:
        tls = TlsFiles(options.metrics_certfile, options.metrics_keyfile, options.metrics_ca_certs)
        tls.context()  # logs at once what is wrong with the files
    served: Application = pages
    if any(getattr(options, name) for name in SECRET_FILES):
        # Only where it is wanted, for the sake of the exporter's memory.
        from obskit_gunicorn._exporter.authorisation import Guard

        served = Guard(pages, options, descriptors)
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = MetricsServer(listener, served, tls)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    pages.start()
    # What exists now stays; the garbage collector need not look at it again.
    gc.freeze()
    wait()
    server.shutdown()
    listener.close()  # new clients are refused, or another process that listens here serves them
    last = threading.Thread(target=pages.end, daemon=True)
    last.start()
    server.drain(_DRAIN_SECONDS)
    last.join()


def main(order: dict[str, Any]) -> None:
    """Run the exporter of a Gunicorn server; the program of the process.

    Ends when the last process that holds the other end of its standard input has ended, or when the
    arbiter tells it to. It ignores every signal but SIGKILL: Ctrl-C and systemd signal the whole
    process group, but the exporter continues, so that the drain stays observable.

    Args:
        order: The fields of an :class:`~obskit_gunicorn._exporter.protocol.Order`.
    """
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Inherited from whoever has started the arbiter; collectors may wait for their children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    told = Order.from_dict(order)
    log_to(told.logging)
    threading.excepthook = _log_exception
    control = _take_control()
    if told.version != __version__:
        log.warning(
            "the arbiter runs obskit-gunicorn %s, but %s is installed now: start Gunicorn anew "
            "(SIGUSR2 does), so that both are one release",
            told.version,
            __version__,
        )
    if told.ended:
        log.warning("%s", told.ended)
    # Only now: the application's modules must not hide those that this module needs.
    sys.path[:] = list(dict.fromkeys([*told.sys_path, *sys.path]))
    pages = Pages(told.directory, told.options)
    pages.has_booted = told.has_booted
    # It wakes the arbiter; each look asks again, until the directory is there.
    pages.tell_lost = lambda: _tell(control, LOST)
    if told.predecessor is not None:
        os.set_inheritable(told.predecessor, False)
    for descriptor in told.descriptors.values():
        os.set_inheritable(descriptor, False)
    listener = _listener(told.listener, told.options, control, pages)
    if listener is not None:

        def close() -> None:
            """Keep nothing open in a process that a user's collector has forked."""
            listener.close()
            control.close()
            for descriptor in told.descriptors.values():
                os.close(descriptor)

        forks.in_child("exporter", close)

        def wait() -> None:
            """Read messages until one of them says that it is time to end."""
            _tell(control, SERVING)
            if told.predecessor is not None:
                with socket.socket(fileno=told.predecessor) as predecessor:
                    _tell(predecessor, STOP)
            while _continues(control, pages):
                pass

        serve(pages, told.options, listener, wait, told.descriptors)


def _take_control() -> socket.socket:
    """Move the control socket away from the standard input, which other code may use."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def _listener(
    number: int | None, options: Options, control: socket.socket, pages: Pages
) -> socket.socket | None:
    """Return the listening socket, once there is one; ``None`` if it is time to end."""
    if number is not None:
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)
    while True:
        try:
            listener = Address.parse(options.metrics_bind, os.sep).listen()
        except OSError:
            if not _continues(control, pages, _RETRY_SECONDS):
                return None
            continue
        log.warning("listening now: metrics at %s%s", options.metrics_bind, options.metrics_path)
        # For the arbiter, which hands it on to the next exporter and to the next arbiter.
        _tell(control, LISTENING, listener.fileno())
        return listener


def _continues(control: socket.socket, pages: Pages, seconds: float | None = None) -> bool:
    """Wait for a message from arbiter or workers; return whether the exporter continues.

    Whether the socket blocks is for those to say who have made it: eventlet's and gevent's do not.

    Args:
        control: The way to arbiter and workers.
        pages: Is told that a worker has booted.
        seconds: How long to wait; as long as it takes by default.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if not poll.poll(None if seconds is None else 1000 * seconds):
        return True
    try:
        said = control.recv(1, socket.MSG_DONTWAIT)
        if said == MOVED:
            path = b""
            while not path.endswith(b"\0"):  # it came in one piece
                path += control.recv(1, socket.MSG_DONTWAIT) or b"\0"
            pages.move(os.fsdecode(path[:-1]))
    except BlockingIOError:
        return True
    except OSError:
        return False
    pages.is_replaced = pages.is_replaced or said == STOP
    if said == BOOTED and not pages.has_booted:
        pages.has_booted = True
        _tell(control, BOOTED)  # for the next exporter
    return said not in (b"", STOP)


def _tell(control: socket.socket, message: bytes, *descriptors: int) -> None:
    """Tell the arbiter; it need not be there any more, or may not have listened for long."""
    with contextlib.suppress(OSError):
        socket.send_fds(control, [message], list(descriptors), socket.MSG_DONTWAIT)


def _log_exception(told: threading.ExceptHookArgs) -> None:
    """Log what has ended a thread."""
    error = told.exc_value
    if not isinstance(error, SystemExit):
        log.error("a thread has ended", exc_info=error)
