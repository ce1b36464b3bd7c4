"""What may be shown of an answer, whatever way its bytes come."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.worker.detokenizer import Detokenizer


def shown(pieces: Sequence[bytes], stops: Sequence[str]) -> tuple[str, bool]:
    detokenizer = Detokenizer(stops)
    text = ""
    for piece in pieces:
        text += detokenizer.feed(piece)
        if detokenizer.stopped:
            break
    return text + detokenizer.finish(), detokenizer.stopped


def before_first_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The oracle: letter by letter, the first end of a text that is a stop string; of several, the longest."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


texts = st.text(alphabet="abcé€😀", max_size=40)
stop_lists = st.lists(st.text(alphabet="abcé€😀", min_size=1, max_size=5), max_size=4)
places = st.lists(st.integers(min_value=0, max_value=10_000), max_size=30)


@given(text=texts, stops=stop_lists, places=places)
def test_any_cut_gives_the_text_before_the_first_stop(text: str, stops: list[str], places: list[int]) -> None:
    assert shown(cut(text.encode(), places), stops) == before_first_stop(text, stops)


@given(text=texts, stops=stop_lists, places=places)
def test_no_stop_string_is_ever_shown(text: str, stops: list[str], places: list[int]) -> None:
    seen, _ = shown(cut(text.encode(), places), stops)
    assert not any(stop in seen for stop in stops)


@given(data=st.binary(max_size=40), places=places)
def test_any_bytes_in_any_cut_are_decoded_as_in_one_piece(data: bytes, places: list[int]) -> None:
    assert shown(cut(data, places), []) == (data.decode("utf-8", "replace"), False)


@given(text=texts, places=places)
def test_every_piece_shown_is_whole_characters(text: str, places: list[int]) -> None:
    detokenizer = Detokenizer([])
    for piece in cut(text.encode(), places):
        assert "\ufffd" not in detokenizer.feed(piece)


def test_a_text_is_shown_as_soon_as_it_cannot_become_a_stop() -> None:
    detokenizer = Detokenizer(["</s>", "\n\n"])
    assert detokenizer.feed(b"one\n") == "one"
    assert detokenizer.feed(b"two<") == "\ntwo"
    assert detokenizer.feed(b"/") == ""
    assert detokenizer.feed(b"b>") == "</b>"


def test_nothing_is_shown_after_a_stop() -> None:
    detokenizer = Detokenizer(["STOP"])
    assert detokenizer.feed(b"go ST") == "go "
    assert detokenizer.feed(b"OP and more") == ""
    assert detokenizer.stopped
    assert detokenizer.feed(b"more") == ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("data", "text"), [(b"\xff", "\ufffd"), (b"\xe2\x82x", "\ufffdx"), (b"\xc0\xaf", "\ufffd\ufffd")]
)
def test_bytes_that_can_be_no_character_are_replaced_at_once(data: bytes, text: str) -> None:
    assert Detokenizer([]).feed(data) == text


def test_the_beginning_of_a_character_waits_for_its_rest_or_the_end() -> None:
    detokenizer = Detokenizer([])
    assert detokenizer.feed("€".encode()[:2]) == ""
    assert detokenizer.finish() == "\ufffd"
