"""What a bench says: rows of figures with a floor, a ratio and a bound; and how they are printed.

Pure. A ratio is the median of the ratios of pairs that were measured in turns, so a busy minute hits both sides; its
spread is kept, and a row whose pairs disagree is listed as noisy. A row without a bound is for information.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOISY = 1.5
"""A row is noisy when the ratios of its pairs, but for a tenth at each end, are further apart than this factor."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a row must keep: its ratio or, with `of` "figure", its figure, at most (or at least) `limit`."""

    limit: float
    of: str = "ratio"
    at_least: bool = False

    def kept(self, value: float) -> bool:
        """Whether `value` is within."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `figure` and `floor` are in `unit`; `ratios` are those of the single pairs."""

    what: str
    unit: str
    figure: float
    floor: float | None = None
    ratios: tuple[float, ...] = ()
    bound: Bound | None = None

    @property
    def ratio(self) -> float | None:
        """The figure over the floor: the median over pairs where there are any."""
        if self.ratios:
            return statistics.median(self.ratios)
        return self.figure / self.floor if self.floor else None

    @property
    def kept(self) -> bool:
        """Whether the bound, if there is one, holds."""
        if self.bound is None:
            return True
        value = self.figure if self.bound.of == "figure" else self.ratio
        return value is not None and self.bound.kept(value)

    @property
    def verdict(self) -> str:
        """One word: ok, BROKEN, or nothing where nothing is bounded."""
        if self.bound is None:
            return ""
        return "ok" if self.kept else "BROKEN"

    @property
    def spread(self) -> tuple[float, float] | None:
        """Between which ratios the pairs are, but for a tenth at each end."""
        return (percentile(self.ratios, 10), percentile(self.ratios, 90)) if self.ratios else None

    @property
    def noisy(self) -> bool:
        """Whether the pairs disagree so much that only their median can be trusted."""
        return self.spread is not None and self.spread[1] > NOISY * self.spread[0]


def paired(
    what: str, unit: str, figures: Sequence[float], floors: Sequence[float], bound: Bound | None = None
) -> Row:
    """A row of figures that were measured in turns with their floors."""
    ratios = tuple(ours / theirs for ours, theirs in zip(figures, floors, strict=True))
    return Row(what, unit, statistics.median(figures), statistics.median(floors), ratios, bound)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def table(rows: Sequence[Row]) -> str:
    """The rows as people read them."""
    head = ("what", "figure", "floor", "ratio", "bound", "verdict")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for line in cells:
        left, *right, verdict = line
        middle = (cell.rjust(width) for cell, width in zip(right, widths[1:-1], strict=True))
        lines.append("  ".join((left.ljust(widths[0]), *middle, verdict)).rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        f"{_number(row.figure)} {row.unit}",
        "" if row.floor is None else f"{_number(row.floor)} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.bound is None else _bound(row),
        row.verdict,
    )


def _bound(row: Row) -> str:
    assert row.bound is not None
    unit = f" {row.unit}" if row.bound.of == "figure" else "x"
    return f"{'>=' if row.bound.at_least else '<='} {row.bound.limit:g}{unit}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_json(rows: Sequence[Row]) -> str:
    """The rows as one JSON document, with the spread of each ratio."""
    return json.dumps(
        [
            {
                "what": row.what,
                "unit": row.unit,
                "figure": row.figure,
                "floor": row.floor,
                "ratio": row.ratio,
                "spread": row.spread,
                "bound": None
                if row.bound is None
                else {"of": row.bound.of, "at_least": row.bound.at_least, "limit": row.bound.limit},
                "kept": row.kept,
                "noisy": row.noisy,
            }
            for row in rows
        ],
        indent=2,
    )
