"""``obskit-gunicorn top``: the live view on a terminal, drawn by rich.

A thread asks for a status each second; the main thread draws it and reacts to keys. Rates come
from two statuses, latencies from the last ten seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import termios
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from obskit_gunicorn._exporter.live_page import shown
from obskit_gunicorn._exporter.status import QUANTILES, quantile
from obskit_gunicorn._terminal.asking import NoStatusError, ask
from obskit_gunicorn._terminal.inspected import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from obskit_gunicorn._exporter.status import Status

_SECONDS = 1.0
_WINDOW = 10
_PLAIN_WIDTH = 120
_BELOW = 3
"""Lines under the rows of workers, and of their head."""


class _Column(NamedTuple):
    key: str
    """Of a worker."""

    title: str
    form: str
    letter: str
    """The key of the keyboard that sorts by it."""


_COLUMNS = (
    _Column("slot", "SLOT", "text", "s"),
    _Column("pid", "PID", "id", "p"),
    _Column("state", "STATE", "text", "t"),
    _Column("age_seconds", "AGE", "age", "a"),
    _Column("requests", "REQUESTS", "number", "n"),
    _Column("requests_rate", "REQ/S", "rate", "r"),
    _Column("cpu_seconds", "CPU TIME", "age", "u"),
    _Column("cpu_rate", "CPU%", "percent", "c"),
    _Column("memory_bytes", "MEMORY", "bytes", "m"),
)

_ARROWS = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
}
_QUIT = ("q", "Q", "\x03", "\x04")  # Ctrl-C and Ctrl-D come as characters


class Screen:
    """What is shown, and how it is sorted.

    Attributes:
        column: The number of the column that rows are sorted by.
        descends: Whether the largest is first.
        first: How many rows are scrolled away.
        problem: Why there is no newer status; empty if there is one.
    """

    def __init__(self, source: str) -> None:
        """Show nothing yet."""
        self._source = source
        self._statuses: deque[Status] = deque(maxlen=_WINDOW + 1)
        self.column = next(at for at, each in enumerate(_COLUMNS) if each.key == "cpu_rate")
        self.descends = True
        self.first = 0
        self.problem = ""

    def take(self, status: Status) -> None:
        """Show a newer status."""
        if self._statuses and _began(self._statuses[-1]) != _began(status):
            self._statuses.clear()
        self._statuses.append(status)
        self.problem = ""

    def press(self, key: str, page: int) -> bool:
        """React to a key; return whether to go on.

        Args:
            key: The character, or the name of an arrow.
            page: How many rows fit.
        """
        letters = [column.letter for column in _COLUMNS]
        if key in _QUIT:
            return False
        if key in letters:
            self._sort(letters.index(key))
        elif key in ("left", "<", "right", ">"):
            step = 1 if key in ("right", ">") else -1
            self._sort((self.column + step) % len(_COLUMNS))
        elif key in ("i", "I"):
            self.descends = not self.descends
        elif key in ("up", "down", "page up", "page down"):
            step = page if key.startswith("page") else 1
            self.first += step if key.endswith("down") else -step  # drawing sets its limits
        return True

    def _sort(self, column: int) -> None:
        if column == self.column:
            self.descends = not self.descends
        else:
            self.column, self.descends = column, _COLUMNS[column].form not in ("text", "id")

    def drawn(self, height: int | None) -> RenderableType:
        """Return the picture.

        Args:
            height: The height of the terminal; ``None`` for all rows.
        """
        try:
            return self._drawn(height)
        except (LookupError, TypeError, ValueError, AttributeError):  # anybody may answer at a URL
            return _line((f"{self._source} answers with something that is no status", "bold red"))

    def _drawn(self, height: int | None) -> RenderableType:
        head = list(self._head())
        rows = self._rows()
        room = len(rows) if height is None else max(1, height - len(head) - _BELOW)
        self.first = max(0, min(self.first, len(rows) - room))
        seen = rows[self.first : self.first + room]
        place = f"{self.first + 1}-{self.first + len(seen)} of {len(rows)}  " if rows else ""
        keys = " ".join(f"{each.letter}:{each.title.lower()}" for each in _COLUMNS)
        foot = Text(f"{place}q:quit i:invert {keys}", "dim", no_wrap=True, overflow="ellipsis")
        return Group(*head, self._table(seen), *([] if height is None else [foot]))

    def _head(self) -> Iterator[Text]:
        status, before = self._statuses[-1], self._before()
        for server in status["servers"]:
            yield _line(
                ("Gunicorn ", ""), (server.get("version", ""), "bold"),
                (", Python ", ""), (server.get("python", ""), "bold"),
                (", ", ""), (server.get("worker_class", ""), "bold"), (" workers", ""),
            )  # fmt: skip
        yield _line((self._source, "bold"))
        if self.problem:
            yield _line((self.problem, "bold red"))
        requests, workers = status["requests"], status["workers"]
        seconds = status["time"] - before["time"] if before else 0
        rates = {
            name: _rate(total, before["requests"]["total"].get(name, 0), seconds)
            for name, total in requests["total"].items()
            if before
        }
        total = sum(rate or 0 for rate in rates.values())
        each = [
            (f"  {name} {shown(rate, 'rate')}", _class_style(name)) for name, rate in rates.items()
        ]
        all_of_them = shown(total if before else None, "rate")
        yield _line(("Requests/s ", ""), (all_of_them, "bold cyan"), *each)
        yield _line(
            ("Latency    ", ""),
            *((f"{name} {shown(value, 'duration')}  ", "bold") for name, value in self._latency()),
        )
        listeners = status["listeners"]
        waiting = sum(each["waiting"] or 0 for each in listeners) if listeners else None
        yield _line(
            ("In progress ", ""), (shown(requests["in_progress"]), "bold"),
            (" of ", ""), (shown(requests["capacity"]), "bold"),
            ("  connections ", ""), (shown(requests["connections"]), "bold"),
            ("  waiting ", ""), (shown(waiting), "bold red" if waiting else "bold"),
        )  # fmt: skip
        exits = {name: count for name, count in workers["exits"].items() if count}
        yield _line(
            ("Workers    ", ""), (shown(workers["ready"]), "bold green"),
            (" ready of ", ""), (shown(workers["wanted"]), "bold"),
            ("  reloads ", ""), (shown(workers["reloads"]), "bold"),
            ("  ended ", ""),
            (" ".join(f"{name} {shown(count)}" for name, count in exits.items()) or "none", "bold"),
        )  # fmt: skip
        largest = status["metrics"][:3]
        yield _line(
            ("Series     ", ""), (shown(status["directory"]["series"]), "bold"),
            *((f"  {each['name']} {shown(each['series'])}", "") for each in largest),
        )  # fmt: skip
        if not status["directory"]["usable"]:
            yield _line(("The directory cannot be used", "bold red"))
        for name, key in (("fleet", "store_up"), ("push", "up")):
            if status.get(name):
                yield _line(
                    (f"{name.capitalize():<11}", ""), (shown(status[name][key], "truth"), "bold")
                )

    def _before(self) -> Status | None:
        return self._statuses[-2] if len(self._statuses) > 1 else None

    def _latency(self) -> Iterator[tuple[str, float | None]]:
        """Yield quantiles of the last seconds."""
        now = self._statuses[-1]["requests"]["duration"]
        first = self._statuses[0]["requests"]["duration"] if len(self._statuses) > 1 else None
        known = {each["le"]: each["count"] for each in (first or {"buckets": ()})["buckets"]}
        buckets = [
            (float(each["le"]), float(each["count"] - known.get(each["le"], 0)))
            for each in (now or {"buckets": ()})["buckets"]
        ]
        for name, share in QUANTILES.items():
            yield name, quantile(share, buckets) if buckets else None

    def _rows(self) -> list[dict[str, Any]]:
        status, before = self._statuses[-1], self._before()
        seconds = status["time"] - before["time"] if before else 0
        known = {each["slot"]: each for each in before["workers"]["list"]} if before else {}
        rows = []
        for worker in status["workers"]["list"]:
            last = known.get(worker["slot"], {})
            is_same = last.get("pid") == worker["pid"]
            row = {**worker, "state": " ".join(filter(None, (worker["state"], worker["reason"])))}
            for name, rate in (("requests", "requests_rate"), ("cpu_seconds", "cpu_rate")):
                row[rate] = _rate(worker[name], last.get(name), seconds) if is_same else None
            if row["cpu_rate"] is not None:
                row["cpu_rate"] *= 100
            rows.append(row)
        key = _COLUMNS[self.column].key
        known_rows = [row for row in rows if row[key] is not None]
        natural = (lambda value: (len(value), value)) if key == "slot" else (lambda value: value)
        known_rows.sort(key=lambda row: natural(row[key]), reverse=self.descends)
        return known_rows + [row for row in rows if row[key] is None]

    def _table(self, rows: list[dict[str, Any]]) -> Table:
        table = Table(box=None, expand=True, header_style="reverse", padding=(0, 1, 0, 0))
        for at, column in enumerate(_COLUMNS):
            arrow = ("▼" if self.descends else "▲") if at == self.column else ""
            justify: Any = "left" if column.form == "text" else "right"
            table.add_column(column.title + arrow, justify=justify, no_wrap=True)
        for row in rows:
            cells = [Text(printable(shown(row[each.key], each.form))) for each in _COLUMNS]
            table.add_row(*cells, style="" if row["state"] == "booted" else "yellow")
        return table


def run(source: str) -> int:
    """Show a server until somebody quits; return the exit status.

    Args:
        source: The URL of an exporter, or a multiprocess directory.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # rich asks nobody which characters there are
        sys.stdout.reconfigure(errors="replace")
    screen = Screen(source)
    try:
        read = ask(source)
        screen.take(read())
    except NoStatusError as error:
        print(f"obskit-gunicorn: {printable(error)}", file=sys.stderr)
        return 1
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _print_once(screen, read)
    with _keyboard() as keyboard, contextlib.suppress(KeyboardInterrupt):
        _watch(screen, read, keyboard)
    return 0


def _print_once(screen: Screen, read: Callable[[], Status]) -> int:
    """Print one picture, for a pipe or a file."""
    time.sleep(_SECONDS)
    try:
        screen.take(read())
    except NoStatusError as error:
        print(f"obskit-gunicorn: {printable(error)}", file=sys.stderr)
        return 1
    Console(width=_PLAIN_WIDTH, color_system=None).print(screen.drawn(None))
    return 0


def _watch(screen: Screen, read: Callable[[], Status], keyboard: int) -> None:
    """Draw each status, and after each key, until somebody quits."""
    news: deque[Status | NoStatusError] = deque()
    awake, wake = os.pipe()
    is_over = threading.Event()

    def follow() -> None:
        while not is_over.wait(_SECONDS):
            try:
                news.append(read())
            except NoStatusError as error:
                news.append(error)
            os.write(wake, b"x")

    thread = threading.Thread(target=follow, daemon=True)
    console = Console()
    try:
        with Live(
            screen.drawn(console.height), console=console, screen=True, auto_refresh=False
        ) as live:
            thread.start()
            goes_on = True
            while goes_on:
                live.update(screen.drawn(console.height), refresh=True)
                ready, _, _ = select.select([keyboard, awake], [], [])
                if awake in ready:
                    os.read(awake, 64)
                    while news:
                        found = news.popleft()
                        if isinstance(found, NoStatusError):
                            screen.problem = str(found)
                        else:
                            screen.take(found)
                if keyboard in ready:
                    pressed = os.read(keyboard, 64)
                    room = max(1, console.height - 2 * _BELOW)
                    goes_on = bool(pressed) and all(screen.press(k, room) for k in _keys(pressed))
    finally:
        is_over.set()


def _keys(pressed: bytes) -> Iterator[str]:
    """Yield what was pressed: characters, and the names of arrows."""
    while pressed:
        found = next((arrow for arrow in _ARROWS if pressed.startswith(arrow)), None)
        if found is not None:
            yield _ARROWS[found]
            pressed = pressed[len(found) :]
        else:
            yield chr(pressed[0])
            pressed = pressed[1:]


@contextlib.contextmanager
def _keyboard() -> Iterator[int]:
    """Have each key come at once and unseen, Ctrl-C too; yield the descriptor."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    now = termios.tcgetattr(keyboard)
    now[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the terminal as it was
    try:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, now)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _began(status: Status) -> Any:
    directory = status.get("directory")
    return directory.get("generation_start") if isinstance(directory, dict) else None


def _rate(now: float | None, before: float | None, seconds: float) -> float | None:
    """Return how fast a counter grows; ``None`` if it is not known, or has begun anew."""
    if now is None or before is None or now < before or seconds <= 0:
        return None
    return (now - before) / seconds


def _class_style(name: str) -> str:
    return {"5": "bold red", "4": "yellow"}.get(name[:1], "green")


def _line(*parts: tuple[str, str]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for text, style in parts:
        line.append(printable(text), style)
    return line
