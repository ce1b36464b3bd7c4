"""Sets of adapters take turns: nobody starves, and nobody who is alone waits."""

from itertools import groupby

import pytest

pytest.importorskip("llama_cpp")
from h2qd.worker.llama.adapters import NONE, Used
from h2qd.worker.llama.turns import TURN_PASSES, Turns

POLITE: Used = (("polite", 1.0),)
RUDE: Used = (("rude", 1.0),)
RUDER: Used = (("rude", 2.0),)


def test_each_set_has_its_turn_once_in_as_many() -> None:
    turns = Turns()
    at_work = [POLITE, NONE, RUDE, POLITE, RUDER]
    had = [turns.next(at_work) for _ in range(4 * TURN_PASSES * 3)]
    rounds = [(one, len(list(passes))) for one, passes in groupby(had)]
    assert rounds == [(one, TURN_PASSES) for one in (POLITE, NONE, RUDE, RUDER)] * 3


def test_one_alone_has_every_turn_and_a_newcomer_the_next() -> None:
    turns = Turns()
    assert {turns.next([POLITE]) for _ in range(TURN_PASSES)} == {POLITE}
    assert turns.next([POLITE, NONE]) == NONE


def test_who_has_nothing_left_to_do_is_passed_over() -> None:
    turns = Turns()
    assert turns.next([POLITE, NONE, RUDE]) == POLITE
    assert turns.next([NONE, RUDE]) == NONE
    turns.over()
    assert turns.next([NONE, RUDE]) == RUDE
    assert turns.next([NONE]) == NONE
