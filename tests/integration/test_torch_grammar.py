"""Answers of a model folder that are bound by a grammar or a JSON schema: whatever a random model likes, it fits."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from h2qd.worker.engine import Beat, EngineError

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from h2qd.wire.workers import Generate, Generated, GenerationFailed, LoadModel, Sampler
from h2qd.worker.torch.engine import TorchEngine
from tests import folders
from tests.torch_steps import run, text_of

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEngine]:
    engine = TorchEngine(Beat())
    path = folders.tiny(tmp_path_factory.mktemp("tiny"))
    engine.load(LoadModel("torch", str(path), 1024, threads=1, slots=2), lambda _: None)
    yield engine
    engine.close()


def order(request: int = 1, *, seed: int = 0, **fields: Any) -> Generate:
    names = ("grammar", "json_schema")
    sampler = {name: fields.pop(name) for name in names if name in fields}
    drawn = Sampler(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, **sampler)
    return Generate(**{"request": request, "max_tokens": 300, "sampler": drawn, "prompt": "Say: ", **fields})


def finish_of(messages: list[Any]) -> str:
    assert isinstance(messages[-1], Generated)
    return messages[-1].finish


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_fits_the_schema(engine: TorchEngine, seed: int) -> None:
    messages = run(engine, order(seed=seed, json_schema=json.dumps(PERSON)))[1]
    assert finish_of(messages) == "stop"
    said = json.loads(text_of(messages))
    assert set(said) == {"name", "age", "tags"}
    assert len(said["name"]) <= 5
    assert 0 <= said["age"] <= 150
    assert set(said["tags"]) <= {"a", "é"}


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= ("a" | "b"){3,5} [0-9]+ "é/\\"\\\\" end\nend ::= "." | ""', r'[ab]{3,5}[0-9]+é/"\\\.?'),
        ('root ::= [^a-zA-Z\\x00-\\x1F]{2} "]" "-"', r"[^a-zA-Z\x00-\x1f]{2}\]-"),
        ('root ::= ( root "x" )? "y"', "yx?(yx?)*|y(xy)*"),
        ('root ::= .{4} "日"', r"(?s:.{4})日"),
    ],
)
def test_what_is_said_fits_the_grammar(engine: TorchEngine, grammar: str, fits: str) -> None:
    for seed in range(2):
        messages = run(engine, order(seed=seed, grammar=grammar))[1]
        assert finish_of(messages) == "stop"
        assert re.fullmatch(fits, text_of(messages)), text_of(messages)


def test_each_request_has_a_grammar_of_its_own(engine: TorchEngine) -> None:
    heard = run(engine, order(1, grammar='root ::= "a"{40}'), order(2, grammar='root ::= "b"{20}'))
    assert {request: text_of(messages) for request, messages in heard.items()} == {1: "a" * 40, 2: "b" * 20}
    free = run(engine, order(1, max_tokens=20, ignore_eos=True), order(2, grammar='root ::= "b"{20}'))
    assert text_of(free[2]) == "b" * 20
    assert set(text_of(free[1])) - {"a", "b"}


def test_at_the_end_of_a_grammar_nothing_follows_even_without_an_end(engine: TorchEngine) -> None:
    messages = run(engine, order(grammar='root ::= "done"', ignore_eos=True))[1]
    assert (text_of(messages), finish_of(messages)) == ("done", "stop")


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root ::= x"},
        {"grammar": 'root ::= "a"{5,3}'},
        {"grammar": 'root ::= "a"', "json_schema": "{}"},
        {"json_schema": "[]"},
        {"json_schema": '{"type": "nonsense"}'},
        {"json_schema": '{"$ref": "http://127.0.0.1:9/x"}'},
        {"json_schema": '{"type": "string", "pattern": "(?=a)b"}'},
        {"json_schema": '{"type": "string", "minLength": 1000000}'},
        {"json_schema": '{"items":' * 500 + "{}" + "}" * 500},
        {"json_schema": '{"enum": []}'},
    ],
)
def test_what_cannot_be_used_is_refused(engine: TorchEngine, fields: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        engine.submit(order(**fields))
    assert caught.value.code == "invalid_grammar"
    assert caught.value.message.startswith("cannot")
    assert not engine.busy


def test_a_grammar_of_endless_ambiguity_ends_the_request_at_most(engine: TorchEngine) -> None:
    rules = 'root ::= s\ns ::= s s | "a" | "a" s "a" | s s s'
    last = run(engine, order(grammar=rules, max_tokens=60, ignore_eos=True))[1][-1]
    assert isinstance(last, Generated) or (isinstance(last, GenerationFailed) and last.code == "invalid_grammar")
