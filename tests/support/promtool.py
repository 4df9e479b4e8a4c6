"""promtool, Prometheus' own judge of rules, configurations, expositions and expressions."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import yaml

from tests.support.missing import find_program

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["checks_expressions", "metric_names", "run_promtool", "without_an_answer"]

_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_GROUPINGS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAMES = re.compile(r"(?<![\w:$])[a-zA-Z_:][\w:]*(?![\w:])(?!\s*\()")
_WORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring"}


def run_promtool(*arguments: str | Path, text: str | None = None) -> tuple[int, str]:
    """Run promtool; return its exit status and everything it has said.

    Args:
        arguments: Its command line.
        text: What it reads from its standard input.
    """
    done = subprocess.run(
        [find_program("promtool", "prometheus"), *map(str, arguments)],
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=150,
        check=False,
    )
    return done.returncode, done.stdout


def checks_expressions(expressions: list[str], directory: Path) -> tuple[int, str]:
    """Have promtool parse expressions, each as a recording rule; see :func:`run_promtool`.

    Args:
        expressions: PromQL, without variables.
        directory: Where the rules may be written.
    """
    rules = [{"record": f"x:{i}:x", "expr": one} for i, one in enumerate(expressions)]
    path = directory / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}), encoding="utf-8")
    return run_promtool("check", "rules", path)


def without_an_answer(
    expressions: list[str], series: list[tuple[str, str]], directory: Path
) -> list[str]:
    """Return the expressions to which a Prometheus that has scraped these series says nothing.

    An expression may be right as PromQL and never have an answer, where the labels of what it
    divides do not go together.

    Args:
        expressions: PromQL, without variables.
        series: Each with its labels, and its values at each minute of an hour.
        directory: Where the test may be written.
    """
    found = []
    for expression in expressions:
        test = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series],
            "promql_expr_test": [
                {
                    "expr": f"count({expression}) > bool 0",
                    "eval_time": "30m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        path = directory / "answers.yml"
        path.write_text(yaml.safe_dump({"tests": [test]}), encoding="utf-8")
        if run_promtool("test", "rules", path)[0] != 0:
            found.append(expression)
    return found


def metric_names(expression: str) -> set[str]:
    """Return the names of metrics in a PromQL expression.

    Every word is one that is no label name (in braces or a grouping), function, operator, duration
    or number.
    """
    bare = _STRINGS.sub('""', expression)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    bare = _GROUPINGS.sub(" ", bare)
    return set(_NAMES.findall(bare)) - _WORDS
