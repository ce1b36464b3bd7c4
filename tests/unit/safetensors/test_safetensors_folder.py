"""A folder: which files make a model, which are refused, and what tells two states of it apart."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from h2qd.safetensors.document import DEPTH_MAX
from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.facts import facts
from h2qd.safetensors.folder import ENTRIES_MAX, read_folder
from h2qd.safetensors.identity import identity_of
from h2qd.safetensors.sentences import read_sentences
from h2qd.wire.messages import ModelFacts
from tests.unit.safetensors.forge import LLAMA, TENSORS, folder, split, weights

FIRST, *REST = TENSORS


def known(path: Path) -> ModelFacts:
    return facts(read_folder(path))


def refusal(path: Path) -> str:
    with pytest.raises(SafetensorsError) as caught:
        known(path)
    told = str(caught.value)
    assert told.startswith("cannot ")
    assert told.isprintable()
    return told


def with_config(path: Path, **changed: Any) -> Path:
    return folder(path, {key: value for key, value in {**LLAMA, **changed}.items() if value is not ...})


# --- what is told ---------------------------------------------------------------------------------------


def test_the_facts_of_a_model_that_generates(tmp_path: Path) -> None:
    assert known(folder(tmp_path)) == ModelFacts(
        format="safetensors",
        architecture="llama",
        quantization="F32",
        parameters=336,
        file_bytes=len(weights(TENSORS)),
        tensor_bytes=1344,
        context_length=128,
        layers=2,
        embedding=8,
        feed_forward=16,
        vocabulary=10,
        heads=[4],
        kv_heads=[2],
        key_length=2,
        value_length=2,
    )


def test_an_encoder_caches_nothing_and_does_not_count_what_it_does_not_use(tmp_path: Path) -> None:
    config = {**LLAMA, "model_type": "bert"}
    folder(tmp_path, config, {**TENSORS, "pooler.dense.weight": ("F32", [8, 8])})
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    found = known(tmp_path)
    assert (found.kv_heads, found.context_length, found.parameters) == ([0], 32, 336)
    assert read_sentences(read_folder(tmp_path)).lower


def test_positions_that_no_token_has_do_not_count(tmp_path: Path) -> None:
    assert known(with_config(tmp_path, model_type="roberta")).context_length == 126
    assert "no token would have a position" in refusal(
        with_config(tmp_path, model_type="roberta", max_position_embeddings=2)
    )


def test_what_most_weights_are_made_of_is_its_type(tmp_path: Path) -> None:
    folder(tmp_path, tensors={**TENSORS, "x": ("BF16", [1000, 8])})
    assert known(tmp_path).quantization == "BF16"


def test_a_chat_template_in_either_place(tmp_path: Path) -> None:
    folder(tmp_path)
    assert not known(tmp_path).chat_template
    (tmp_path / "chat_template.jinja").write_text("x")
    assert known(tmp_path).chat_template
    (tmp_path / "chat_template.jinja").unlink()
    said = {"chat_template": [{"name": "default", "template": "x"}], "model_max_length": 10**30}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert known(tmp_path).chat_template


def test_weights_in_several_files(tmp_path: Path) -> None:
    folder(tmp_path)
    split(tmp_path, b=[FIRST], a=REST)
    found = read_folder(tmp_path)
    assert [part.name for part in found.parts] == ["a.safetensors", "b.safetensors"]
    assert {tensor.name for tensor in found.tensors} == set(TENSORS)
    assert "a.safetensors" in found.files


# --- pooling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling(tmp_path: Path, said: dict[str, Any], pooling: str) -> None:
    folder(tmp_path)
    assert read_sentences(read_folder(tmp_path)).pooling == "last"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(said))
    assert read_sentences(read_folder(tmp_path)).pooling == pooling


@pytest.mark.parametrize("said", [{"pooling_mode_max_tokens": True}, {}, {"pooling_mode": ["cls", "mean"]}])
def test_other_poolings_are_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    folder(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(said))
    assert "cannot pool by" in refusal(tmp_path)


def test_further_modules_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    known(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    assert "type Dense" in refusal(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    assert "cannot read modules.json" in refusal(tmp_path)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
        ({"model_type": "mamba"}, "of type mamba"),
        ({"model_type": ...}, "of type unknown"),
        ({"model_type": 7}, "must be a text"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"is_encoder_decoder": 1}, "true or false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 4}, "from 1 to 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "whole number"),
        ({"num_hidden_layers": ...}, "whole number"),
        ({"hidden_size": 2**21}, "hidden_size"),
        ({"num_key_value_heads": 5}, "from 1 to 4"),
        ({"vocab_size": 17}, "no tensor holds 17 x 8"),
        ({"rope_theta": 1e300}, "beyond"),
        ({"anything": [[[2**60]]]}, "beyond"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    assert why in refusal(with_config(tmp_path, **changed))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "cannot read config.json"),
        (b"[1]", "no JSON object"),
        (b'{"a": \xff}', "cannot read config.json"),
        (b'{"a":' + b"[" * (DEPTH_MAX + 1) + b"1" + b"]" * (DEPTH_MAX + 1) + b"}", "nested deeper"),
        (b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", "cannot "),
        (b'{"a": [' + b"1," * 100_001 + b"1]}", "over 100000 values"),
        (b" " * (2**20 + 1), "at most 1048576"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: bytes, why: str) -> None:
    folder(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    assert why in refusal(tmp_path)


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_lacks_is_named(tmp_path: Path, lacking: str) -> None:
    folder(tmp_path)
    (tmp_path / lacking).unlink()
    assert lacking in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt", "x.pkl"])
def test_pickles_are_refused_by_name_and_never_read(tmp_path: Path, name: str) -> None:
    folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / name)  # to read it would wait for ever
    told = refusal(tmp_path)
    assert name in told
    assert "can run code" in told


def test_pickles_beside_safetensors_are_no_part_of_the_model(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin" not in read_folder(tmp_path).files


def test_code_that_a_tokenizer_brings_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    assert "tokenizer_config.json names code of its own" in refusal(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 5}')
    assert "cannot read tokenizer_config.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", ".safetensors"])
def test_an_index_may_only_name_files_of_the_folder(tmp_path: Path, name: str) -> None:
    folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {FIRST: name}}))
    assert "which is no .safetensors file" in refusal(tmp_path)


def test_an_index_must_be_true(tmp_path: Path) -> None:
    folder(tmp_path)
    split(tmp_path, a=[FIRST], b=REST)
    index = tmp_path / "model.safetensors.index.json"
    wrong = {"weight_map": {FIRST: "b.safetensors", REST[0]: "a.safetensors"}}
    index.write_text(json.dumps(wrong))
    assert "says it is" in refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": {f"t{n}": f"f{n}.safetensors" for n in range(1025)}}))
    assert "in 1025 files" in refusal(tmp_path)
    index.write_text('{"weight_map": []}')
    assert "cannot read model.safetensors.index.json" in refusal(tmp_path)
    split_again = {"weight_map": {FIRST: "a.safetensors", REST[0]: "b.safetensors"}}
    index.write_text(json.dumps(split_again))
    (tmp_path / "b.safetensors").write_bytes(weights(TENSORS))
    assert "both a.safetensors and b.safetensors have it" in refusal(tmp_path)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder(tmp_path)
    split(tmp_path, a=[FIRST], b=REST)
    whole = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[:-1])
    assert "(in b.safetensors)" in refusal(tmp_path)


def test_types_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, tensors={**TENSORS, "x": ("F8_E4M3", [4])})
    assert "tensor x of F8_E4M3" in refusal(tmp_path)
    folder(tmp_path, tensors={})
    assert "without tensors" in refusal(tmp_path)
    folder(tmp_path, {**LLAMA, "num_hidden_layers": 1}, {"x": ("I64", [100])})
    assert "without weights" in refusal(tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    assert "not a regular file" in refusal(tmp_path)


def test_a_crowded_folder_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    for number in range(ENTRIES_MAX):
        (tmp_path / str(number)).touch()
    assert f"over {ENTRIES_MAX} entries" in refusal(tmp_path)


# --- identity -------------------------------------------------------------------------------------------


def test_a_folder_is_another_when_any_of_its_files_is(tmp_path: Path) -> None:
    folder(tmp_path)
    seen = [identity_of(str(tmp_path))]
    assert identity_of(str(tmp_path)) == seen[0]
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    seen.append(identity_of(str(tmp_path)))
    (tmp_path / "generation_config.json").write_text("{}")
    seen.append(identity_of(str(tmp_path)))
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(LLAMA) + " ")
    seen.append(identity_of(str(tmp_path)))
    assert len({tuple(one) for one in seen}) == len(seen)
    assert all(0 <= number < 2**63 for one in seen for number in one)


def test_what_is_no_part_of_the_model_changes_nothing(tmp_path: Path) -> None:
    folder(tmp_path)
    before = identity_of(str(tmp_path))
    (tmp_path / "README.md").write_text("x")
    assert identity_of(str(tmp_path)) == before


def test_a_file_has_the_identity_that_a_file_has(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    found = path.stat()
    assert identity_of(str(path)) == [found.st_dev, found.st_ino, 1, found.st_mtime_ns]
    with pytest.raises(FileNotFoundError):
        identity_of(str(tmp_path / "absent"))
