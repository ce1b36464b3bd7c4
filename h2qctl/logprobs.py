"""How likely each token was, as a table: for `infer`, `chat` and `score`. Pure."""

import math
from collections.abc import Sequence

from h2qctl import text
from h2qctl.tables import table
from h2qd.wire import messages as m

_TOP_SHOWN = 4


def lines(tokens: Sequence[m.TokenLogprob], width: int | None) -> list[str]:
    """A row a token: its text in quotes, the logarithm, the probability, and what else was likely."""
    likely = any(token.top for token in tokens)
    head = ["ID", "TEXT", "LOGPROB", "SHARE"] + (["LIKELIEST"] if likely else [])
    rows: list[list[object]] = []
    for token in tokens:
        cells: list[object] = [token.token, quoted(token.text), f"{token.logprob:.3f}", share(token.logprob)]
        if likely:
            cells.append("  ".join(f"{quoted(one.text)} {share(one.logprob)}" for one in token.top[:_TOP_SHOWN]))
        rows.append(cells)
    return table(head, rows, width)


def quoted(piece: str) -> str:
    """A token's text with its blanks visible."""
    return f'"{text.safe(piece)}"'


def share(logprob: float) -> str:
    """A probability in percent."""
    return f"{100 * math.exp(min(logprob, 0.0)):.1f}%"
