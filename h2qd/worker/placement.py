"""Which slot takes a new request: where the cache serves its prompt best, at the least loss to others.

Pure. Called by the engines' seating. A slot whose cache the prompt mostly continues is used as it is. A beginning
shared with a conversation that then goes elsewhere (a system prompt) is copied instead, so that both live; a busy
slot serves as a source as well as an idle one. What is given up is what was used longest ago.
"""

from collections.abc import Sequence
from typing import NamedTuple

REUSED_TOKENS_MIN = 16
"""Fewer are no sign that texts belong together: all begin with the same token, chats with the same few."""

COPY_GAIN = 256
"""Copying moves a whole share of the context: a cell costs less than this part of computing a prompt token (measured
as 1/600 on the smallest models, less on larger ones)."""

_COMPARED_AT_ONCE = 1024


class Candidate(NamedTuple):
    """A slot: `kept` tokens of the prompt are in its cache, of `held` in all. `used` grows with time; 0: never.

    `session`: a conversation that its user named goes on there, and may be copied from, but rather not be given up.
    """

    kept: int
    held: int
    idle: bool
    used: int
    session: bool = False


class Place(NamedTuple):
    """The slot to take, and the slot whose cache to copy into it first, if any."""

    slot: int
    source: int | None


def place(slots: Sequence[Candidate], size: int, *, copies: bool) -> Place | None:
    """Where a request goes; None when every slot is busy. `size`: the share of a slot, in tokens."""
    idle = [index for index, slot in enumerate(slots) if slot.idle]
    if not idle:
        return None
    free = [index for index in idle if not slots[index].session] or idle
    best = max(free, key=lambda index: (slots[index].kept, -slots[index].held))
    goes_on = slots[best].kept * 2 > slots[best].held
    oldest = min(free, key=lambda index: (slots[index].held > 0, slots[index].used, index))
    target = best if goes_on else oldest
    source = max(range(len(slots)), key=lambda index: (slots[index].kept, slots[index].idle))
    if copies and source != target and _pays(slots[source].kept - slots[target].kept, size):
        return Place(target, source)
    return Place(best if slots[best].kept else oldest, None)


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(ours), len(theirs))
    for start in range(0, length, _COMPARED_AT_ONCE):
        end = min(start + _COMPARED_AT_ONCE, length)
        if ours[start:end] != theirs[start:end]:
            return next(index for index in range(start, end) if ours[index] != theirs[index])
    return length


def _pays(gained: int, size: int) -> bool:
    return gained > 0 and gained * COPY_GAIN >= size
