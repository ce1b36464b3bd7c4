"""The catalogue, the registry of codes and the shapes keep the rules that PROTOCOL.md promises."""

import re
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from msgspec import inspect as types

from h2qd.wire import document, limits
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE, Access, Command
from h2qd.wire.codes import CLIENT_ONLY, CODES, Code
from h2qd.wire.frames import Request, Response

COMMANDS = [pytest.param(command, id=op) for op, command in CATALOGUE.items()]
ASKED = document.request_shapes()
SAID = document.reply_shapes()


def parts(kind: types.Type) -> Iterator[types.Type]:
    """A type and all it is made of."""
    yield kind
    match kind:
        case types.StructType():
            for field in kind.fields:
                yield from parts(field.type)
        case types.ListType():
            yield from parts(kind.item_type)
        case types.DictType():
            yield from parts(kind.key_type)
            yield from parts(kind.value_type)
        case types.UnionType():
            for each in kind.types:
                yield from parts(each)


def parts_of(shape: type[msgspec.Struct]) -> Iterator[types.Type]:
    return parts(types.type_info(shape))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_an_operation_a_summary_and_a_bound(command: Command) -> None:
    assert CATALOGUE[command.op] is command
    assert re.fullmatch(r"[a-z]+\.[a-z]+", command.op)
    assert command.summary == command.summary.strip(".")
    assert command.bytes_max <= limits.FRAME_BYTES_MAX
    prompts = {"prompt", "messages", "text", "texts", "tokens"} & {
        field.name for field in document.fields_of(command.request)
    }
    assert command.bytes_max == (limits.PROMPT_BYTES_MAX if prompts else limits.CONTROL_BYTES_MAX)


def test_only_credit_is_never_answered_and_only_streams_have_chunks() -> None:
    assert [op for op, command in CATALOGUE.items() if command.reply is None] == ["stream.credit"]
    assert {op for op, command in CATALOGUE.items() if command.chunk} == {"infer.text", "infer.chat", "events.watch"}


def test_commands_that_change_what_is_resident_or_registered_need_admin() -> None:
    admin = {op for op, command in CATALOGUE.items() if command.access is Access.ADMIN}
    residency = {"model.load", "model.unload", "model.switch", "model.pin", "model.unpin"}
    assert admin == {"model.import", "model.pull", "model.remove", *residency}
    assert Access.READ < Access.USE < Access.ADMIN


@pytest.mark.parametrize("shape", [*ASKED, *SAID], ids=lambda shape: shape.__name__)
def test_every_field_is_typed(shape: type[msgspec.Struct]) -> None:
    for kind in parts_of(shape):
        assert not isinstance(kind, types.AnyType | types.RawType | types.ExtType)
        if isinstance(kind, types.DictType):
            assert isinstance(kind.key_type, types.StrType)
    assert shape.__doc__
    assert shape.__struct_config__.frozen


@pytest.mark.parametrize("shape", [*ASKED, Request], ids=lambda shape: shape.__name__)
def test_requests_refuse_unknown_fields(shape: type[msgspec.Struct]) -> None:
    assert shape.__struct_config__.forbid_unknown_fields
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"no_such_field": 1}), type=shape)


@pytest.mark.parametrize("shape", [*SAID, Response], ids=lambda shape: shape.__name__)
def test_replies_ignore_unknown_fields(shape: type[msgspec.Struct]) -> None:
    assert not shape.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("shape", [*ASKED, Request], ids=lambda shape: shape.__name__)
def test_all_that_a_client_sends_is_bounded(shape: type[msgspec.Struct]) -> None:
    if shape is Request:
        kinds = [kind for field in document.fields_of(Request) if field.name != "v" for kind in parts(field.type)]
    else:
        kinds = list(parts_of(shape))
    for kind in kinds:
        match kind:
            case types.IntType():
                assert kind.ge is not None
                assert kind.ge >= -limits.ID_MAX
                assert kind.le is not None
                assert kind.le <= limits.ID_MAX
            case types.FloatType():  # bounds on both sides refuse NaN and infinities too
                assert (kind.ge, kind.gt) != (None, None)
                assert (kind.le, kind.lt) != (None, None)
            case types.StrType():
                assert kind.max_length is not None or kind.pattern is not None
            case types.ListType() | types.DictType():
                assert kind.max_length is not None


def test_patterns_hold_the_whole_text() -> None:
    patterns = {kind.pattern for shape in ASKED for kind in parts_of(shape) if isinstance(kind, types.StrType)} - {
        None
    }
    assert patterns
    for pattern in patterns:
        assert pattern is not None
        assert pattern.startswith("^")
        assert pattern.endswith(r"\Z")  # `$` would let a newline through


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
def test_a_code_says_what_it_means_and_what_to_do(code: Code) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code.name)
    assert CODES[code.name] is code
    assert code.meaning
    assert code.hint
    assert not code.meaning.endswith(".")
    assert code.exit_status in {1, 2, 3, 4, 5, 69, 75, 77, 124, 130}


def test_busy_means_try_again() -> None:
    assert [code.name for code in CODES.values() if code.exit_status == 75 and not code.retryable] == []
    assert [code.name for code in CODES.values() if code.exit_status in {2, 3, 4, 5, 77} and code.retryable] == []
    assert set(CODES) >= CLIENT_ONLY


def test_limits_fit_into_each_other() -> None:
    assert (
        limits.CONTROL_BYTES_MAX <= limits.PROMPT_BYTES_MAX <= limits.FRAME_BYTES_MAX < limits.WORKER_FRAME_BYTES_MAX
    )
    assert 1 <= limits.CHUNK_WINDOW_DEFAULT <= limits.CHUNK_WINDOW_MAX
    longest = Request(limits.PROTOCOL_VERSION, limits.ID_MAX, max(CATALOGUE, key=len), limits.DEADLINE_MS_MAX)
    assert len(msgspec.msgpack.encode(longest)) < limits.ENVELOPE_BYTES_MAX


def test_a_configuration_value_of_any_kind_can_be_read_back() -> None:
    values: tuple[m.Scalar | Sequence[str | int], ...] = ("text", 3, 0.5, True, None, ["a", 1], [])
    for value in values:
        row = m.ConfigValue(key="k", value=value, source="default")
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=m.ConfigValue) == row
