"""docs/grafana/gunicorn.json, as far as it can be judged without Grafana."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.support import metrics_page
from tests.support.promtool import checks_expressions, metric_names

BOARD = Path(__file__).parents[3] / "docs" / "grafana" / "gunicorn.json"

CORE_PANELS = {"row", "stat", "timeseries"}
VARIABLES = {"$__rate_interval": "5m", "$job": ".+", "$instance": ".+"}
UNITS = {"bytes", "cpm", "percentunit", "reqps", "s", "short"}


@pytest.fixture(name="board", scope="module")
def _board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(BOARD.read_text(encoding="utf-8"))
    return board


def _panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def _expressions(board: dict[str, Any]) -> list[str]:
    """Return all expressions, with values in place of Grafana's variables."""
    found = [target["expr"] for panel in _panels(board) for target in panel["targets"]]
    found += [one["expr"] for one in board["annotations"]["list"] if "expr" in one]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def test_prometheus_parses_every_expression(board: dict[str, Any], tmp_path: Path) -> None:
    """Every expression is PromQL, with a value for each variable."""
    expressions = _expressions(board)
    assert not [one for one in expressions if re.search(r"\$[A-Za-z_]|\$\{[a-z]", one)]
    status, said = checks_expressions(expressions, tmp_path)
    assert status == 0, said


def test_an_expression_that_is_none_would_be_found(tmp_path: Path) -> None:
    """The judge judges."""
    assert checks_expressions(["up", "sum by (rate(x[5m])"], tmp_path)[0] == 1


def test_expressions_use_metrics_that_are_documented(board: dict[str, Any]) -> None:
    """Every metric of the dashboard stands in docs/metrics.md."""
    known = metrics_page.sample_names()
    for expression in _expressions(board):
        names = metric_names(expression)
        assert names, expression
        assert names <= known, expression
    for variable in board["templating"]["list"][1:]:
        query = variable["query"]["query"]
        assert re.match(r"label_values\((\w+)", query)[1] in known  # type: ignore[index]


def test_every_documented_metric_is_shown_or_about_itself(board: dict[str, Any]) -> None:
    """The dashboard leaves out only what has no curve, or is in another one."""
    shown = set().union(*map(metric_names, _expressions(board)))
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    # Only servers that publish or push have these; docs/fleet.md says what to look at.
    many = ("obskit_gunicorn_fleet_", "obskit_gunicorn_push_")
    documented = {name for name in metrics_page.documented() if not name.startswith(many)}
    # For the dashboards of others; ours has the same of each process, or under the other name.
    documented = {name for name in documented if not name.startswith(("process_", "python_"))}
    assert documented - shown == {
        "gunicorn_gc_objects_collected_total",
        "gunicorn_gc_objects_uncollectable_total",
        "gunicorn_info",
        "gunicorn_listen_backlog_limit",
        "obskit_gunicorn_certificate_expiry_time_seconds",
        "obskit_gunicorn_directory_usable",
        "obskit_gunicorn_files",
        "obskit_gunicorn_info",
        "obskit_gunicorn_series_over_budget",
    }


def test_every_panel_explains_itself(board: dict[str, Any]) -> None:
    """Each has a title of its own, a unit, a description, thresholds, and legends."""
    panels = _panels(board)
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles))
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"] or panel["type"] == "stat", panel["title"]


def test_legends_name_labels_that_are_there(board: dict[str, Any]) -> None:
    """A legend's labels are labels of the metrics, of the target, or made by the expression."""
    for panel in _panels(board):
        for target in panel["targets"]:
            labels = {"instance"}
            for name in metric_names(target["expr"].replace("$__rate_interval", "5m")):
                base = re.sub("_(bucket|sum|count)$", "", name)
                documented = metrics_page.documented()
                labels |= set(documented.get(name, documented.get(base, ("", ())))[1])
            labels |= set(re.findall(r'label_replace\(.*?, "(\w+)", "\$\{1\}', target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_panels_have_ids_and_places_of_their_own(board: dict[str, Any]) -> None:
    """No id stands twice, no panel covers another one, none goes beyond the page."""
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert place["h"] > 0
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


def test_rows_are_what_one_looks_for(board: dict[str, Any]) -> None:
    """The rows go from what users notice down to the metrics themselves."""
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == [
        "At a glance",
        "Traffic",
        "Latency",
        "Saturation",
        "Workers",
        "Processes",
        "Routes and websockets",
        "Metrics about metrics",
    ]


def test_importable_anywhere(board: dict[str, Any]) -> None:
    """No plugin, no data source of ours, chosen by job and instance everywhere."""
    assert {panel["type"] for panel in board["panels"]} == CORE_PANELS
    assert board["schemaVersion"] >= 39
    assert board.get("id") is None
    datasource, job, instance = board["templating"]["list"]
    assert (datasource["name"], datasource["type"]) == ("datasource", "datasource")
    assert (job["name"], instance["name"]) == ("job", "instance")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in _panels(board):
        assert panel["datasource"] == chosen
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            for selector in re.findall(r"\b(?:obskit_)?gunicorn_\w+\{([^}]*)\}", target["expr"]):
                assert 'job=~"$job", instance=~"$instance"' in selector
            selected = re.findall(r"\b(?:obskit_)?gunicorn_\w+(?!\w)(?!\{)", target["expr"])
            assert not selected, panel["title"]
    text = BOARD.read_text(encoding="utf-8")
    assert not re.search(r"\bpid\b|timestamp", text)
