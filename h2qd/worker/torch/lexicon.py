"""A tokenizer's tokens as bytes, and a text's tokens: what llguidance asks of a vocabulary.

From the JSON of a tokenizer, the library would make a copy of it for itself, which takes twice what this takes and
several times as much meanwhile. Known here are the two ways in which nearly all models write their tokens: each byte
as a letter (byte-level), or text with a mark for a space, and bytes by their numbers. Called by `grammar`.
Invariant: a call from the library raises nothing, for that would end the process.
"""

import json
import re
from typing import Any

from h2qd.worker.torch.libraries import Tokenizer

_BEFORE = "\x02"
"""Some tokenizers put a space in front of a text, so texts are read after this, which hardly a token begins with."""

_CONTROL = b"\xff"
"""What the library knows control tokens by: no text has this byte."""

_PLAIN = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
_TAG = re.compile("<.*>", re.DOTALL)
"""Of added tokens, these count as control tokens too, as the library has it."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def open_lexicon(tokenizer: Tokenizer, size: int, end: int) -> "Lexicon | None":
    """Of the `size` tokens that a model knows, of which `end` ends a text; None where they are written otherwise."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {str(step.get("type")) for step in steps}
    letters = _letters() if kinds == {"ByteLevel"} else None
    marks = {made_space for step in steps if (made_space := _mark(step))}
    if letters is None and (not kinds <= _PLAIN or len(marks) != 1):
        return None
    mark = next(iter(marks), "")
    added = tokenizer.get_added_tokens_decoder()
    controls = {
        number for number, one in added.items() if number < size and (one.special or _TAG.fullmatch(one.content))
    }
    tokens = []
    for number in range(size):
        text = tokenizer.id_to_token(number) or ""
        if number in controls:
            tokens.append(_CONTROL + text.encode())
        elif letters is not None:
            tokens.append(bytes(letters[letter] for letter in text) if letters.keys() >= set(text) else text.encode())
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(text)):
            tokens.append(bytes.fromhex(byte[1]))
        else:
            tokens.append(text.replace(mark, " ").encode())
    lexicon = Lexicon(tokenizer, tokens, sorted(controls), end)
    return lexicon if lexicon.reads else None


class Lexicon:
    """With the attributes that the library takes from it."""

    unk_token_id = bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], controls: list[int], end: int) -> None:
        self.tokens = tokens
        self.special_token_ids = controls
        self.eos_token_id = end
        self._size = len(tokens)
        self._tokenizer = tokenizer
        self._bytes = {token[0]: number for number, token in enumerate(tokens) if len(token) == 1}
        self._before = self._ids("")

    def __call__(self, text: str) -> list[int]:
        """The tokens that `text` is usually written with, or where these would read otherwise, its bytes."""
        ids = self._ids(text)
        if ids[: len(self._before)] == self._before and self._read(ids) == _BEFORE + text:
            return ids[len(self._before) :]
        return [self._bytes[byte] for byte in text.encode() if byte in self._bytes]

    @property
    def reads(self) -> bool:
        """Whether it knows what texts are read after."""
        return self._read(self._before) == _BEFORE

    def _ids(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        ids: list[int] = self._tokenizer.encode(_BEFORE + text, add_special_tokens=False).ids
        return ids if max(ids, default=0) < self._size else []

    def _read(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _letters() -> dict[str, int]:
    """The byte that each letter stands for in byte-level tokens: itself if it can be seen, else one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


def _mark(step: dict[str, Any]) -> str:
    """What a step of decoding makes a space of; empty if none is made."""
    if step.get("type") == "Metaspace":
        return str(step.get("replacement") or "")
    pattern = step.get("pattern")
    return str(pattern.get("String") or "") if isinstance(pattern, dict) and step.get("content") == " " else ""
