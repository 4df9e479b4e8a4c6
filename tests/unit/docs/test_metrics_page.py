"""docs/metrics.md: what it says of each metric, before a live exposition is held against it."""

from __future__ import annotations

import re

import pytest

from tests.support import metrics_page
from tests.support.promtool import run_promtool


def test_names_of_the_page_pass_prometheus_lint() -> None:
    """An exposition of all documented metrics has nothing that ``promtool check metrics`` minds."""
    assert run_promtool("check", "metrics", text=metrics_page.exposition()) == (0, "")


def test_lint_would_find_a_bad_name() -> None:
    """The judge judges: a counter without ``_total`` is found."""
    text = metrics_page.exposition().replace("gunicorn_reloads_total", "gunicorn_reloads")
    assert run_promtool("check", "metrics", text=text)[0] == 3


def test_each_metric_stands_once_with_a_type_and_a_meaning() -> None:
    """No name stands twice; each has a known type, a meaning, a writer, and when it is absent."""
    rows = metrics_page.rows()
    names = [row.name for row in rows]
    assert len(names) == len(set(names)) == len(metrics_page.documented())
    assert len(names) >= 35
    for row in rows:
        assert row.type in {"counter", "gauge", "histogram"}, row.name
        assert (row.type == "counter") == row.name.endswith("_total"), row.name
        assert row.meaning.endswith("."), row.name
        assert row.writer, row.name
        assert row.absent, row.name
        assert re.match("(obskit_)?gunicorn_|process_|python_", row.name), row.name


def test_no_label_grows_without_bounds() -> None:
    """No metric has a label for pids, times or paths."""
    labels = {label for _, labels in metrics_page.documented().values() for label in labels}
    assert not labels & {"pid", "path", "time", "timestamp", "worker_id", "age", "url"}


def test_documented_returns_type_and_labels() -> None:
    """What a live test compares with is parsed as it stands in the page."""
    documented = metrics_page.documented()
    assert documented["gunicorn_requests_total"] == ("counter", ("method", "code"))
    assert documented["gunicorn_request_duration_seconds"] == ("histogram", ("method",))
    assert documented["gunicorn_capacity"] == ("gauge", ())


def test_each_reason_of_an_exit_is_explained() -> None:
    """The page says of each reason what it means."""
    text = metrics_page.PAGE.read_text(encoding="utf-8")
    section = text.partition("### Why a worker ended")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \| \S", section, flags=re.MULTILINE)) == {
        *("max_requests", "timeout", "graceful", "interrupted", "error", "killed", "boot_error")
    }


@pytest.mark.parametrize(
    "row",
    [
        "| gunicorn_x | gauge | | X. | w | never |",
        "| `gunicorn_x` | gauge | a, b | X. | w | never |",
        "| `gunicorn_x` | gauge | | X. |",
    ],
)
def test_a_row_that_is_not_as_the_others_is_refused(row: str) -> None:
    """A metric is never left out because its row was written differently."""
    header = "| metric | type | labels | meaning | who writes it | absent |\n"
    with pytest.raises(ValueError, match="gunicorn_x"):
        metrics_page.rows(f"{header}| --- | --- | --- | --- | --- | --- |\n{row}\n")
