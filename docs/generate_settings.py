"""Write obskit_gunicorn/_gunicorn/settings.pyi: what type checkers and editors know of settings.

``python docs/generate_settings.py`` writes it from the installed Gunicorn, which must be the newest
release, and from our options in ``config.py``; with ``--check`` it changes nothing and exits 1 if
the file is out of date. Run it where the package can be imported.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# Gunicorn makes a default of it, when it is imported.
os.environ.pop("PORT", None)

from obskit_gunicorn._gunicorn import checks
from obskit_gunicorn._gunicorn.contract import PARAMETERS
from obskit_gunicorn._gunicorn.options import OPTIONS

_PACKAGE = Path(__file__).resolve().parent.parent / "obskit_gunicorn"
SOURCE = _PACKAGE / "config.py"
DECLARATIONS = _PACKAGE / "_gunicorn" / "settings.pyi"

TYPES = {
    "validate_asgi_lifespan": "str",
    "validate_asgi_loop": "str",
    "validate_bool": "bool",
    "validate_chdir": "str",
    "validate_class": "str | type[Any]",
    "validate_dict": "dict[str, Any]",
    "validate_group": "int | str | None",
    "validate_header_map_behaviour": "str",
    "validate_http2_cleartext": "bool | str",
    "validate_http2_frame_size": "int",
    "validate_http2_stream_limit": "int",
    "validate_http2_window_size": "int",
    "validate_http_parser": "str",
    "validate_http_protocols": "str",
    "validate_list_of_files_or_patterns": "str | Sequence[str]",
    "validate_list_string": "str | Sequence[str]",
    "validate_pos_int": "int",
    "validate_proxy_protocol": "bool | str",
    "validate_reload_engine": "str",
    "validate_ssl_version": "int",
    "validate_statsd_address": "str",
    "validate_string": "str",
    "validate_string_to_addr_list": "str",
    "validate_string_to_list": "str",
    "validate_user": "int | str | None",
}
"""What to write for the settings that Gunicorn checks with a function: narrower than what that
accepts, which for a number is text too. ``None`` is added where it is the default."""

TYPES_OF = {
    "errorlog": "str | None",  # no log of errors
    "secure_scheme_headers": "dict[str, str]",
}
"""The settings of which more is known than their function says."""

ENDINGS = ("alive", "class", "config", "dir", "file", "level", "log", "out", "path")
"""Words that settings end in, and people write apart."""

HEAD = '''\
# Written by docs/generate_settings.py from Gunicorn and from config.py. Do not edit.
#
# The descriptions of Gunicorn's settings are Gunicorn's own:
#
{licence}

"""The settings of Gunicorn and our options, for type checkers and editors alone.

To them, :class:`Settings` is the base of the configuration class. There is no such module at run
time: a setting that a class does not assign must not seem to be set.

An attribute that a subclass may replace by a value *and* by a property cannot be declared in one
way for every checker. mypy lets both replace what a decorator has made. Pyright, and the editors
that are built on it, let both replace a field of a frozen dataclass whose type has a property's
``__get__``; and of all members they complete only such variables in the body of a class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from obskit_gunicorn._gunicorn.contract import Configuration

MYPY: bool  # mypy takes it as true

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

class Computed(Protocol[_T_co]):
    """A property that stands in the place of a setting."""

    def __get__(self, instance: Any, owner: Any = ..., /) -> _T_co: ...

class DidYouMean(Generic[_T]):
    """The type of a name that is nearly a setting: nothing is of this type."""

def _setting(getter: Callable[[Any], _T]) -> _T | Computed[_T]: ...
def _nearly(getter: Callable[[Any], _T]) -> _T: ...

class NearlySettings(Configuration):
    """Names that are nearly right, each with what was probably meant.

    At run time such a name is a warning. As methods, editors do not complete them.
    """
'''


class Declaration(NamedTuple):
    """An attribute of a configuration class."""

    name: str
    type: str
    text: str


def main(arguments: list[str], page: Path = DECLARATIONS) -> int:
    """Write the declarations, or check them; return the exit status."""
    wanted = render()
    if arguments == ["--check"]:
        is_current = page.exists() and page.read_text(encoding="utf-8") == wanted
        if not is_current:
            print(
                f"{page.name} is out of date; run: python docs/{Path(__file__).name}",
                file=sys.stderr,
            )
        return int(not is_current)
    page.write_text(wanted, encoding="utf-8")
    return 0


def render() -> str:
    """Return the text of the file."""
    known = checks.gunicorn_settings()
    declared = [*settings(known), *options()]
    licence = "\n".join(f"# {line}".rstrip() for line in _licence().splitlines())
    parts = [HEAD.format(licence=licence)]
    for name, meant in nearly(known).items():
        literal = ", ".join(f'"{each}"' for each in meant)
        parts.append(f"    @_nearly\n    def {name}(self) -> DidYouMean[Literal[{literal}]]: ...")
    parts.append("\nif MYPY:\n    class Settings(NearlySettings):")
    parts.append('        """Every setting and option."""\n')
    for each in declared:
        parts.append(f"        @_setting\n        def {each.name}(self) -> {each.type}: ...")
    parts.append("\nelse:\n    @dataclass(frozen=True, init=False, repr=False, eq=False)")
    parts.append("    class Settings(NearlySettings):")
    parts.append('        """Every setting and option."""\n')
    for each in declared:
        text = each.text.replace("\\", "\\\\").replace('"""', "'''")
        text = textwrap.indent(text, " " * 8).strip()
        end = "\n        " if "\n" in text else ""
        parts.append(f"        {each.name}: {each.type} | Computed[{each.type}]")
        parts.append(f'        """{text}{end}"""\n')
    return "\n".join(parts).rstrip() + "\n"


def settings(known: dict[str, Any]) -> Iterator[Declaration]:
    """Yield the settings of the installed Gunicorn that are no hooks."""
    for name, setting in known.items():
        if name in PARAMETERS:
            continue
        check = setting.validator.__name__
        if check not in TYPES:
            raise LookupError(f"{name}: which type has a setting that {check} checks?")
        kind = TYPES_OF.get(name, TYPES[check])
        if setting.default is None and not kind.endswith("None"):
            kind += " | None"
        yield Declaration(name, kind, _described(setting))


def _described(setting: Any) -> str:
    """Return Gunicorn's description of a setting, without the marks of its own manual."""
    text = re.sub(r":\w+:`([^`<]+?)\s*(?:<[^>]*>)?`", r"``\1``", setting.desc)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines()))
    default = getattr(setting, "default_doc", None)
    shown = f"``{setting.default!r}``" if default is None else f"{' '.join(default.split())}"
    facts = f"Default: {shown.rstrip('.')}."
    if setting.cli:
        facts += f" Command line: {', '.join(f'``{flag}``' for flag in setting.cli)}."
    return f"{text}\n\n{facts}"


def options() -> Iterator[Declaration]:
    """Yield our options, as the class declares them."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.If))]
    names = {option.name for option in OPTIONS}
    for body in bodies:
        for node, below in pairwise(body):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in names:
                assert isinstance(below, ast.Expr)
                assert isinstance(below.value, ast.Constant)
                text = inspect.cleandoc(str(below.value.value))
                yield Declaration(ast.unparse(node.target), ast.unparse(node.annotation), text)


def nearly(known: dict[str, Any]) -> dict[str, list[str]]:
    """Return names that are nearly right, by what people write; each with what was meant.

    Only those of which the server, too, says that they are probably a mistake.
    """
    right = {*known, *PARAMETERS, *(option.name for option in OPTIONS)}
    vocabulary = {word for name in right for word in name.split("_")}
    written = {each for name in right for each in _nearly(name, vocabulary)}
    found = {}
    for name in sorted(written | _flags(known)):
        meant = checks.near(name, known)
        if name.isidentifier() and name not in right and meant:
            found[name] = meant
    return found


def _nearly(name: str, vocabulary: set[str]) -> Iterator[str]:
    """Yield a name with its first or last word in singular or plural, or with words joined."""
    words = name.split("_")
    for at in {0, len(words) - 1}:
        word = words[at]
        others = [f"{word[: -len(each)]}_{each}" for each in ENDINGS if word[1:].endswith(each)]
        if word.endswith("s") and not word.endswith(("ss", "is")):
            others.append(word[:-1])
        elif f"{word}s" in vocabulary or (at and name not in PARAMETERS and word[-1] not in "sxy"):
            others.append(f"{word}s")
        yield from ("_".join([*words[:at], other, *words[at + 1 :]]) for other in others)
    if len(words) < _MANY:
        yield "".join(words)
    if name.endswith("ing"):
        yield name[: -len("ing")]  # on_start


_MANY = 4
"""From so many words on, nobody writes them as one."""


def _flags(known: dict[str, Any]) -> set[str]:
    """Return the flags of Gunicorn, as names."""
    flags = (flag for setting in known.values() for flag in setting.cli or ())
    return {flag.lstrip("-").replace("-", "_") for flag in flags}


def _licence() -> str:
    from importlib.metadata import distribution

    files = distribution("gunicorn").files or []
    path = next(file for file in files if file.name == "LICENSE")
    return str(path.locate().read_text(encoding="utf-8")).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
