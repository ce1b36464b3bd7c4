"""What every bench is given, and what it goes by: the model, a folder, prompts that no cache has seen, rounds."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

PROMPT_TOKENS = 26

_OPENINGS = ("Yesterday", "Sometimes", "However", "Perhaps", "Today", "Once", "Before", "After", "Still", "Often")
_REST = (
    " a small computer in the corner of the room began to answer every question that people had, and the first of"
    " them was"
)
_ROUNDS_MIN = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """`model` is a real GGUF file, `folder` is empty and private to the bench."""

    model: Path
    folder: Path


def prompts() -> Iterator[str]:
    """Prompts of `PROMPT_TOKENS` tokens, the beginning of text counted, no two in a row with the same first word."""
    return (opening + _REST for opening in cycle(_OPENINGS))


def rounds(count: int, seconds_max: float) -> Iterator[int]:
    """0, 1, … `count` - 1; where that takes longer than `seconds_max`, only what fits, but at least 3."""
    began = time.monotonic()
    for turn in range(count):
        if turn >= _ROUNDS_MIN and time.monotonic() - began > seconds_max:
            return
        yield turn
