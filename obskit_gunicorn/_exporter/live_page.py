"""The exporter's page as HTML: every figure of a status in a table, whole without JavaScript.

``static/page.js`` keeps the same tables current, and adds rates and curves. What the two share are
the ids of tables, and the paths into the status that cells have as ``data-figure``. Everything that
comes from an application or a path is escaped here.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from obskit_gunicorn._exporter.status import Status

MOST_WORKERS = 500
"""How many rows the table of workers has at most."""

_NOTHING = "-"


class _Row(NamedTuple):
    """A row of a table of single figures."""

    name: str
    figure: str
    """The path into the status."""

    form: str = "number"


_LATENCY = (
    _Row("Median (p50)", "requests.duration.p50", "duration"),
    _Row("95th percentile", "requests.duration.p95", "duration"),
    _Row("99th percentile", "requests.duration.p99", "duration"),
)
_LOAD = (
    _Row("Requests in progress", "requests.in_progress"),
    _Row("Connections", "requests.connections"),
    _Row("Capacity", "requests.capacity"),
    _Row("Workers wanted", "workers.wanted"),
    _Row("Workers ready", "workers.ready"),
    _Row("Workers booted", "workers.boots"),
    _Row("Reloads", "workers.reloads"),
)
_DIRECTORY = (
    _Row("Path", "directory.path", "text"),
    _Row("Usable", "directory.usable", "truth"),
    _Row("Counting since", "directory.generation_start", "time"),
    _Row("Series", "directory.series"),
    _Row("Slots", "directory.slots"),
    _Row("Slots leased", "directory.slots_leased"),
    _Row("Files", "directory.files"),
    _Row("Size of the files", "directory.file_bytes", "bytes"),
    _Row("Left on the volume", "directory.available_bytes", "bytes"),
    _Row("Values not shared", "directory.values_not_shared"),
)
_FLEET = (
    _Row("Fleet", "fleet.name", "text"),
    _Row("This host", "fleet.host", "text"),
    _Row("Store usable", "fleet.store_up", "truth"),
    _Row("Last published, seconds ago", "fleet.published_seconds_ago"),
    _Row("Conflicts", "fleet.conflicts"),
)
_PUSH = (
    _Row("Last push accepted", "push.up", "truth"),
    _Row("Series held back", "push.series_held_back"),
)

_WORKERS = (
    ("slot", "Slot", "text"),
    ("pid", "PID", "id"),
    ("state", "State", "text"),
    ("age_seconds", "Age", "age"),
    ("requests", "Requests", "number"),
    ("requests_rate", "Requests/s", "rate"),
    ("cpu_seconds", "CPU time", "age"),
    ("cpu_rate", "CPU %", "percent"),
    ("memory_bytes", "Memory", "bytes"),
)


def render(status: Status, links: Iterable[str]) -> str:
    """Return the page.

    Args:
        status: The figures.
        links: The paths to link to.
    """
    items = "".join(f'<li><a href="{escape(quote(p))}">{escape(p)}</a></li>' for p in links)
    requests, workers = status["requests"], status["workers"]
    parts = [
        '<section id="now" aria-labelledby="now-title" hidden><h2 id="now-title">Now</h2>'
        '<ul id="cards"></ul></section>',
        _workers_section(workers["list"]),
        '<div class="columns">',
        _listed("classes", "Requests by class of status", ("Class", "Total"), requests["total"]),
        _figures("latency", "Latency since counting began", _LATENCY, status),
        _figures("load", "Load", _LOAD, status),
        _table(
            "listeners",
            "Open connections by listener",
            ("Address", "Accepted", "Waiting", "Limit"),
            [
                (each["address"], *map(shown, (each["accepted"], each["waiting"], each["limit"])))
                for each in status["listeners"]
            ],
        ),
        _listed("exits", "Ended workers by reason", ("Reason", "Total"), workers["exits"]),
        _figures("directory", "Directory", _DIRECTORY, status),
        _figures("fleet", "Fleet", _FLEET, status) if status["fleet"] else "",
        _figures("push", "Push", _PUSH, status) if status["push"] else "",
        "</div>",
        _table(
            "metrics",
            "Metrics with most series",
            ("Metric", "Series", "Label with most values", "Values"),
            [
                (
                    each["name"],
                    shown(each["series"]),
                    each["label"] or _NOTHING,
                    shown(each["label_values"]),
                )
                for each in status["metrics"]
            ],
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Gunicorn</title>'
        '<link rel="stylesheet" href="-/page.css"><script src="-/page.js" defer></script></head>'
        f'<body><header><h1>Gunicorn</h1><p id="about">{escape(_about(status))}</p>'
        '<p id="state" role="status"></p>'
        '<button type="button" id="pause" hidden>Pause</button></header>'
        f'<nav aria-label="Pages of the exporter"><ul>{items}</ul></nav>'
        "<noscript><p>Without JavaScript these figures are as of the moment of loading: load the "
        "page again to see later ones.</p></noscript>"
        f"<main>{''.join(parts)}</main>"
        f"<footer><p>obskit_gunicorn {escape(__version__)}</p></footer></body></html>\n"
    )


def shown(value: Any, form: str = "number") -> str:
    """Return a figure as people read it; ``page.js`` writes the same.

    Args:
        value: The figure; ``None`` if it is not known.
        form: What it is.
    """
    if value is None:
        return _NOTHING
    if form == "truth":
        return "yes" if value else "no"
    if form in ("text", "id"):
        return str(value)
    if form == "bytes":
        return _bytes(value)
    if form == "duration":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    if form == "age":
        return _age(value)
    if form == "time":
        import time

        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))
    text = f"{value:,.1f}"
    return text if form in ("rate", "percent") else text.removesuffix(".0")


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02} h"


def _about(status: Status) -> str:
    return "; ".join(
        f"Gunicorn {server.get('version', '')}, Python {server.get('python', '')}, "
        f"{server.get('worker_class', '')} workers"
        for server in status["servers"]
    )


def _figure(status: Status, path: str) -> Any:
    value: Any = status
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _section(name: str, title: str, body: str) -> str:
    return (
        f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f'<div class="scroll" tabindex="0" role="group" aria-labelledby="{name}-title">'
        f"{body}</div></section>"
    )


def _figures(name: str, title: str, rows: Iterable[_Row], status: Status) -> str:
    lines = "".join(
        f'<tr><th scope="row">{row.name}</th><td data-figure="{row.figure}" data-form="{row.form}">'
        f"{escape(shown(_figure(status, row.figure), row.form))}</td></tr>"
        for row in rows
    )
    return _section(name, title, f'<table id="{name}"><tbody>{lines}</tbody></table>')


def _listed(name: str, title: str, head: Sequence[str], totals: dict[str, float | None]) -> str:
    return _table(name, title, head, [(key, shown(value)) for key, value in totals.items()])


def _table(name: str, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return _section(
        name,
        title,
        f'<table id="{name}"><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>',
    )


def _workers_section(workers: Sequence[Status]) -> str:
    columns = "".join(
        f'<th scope="col" data-key="{key}" data-form="{form}">{title}</th>'
        for key, title, form in _WORKERS
    )
    lines = []
    for worker in workers[:MOST_WORKERS]:
        state = " ".join(filter(None, (worker["state"], worker["reason"])))
        first, *rest = (
            escape(shown(state if key == "state" else worker.get(key), form))
            for key, _title, form in _WORKERS
        )
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    text = f"{len(lines)} of {len(workers)} workers" if len(workers) > len(lines) else ""
    return _section(
        "workers",
        "Workers",
        f'<table id="workers" data-most="{MOST_WORKERS}"><thead><tr>{columns}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table><p id="workers-note">'
        f"{text or ('' if workers else 'No worker holds a slot.')}</p>",
    )
