"""Which slot a request takes, and whose cache it copies."""

from h2qd.worker.placement import Candidate, Place, place

EMPTY = Candidate(kept=0, held=0, idle=True, used=0)
SIZE = 4096


def test_no_place_without_an_idle_slot() -> None:
    assert place([Candidate(900, 900, idle=False, used=0)], SIZE, copies=True) is None


def test_a_conversation_goes_on_where_it_was() -> None:
    slots = [EMPTY, Candidate(900, 1000, idle=True, used=1), Candidate(100, 2000, idle=True, used=2)]
    assert place(slots, SIZE, copies=True) == Place(1, None)


def test_a_shared_beginning_is_copied_and_the_other_conversation_lives() -> None:
    slots = [Candidate(200, 3000, idle=True, used=9), EMPTY, EMPTY]
    assert place(slots, SIZE, copies=True) == Place(1, 0)
    assert place(slots, SIZE, copies=False) == Place(0, None)


def test_a_busy_slot_is_a_source_too() -> None:
    slots = [Candidate(200, 300, idle=False, used=0), EMPTY]
    assert place(slots, SIZE, copies=True) == Place(1, 0)
    assert place(slots, SIZE, copies=False) == Place(1, None)


def test_a_longer_beginning_elsewhere_is_worth_more_than_a_short_one_here() -> None:
    slots = [Candidate(1000, 1500, idle=False, used=0), Candidate(30, 40, idle=True, used=1), EMPTY]
    assert place(slots, SIZE, copies=True) == Place(1, 0)


def test_copying_a_large_share_for_a_few_tokens_does_not_pay() -> None:
    slots = [Candidate(20, 3000, idle=False, used=0), EMPTY]
    assert place(slots, 131_072, copies=True) == Place(1, None)


def test_an_unknown_prompt_takes_the_empty_slot_then_the_one_used_longest_ago() -> None:
    strangers = [Candidate(0, 50, idle=True, used=3), Candidate(0, 900, idle=True, used=2)]
    assert place([*strangers, EMPTY], SIZE, copies=True) == Place(2, None)
    assert place(strangers, SIZE, copies=True) == Place(1, None)


def test_a_session_s_place_is_taken_last_and_copied_from() -> None:
    session = Candidate(0, 50, idle=True, used=1, session=True)
    stranger = Candidate(0, 900, idle=True, used=9)
    assert place([session, stranger], SIZE, copies=True) == Place(1, None)
    assert place([session, session._replace(used=2)], SIZE, copies=True) == Place(0, None)
    goes_on = Candidate(900, 1000, idle=True, used=1, session=True)
    assert place([goes_on, stranger], SIZE, copies=True) == Place(1, 0)
    assert place([goes_on, stranger], SIZE, copies=False) == Place(1, None)
    assert place([goes_on], SIZE, copies=True) == Place(0, None)
