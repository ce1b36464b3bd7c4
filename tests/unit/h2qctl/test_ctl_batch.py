import contextlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from h2qctl import asks
from h2qctl.batch import jobs, patience
from h2qctl.batch.board import Board
from h2qctl.batch.jobs import LINE_BYTES_MAX, BadLineError
from h2qctl.batch.journal import Journal, past
from h2qctl.batch.source import Source
from h2qctl.errors import H2qError
from h2qctl.output import Output
from h2qd.wire import messages as m

ANSWER = m.Answer("r1", "a", "text", "stop", m.Usage(1, 2), m.Timings(0, 0, 0, 0, 0, 0), 1)


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def fault(data: bytes) -> BadLineError:
    with pytest.raises(BadLineError) as error:
        jobs.parse(data)
    return error.value


# --- one line ------------------------------------------------------------------------------------------


def test_a_line_becomes_what_the_client_takes() -> None:
    job = jobs.parse(line(id="x", model="a", prompt="p", max_tokens=3, stop="END", json_schema={"type": "object"}))
    assert job == jobs.Job(
        "x", "infer", "p", {"max_tokens": 3, "stop": ["END"], "json_schema": '{"type":"object"}', "priority": "low"}
    )
    turns = [{"role": "user", "content": "hi"}]
    assert jobs.parse(line(messages=turns, session="s", priority="high", op="chat")) == jobs.Job(
        None, "chat", turns, {"session": "s", "priority": "high"}
    )
    assert jobs.parse(line(texts=["a"], normalize=False, kind="embed")) == jobs.Job(
        None, "embed", ["a"], {"normalize": False, "priority": "low"}
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "JSON"), (b"[]", "object"), (b'{"prompt":"p"', "JSON"), (b'{"prompt":"\xff"}', ""), (b"[" * 9000, ""),
        (line(id="x"), "needs one of"), (line(prompt="p", messages=[]), "has 2 of them"),
        (line(prompt="p", temprature=1), "temprature"), (line(prompt="p", temperature="hot"), "temperature"),
        (line(prompt="p", temperature=11), "temperature"), (line(prompt=5), "prompt"), (line(texts=[]), "texts"),
        (line(messages=[{"role": "user"}]), "content"), (line(prompt="p", op="embed"), "'embed'"),
        (line(prompt="p", stream=True), "stream"), (line(prompt="p", id=5), "id"),
        (line(prompt="p", id="x" * 257), "id"), (line(prompt="p", session="../x"), "session"),
        (line(prompt="p", model=""), "model"),
        (b"x" * (LINE_BYTES_MAX + 1), "more than"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_done_is_told_why(data: bytes, said: str) -> None:
    assert said in fault(data).message
    assert fault(data).code in ("invalid_request", "too_large")


def test_a_bad_line_keeps_its_name_where_it_has_one() -> None:
    assert fault(line(id="x", prompt="p", wrong=1)).id == "x"
    assert fault(b"{").id is None


KEYS = [
    "prompt", "messages", "texts", "id", "op", "stop", "body", "url", "custom_id", "method", "seed", "model",
    "tools", "think", "tool_choice", "reasoning_effort", "tool_calls", "function", "content", "image_url", "type",
]  # fmt: skip
WORDS = ["p", "/v1/completions", "/v1/chat/completions", "POST", "infer", "text", "image_url"]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_line_raises_anything_else(data: bytes) -> None:
    with contextlib.suppress(BadLineError):
        assert jobs.parse(data).call in ("infer", "chat", "embed")


def theirs(url: str, **body: Any) -> bytes:
    return line(custom_id="c", method="POST", url=url, body=body)


def test_lines_of_openai_are_taken() -> None:
    turns = [{"role": "user", "content": "hi"}]
    job = jobs.parse(
        theirs("/v1/chat/completions", model="a", messages=turns, max_completion_tokens=5, stream=False, n=1,
               user="u", logprobs=True, top_logprobs=2, response_format={"type": "json_object"})
    )  # fmt: skip
    assert (job.id, job.call, job.subject) == ("c", "chat", turns)
    assert job.options == {"max_tokens": 5, "logprobs": 2, "json_schema": '{"type":"object"}', "priority": "low"}
    assert jobs.parse(theirs("/v1/completions", prompt="p", logprobs=3)).options["logprobs"] == 3
    assert jobs.parse(theirs("/v1/embeddings", input="one")).subject == ["one"]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}
    options = jobs.parse(theirs("/v1/chat/completions", messages=turns, response_format=schema)).options
    assert options["json_schema"] == '{"type":"array"}'


def test_lines_beyond_text() -> None:
    bare = {"name": "rain", "description": "", "parameters": {"type": "object"}}
    call = {"id": "a", "name": "rain", "arguments": "{}"}
    turns = [
        {"role": "user", "content": "see", "images": ["iVBORw0KGgo="]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    ours = jobs.parse(line(messages=turns, tools=[bare], tool_choice="rain", think=False))
    function = {"id": "a", "type": "function", "function": {"name": "rain", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    said = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [function]},
    ]
    tool = {"type": "function", "function": bare}
    choice = {"type": "function", "function": {"name": "rain"}}
    body = {"messages": said, "tools": [tool], "tool_choice": choice, "reasoning_effort": "none"}
    openais = jobs.parse(theirs("/v1/chat/completions", **body))
    assert (ours.subject, ours.options) == (openais.subject, openais.options)
    asked = asks.chat(ours.subject, "a", ours.options, stream=False)  # type: ignore[arg-type]
    assert asked.messages[0].images == [b"\x89PNG\r\n\x1a\n"]
    assert asked.messages[1].tool_calls == [m.PastCall("a", "rain", "{}")]
    assert (asked.tools, asked.tool_choice, asked.think) == ([m.Tool("rain", "", '{"type":"object"}')], "rain", False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (theirs("/v1/images", prompt="p"), "/v1/images"), (theirs("/v1/completions", prompt="p", n=2), "`n`"),
        (theirs("/v1/completions", prompt="p", stream=True), "`stream`"),
        (line(url="/v1/completions", body=5), "body"),
        (theirs("/v1/chat/completions", messages=[], parallel_tool_calls=True), "`parallel_tool_calls`"),
        (theirs("/v1/chat/completions", messages=[], reasoning_effort="huge"), "`reasoning_effort`"),
        (theirs("/v1/chat/completions", messages=[], tools=[{"type": "web_search"}]), "tool 1"),
        (theirs("/v1/chat/completions", messages=[{"role": "user", "content": [{"type": "audio"}]}]), "neither"),
        (
            theirs(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}],
            ),
            "no data URL",
        ),
        (
            theirs("/v1/chat/completions", messages=[{"role": "assistant", "content": "", "tool_calls": [5]}]),
            "tool_calls",
        ),
        (line(url=[], body={}), "POST"),
        (theirs("/v1/chat/completions", messages=[], response_format={"type": "xml"}), "response_format"),
        (line(custom_id="c", url="/v1/completions", body={"prompt": "p"}, priority="high"), "priority"),
    ],
)  # fmt: skip
def test_what_openai_means_and_we_cannot_do_is_refused(data: bytes, said: str) -> None:
    assert said.replace("/v1/images", "must POST") in fault(data).message


# --- the input -----------------------------------------------------------------------------------------


@contextmanager
def source(folder: Path, data: bytes, model: str | None = None) -> Iterator[Source]:
    (folder / "in").write_bytes(data)
    with Source(str(folder / "in"), model) as found:
        yield found


def test_lines_run_by_model_the_active_one_first(tmp_path: Path) -> None:
    named = [line(model=name, prompt="p") for name in ("c", "a", "b", "a")]
    data = b"\n".join([*named, b"", line(prompt="p"), b"{", theirs("/v1/completions", model="b", prompt="p")])
    with source(tmp_path, data) as found:
        assert (found.last, found.lines, list(found.numbers())) == (8, 7, [1, 2, 3, 4, 6, 7, 8])
        groups = found.groups(found.numbers(), "a", ["b", "a"])
        assert [(group.model, list(group.lines)) for group in groups] == [
            (None, [7]), ("a", [2, 4, 6]), ("b", [3, 8]), ("c", [1]),
        ]  # fmt: skip
        assert [group.model for group in found.groups([1, 2], None, ["a"])] == ["a", "c"]
        with pytest.raises(H2qError, match="line 6") as error:
            found.groups(found.numbers(), None, [])
        assert error.value.code == "no_active_model"
    with source(tmp_path, data, "c") as found:
        assert [list(group.lines) for group in found.groups([1, 6], "a", [])] == [[1, 6]]


def test_long_lines_are_known_by_all_of_them_and_cost_nothing(tmp_path: Path) -> None:
    long = line(prompt="x" * (3 << 20))
    longest = b'{"prompt":"' + b"x" * (LINE_BYTES_MAX + 5) + b'"}'
    other = longest[:-3] + b'y"}'
    with source(tmp_path, b"\n".join([long, longest, line(prompt="p"), other])) as found:
        assert found.read(1) == long
        assert jobs.parse(found.read(3)).subject == "p"
        assert found.digest(2) != found.digest(4)
        assert fault(found.read(2)).code == "too_large"
        assert [list(group.lines) for group in found.groups(found.numbers(), "a", [])] == [[2, 4], [1, 3]]


def test_an_input_that_changes_is_noticed(tmp_path: Path) -> None:
    with source(tmp_path, line(prompt="one") + b"\n" + line(prompt="two")) as found:
        (tmp_path / "in").write_bytes(line(prompt="six") + b"\n" + line(prompt="two"))
        assert jobs.parse(found.read(2)).subject == "two"
        with pytest.raises(H2qError, match="line 1"):
            found.read(1)


@pytest.mark.parametrize("name", ["none", "folder", "nul\0", "/dev/null"])
def test_an_input_is_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(H2qError) as error:
        Source(str(tmp_path / name))
    assert error.value.code == "invalid_request"


# --- the output ----------------------------------------------------------------------------------------

THREE = b"\n".join(line(prompt=word) for word in ("one", "two", "three"))


def written(folder: Path, found: Source) -> Path:
    """An output in which line 2 failed, 1 was answered, and 3 is open."""
    path = folder / "out"
    with Journal(str(path), found) as journal:
        journal.failed(2, None, m.ErrorReply("queue_full", "cannot"))
        journal.answered(1, "x", ANSWER)
        journal.sync()
    return path


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    with source(tmp_path, THREE) as found:
        path = written(tmp_path, found)
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        assert [(row["line"], row["id"], row["ok"], row["input"]) for row in rows] == [
            (2, None, False, found.digest(2)), (1, "x", True, found.digest(1)),
        ]  # fmt: skip
        assert (rows[0]["error"]["code"], rows[1]["answer"]["text"]) == ("queue_full", "text")
        held = past(str(path), found)
        assert (held.ok, held.failed, [held.done(n) for n in (1, 2, 3)]) == (1, 1, [True, True, False])
        assert past(str(tmp_path / "none"), found).ok == 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(min_value=1, max_value=10_000))
def test_wherever_the_last_line_is_torn_it_is_cut_off(tmp_path: Path, cut: int) -> None:
    with source(tmp_path, THREE) as found:
        (tmp_path / "out").unlink(missing_ok=True)
        path = written(tmp_path, found)
        whole = path.read_bytes()
        first = whole.index(b"\n") + 1
        end = first + cut % (len(whole) - first)
        path.write_bytes(whole[:end])
        with Journal(str(path), found) as journal:
            assert (journal.past.done(2), journal.past.done(1)) == (True, False)
            journal.answered(1, "x", ANSWER)
        assert path.read_bytes() == whole


def test_failed_lines_are_taken_out_when_they_are_run_again(tmp_path: Path) -> None:
    with source(tmp_path, THREE) as found:
        path = written(tmp_path, found)
        with path.open("ab") as file:
            file.write(b'{"line":3,"in')
        with Journal(str(path), found, anew=True) as journal:
            assert (journal.past.done(1), journal.past.done(2), journal.past.done(3)) == (True, False, False)
            journal.answered(2, None, ANSWER)
        assert [json.loads(row)["line"] for row in path.read_text().splitlines()] == [1, 2]
        assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    "data",
    [b"notes\n", b"notes", b"{}", b"{}\n", b'{"line":9,"input":"","ok":true}\n', b'{"line":0,"input":"","ok":true}\n',
     b'{"line":1,"input":"0000000000000000","ok":true}\n', b"\0" * 40 + b"\n"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    with source(tmp_path, THREE) as found:
        (tmp_path / "out").write_bytes(data)
        for look in (past, Journal):
            with pytest.raises(H2qError, match="cannot go on with"):
                look(str(tmp_path / "out"), found)
        assert (tmp_path / "out").read_bytes() == data


def test_an_output_of_another_input_is_refused(tmp_path: Path) -> None:
    with source(tmp_path, THREE) as found:
        path = written(tmp_path, found)
        twice = path.read_bytes() * 2
    with source(tmp_path, THREE.replace(b"two", b"2")) as other, pytest.raises(H2qError, match="another line 2"):
        Journal(str(path), other)
    with source(tmp_path, THREE + b"\n" + line(prompt="four")) as longer:
        assert past(str(path), longer).ok == 1
        path.write_bytes(twice)
        with pytest.raises(H2qError, match="twice"):
            past(str(path), longer)


def test_an_output_has_one_writer_and_is_a_file(tmp_path: Path) -> None:
    with source(tmp_path, THREE) as found:
        with Journal(str(tmp_path / "out"), found), pytest.raises(H2qError) as error:
            Journal(str(tmp_path / "out"), found)
        assert error.value.code == "in_use"
        for path in ("/dev/null", str(tmp_path), str(tmp_path / "no" / "out")):
            with pytest.raises(H2qError, match="cannot go on with"):
                Journal(path, found)


# --- patience ------------------------------------------------------------------------------------------


def test_waits_double_and_are_never_shorter_than_asked_for() -> None:
    plain = H2qError("queue_full", "cannot")
    assert [patience.wait_s(attempt, plain) for attempt in (1, 2, 3, 10, 1000)] == [0.5, 1, 2, 30, 30]
    asked = H2qError.of(m.ErrorReply("memory_pressure", "cannot", retryable=True, retry_after_ms=10_000))
    assert patience.wait_s(1, asked) == 10
    hostile = H2qError.of(m.ErrorReply("memory_pressure", "cannot", retryable=True, retry_after_ms=10**15))
    assert patience.wait_s(1, hostile) == 300


# --- the board -----------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("model", ["a", "m" * 200])
def test_a_live_line_never_wraps_and_its_bar_takes_what_room_is_left(model: str) -> None:
    screen = Screen()
    board = Board(Output(json=False, wide=False, stdout=Screen(), stderr=screen), 10_000_000, 9_999_998)
    board.line(0, ok=False)
    board.line(0, ok=True)
    board.model(model)
    shown = screen.getvalue().split("\r\x1b[K")[-1]
    assert "10000000/10000000  1 failed  " in shown
    assert len(shown) <= 79
    assert shown.startswith("[##") == (model == "a")


def test_a_board_is_silent_where_json_is_wanted() -> None:
    screen = Screen()
    board = Board(Output(json=True, wide=False, stdout=Screen(), stderr=screen), 1, 0)
    board.model("a")
    board.line(1, ok=True)
    board.close()
    assert screen.getvalue() == ""
