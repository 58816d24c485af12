"""Tables for a terminal."""

import shutil
from collections.abc import Sequence

_NARROWEST = 3


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in lines no longer than the terminal is wide, or than 80 characters where there is none.

    Where it does not fit, the widest columns are made narrower, and what is in them is cut in the middle.

    Args:
        rows: the cells of each, the header first.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns - 2 * len(widths)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    lines = (
        "".join(f"  {_cut(cell, width):<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    )
    return [line.rstrip() for line in lines]


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width // 2]}…{cell[len(cell) - (width - 1) // 2 :]}"
