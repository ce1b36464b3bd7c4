"""What native code would hang or die of is refused before; what people use is not."""

import json
import re
from typing import Any

import pytest
from llama_cpp import llama_grammar

from h2qd.wire.workers import Sampler
from h2qd.worker.engine import EngineError
from h2qd.worker.gbnf import GrammarError
from h2qd.worker.llama.grammar import checked, grammar_text
from h2qd.worker.llama.schema import schema_to_gbnf


@pytest.mark.parametrize("name", ["ARITHMETIC", "C", "CHESS", "JAPANESE", "JSON", "JSON_ARR", "LIST"])
def test_the_grammars_of_the_library_are_taken(name: str) -> None:
    assert checked(getattr(llama_grammar, f"{name}_GBNF")).startswith(b"root ::= ")


@pytest.mark.parametrize(
    "text",
    [
        "root ::= root",
        'root ::= root "a" | "b"',
        'root ::= a "x"\na ::= b\nb ::= root',
        'root ::= empty root "b"\nempty ::= also\nalso ::= ""',  # the library sees no left recursion here
        'root ::= ("a"?)*',
        'root ::= ("a"*)+',
    ],
)
def test_left_recursion_is_refused(text: str) -> None:
    with pytest.raises(GrammarError, match="left recursion"):
        checked(text)


def test_right_recursion_is_not() -> None:
    assert checked('root ::= "a" root | tail\ntail ::= "b" root?')


def test_rules_that_fan_out_are_refused() -> None:
    levels = 40
    rules = [f'r{n} ::= r{n + 1} "a" | r{n + 1} "b"' for n in range(levels)]
    with pytest.raises(GrammarError, match="ways to begin"):
        checked("\n".join(["root ::= r0", *rules, f'r{levels} ::= "c"']))


def test_a_long_way_to_the_first_character_is_refused() -> None:
    rules = [f"r{n} ::= r{n + 1}" for n in range(1500)]
    with pytest.raises(GrammarError, match="deep"):
        checked("\n".join(["root ::= r0", *rules, 'r1500 ::= "c"']))


def test_optional_repetitions_are_taken_up_to_a_thousand() -> None:
    assert checked('root ::= [ab]{0,1000} "c"')


def test_a_request_says_one_of_both_or_nothing() -> None:
    assert grammar_text(Sampler()) is None
    assert grammar_text(Sampler(grammar='root ::= "a"')) == b"root ::= [a]"
    with pytest.raises(EngineError) as caught:
        grammar_text(Sampler(grammar='root ::= "a"', json_schema="{}"))
    assert caught.value.code == "invalid_grammar"


@pytest.mark.parametrize("sampler", [Sampler(grammar="root ::= x"), Sampler(json_schema="[]")])
def test_a_fault_is_an_engine_error(sampler: Sampler) -> None:
    with pytest.raises(EngineError) as caught:
        grammar_text(sampler)
    assert caught.value.code == "invalid_grammar"


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "friend": {"anyOf": [{"type": "null"}, {"$ref": "#/properties/name"}]},
        "born": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": ["string", "null"]}, {"const": "é"}, PERSON])
def test_a_schema_becomes_a_grammar(schema: dict[str, Any]) -> None:
    assert checked(schema_to_gbnf(json.dumps(schema))).startswith(b"root ::= ")


def nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + '{"type":"null"}' + "}}" * depth


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot read the JSON schema"),
        ("[" * 100_000, "cannot read the JSON schema"),
        ("[]", "it is not an object"),
        ('{"type": "nonsense"}', "Unrecognized schema"),
        ('{"items": 7}', "cannot use the JSON schema"),
        ('{"$ref": "https://example.org/schema.json"}', "remote schemas is not allowed"),
        ('{"$ref": "file:///etc/passwd"}', "Unsupported ref"),
        ('{"$ref": 7}', "cannot use the JSON schema"),
        ('{"$ref": "#/nowhere"}', "Error resolving ref"),
        ('{"type": "array", "items": {}, "minItems": 1000000000}', "over 1000 times"),
        ('{"type": "string", "maxLength": 1000000000}', "over 1000 times"),
        ('{"type": "string", "pattern": "^(a{1000000000})$"}', "over 1000 times"),
        ('{"type": "string", "pattern": "^' + "a" * 300 + '$"}', "a pattern is over"),
        (json.dumps({"anyOf": [{"type": "string", "maxLength": 1000}] * 11}), "over 10000 times in all"),
        (json.dumps({"properties": {f"k{n}": {} for n in range(200)}}), "over 128 keys"),
        (json.dumps({"properties": {"k" * 65: {}}}), "over 64 characters"),
        (json.dumps({"enum": list(range(5000))}), "over 4096 parts"),
        (nested(20), "over 32 deep"),
    ],
)
def test_a_schema_that_asks_for_too_much_is_refused(text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)):
        schema_to_gbnf(text)
