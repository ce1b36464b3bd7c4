"""Tokens as bytes, of tokenizers made here: llguidance makes of them what it makes of the tokenizer itself."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")
pytest.importorskip("torch")

import llguidance
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from h2qd.worker.torch.lexicon import open_lexicon

ROOT = Path(__file__).parents[2]
TEXTS = [path.read_text("utf-8") for path in (ROOT / "README.md", ROOT / "CHANGELOG.md")] + [
    "naïve 日本 — ünï € "
] * 9
CONTROLS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = ["<think>", "   ", "▁▁▁▁▁▁", "é", "é\n"]
END = 2
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "kind": {"enum": ["alpha beta", "gamma"]},
            "n": {"type": "integer"},
        },
        "required": ["name", "kind", "n"],
        "additionalProperties": False,
    }
)


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE(fuse_unk=False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return trained(made, pre_tokenizers.ByteLevel.alphabet())


def marked(normalizer: Any, pre_tokenizer: Any, *steps: Any) -> Tokenizer:
    """Spaces are written as a mark, and what no token has as bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token=CONTROLS[0]))
    made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.Sequence(list(steps))
    return trained(made, [], BYTES)


def trained(made: Tokenizer, alphabet: list[str], numbered: list[str] | None = None) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[*CONTROLS, *(numbered or [])],
        initial_alphabet=alphabet,
        max_token_length=16,
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return Tokenizer.from_str(without(made.to_str(), numbered or []))


def without(text: str, numbered: list[str]) -> str:
    """Bytes are tokens like any other, no control tokens."""
    said = json.loads(text)
    said["added_tokens"] = [one for one in said["added_tokens"] if one["content"] not in numbered]
    return json.dumps(said)


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
REPLACE, FALLBACK, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(byte_level, id="byte-level"),
        pytest.param(
            lambda: marked(PREPEND, None, REPLACE, FALLBACK, FUSE, decoders.Strip(" ", 1, 0)), id="prepended"
        ),
        pytest.param(lambda: marked(normalizers.Replace(" ", "▁"), None, REPLACE, FALLBACK, FUSE), id="replaced"),
    ],
)
def test_it_is_what_the_library_reads_from_the_tokenizer_itself(tokenizer: Any) -> None:
    made = tokenizer()
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    size = made.get_vocab_size()
    lexicon = open_lexicon(made, size, END)
    assert lexicon is not None
    spelled = lexicon.tokens
    ours = llguidance.LLTokenizer(llguidance.TokenizerWrapper(lexicon), n_vocab=size, eos_token=[END], slices=[])
    theirs = llguidance.LLTokenizer(made.to_str(), n_vocab=size, eos_token=[END], slices=[])
    assert [ours.decode_bytes([token]) for token in range(size)] == [
        theirs.decode_bytes([token]) for token in range(size)
    ]
    draw = random.Random(1)
    for text in TEXTS * 30:
        start = draw.randrange(len(text))
        piece = text[start : start + draw.randint(1, 30)]
        found = ours.tokenize_str(piece)
        assert b"".join(spelled[token] for token in found) == piece.encode()
        if not any(added in piece for added in ADDED):
            assert found == theirs.tokenize_str(piece)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA)
    one, other = (llguidance.LLMatcher(each, grammar, log_level=0) for each in (ours, theirs))
    for _ in range(200):
        mask = one.compute_bitmask()
        assert mask == other.compute_bitmask()
        allowed = [token for token in range(size) if mask[token // 8] >> token % 8 & 1]
        if allowed == [END]:
            return
        token = draw.choice([token for token in allowed if token != END])
        assert one.consume_token(token)
        assert other.consume_token(token)
    pytest.fail("it comes to no end")


def test_marks_and_bytes_are_read_as_what_they_stand_for() -> None:
    space = decoders.Metaspace(prepend_scheme="first", split=False)
    made = marked(normalizers.Sequence([]), METASPACE, FALLBACK, space)
    lexicon = open_lexicon(made, made.get_vocab_size() + 2, END)
    assert lexicon is not None
    vocabulary = made.get_vocab()
    assert [text for text in vocabulary if "▁" in text]
    for text, token in vocabulary.items():
        if text not in (*CONTROLS, *BYTES):
            assert lexicon.tokens[token] == text.replace("▁", " ").encode()
    assert lexicon.tokens[vocabulary["<0x0A>"]] == b"\n"
    assert lexicon.tokens[END] == b"\xff</s>"
    assert lexicon.tokens[-2:] == [b"", b""]  # models may know more tokens than their tokenizers
    text = "the model"
    assert b"".join(lexicon.tokens[token] for token in lexicon(text)) == text.encode()
    assert open_lexicon(made, 10, END) is None, "it knows few bytes"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Sequence([FUSE]), None])
def test_other_ways_to_write_tokens_are_left_to_the_library(decoder: Any) -> None:
    made = byte_level()
    if decoder is None:
        made = Tokenizer(made.model)
    else:
        made.decoder = decoder
    assert open_lexicon(made, made.get_vocab_size(), END) is None
