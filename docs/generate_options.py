"""Write the table of options into docs/options.md, from their rows and the class.

``python docs/generate_options.py`` writes it; with ``--check`` it changes nothing and exits 1 if
the table is out of date. Run it where the package can be imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from obskit_gunicorn import ObskitGunicornConfig
from obskit_gunicorn._gunicorn.options import OPTIONS

PAGE = Path(__file__).resolve().parent / "options.md"
BEGIN = "<!-- options: written by docs/generate_options.py -->\n"
END = "<!-- end of options -->\n"


def table() -> str:
    """Return the table in Markdown."""
    rows = [
        "| class attribute | environment | flag of `serve` | default | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for option in OPTIONS:
        default = getattr(ObskitGunicornConfig, option.name)
        shown = f'"{default}"' if isinstance(default, str) else default
        meaning = f"{option.help[0].upper()}{option.help[1:]}."
        if option.empty_is_none:
            meaning += " `None`, or an empty variable: none."
        flag = f"`{option.flag}`" if option.is_exporters else ""
        cells = (f"`{option.name}`", f"`{option.variable}`", flag, f"`{shown}`", meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main(arguments: list[str], page: Path = PAGE) -> int:
    """Write the table, or check it; return the exit status."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + table() + END + after
    if arguments != ["--check"]:
        page.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        print(f"{page.name} is out of date; run: python {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
