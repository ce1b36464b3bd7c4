"""Whose turn it is among sets of adapters: a pass has one set only, so those that differ wait for each other.

Pure. Called by `batch`, for models that have adapters. A turn is two passes, so that prompts and tokens of a set take
turns within it, and because a change of sets costs the library a new layout of its buffers (some 3 ms beside a token
of 13, measured on a small model). It is one for a set that has nothing but prompts while others decode.
Invariant: with so many sets at work, each has its turn once in as many turns.
"""

from collections.abc import Iterable

from h2qd.worker.llama.adapters import Used

TURN_PASSES = 2


class Turns:
    """Remembers who had the last turn, and how much of it is left."""

    def __init__(self) -> None:
        self._line: list[Used] = []
        self._left = 0

    def next(self, at_work: Iterable[Used]) -> Used:
        """The set of the next pass, one of those `at_work`, of which there is at least one."""
        wanted = dict.fromkeys(at_work)
        last = self._line[0] if self._line else None
        self._line = [one for one in self._line if one in wanted]
        self._line += [one for one in wanted if one not in self._line]
        if self._line[0] == last and self._left == 0:
            self._line.append(self._line.pop(0))
        if self._line[0] != last or self._left == 0:
            self._left = TURN_PASSES
        self._left -= 1
        return self._line[0]

    def over(self) -> None:
        """The turn ends with this pass."""
        self._left = 0
