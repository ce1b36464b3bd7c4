"""How waiting prompts share one pass: who takes part, and with how many tokens.

Pure. Called by `batch`. Who was served longest ago leads; those join who fit with it into one even batch, because the
library computes only as many tokens of each sequence together as the shortest piece has. So a pass is either of equal
pieces, or of the ends of prompts. Invariant: the first always gets something, the sum never exceeds the budget.
"""

from collections.abc import Sequence
from typing import NamedTuple

SHARE_TOKENS_MIN = 4
"""A smaller share costs as much; rather fewer prompts take part."""


class Waiting(NamedTuple):
    """`rest` tokens are to be computed; `whole`: those before were computed in whole pieces only."""

    rest: int
    whole: bool


def shares(waiting: Sequence[Waiting], budget: int, grid: int) -> list[int]:
    """For each of `waiting`, served longest ago first, how many tokens it takes in this pass; 0: none.

    Pieces are multiples of `grid` where the budget allows it and all before them were, so that they stay whole.
    """
    share = max(min(SHARE_TOKENS_MIN, budget), budget // len(waiting))
    taken = [0] * len(waiting)
    lead = _portion(waiting[0], share, grid)
    ending = lead == waiting[0].rest
    for index, one in enumerate(waiting):
        portion = _portion(one, share, grid)
        if ending and portion != one.rest:
            continue
        if not ending:
            if portion < lead or portion == one.rest:
                continue
            portion = lead
        if portion > budget:
            continue
        taken[index] = portion
        budget -= portion
    return taken


def _portion(one: Waiting, share: int, grid: int) -> int:
    if one.whole and one.rest >= grid and share >= grid:
        return min(one.rest, share) // grid * grid
    return min(one.rest, share)
