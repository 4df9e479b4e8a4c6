"""Every fenced block of the pages for people, and the one rule that says how it is checked.

A rule goes by what a block is and has in it, not by the page that it is on: a block may be moved.
Which test checks the blocks of which rule stands in the rule. What cannot be run here is in
:data:`NOT_RUN`, with the reason and with what is checked of it all the same.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "KINDS",
    "NOT_RUN",
    "OF_ONE_TEST",
    "PAGES",
    "ROOT",
    "RULES",
    "Block",
    "Command",
    "Rule",
    "all_blocks",
    "blocks_of",
    "commands",
    "has_its_own_test",
    "rule_of",
]

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("k8s/**/*.md"),
    ]
)

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: The page, relative to the root.
        line: The line of its fence.
        language: What stands behind the fence.
        text: What is in it, without the indentation of the fence.
        before: The block that it follows, with nothing but an empty line between them.
        shows: The ``text`` block that follows it in the same way.
    """

    page: str
    line: int
    language: str
    text: str
    before: str = ""
    shows: str = ""

    @property
    def name(self) -> str:
        """What a test calls it."""
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    found: list[Block] = []
    end = -9
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page, line, match[2], textwrap.dedent(match[3]) if match[1] else match[3])
        if match.start() - end == 2:
            block = block._replace(before=found[-1].language)
            if (block.language, block.before) == ("text", "sh"):
                found[-1] = found[-1]._replace(shows=block.text)
        found.append(block)
        end = match.end()
    return found


def all_blocks() -> list[Block]:
    """Return every block of every page."""
    return [
        block
        for page in PAGES
        for block in blocks_of(page.read_text("utf-8"), str(page.relative_to(ROOT)))
    ]


class Rule(NamedTuple):
    """How blocks of a kind are checked.

    Attributes:
        language: Their language.
        kind: What they are.
        pattern: What is found in such a block, and in none of a later rule of its language.
        test: The test that checks them.
    """

    language: str
    kind: str
    pattern: str
    test: str


_HERE = "tests/unit/docs/test_snippets.py::"
_LIVE = "tests/live/test_snippets.py::"

RULES = (
    Rule("python", "signature", r"\Adef \w+\([^\"]*\) -> [^\n]*:\n\Z", _HERE + "test_signature"),
    Rule("python", "default", r"\A\w+: [^\n=]+ = [^\n]+\n\Z", _HERE + "test_default"),
    Rule(
        "python",
        "types",
        r"# an error",
        "tests/unit/gunicorn/test_settings.py::test_mypy_finds_each_mistake_and_no_other",
    ),
    Rule("python", "tests", r"^def test_", _HERE + "test_tests"),
    Rule("python", "another package", r"^from gunicorn_prometheus_exporter", _HERE + "test_names"),
    Rule("python", "program", r"^if __name__ == \"__main__\":", _LIVE + "test_program"),
    Rule(
        "python",
        "configuration",
        r"\A# gunicorn\.conf\.py|^class \w+\(ObskitGunicornConfig\):",
        _HERE + "test_python",
    ),
    Rule("python", "module", r"\A# [\w/]+\.py\n", _HERE + "test_python"),
    Rule("python", "statements", r"", _HERE + "test_python"),
    Rule("sh", "commands", r"", _LIVE + "test_commands and " + _LIVE + "test_pages"),
    Rule("text", "user of a store", r"\AACL SETUSER ", _LIVE + "test_user_of_a_store"),
    Rule("text", "findings", r"\A(ok|warning|error) +\w+ ", _HERE + "test_findings"),
    Rule("text", "shown", r"", _LIVE + "test_commands and " + _LIVE + "test_pages"),
    Rule("yaml", "scrapes", r"^scrape_configs:", _HERE + "test_prometheus"),
    Rule("yaml", "rules", r"^groups:", _HERE + "test_prometheus"),
    Rule("yaml", "kustomization", r"\A# kustomization\.yaml\n", _HERE + "test_kustomization"),
    Rule("yaml", "values", r"\A# [\w-]+\.yaml\n(?!kind:)", _HERE + "test_values_of_the_chart"),
    Rule(
        "yaml",
        "part of a manifest",
        r"^\s*(env|volumes|volumeMounts|lifecycle|metadata|[\w.-]+\.[a-z]+/[\w.-]+):",
        _HERE + "test_parts_of_manifests",
    ),
    Rule("promql", "queries", r"", _HERE + "test_prometheus"),
    Rule("json", "findings", r'^  "findings"', "tests/unit/docs/test_commands_page.py::test_json"),
    Rule("json", "status", r'^  "workers": \{', _LIVE + "test_commands"),
    Rule("ini", "unit", r"^\[Service\]$", _HERE + "test_unit"),
    Rule("mermaid", "diagrams", r"", "tests/unit/docs/test_site.py::test_strict_build"),
)
"""The first one that fits is a block's."""


def rule_of(block: Block) -> Rule | None:
    """Return how a block is checked."""
    for rule in RULES:
        if rule.language == block.language and re.search(rule.pattern, block.text, re.MULTILINE):
            return rule if rule.kind != "shown" or block.before == "sh" else None
    return None


# ------------------------------------------------------------------------------------------------
# Commands


class Command(NamedTuple):
    """A command of a block of commands.

    A comment is what stands behind two spaces and a hash.

    Attributes:
        text: The command, without a comment.
        kind: What is done with it, a key of :data:`KINDS`; none if nothing fits.
    """

    text: str
    kind: str


NOT_RUN = {
    r"docker (build|run) ": "needs a container engine; the files that it names are looked for",
    r"kubectl get ": "asks a cluster; the shell parses it",
    r"kubectl apply --kustomize ": "changes a cluster; what it applies is rendered",
    r"helm install ": "changes a cluster; the chart is rendered with the values of the page",
    r"pip install ": "asks an index; extras and requirements are looked up, and the tutorial's"
    " test runs pip",
    r"make (run|test|check|docs|bench|soak|pictures|matrix|dist)\b": "runs for minutes, or for"
    " ever; make says what it would run",
    r"prometheus --config\.file=": "runs for ever; promtool checks its configuration, and"
    " the tutorial's test runs one",
}
"""What is not run as it stands: its pattern, and why, and what is done in its place."""

KINDS = {
    **dict.fromkeys(NOT_RUN, "not run"),
    r"(python3? -m venv|\.|mkdir|cd) ": "environment",
    r"(\w+=\S+ )*gunicorn ": "gunicorn",
    r"(obskit-gunicorn serve|valkey-server) ": "starts",
    r"(for \w+ in .*do )?curl ": "asks",
    r"(grep|obskit-gunicorn (check|fleet|inspect|top)) ?": "asks",
    r"watch -n1 '": "watches",
    r"promtool test rules ": "asks",
    r"git grep .*\|\s*xargs ": "rewrites",
    r"password=|kubectl create secret .*": "secret",
}
"""What is done with a command that begins so."""

OF_ONE_TEST = {
    r"examples/\w+/README\.md": "tests/live/test_examples.py",
    r"docs/tutorial\.md": "tests/live/test_tutorial.py::test_tutorial",
}
"""Pages that are one story: their commands, and what they print, are a test's of their own."""


def has_its_own_test(page: str) -> bool:
    """Return whether a page's commands are run by a test of its own, see :data:`OF_ONE_TEST`."""
    return any(re.fullmatch(pattern, page) for pattern in OF_ONE_TEST)


def commands(text: str) -> list[Command]:
    """Return the commands of a block of commands."""
    bare = re.sub(r"(  |^)# .*$", "", text, flags=re.MULTILINE)
    bare = re.sub(r"\\\n|(?<=\|)\n", "", bare)  # a line that goes on in the next one
    found = []
    # A quotation goes over lines, too.
    for line in re.findall(r"(?:\"[^\"]*\"|'[^']*'|[^\n\"'])+", bare):
        for one in line.split(" && "):
            if not one.strip():
                continue
            kind = next((KINDS[start] for start in KINDS if re.match(start, one)), "")
            found.append(Command(one.strip(), kind))
    return found
