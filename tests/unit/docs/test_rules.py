"""docs/prometheus: rules that are right, tested, and about metrics that there are."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import metrics_page
from tests.support.promtool import metric_names, run_promtool

DIRECTORY = Path(__file__).parents[3] / "docs" / "prometheus"
RULES = DIRECTORY / "rules.yml"
TESTS = DIRECTORY / "rules_test.yml"

# What Prometheus itself knows of a target and of alerts.
PROMETHEUS_OWN = {"up", "ALERTS"}

SILENT = ("healthy", "idle", "restarted", "rollout")
"""Tests of servers at which nothing is wrong."""

MUTATIONS = {
    "errors never fire": ("ratio_rate5m > 0.05", "ratio_rate5m > 0.5", "error_ratio_high"),
    "errors fire early": ("ratio_rate5m > 0.05", "ratio_rate5m > 0.001", "error_ratio_high"),
    "one error fires": ("errors:rate5m > 0.01", "errors:rate5m >= 0", "error_ratio_high_few"),
    "all codes are errors": ('{code_class="5xx"}', "", "recorded_requests"),
    "an idle server divides by zero": ("(instance:gunicorn_requests:rate5m > 0)", "0", "idle"),
    "an idle server has NaN": ("bucket:rate5m) >= 0", "bucket:rate5m)", "idle"),
    "latency never fires": ("p95_rate5m > 1\n", "p95_rate5m > 3\n", "latency_high"),
    "another quantile": ("quantile(0.99, job", "quantile(0.9, job", "recorded_requests"),
    "saturation never fires": ("ratio[5m]) > 0.9", "ratio[5m]) > 1", "saturated"),
    "silence is idleness": ("(gunicorn_connections or ", "(", "silent_connections"),
    "requests do not count": (" or gunicorn_requests_in_progress", "", "silent_connections"),
    "slow clients are idleness": (
        "rate(gunicorn_worker_busy_seconds_total[5m])\n            or ",
        "",
        "recorded_rest",
    ),
    "who does not tell is idle": (
        "or sum without (method) (rate(gunicorn_request_duration_seconds_sum[5m]))\n",
        "",
        "recorded_rest",
    ),
    "the arbiter is a worker": ('seconds_total{role="worker"}', "seconds_total", "recorded_rest"),
    "a short queue fires": ("min_over_time(gunicorn_l", "max_over_time(gunicorn_l", "healthy"),
    "the queue never fills": ("log:ratio > 0.5", "log:ratio > 0.9", "listen_backlog_filling"),
    "first events of new servers are missed": ("> time() - 600", "> time()", "recorded_exits"),
    "old events count": ("> time() - 600", "> -99999", "recorded_exits"),
    "a restart hides events": (
        "or increase(gunicorn_worker_exits_total[10m])",
        "",
        "recorded_exits",
    ),
    "four events are five": (
        "resets(gunicorn_worker_exits_total[10m]) == 0",
        "resets(gunicorn_worker_exits_total[10m]) == 1",
        "crash_loop_of_four",
    ),
    "a moment of errors fires": (
        "[2m]))\n            / sum by (namespace, job) (rate(gunicorn_requests_total[2m])) > 0.05",
        "[2m])) >= 0",
        "error_ratio_high_for_a_moment",
    ),
    "another reason": ('{reason="timeout"} > 0', '{reason="killed"} > 0', "worker_timeouts"),
    "recycling is a crash": ('{reason=~"error|boot_error|killed|timeout"}', "", "crash_loop"),
    "a crash loop is none": (") > 4", ") > 40", "crash_loop"),
    "one restart is a loop": ("[30m]) > 2", "[30m]) > 0", "restarted"),
    "none ready is well": ("workers_ready == 0", "workers_ready < 0", "no_ready_workers"),
    "a reload lacks workers": ("ready < gunicorn_w", "ready != gunicorn_w", "workers_missing"),
    "foreign targets are down": ("last_over_time(obskit_gunicorn_info[1h])", "up", "exporter_down"),
    "resolves by being old": ("or ALERTS{", "unless ALERTS{", "exporter_down"),
    "values may be missing": ("not_shared > 0", "not_shared > 12", "values_not_shared"),
    "the volume may fill": ("ratio < 0.15", "ratio < 0.05", "metrics_volume_nearly_full"),
    "one failure fires": (
        "total[5m])) > 0\n        for: 10m",
        "total[5m])) > 0",
        "collector_fails",
    ),
    "a certificate may expire": ("14 * 86400", "1 * 86400", "certificate_expires"),
    "a reload is a restart": (
        'starts:increase10m{reason=~"ended|killed"}',
        "starts:increase10m",
        "exporter_restarts",
    ),
    "the store may be down": ("store_up == 0", "store_up < 0", "fleet_store_down"),
    "a moment without a store fires": (
        "store_up == 0\n        for: 5m",
        "store_up == 0",
        "fleet_store_down",
    ),
    "an own page is a host": ('seconds{host!=""} > 300', "seconds > 300", "fleet_host_silent"),
    "hosts may be silent": ('{host!=""} > 300', '{host!=""} > 9000', "fleet_host_silent"),
    "a short silence fires": ('{host!=""} > 300', '{host!=""} > 3', "fleet_host_silent"),
    "pushes may fail": ("push_up == 0", "push_up < 0", "push_fails"),
    "series may be left out": ("held_back > 0", "held_back > 3", "push_leaves_series_out"),
    "another summary": ("no worker is ready", "no worker was ready", "no_ready_workers"),
    "another severity": ("severity: critical", "severity: page", "no_ready_workers"),
}
"""By what is wrong then: a text of the rules, what is put in its place, and the test that minds."""


@functools.cache
def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in _rules() if "alert" in rule}


def _recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def _tests() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]
    return found


def _minutes(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?", text)
    assert found is not None
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def _raw_names(expression: str) -> set[str]:
    """Return the metrics that an expression is made of in the end, through recording rules."""
    names = set()
    recorded = _recorded()
    for name in metric_names(expression):
        names |= _raw_names(recorded[name]) if name in recorded else {name}
    return names


def test_prometheus_accepts_rules_and_configuration() -> None:
    """``promtool check`` has nothing to say against either file."""
    for check, path in (("rules", RULES), ("config", DIRECTORY / "prometheus.yml")):
        status, said = run_promtool("check", check, path)
        assert status == 0, said
        assert "SUCCESS" in said


def test_rules_do_what_their_tests_say() -> None:
    """Every alert fires on its fault and resolves, and every recording rule has its value."""
    status, said = run_promtool("test", "rules", TESTS)
    assert status == 0, said


@pytest.mark.parametrize(
    "what",  # each takes a promtool a second, and changes with the rules alone
    [
        pytest.param(what, marks=[pytest.mark.load] * (number % 5 > 0))
        for number, what in enumerate(MUTATIONS)
    ],
)
def test_tests_notice_a_broken_rule(what: str, tmp_path: Path) -> None:
    """A rule that somebody breaks fails the tests of the rules."""
    before, after, name = MUTATIONS[what]
    rules = RULES.read_text(encoding="utf-8")
    assert before in rules
    (tmp_path / RULES.name).write_text(rules.replace(before, after), encoding="utf-8")
    status, said = _run_test(name, tmp_path)
    assert status == 1, f"{what}: {said}"
    assert "FAILED" in said, said


@pytest.mark.load  # in one run with all others they pass in test_rules_do_what_their_tests_say
@pytest.mark.parametrize("name", sorted({name for _, _, name in MUTATIONS.values()}))
def test_that_test_passes_by_itself(name: str, tmp_path: Path) -> None:
    """What notices broken rules has nothing against the rules as they are."""
    shutil.copy(RULES, tmp_path)
    status, said = _run_test(name, tmp_path)
    assert status == 0, said


def _run_test(name: str, directory: Path) -> tuple[int, str]:
    """Run one of the tests of the rules, with the rules that are in a directory."""
    tests = yaml.safe_load(TESTS.read_text(encoding="utf-8"))
    tests["tests"] = [test for test in tests["tests"] if test["name"] == name]
    assert len(tests["tests"]) == 1
    path = directory / TESTS.name
    path.write_text(yaml.safe_dump(tests), encoding="utf-8")
    return run_promtool("test", "rules", path)


def test_each_alert_fires_resolves_and_is_silent_before() -> None:
    """Each alert has a test in which it does not fire, then fires, then does not fire any more."""
    complete = set()
    for test in _tests():
        checks: dict[str, list[tuple[int, bool]]] = {}
        for check in test.get("alert_rule_test", []):
            fires = bool(check["exp_alerts"])
            checks.setdefault(check["alertname"], []).append((_minutes(check["eval_time"]), fires))
        for name, found in checks.items():
            states = [fires for _, fires in sorted(found)]
            if True in states and not states[0] and not states[-1]:
                complete.add(name)
    assert complete == set(_alerts())


@pytest.mark.parametrize("name", SILENT)
def test_silent_servers_have_every_metric_that_alerts_look_at(name: str) -> None:
    """On servers that are well, nothing fires though each alert has its metrics to look at."""
    (test,) = [test for test in _tests() if test["name"] == name]
    silence = [
        check
        for check in test["promql_expr_test"]
        if re.fullmatch(r"last_over_time\(ALERTS(\{alertstate=.firing.\})?\[2h\]\)", check["expr"])
    ]
    assert silence
    assert all(check["exp_samples"] == [] for check in silence)
    assert _minutes(silence[0]["eval_time"]) >= 50

    there = {re.match(r"[\w:]+", one["series"])[0] for one in test["input_series"]}  # type: ignore[index]
    wanted = set().union(*(_raw_names(alert["expr"]) for alert in _alerts().values()))
    assert wanted - {"ALERTS"} <= there


def test_each_recorded_value_is_checked() -> None:
    """Each recording rule stands in a test that expects a value of it."""
    checked = set()
    for test in _tests():
        if test["name"].startswith("recorded_"):
            for check in test["promql_expr_test"]:
                assert check["exp_samples"]
                checked |= metric_names(check["expr"])
    assert checked == set(_recorded())


def test_rules_use_metrics_that_are_documented() -> None:
    """Every metric in a rule stands in docs/metrics.md, or is recorded by another rule."""
    known = metrics_page.sample_names() | set(_recorded()) | PROMETHEUS_OWN
    for rule in _rules():
        names = metric_names(rule["expr"])
        assert names, rule
        assert names <= known, rule


def test_annotations_name_metrics_that_are_there() -> None:
    """What an alert says to look at can be looked at: documented, or recorded."""
    histograms = {
        name for name, (kind, _) in metrics_page.documented().items() if kind == "histogram"
    }
    known = metrics_page.sample_names() | histograms | set(_recorded())
    for alert in _alerts().values():
        words = set(
            re.findall(r"[\w:]*gunicorn_\w[\w:]*\b", " ".join(alert["annotations"].values()))
        )
        # Names of packages and the like are no metrics.
        assert words - {"obskit_gunicorn"} <= known, alert["alert"]


def test_alerts_say_what_somebody_woken_needs() -> None:
    """Each alert waits, has a severity, a summary in one line, and says what to look at."""
    for name, alert in _alerts().items():
        assert name.startswith("Gunicorn")
        assert _minutes(alert["for"]) >= 1
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert set(alert["annotations"]) == {"summary", "description"}
        assert len(alert["annotations"]["summary"]) < 120, name
        assert re.search(
            r"\b[Ll]ook (at|for)\b|names the files|traceback is in",
            alert["annotations"]["description"],
        ), name


def test_page_lists_the_alerts() -> None:
    """docs/metrics.md names each alert, with its severity, and no other."""
    text = metrics_page.PAGE.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(Gunicorn\w+)` \| (\w+) \|", text, flags=re.MULTILINE))
    assert listed == {name: alert["labels"]["severity"] for name, alert in _alerts().items()}


def test_recording_rules_are_named_as_prometheus_asks() -> None:
    """``level:metric:operations``, the level being what is left of the labels."""
    for name in _recorded():
        level, metric, operations = name.split(":")
        assert re.fullmatch(r"(instance|job)(_(code_class|le|address|reason|hook))?", level)
        assert metric.startswith(("gunicorn_", "obskit_gunicorn_"))
        assert operations


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("rate(a_total[5m])", {"a_total"}),
        ('sum by (x, y) (a{b="c", d=~"e|f"}) / (g > 0)', {"a", "g"}),
        ("a and on (job) (b offset 10m == 1 or c > time() - 600)", {"a", "b", "c"}),
        ("i:a:rate5m >= bool 0 unless x", {"i:a:rate5m", "x"}),
        ('label_replace(a, "b", "${1}xx", "c", "(.).*")', {"a"}),
        ("sum without (x) (a) or 0 * 1e3 * b", {"a", "b"}),
    ],
)
def test_names_in_expressions(expression: str, names: set[str]) -> None:
    """Metrics are told from labels, functions, operators and durations."""
    assert metric_names(expression) == names
