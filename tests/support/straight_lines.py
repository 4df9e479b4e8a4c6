"""Whether code does without a lock as ``values.py`` says it may; also a program.

As a program it runs with each interpreter that there is and needs nothing installed::

    python straight_lines.py values.py Value.inc Value.set

The lines that are looked at are those that store to a column. See "Without a lock" in
:mod:`obskit_gunicorn._values.values` for why.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType

_STRAIGHT = {
    "BINARY_ADD",  # 3.10, as are those that turn the stack
    "BINARY_OP",
    "BINARY_SUBSCR",
    "BINARY_SUBTRACT",
    "CACHE",
    "COPY",
    "DUP_TOP",
    "EXTENDED_ARG",
    "IS_OP",
    "LOAD_ATTR",
    "LOAD_CONST",
    "LOAD_DEREF",
    "LOAD_FAST",
    "LOAD_FAST_CHECK",
    "LOAD_FAST_LOAD_FAST",
    "LOAD_GLOBAL",
    "NOP",
    "ROT_THREE",
    "ROT_TWO",
    "STORE_ATTR",
    "STORE_FAST",
    "STORE_FAST_LOAD_FAST",
    "STORE_FAST_STORE_FAST",
    "STORE_SUBSCR",
    "SWAP",
    "TO_BOOL",
}
"""What neither gives another thread a turn nor runs code, of floats, slots and memoryviews."""


def functions_of(source: str) -> dict[str, CodeType]:
    """Return the code of the functions in a source text, by names as in ``Class.method``."""
    found: dict[str, CodeType] = {}

    def look_into(code: CodeType, prefix: str) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                name = f"{prefix}{constant.co_name}"
                found[name] = constant
                look_into(constant, f"{name}.")

    look_into(compile(source, "<source>", "exec"), "")
    return found


def problems(code: CodeType) -> list[str]:
    """Return what keeps the stores of a function from being one straight line with its check."""
    instructions = list(dis.get_instructions(code))
    line, lines = 0, []
    for instruction in instructions:
        # Up to 3.12 only the first instruction of a line says which it is.
        number = getattr(instruction, "line_number", instruction.starts_line)
        line = line if number is None or number is False else int(number)
        lines.append(line)
    stores = [at for at, each in enumerate(instructions) if each.opname == "STORE_SUBSCR"]
    if not stores:
        return ["it stores nothing"]
    first, last = lines.index(lines[stores[-1]]), stores[-1]
    found = []
    if any(at < first for at in stores) or len(set(lines[first : last + 1])) != 1:
        found.append("more than one line")
    for instruction in instructions[first : last + 1]:
        name = instruction.opname
        if name.startswith(("POP_JUMP", "JUMP_IF")):
            target = int(instruction.argval)
            if target <= instructions[last].offset:
                found.append(f"{name} leads to the stores, or back")
        elif name not in _STRAIGHT:
            found.append(name)
    if not any(each.opname == "IS_OP" for each in instructions[first : last + 1]):
        found.append("the check is not in the line of the stores")
    return found


def main() -> None:
    """Print the problems of functions in a file; exit with 1 if there are some."""
    path, *names = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        functions = functions_of(file.read())
    wrong = [f"{name}: {text}" for name in names for text in problems(functions[name])]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
