import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qctl.conversation import INBOX_MAX, Call, Conversation
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.frames import Kind, Request, Response, encode, response_frames, split_request

DELTA = m.Delta("x", 1)
ANSWER = m.Answer("r1", "a", "", "stop", m.Usage(1, 1), m.Timings(0, 0, 0, 0, 0, 0), 1)


def sent(frames: list[bytes] | None) -> tuple[Request, bytes]:
    assert frames is not None
    return split_request(frames)


def streaming(window: int = 4) -> tuple[Conversation, Call]:
    talk = Conversation()
    call, _ = talk.ask("infer.text", m.Infer(prompt="p", stream=True, window=window))
    return talk, call


def test_every_request_has_a_number_of_its_own_and_the_deadline_in_milliseconds() -> None:
    talk = Conversation()
    first, frames = talk.ask("model.ps", m.Empty(), 1.5)
    second, _ = talk.ask("model.ps", m.Empty())
    assert first.id != second.id
    assert sent(frames)[0].deadline_ms == 1500
    assert sent(talk.ask("model.ps", m.Empty(), 0.00001)[1])[0].deadline_ms == 1


def test_answers_reach_their_own_call_in_whatever_order() -> None:
    talk = Conversation()
    first, _ = talk.ask("model.unload", m.Unload())
    second, _ = talk.ask("model.unload", m.Unload())
    assert talk.feed(response_frames(second.id, Kind.REPLY, m.Unloaded("b", changed=True))) is second
    assert first.take() is None
    item = second.take()
    assert item is not None
    assert item.value == m.Unloaded("b", changed=True)
    assert second.ended
    assert talk.calls() == [first]


def test_credit_is_given_back_each_half_window() -> None:
    talk, call = streaming(window=4)
    given_back = []
    for _ in range(10):
        talk.feed(response_frames(call.id, Kind.CHUNK, DELTA))
        assert call.take() is not None
        if frames := talk.consumed(call):
            envelope, body = sent(frames)
            assert envelope.op == "stream.credit"
            given_back.append(msgspec.msgpack.decode(body, type=m.Credit))
    assert given_back == [m.Credit(call.id, 2)] * 5


def test_a_window_of_one_is_given_back_chunk_by_chunk() -> None:
    talk, call = streaming(window=1)
    assert talk.consumed(call) is not None
    assert talk.consumed(call) is not None


def test_an_ended_stream_gets_no_credit() -> None:
    talk, call = streaming(window=2)
    talk.feed(response_frames(call.id, Kind.REPLY, ANSWER))
    assert talk.consumed(call) is None


def test_of_many_reports_of_progress_only_the_newest_waits() -> None:
    talk, call = streaming()
    for fraction in (0.1, 0.2, 0.3):
        talk.feed(response_frames(call.id, Kind.PROGRESS, m.Progress("loading", fraction=fraction)))
    item = call.take()
    assert item is not None
    assert item.value == m.Progress("loading", fraction=0.3)
    assert call.take() is None


def test_a_cancel_names_the_call_and_goes_out_once() -> None:
    talk, call = streaming()
    envelope, body = sent(talk.give_up(call))
    assert (envelope.op, msgspec.msgpack.decode(body, type=m.Cancel).id) == ("request.cancel", call.id)
    assert talk.give_up(call) is None


def test_a_call_given_up_takes_no_more_chunks_but_is_known_until_it_ends() -> None:
    talk, call = streaming()
    talk.give_up(call)
    talk.feed(response_frames(call.id, Kind.CHUNK, DELTA))
    assert call.take() is None
    assert talk.calls() == [call]
    talk.feed(response_frames(call.id, Kind.ERROR, m.ErrorReply("cancelled", "it was")))
    assert talk.calls() == []


def test_a_call_that_ended_is_not_cancelled() -> None:
    talk, call = streaming()
    talk.feed(response_frames(call.id, Kind.REPLY, ANSWER))
    assert talk.give_up(call) is None


def failure(call: Call) -> H2qError:
    item = call.take()
    assert item is not None
    assert item.kind is Kind.ERROR
    assert isinstance(item.value, m.ErrorReply)
    assert call.ended
    return H2qError.of(item.value)


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"\xc1", "malformed"), (b"", "malformed"), (b"\x90", "malformed"), (b"\x81\xa4text\x01", "malformed")],
)
def test_a_body_that_does_not_decode_ends_its_call_and_is_cancelled_at_the_daemon(body: bytes, code: str) -> None:
    talk, call = streaming()
    envelope, _ = response_frames(call.id, Kind.REPLY, ANSWER)
    assert talk.feed([envelope, body]) is call
    assert failure(call).code == code
    assert talk.give_up(call) is not None


def test_a_chunk_of_what_does_not_stream_is_an_error() -> None:
    talk = Conversation()
    call, _ = talk.ask("model.ps", m.Empty())
    talk.feed(response_frames(call.id, Kind.CHUNK, DELTA))
    assert failure(call).code == "malformed"


def test_another_version_is_told_by_name() -> None:
    talk, call = streaming()
    talk.feed([encode(Response(2, call.id, Kind.REPLY)), b"\x80"])
    assert failure(call).code == "unsupported_version"


def test_a_message_that_is_none_ends_every_call() -> None:
    talk = Conversation()
    calls = [talk.ask("model.ps", m.Empty())[0] for _ in range(3)]
    assert talk.feed([b"nonsense"]) is None
    assert [failure(call).code for call in calls] == ["malformed"] * 3
    assert talk.calls() == []


def test_a_daemon_that_ignores_its_window_does_not_fill_the_memory() -> None:
    talk, call = streaming()
    for _ in range(INBOX_MAX + 50):
        talk.feed(response_frames(call.id, Kind.CHUNK, DELTA))
    items = []
    while item := call.take():
        items.append(item)
    assert len(items) == INBOX_MAX + 1
    assert items[-1].kind is Kind.ERROR


def test_what_is_said_about_unknown_calls_is_dropped() -> None:
    talk, call = streaming()
    assert talk.feed(response_frames(call.id + 100, Kind.REPLY, ANSWER)) is None
    assert call.take() is None


def test_a_prompt_that_cannot_be_sent_is_refused_here() -> None:
    talk = Conversation()
    with pytest.raises(H2qError) as large:
        talk.ask("infer.text", m.Infer(prompt="x" * (5 << 20)))
    with pytest.raises(H2qError) as surrogate:
        talk.ask("infer.text", m.Infer(prompt="\udcff"))
    assert (large.value.code, surrogate.value.code) == ("too_large", "invalid_request")
    assert talk.calls() == []


@given(st.lists(st.binary(max_size=64), max_size=3), st.sampled_from(list(Kind)), st.binary(max_size=64))
def test_no_bytes_make_a_conversation_raise(frames: list[bytes], kind: Kind, body: bytes) -> None:
    talk, call = streaming()
    talk.feed([response_frames(call.id, kind, DELTA)[0], body])
    talk.feed(frames)
    while call.take():
        pass
    assert call.ended == (talk.calls() == [])


def test_an_unknown_code_of_a_newer_daemon_stays_what_it_is() -> None:
    error = H2qError.of(m.ErrorReply("brand_new", "cannot", "do this", ["1 of 2"], True, 250, "r9"))
    assert (error.code, error.exit_status, error.retryable, error.retry_after_ms) == ("brand_new", 1, True, 250)
    assert (error.because, error.request, str(error)) == (("1 of 2",), "r9", "brand_new: cannot")
