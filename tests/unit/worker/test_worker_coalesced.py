"""Joining the texts of one step."""

from hypothesis import given
from hypothesis import strategies as st

from h2qd.wire.workers import GenerationFailed, Prefilling, Text
from h2qd.worker.engine import Said
from h2qd.worker.loop import coalesced

_one: st.SearchStrategy[Said] = st.one_of(
    st.builds(
        Text,
        request=st.integers(0, 3),
        text=st.text(max_size=3),
        tokens=st.integers(0, 3),
        thinking=st.text(max_size=3),
    ),
    st.builds(Prefilling, request=st.integers(0, 3), done=st.just(1), total=st.just(2)),
    st.builds(GenerationFailed, request=st.integers(0, 3), code=st.just("c"), message=st.just("m")),
)
_said = st.lists(_one)


def test_example() -> None:
    said: list[Said] = [Text(1, "a", 1), Text(2, "x", 1), Text(1, "b", 2), GenerationFailed(1, "c", "m")]
    assert coalesced(said) == [Text(1, "ab", 3), Text(2, "x", 1), GenerationFailed(1, "c", "m")]


@given(_said)
def test_nothing_is_lost_and_each_request_has_one_text(said: list[Said]) -> None:
    joined = coalesced(said)
    for request in range(4):
        before = [message for message in said if isinstance(message, Text) and message.request == request]
        after = [message for message in joined if isinstance(message, Text) and message.request == request]
        assert len(after) == min(1, len(before))
        assert "".join(m.text for m in after) == "".join(m.text for m in before)
        assert "".join(m.thinking for m in after) == "".join(m.thinking for m in before)
        assert sum(m.tokens for m in after) == sum(m.tokens for m in before)
    others = [message for message in said if not isinstance(message, Text)]
    assert [message for message in joined if not isinstance(message, Text)] == others


@given(_said)
def test_joining_again_changes_nothing(said: list[Said]) -> None:
    assert coalesced(coalesced(said)) == coalesced(said)
