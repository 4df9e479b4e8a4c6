"""What ``obskit-gunicorn inspect`` prints: plain lines, or tables on a terminal.

Names come from files that anybody may have written, and are printed without what a terminal would
obey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from obskit_gunicorn._doctor.directory import describe_holder, describe_metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obskit_gunicorn._doctor.directory import DirectoryReport


def printable(text: object) -> str:
    """Return a text without control characters, which a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in str(text))


def lines(report: DirectoryReport, *, only_series: bool = False) -> Iterator[str]:
    """Yield the report as plain text.

    Args:
        report: What is in the directory.
        only_series: Only the metrics with most series.
    """
    if not only_series:
        yield f"directory  {printable(report.path)}"
        yield f"protocol   {_protocol(report)}"
        yield f"slots      {len(report.records)}, {len(report.held())} leased"
        for slot, record in _slots(report):
            yield f"  {slot:<10} {printable(describe_holder(record))}"
        yield f"files      {len(report.files)}, {sum(file.bytes for file in report.files)} bytes"
        for file in report.files:
            damage = f"  damaged: {printable(file.damage)}" if file.damage else ""
            size = f"{file.entries:>8} entries {file.bytes:>10} bytes"
            yield f"  {printable(file.name):<32} {size}{damage}"
    yield "metrics    the largest, over all files"
    for metric in report.metrics:
        yield f"  {printable(describe_metric(metric))}"


def print_tables(report: DirectoryReport, *, only_series: bool = False) -> bool:
    """Print the report as tables in colour; return ``False`` where the extra ``cli`` is missing.

    Args:
        report: What is in the directory.
        only_series: Only the metrics with most series.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(highlight=False)

    def table(title: str, *columns: str, numbers: tuple[int, ...] = ()) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for at, column in enumerate(columns):
            made.add_column(column, justify="right" if at in numbers else "left", overflow="fold")
        return made

    if not only_series:
        console.print(Text(f"{printable(report.path)}, protocol {_protocol(report)}", "bold"))
        made = table(f"Slots: {len(report.held())} leased", "slot", "role", "pid", "state")
        for slot, record in _slots(report):
            if record is None:
                made.add_row(slot, Text("free", "dim"))
                continue
            state = " ".join(str(record[n]) for n in ("state", "reason") if record.get(n))
            style = {"booted": "green", "booting": "yellow"}.get(state, "")
            missing = record.get("values_not_shared")
            text = Text(printable(state), style)
            if missing:
                text.append(f" {printable(missing)} values not shared", "bold red")
            cells = (Text(printable(record.get(name, "?"))) for name in ("role", "pid"))
            made.add_row(slot, *cells, text)
        console.print(made)
        made = table("Files", "file", "entries", "bytes", "damage", numbers=(1, 2))
        for file in report.files:
            damage = Text(printable(file.damage or ""), "bold red")
            made.add_row(Text(printable(file.name)), f"{file.entries:,}", f"{file.bytes:,}", damage)
        console.print(made)
    made = table(
        "Metrics with most series", "metric", "series", "widest label", "values", numbers=(1, 3)
    )
    for metric in report.metrics:
        values = f"{metric.label_values:,}" if metric.label else ""
        made.add_row(
            Text(printable(metric.name)),
            f"{metric.series:,}",
            Text(printable(metric.label), "cyan"),
            values,
        )
    console.print(made)
    return True


def _protocol(report: DirectoryReport) -> str:
    nobody = "" if "started" in report.generation else ": no arbiter has been here"
    return f"{printable(report.generation.get('protocol', 'none'))}{nobody}"


def _slots(report: DirectoryReport) -> list[tuple[str, dict[str, object] | None]]:
    return sorted(report.records.items(), key=lambda item: (len(item[0]), item[0]))
