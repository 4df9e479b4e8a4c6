"""Draw the dashboard of docs/grafana from what a Prometheus answers to the queries of its panels.

It is no picture of Grafana, which is not needed for this: places, titles, units, thresholds and
queries are those of the JSON, the drawing is matplotlib's. ``take_pictures.py`` calls it.
"""

from __future__ import annotations

import io
import json
import math
import re
import urllib.parse
import urllib.request
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

COLUMNS = 24
WIDTH_INCHES = 16.0
ROW_INCHES = 0.31
MARGIN = 0.05
"""Between panels, in inches."""
DPI = 90
STEP_SECONDS = 1
MOST_NAMES = 8
"""In a legend."""
COLOURS = 200

PAGE, PANEL, FRAME, TEXT, FAINT = "#111217", "#181b1f", "#2c3035", "#d8d9da", "#8e9297"
GRID = "#2a2e33"
PALETTE = (
    "#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d",
    "#ffee52", "#ffb357", "#ff7383", "#ca95e5",
)  # fmt: skip
NAMED = {
    "green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2",
    "transparent": "#d8d9da",
}  # fmt: skip

Series = list[tuple[str, list[float], list[float]]]


class Source:
    """A Prometheus, and the span of time that is drawn."""

    def __init__(self, address: str, start: float, end: float, variables: dict[str, str]) -> None:
        """Say what is drawn.

        Args:
            address: Its host and port.
            start: The first moment, in Unix time.
            end: The last one.
            variables: A value for each variable of the dashboard, by its name with the dollar.
        """
        self.start, self.end = start, end
        self._address, self._variables = address, variables

    def series(self, target: dict[str, Any]) -> Series:
        """Return a name, times and values of each series that a target finds."""
        query = target["expr"]
        for name, value in self._variables.items():
            query = query.replace(name, value)
        asked = {"query": query, "start": self.start, "end": self.end, "step": STEP_SECONDS}
        url = f"http://{self._address}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        legend = target.get("legendFormat", "")
        return [
            (
                re.sub(
                    r"\{\{(\w+)\}\}",
                    lambda label, labels=each["metric"]: labels.get(label[1], ""),
                    legend,
                ),
                [float(at) for at, _ in each["values"]],
                [float(value) for _, value in each["values"]],
            )
            for each in found
        ]


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    size, unit = (
        next(((size, unit) for size, unit in steps if abs(value) >= size), steps[-1])
        if value
        else steps[-1]
    )
    number = f"{value / size:.3g}" if abs(value / size) < 1000 else f"{value / size:.0f}"
    return f"{number}{unit}"


def _formats() -> dict[str, Callable[[float], str]]:
    """Return how Grafana writes numbers of each unit, nearly."""
    sizes = [(float(1 << 30), " GiB"), (float(1 << 20), " MiB"), (1024.0, " KiB"), (1.0, " B")]
    times = [(86400.0, " d"), (60.0, " min"), (1.0, " s"), (0.001, " ms"), (0.000001, " µs")]
    return {
        "bytes": lambda value: _scaled(value, sizes),
        "cpm": lambda value: f"{value:.3g} /min",
        "percentunit": lambda value: f"{100 * value:.3g} %",
        "reqps": lambda value: f"{value:.3g} req/s",
        "s": lambda value: _scaled(value, times) if value else "0 s",
        "short": lambda value: f"{value:.3g}",
    }


FORMATS = _formats()


def _colour_of(value: float, steps: list[dict[str, Any]]) -> str:
    """Return the colour of the highest threshold that a value has reached."""
    reached = [each for each in steps if each["value"] is None or value >= each["value"]]
    return NAMED[reached[-1]["color"]]


def _stat(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw a panel that is one number, before the line of its past."""
    defaults = panel["fieldConfig"]["defaults"]
    found = [each for target in panel["targets"] for each in source.series(target)]
    text, colour = defaults.get("noValue", "No data"), FAINT
    if found:
        _, times, values = found[0]
        text = FORMATS[defaults["unit"]](values[-1])
        colour = _colour_of(values[-1], defaults["thresholds"]["steps"])
        line = axes.inset_axes((0.0, 0.0, 1.0, 0.34))
        line.set_axis_off()
        line.fill_between(times, values, color=colour, alpha=0.25, linewidth=0)
        line.plot(times, values, color=colour, linewidth=1)
        line.set_xlim(source.start, source.end)
        line.set_ylim(0, max(values) * 1.2 or 1)
    size = 22 if len(text) < 9 else 16
    axes.text(0.5, 0.56, text, color=colour, size=size, weight="bold", ha="center", va="center")


def _with_gaps(times: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Return a curve that is interrupted where there were no samples."""
    with_gaps: list[tuple[float, float]] = []
    for at, value in zip(times, values, strict=True):
        if with_gaps and at - with_gaps[-1][0] > 1.5 * STEP_SECONDS:
            with_gaps.append((at - STEP_SECONDS, math.nan))
        with_gaps.append((at, value))
    return [at for at, _ in with_gaps], [value for _, value in with_gaps]


def _graph(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw a panel of curves, above a legend of as many lines as it needs."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    found = [each for target in panel["targets"] for each in source.series(target)]
    found.sort(key=lambda each: each[0])
    names = [name if len(name) < 34 else f"{name[:32]}…" for name, *_ in found[:MOST_NAMES]]
    columns = 4 if max(map(len, names), default=0) < 14 else 2
    lines = -(-len(names) // columns)
    below_plot = 0.15 + 0.058 * lines
    plot = axes.inset_axes((0.125, below_plot, 0.86, 0.87 - below_plot))
    plot.set_facecolor(PANEL)
    is_stacked = custom["stacking"]["mode"] == "normal"
    below: dict[float, float] = {}
    for number, (name, times, values) in enumerate(found):
        colour = PALETTE[number % len(PALETTE)]
        times, values = _with_gaps(times, values)  # noqa: PLW2901
        bottom = [below.get(at, 0.0) for at in times] if is_stacked else [0.0] * len(times)
        top = [value + under for value, under in zip(values, bottom, strict=True)]
        plot.fill_between(
            times, bottom, top, color=colour, alpha=custom["fillOpacity"] / 100, linewidth=0
        )
        plot.plot(times, top, color=colour, linewidth=1.1, label=name)
        below.update(zip(times, top, strict=True))
    if custom["thresholdsStyle"]["mode"] == "dashed":
        for each in defaults["thresholds"]["steps"]:
            if each["value"] is not None:
                plot.axhline(
                    each["value"], color=NAMED["red"], linewidth=0.9, linestyle=(0, (6, 4))
                )
    plot.set_xlim(source.start, source.end)
    low, high = plot.get_ylim()
    plot.set_ylim(defaults.get("min", low), defaults.get("max", high if found else 1.0))
    ticks = [source.start + (source.end - source.start) * part / 8 for part in (1, 3, 5, 7)]
    plot.set_xticks(
        ticks, [datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S") for at in ticks]
    )
    if defaults["unit"] == "bytes":
        step = 2 ** math.ceil(math.log2(max(plot.get_ylim()[1], 4) / 4))
        plot.yaxis.set_major_locator(mpl.ticker.MultipleLocator(step))
    else:
        is_whole = defaults.get("decimals") == 0
        nice = [1, 2, 2.5, 5, 10]
        plot.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=is_whole, steps=nice))
    write = FORMATS[defaults["unit"]]
    plot.yaxis.set_major_formatter(lambda value, _at: write(value))
    plot.tick_params(colors=FAINT, labelsize=6.5, length=0, pad=3)
    plot.grid(color=GRID, linewidth=0.6)
    plot.set_axisbelow(True)
    for spine in plot.spines.values():
        spine.set_visible(False)
    if found:
        handles, _ = plot.get_legend_handles_labels()
        axes.legend(
            handles[:MOST_NAMES], names, loc="lower left", bbox_to_anchor=(0.01, -0.01),
            ncols=columns, fontsize=6.5, frameon=False, labelcolor=TEXT, handlelength=1.2,
            columnspacing=1.0, labelspacing=0.25,
        )  # fmt: skip
    else:
        plot.text(0.5, 0.5, "No data", color=FAINT, transform=plot.transAxes, ha="center", size=10)


def draw(board: dict[str, Any], source: Source, path: Path) -> None:
    """Draw a dashboard.

    Args:
        board: Its JSON.
        source: What answers its queries.
        path: The PNG to be written.
    """
    rows = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in board["panels"])
    height = rows * ROW_INCHES + 2 * MARGIN
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor=PAGE)
    unit = (WIDTH_INCHES - 2 * MARGIN) / COLUMNS
    for panel in board["panels"]:
        place = panel["gridPos"]
        left = MARGIN + place["x"] * unit + MARGIN
        top = height - MARGIN - place["y"] * ROW_INCHES - MARGIN
        wide, high = place["w"] * unit - 2 * MARGIN, place["h"] * ROW_INCHES - 2 * MARGIN
        axes = figure.add_axes(
            (left / WIDTH_INCHES, (top - high) / height, wide / WIDTH_INCHES, high / height)
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        if panel["type"] == "row":
            axes.set_axis_off()
            axes.text(0.0, 0.4, f"⌄  {panel['title']}", color=TEXT, size=11, va="center")
            continue
        axes.set_facecolor(PANEL)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        for spine in axes.spines.values():
            spine.set_color(FRAME)
        title = 1 - 0.1 / high
        axes.text(
            0.08 / wide, title, panel["title"], color=TEXT, size=8.5, weight="medium", va="top"
        )
        {"stat": _stat, "timeseries": _graph}[panel["type"]](axes, panel, source)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=PAGE)
    picture = Image.open(drawn).convert("RGB")
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
