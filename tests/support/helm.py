"""Helm's own engine, as the package helm-python-sdk has it: charts rendered without a cluster.

It brings the run time of Go with its threads into the process that loads it, so each call has a
process of its own, which is this file run as a program.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.missing import missing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["lint_chart", "render_chart"]


def render_chart(chart: Path, values: dict[str, Any], release: str) -> list[dict[str, Any]]:
    """Return the manifests of a chart.

    Args:
        chart: Its directory.
        values: What is given in place of its own.
        release: The release's name.

    Raises:
        ValueError: Helm refuses the values or a template; with what it says.
    """
    files: dict[str, str] = _ask("render", str(chart), values, release)
    return [
        manifest
        for _, text in sorted(files.items())
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def lint_chart(chart: Path) -> list[str]:
    """Return what Helm's linter says of a chart, as warnings and errors."""
    report: dict[str, Any] = _ask("lint", str(chart), {}, "")
    found: list[str] = report["errors"]
    return found + [one["error"] for one in report["messages"] if one["severity"] > 1]


def _ask(*arguments: object) -> Any:
    if importlib.util.find_spec("helm_python") is None:
        missing("Helm is missing: there is no helm-python-sdk for this machine")
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return json.loads(done.stdout)


def _main() -> None:
    import helm_python

    action, chart, values, release = json.load(sys.stdin)
    try:
        if action == "lint":
            found = helm_python.lint(chart, values, strict=True)
        else:
            with helm_python.Chart.load(chart) as loaded:
                loaded.validate_schema(values)
                found = loaded.render(values, name=release, namespace="default", is_install=True)
    except helm_python.HelmError as error:
        sys.exit(str(error))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()
