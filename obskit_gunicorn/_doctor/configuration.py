"""A configuration as Gunicorn loads it: versions, what is published, hooks, environment.

Runs in a process of its own: a configuration file is a program.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import traceback
import types
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._doctor import finding
from obskit_gunicorn._doctor.apart import User, apart
from obskit_gunicorn._gunicorn import dispatch, lifecycle
from obskit_gunicorn._gunicorn.contract import PARAMETERS, base_class, overrides
from obskit_gunicorn._gunicorn.options import OPTIONS
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem
from obskit_gunicorn._version import __version__
from obskit_gunicorn.errors import ConfigurationError, ObskitGunicornWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obskit_gunicorn._doctor.finding import Finding
    from obskit_gunicorn._gunicorn.contract import Publication

_GUNICORNS = ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY")


class Loaded(NamedTuple):
    """What Gunicorn would run."""

    application: Any
    """Gunicorn's application object, which has loaded its configuration."""

    problems: list[Problem]
    """What was warned of meanwhile."""

    @property
    def settings(self) -> Any:
        """Gunicorn's settings."""
        return self.application.cfg


class LoadingError(Exception):
    """Gunicorn cannot load the configuration, so it would not start.

    Attributes:
        problem: Why, and what to do; without text if Gunicorn has printed why.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def versions() -> Iterator[Finding]:
    """Yield which releases there are, and whether they go together."""
    found = {"obskit-gunicorn": __version__, "Python": platform.python_version()}
    for name in ("gunicorn", "prometheus-client"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    yield finding.ok("versions", ", ".join(f"{name} {text}" for name, text in found.items()))
    missing, newer = lifecycle.missing_client(), lifecycle.untested()
    if missing is not None:
        yield finding.error("versions", missing)
    if newer is not None:
        yield finding.warning("versions", newer)


def load(arguments: Sequence[str]) -> Loaded:
    """Load a configuration as Gunicorn does; for this process for good.

    Args:
        arguments: Gunicorn's arguments.

    Raises:
        LoadingError: Gunicorn would not start.
    """
    try:
        from gunicorn.app.wsgiapp import WSGIApplication
    except ValueError as error:  # it reads the variable when it is imported
        text = f"WEB_CONCURRENCY is {os.environ.get('WEB_CONCURRENCY')!r}; expected a whole number"
        raise LoadingError(Problem(text, "correct it, or remove it")) from error

    failure: list[BaseException] = []

    class Application(WSGIApplication):
        """Gunicorn's, but there need be no application to look at a configuration."""

        def load_config(self) -> None:
            try:
                super(WSGIApplication, self).load_config()
            except BaseException as error:
                failure.append(error)
                raise
            self.app_uri = self.app_uri or self.cfg.wsgi_app

    sys.argv = ["gunicorn", *arguments]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ObskitGunicornWarning)
        try:
            application = Application("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
        except SystemExit as error:
            raise LoadingError(_why(failure[-1] if failure else error)) from error
    problems = []
    for each in warned:
        if isinstance(each.message, ObskitGunicornWarning):
            advice = each.message.advice
            problems.append(Problem(str(each.message).removesuffix(f"; {advice}"), advice))
        else:
            warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    return Loaded(application, problems)


def _why(error: BaseException) -> Problem:
    """Return why a configuration cannot be loaded."""
    if isinstance(error, ConfigurationError):
        found = f"{error.where} is {error.value!r}; expected {error.expected}"
        return Problem(found, error.hint)
    advice = "correct it; gunicorn --check-config says the same"
    where = _line_of(error)
    if isinstance(error, SystemExit) and where:
        return Problem(f"{where}it ends the process: SystemExit: {error}", advice)
    if isinstance(error, SystemExit) and not isinstance(error.__context__, Exception):
        return Problem("", "correct it; see gunicorn --help")
    if isinstance(error, SystemExit) and isinstance(error.__context__, Exception):
        error = error.__context__
        where = _line_of(error)
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}: "
    return Problem(f"{where}{type(error).__name__}: {error}", advice)


def _line_of(error: BaseException) -> str:
    """Return where in the configuration an error was raised; empty if not there."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "__config__":
            where = f"{frame.f_code.co_filename}, line {line}: "
    return where


def examine(loaded: Loaded) -> Iterator[Finding]:
    """Yield what a configuration is, and what is wrong in it."""
    settings, publication = loaded.settings, dispatch.publication_of(loaded.settings)
    if publication is None:
        text = f"nothing in {_source(settings)} wants obskit_gunicorn: there are no metrics"
        advice = (
            "write class Config(ObskitGunicornConfig): ... there, or adopt(globals()) as its last "
            "line"
        )
        yield finding.error("configuration", Problem(text, advice))
    else:
        what = "functions" if publication.is_file else f"class {publication.class_name}"
        yield finding.ok("configuration", f"{what} in {publication.source}")
        yield from _workers(settings, publication)
        yield from _hooks(publication)
    yield from _beginning(settings)
    yield from _environment(settings)
    for problem in loaded.problems:
        is_variable = problem.text.startswith("environment variable ")
        yield finding.warning("environment" if is_variable else "configuration", problem)


def _source(settings: Any) -> str:
    given = settings.settings["config"].get()
    if given and (":" in given or os.path.exists(given)):
        return str(given)
    return "the configuration, for there is no file,"


def _workers(settings: Any, publication: Publication) -> Iterator[Finding]:
    try:
        worker_class = settings.worker_class
    except Exception as error:
        # Gunicorn's own words have a traceback in them, whose last line says why.
        reason = str(error).rstrip("]\n ").rpartition("\n")[2]
        text = f"worker class {settings.worker_class_str} cannot be loaded: {reason}"
        advice = "correct its name, or install its package"
        yield finding.error("configuration", Problem(text, advice), stops=True)
        return
    kind = f"{settings.workers} {settings.worker_class_str} worker"
    kind += "" if settings.workers == 1 else "s"
    who = f"uid {settings.uid} and gid {settings.gid}"
    yield finding.ok("configuration", f"{kind}, as {who}")
    if (settings.uid, settings.gid) != (os.geteuid(), os.getegid()):
        yield from apart(lambda: _becoming(User.of(settings)))
    problem = lifecycle.uncounted(publication.options, settings, worker_class)
    if problem is not None:
        yield finding.warning("configuration", problem)


def _beginning(settings: Any) -> Iterator[Finding]:
    """Yield what Gunicorn itself will stumble over before there is a worker."""
    bad = []
    try:
        settings.address  # noqa: B018
    except Exception as error:
        bad.append((f"bind is {settings.bind!r}: {error}", "write host:port or unix:path"))
    for name in ("certfile", "keyfile"):
        path = getattr(settings, name)
        if path and not os.path.exists(path):
            bad.append((f"{name} is {path!r}, which is not there", "correct it"))
    folder = os.path.dirname(settings.pidfile or "")
    if folder and not os.path.isdir(folder):
        advice = f"make {folder}, or name another one"
        bad.append((f"pidfile is {settings.pidfile!r}, whose directory is not there", advice))
    for text, advice in bad:
        yield finding.error("configuration", Problem(text, advice), stops=True)


def _becoming(user: User) -> Iterator[Finding]:
    """Yield why workers cannot run as their user, if so; in a process that does what they do."""
    own = f"uid {os.geteuid()} and gid {os.getegid()}"
    try:
        with tempfile.TemporaryFile() as file:
            os.fchown(file.fileno(), user.uid, user.gid)
        user.become()
    except OSError as error:
        text = f"a server that is started as {own} cannot have workers as uid {user.uid} and gid "
        text += f"{user.gid}: {error.strerror or error}"
        advice = "leave out user and group, or start it as root"
        yield finding.error("configuration", Problem(text, advice), stops=True)


def _environment(settings: Any) -> Iterator[Finding]:
    ours = [option.variable for option in OPTIONS if os.environ.get(option.variable) is not None]
    if ours:
        text = f"{', '.join(ours)}: set here, and wins over the configuration"
        yield finding.ok("environment", text)
    for name in _GUNICORNS:
        value = os.environ.get(name)
        if not value:
            continue
        if name == "WEB_CONCURRENCY" and int(value) != settings.workers:
            text = f"WEB_CONCURRENCY={value} has no effect: workers is set to {settings.workers}"
            yield finding.ok("environment", text, "leave workers out, if the variable should win")
        else:
            yield finding.ok("environment", f"{name} is set here, and used")
    waiting: list[str] = []
    log.use(_Lines(waiting))
    for line in waiting:
        yield finding.ok("environment", line.removeprefix("obskit: "))


class _Lines:
    """Takes what is logged when Gunicorn has a log."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def __getattr__(self, _level: str) -> Any:
        return lambda text, *args, **_more: self._lines.append(text % args)


def _hooks(publication: Publication) -> Iterator[Finding]:
    """Yield which hooks are overridden, and whether each hands on to the next."""
    config = publication.config
    for name in (*PARAMETERS, "hook_event"):
        if not overrides(config, name):
            continue
        if publication.is_file:
            yield finding.ok("hooks", f"{name} runs after ours")
            continue
        chain = _chain(type(config), name)
        missed = _missed(chain, name)
        whose = " > ".join(f"{each.__name__}.{name}" for each in chain)
        if missed:
            last = chain[chain.index(missed[0]) - 1]
            text = f"{last.__name__}.{name} does not call super(): "
            text += f"{', '.join(f'{each.__name__}.{name}' for each in missed)} never runs"
            call = f"super().{name}({', '.join(PARAMETERS.get(name, ('event',)))})"
            yield finding.warning("hooks", Problem(text, f"begin it with {call}"))
        elif not chain:
            yield finding.ok("hooks", f"{name} is set on the instance")
        elif _hands_on(chain[-1], name):
            yield finding.ok("hooks", f"{whose} calls super()")
        else:
            lost = "; the log does not say where metrics are" if name == "on_starting" else ""
            text = f"{whose} does not call super(): nothing is lost, our part runs before it{lost}"
            yield finding.ok("hooks", text)


def _chain(config: type, name: str) -> list[type]:
    """Return the user's classes that define a hook, in the order of their calls."""
    lineage = config.__mro__
    above = lineage.index(base_class(config))
    return [each for each in lineage[:above] if name in vars(each)]


def _missed(chain: list[type], name: str) -> list[type]:
    """Return the classes of a chain whose method is never called."""
    for place, each in enumerate(chain):
        if not _hands_on(each, name):
            return chain[place + 1 :]
    return []


def _hands_on(config: type, name: str) -> bool:
    """Return whether a method mentions the same method of another class, as far as one can see."""
    import functools
    import inspect

    seen: list[object] = []
    waiting: list[object] = [vars(config)[name]]
    while waiting:
        each = waiting.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        if isinstance(each, str) and each == name:  # as in getattr(super(), name)
            return True
        if isinstance(each, types.FunctionType):
            names = {name for inner in _codes(each.__code__) for name in inner.co_names}
            if name in names:
                return True
            waiting += [vars(config)[helper] for helper in names & vars(config).keys()]
            waiting += _cells(each)
        elif isinstance(each, (staticmethod, classmethod, types.MethodType)):
            waiting.append(each.__func__)
        elif isinstance(each, (functools.partial, functools.partialmethod)):
            waiting.append(each.func)
        else:
            waiting.append(inspect.getattr_static(each, "__wrapped__", None))
    return False


def _cells(function: types.FunctionType) -> Iterator[object]:
    """Yield what a function that was made by another one has from there."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            yield cell.cell_contents


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)
