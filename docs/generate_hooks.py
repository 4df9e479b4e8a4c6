"""Write docs/hooks.md from the docstrings and signatures of obskit_gunicorn/config.py.

``python docs/generate_hooks.py`` writes the page; with ``--check`` it changes nothing and exits 1
if the page is out of date. Reads the source only, so it needs neither Gunicorn nor this package.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

__all__ = ["FACTS", "Docstring", "Method", "first_sentence", "main", "read_methods", "render"]

_PACKAGE = Path(__file__).resolve().parent.parent / "obskit_gunicorn"
SOURCE = _PACKAGE / "config.py"
EVENT_SOURCE = _PACKAGE / "_gunicorn" / "contract.py"
PAGE = Path(__file__).resolve().parent / "hooks.md"

FACTS = (
    "Process",
    "Never under",
    "Signal context",
    "Base",
    "super()",
    "Exception",
    "Since",
)
"""What every hook's docstring states, in this order, each on a line that begins with a dash."""

COLUMNS = {
    "Process": "Runs in",
    "Signal context": "In signal context",
    "Never under": "Worker classes that never call it",
    "Exception": "An exception is",
}

_SECTIONS = ("Args", "Returns", "Raises")
_GROUP = re.compile(r"    # ---- (.+)")
_FACT = re.compile(r"- ([A-Za-z() ]+): (.+)", re.DOTALL)
_EXTRAS = "What the hooks call"

_INTRODUCTION = """\
<!-- Written by docs/generate_hooks.py from obskit_gunicorn/config.py. Do not edit. -->

# Server hooks

{about}

## All hooks

In the order in which Gunicorn comes to them. All columns but the last hold for any Gunicorn server,
whoever wrote the hook.

{table}

*In signal context* a hook interrupts its process on any line. It must not update metrics, take
locks or log: what it needs may be held by the very line that waits for it to return.

`super()` goes first in what builds up and last in what tears down.
"""

_EDITOR = """\
## In the editor

Every parameter has Gunicorn's own type. Pyright and Pylance know these types without any help; for
mypy install `obskit-gunicorn[typing]`, see [api.md](api.md#type-checkers-and-editors). To those
types `server.log` is optional, though every hook finds it set: a strict checker wants `assert
server.log is not None` before it is used. To a checker an override must be callable as the base
method is, so one of `post_request` keeps the two defaults.
"""


class Docstring(NamedTuple):
    """A docstring, taken apart."""

    summary: str
    blocks: list[str]
    """The paragraphs after the summary; one that ends in two colons has its literal block."""

    facts: dict[str, str]
    sections: dict[str, list[str]]
    """The lines of ``Args`` and the like, joined where they were wrapped."""


class Method(NamedTuple):
    """A method of the configuration class."""

    name: str
    group: str
    signature: str
    doc: Docstring


def main(arguments: Sequence[str] | None = None, *, page: Path = PAGE) -> int:
    """Write the page, or check it.

    Args:
        arguments: The command line; ``sys.argv`` by default.
        page: Where the page is.

    Returns:
        The exit code: 1 if the page was to be checked and is out of date.
    """
    parser = argparse.ArgumentParser(description="Write docs/hooks.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if out of date")
    text = render(SOURCE.read_text(encoding="utf-8"))
    if not parser.parse_args(arguments).check:
        page.write_text(text, encoding="utf-8")
        return 0
    if page.exists() and page.read_text(encoding="utf-8") == text:
        return 0
    print(f"{page.name} is out of date; run: python docs/generate_hooks.py", file=sys.stderr)
    return 1


def read_methods(source: str) -> list[Method]:
    """Return the public methods of the configuration class, in the order of the source.

    Args:
        source: The text of ``config.py``.
    """
    lines = source.splitlines()
    methods = []
    for node in _class(source, "ObskitGunicornConfig").body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        groups = [_GROUP.fullmatch(line) for line in lines[: node.lineno]]
        named = [found[1] for found in groups if found]
        signature = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
        methods.append(Method(node.name, named[-1], signature, _parse(ast.get_docstring(node))))
    return methods


def first_sentence(text: str) -> str:
    """Return the part of a fact that goes into the table."""
    return re.split(r"\.(?=\s|$)", text, maxsplit=1)[0]


def render(source: str) -> str:
    """Return the text of the page.

    Args:
        source: The text of ``config.py``.
    """
    methods = read_methods(source)
    hooks = [method for method in methods if method.group != _EXTRAS]
    about = _parse(ast.get_docstring(_class(source, "ObskitGunicornConfig")))
    parts = [
        _INTRODUCTION.format(
            about="\n\n".join(_markdown([about.summary, *about.blocks])), table=_table(hooks)
        ).rstrip()
    ]
    group = None
    for method in hooks:
        if method.group != group:
            group = method.group
            parts.append(f"## {group}")
        parts.extend(_method(method))
    parts.append("## Options")
    for name, annotation, default, text in _attributes(_class(source, "ObskitGunicornConfig")):
        parts.extend((f"### `{name}`", f"```python\n{name}: {annotation} = {default}\n```"))
        parts.extend(_markdown(text.split("\n\n")))
    parts.append(f"## {_EXTRAS}")
    for method in methods:
        if method.group == _EXTRAS:
            parts.extend(_method(method))
    event = _class(EVENT_SOURCE.read_text(encoding="utf-8"), "HookEvent")
    parts.append("## `HookEvent`")
    parts.extend(_markdown((ast.get_docstring(event) or "").split("\n\n")))
    rows = [
        f"| `{name}` | `{_cell(annotation)}` | {_inline(text)} |"
        for name, annotation, _, text in _attributes(event)
    ]
    parts.append("\n".join(("| field | type | |", "| --- | --- | --- |", *rows)))
    parts.append(_EDITOR.rstrip())
    return "\n\n".join(parts) + "\n"


def _class(source: str, name: str) -> ast.ClassDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"there is no class {name}")


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and docstring of each annotated attribute of a class."""
    hidden = [inner for each in node.body if isinstance(each, ast.If) for inner in each.body]
    body = [*hidden, *node.body]
    for attribute, below in pairwise(body):
        if not isinstance(attribute, ast.AnnAssign) or not isinstance(below, ast.Expr):
            continue
        # Double quotes in every Python: unparse chooses single ones.
        default = "" if attribute.value is None else ast.unparse(attribute.value).replace("'", '"')
        text = ast.literal_eval(below.value)
        name = ast.unparse(attribute.target)
        annotation = ast.unparse(attribute.annotation).replace("'", '"')
        yield name, annotation, default, inspect.cleandoc(text)


def _parse(text: str | None) -> Docstring:
    """Take a docstring apart; one that says nothing is an error."""
    if not text:
        raise ValueError("a public name has no docstring")
    summary, *blocks = re.split(r"\n\n(?=\S)", text)
    prose: list[str] = []
    facts: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    for block in blocks:
        title, _, body = block.partition(":\n")
        if title in _SECTIONS:
            sections[title] = _items(textwrap.dedent(body))
        elif block.startswith("- "):
            for item in re.split(r"\n(?=- )", block):
                fact = _FACT.fullmatch(item)
                if fact is None:
                    raise ValueError(f"not a fact: {item}")
                facts[fact[1]] = " ".join(fact[2].split())
        else:
            prose.append(block)
    return Docstring(summary, prose, facts, sections)


def _items(body: str) -> list[str]:
    """Join the lines of each entry of a section."""
    return [" ".join(item.split()) for item in re.split(r"\n(?=\S)", body) if item]


def _table(hooks: list[Method]) -> str:
    rows = [
        f"| hook | {' | '.join(COLUMNS.values())} |",
        f"| --- |{' --- |' * len(COLUMNS)}",
    ]
    for method in hooks:
        cells = [_cell(_inline(first_sentence(method.doc.facts[fact]))) for fact in COLUMNS]
        rows.append(f"| [`{method.name}`](#{method.name}) | {' | '.join(cells)} |")
    return "\n".join(rows)


def _method(method: Method) -> Iterator[str]:
    yield f"### `{method.name}`"
    yield f"```python\n{method.signature}\n```"
    yield from _markdown([method.doc.summary, *method.doc.blocks])
    if method.doc.facts:
        yield "\n".join(
            f"- **{_title(name)}**: {_inline(text)}" for name, text in method.doc.facts.items()
        )
    arguments = method.doc.sections.get("Args", [])
    if arguments:
        lines = [argument.partition(": ") for argument in arguments]
        yield "Parameters:"
        yield "\n".join(f"- `{name}`: {_inline(text)}" for name, _, text in lines)
    returned = method.doc.sections.get("Returns")
    if returned:
        yield f"Returns {_inline(' '.join(returned))}"


def _markdown(blocks: Sequence[str]) -> Iterator[str]:
    for block in blocks:
        text, colons, code = block.partition("::\n\n")
        yield _inline(text) + (":" if colons else "")
        if colons:
            yield f"```python\n{textwrap.dedent(code)}\n```"


def _inline(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _title(fact: str) -> str:
    return f"`{fact}`" if fact.endswith("()") else fact


if __name__ == "__main__":
    sys.exit(main())
