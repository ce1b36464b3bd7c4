"""Rows as aligned columns. Pure: cells in, lines out; who calls knows how wide the terminal is.

With a `width` the widest columns are shortened until the lines fit; without one (a pipe, `-o wide`) nothing is
ever cut, so that what a script reads is whole.
"""

from collections.abc import Sequence

from h2qctl.text import NONE, safe

_GAP = "  "
_CUT_TO_MIN = 8
"""Columns are not shortened below this, even when the lines then stay too long."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """The lines of a table, `head` first. None and empty cells show as `<none>`."""
    cells = [list(head), *([NONE if cell is None or cell == "" else safe(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        _shrink(widths, [max(len(title), _CUT_TO_MIN) for title in head], width)
    return [_line(row, widths) for row in cells]


def facts(pairs: Sequence[tuple[str, object]]) -> list[str]:
    """Names and values, one a line, the values aligned."""
    indent = max((len(name) for name, _ in pairs), default=0) + len(_GAP)
    return [f"{name:<{indent}}{NONE if value is None or value == '' else safe(value)}" for name, value in pairs]


def _shrink(widths: list[int], least: list[int], width: int) -> None:
    """Take from the widest column, again and again, what the lines are too long."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while excess > 0:
        spare = [at for at in range(len(widths)) if widths[at] > least[at]]
        if not spare:
            return
        widths[max(spare, key=widths.__getitem__)] -= 1
        excess -= 1


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cut = [cell if len(cell) <= room else cell[: room - 1] + "…" for cell, room in zip(row, widths, strict=True)]
    return _GAP.join(f"{cell:<{room}}" for cell, room in zip(cut, widths, strict=True)).rstrip()
