"""Write k8s/rules/prometheusrule.yaml from docs/prometheus/rules.yml.

``python docs/generate_rules.py`` writes it; with ``--check`` it changes nothing and exits 1 if the
file is out of date. The rules stay as they are written, with their comments: they are indented and
put below ``spec``.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "docs" / "prometheus" / "rules.yml"
MANIFEST = ROOT / "k8s" / "rules" / "prometheusrule.yaml"

HEAD = """\
# docs/prometheus/rules.yml for the Prometheus Operator; written by docs/generate_rules.py.
# Once for each Prometheus, not for each application: the rules are about all Gunicorn servers.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gunicorn
  labels:
    app.kubernetes.io/name: obskit-gunicorn
    # The name of the Helm release of kube-prometheus-stack, which looks for this label.
    release: kube-prometheus-stack
spec:
"""


def manifest(rules: str) -> str:
    """Return the manifest in YAML.

    Args:
        rules: A file of rules of Prometheus, with a comment at its top.
    """
    _, found, groups = rules.partition("\ngroups:\n")
    if not found:
        raise ValueError("there is no line `groups:`")
    return HEAD + textwrap.indent("groups:\n" + groups, "  ")


def main(arguments: list[str]) -> int:
    """Write the manifest, or check it; return the exit status."""
    wanted = manifest(RULES.read_text(encoding="utf-8"))
    if arguments == ["--check"]:
        is_current = MANIFEST.read_text(encoding="utf-8") == wanted
        if not is_current:
            print(
                f"{MANIFEST.name} is out of date; run: python {Path(__file__).name}",
                file=sys.stderr,
            )
        return int(not is_current)
    MANIFEST.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
