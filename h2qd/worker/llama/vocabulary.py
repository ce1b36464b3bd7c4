"""A model's tokens: text to tokens, a token to its bytes, and the few tokens that mean something.

No state of a request is here. Called by all that deal with texts.
"""

import ctypes
from collections.abc import Sequence
from functools import cached_property

from llama_cpp import llama_cpp as native

_SPECIAL = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_UNKNOWN
_PIECE_BYTES = 128
_SHOWN_CHARS_MAX = 4096  # as in `wire.workers.Piece`

_COMPARED_TOKENS_MAX = 4096

TOKENS_PER_BYTE_MAX = 16
"""A vocabulary that makes more of a text is broken."""


class Vocabulary:
    """Of a loaded native model, which must outlive it."""

    def __init__(self, model: int) -> None:
        self.native = native.llama_model_get_vocab(model)
        self.size: int = native.llama_vocab_n_tokens(self.native)
        bos = native.llama_vocab_bos(self.native)
        self.bos: int | None = bos if bos >= 0 else None
        self.adds_bos = self.bos is not None and bool(native.llama_vocab_get_add_bos(self.native))
        self._buffer = ctypes.create_string_buffer(_PIECE_BYTES)

    def tokenize(self, text: str, *, special: bool, framed: bool = False) -> list[int]:
        """The tokens of `text`. `special`: control tokens written out in it count as such.

        `framed`: with those that the model wants around a text; none otherwise.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 2  # tokens are seldom shorter than a byte; some models put a space in front
        tokens = (ctypes.c_int32 * room)()
        count = native.llama_tokenize(self.native, data, len(data), tokens, room, framed, special)
        if -room * TOKENS_PER_BYTE_MAX <= count < 0:  # a vocabulary that lacks bytes may write them in several tokens
            room = -count
            tokens = (ctypes.c_int32 * room)()
            count = native.llama_tokenize(self.native, data, len(data), tokens, room, framed, special)
        if count < 0:
            raise ValueError(f"{-count} tokens of {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """The bytes that `token` stands for in a text: nothing for control tokens, part of a character at times."""
        length = native.llama_token_to_piece(self.native, token, self._buffer, len(self._buffer), 0, False)
        if length < 0:
            self._buffer = ctypes.create_string_buffer(-length)
            length = native.llama_token_to_piece(self.native, token, self._buffer, len(self._buffer), 0, False)
        return self._buffer.raw[:length]

    def shown(self, token: int) -> str:
        """What `token` reads like alone, control tokens by their names; bytes that are no characters as U+FFFD."""
        room = len(self._buffer)
        length = native.llama_token_to_piece(self.native, token, self._buffer, room, 0, True)
        if length < 0:
            self._buffer = ctypes.create_string_buffer(-length)
            length = native.llama_token_to_piece(self.native, token, self._buffer, -length, 0, True)
        return self._buffer.raw[:length].decode("utf-8", "replace")[:_SHOWN_CHARS_MAX]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, of which each is in the vocabulary; control tokens by their names."""
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        room = 8 * len(tokens) + _PIECE_BYTES
        text = ctypes.create_string_buffer(room)
        length = native.llama_detokenize(self.native, given, len(tokens), text, room, False, True)
        if length < 0:
            room = -length
            text = ctypes.create_string_buffer(room)
            length = native.llama_detokenize(self.native, given, len(tokens), text, room, False, True)
        return text.raw[: max(0, length)].decode("utf-8", "replace")

    def name(self, token: int) -> str:
        """How a control token is written, for example "<eos>"; empty when there is none of this number."""
        if token < 0:
            return ""
        text: bytes = native.llama_vocab_get_text(self.native, token)
        return text.decode("utf-8", "replace")

    @property
    def bos_name(self) -> str:
        """How the token of a text's beginning is written; may be empty."""
        return self.name(native.llama_vocab_bos(self.native))

    @property
    def eos_name(self) -> str:
        """How the token of a text's end is written; may be empty."""
        return self.name(native.llama_vocab_eos(self.native))

    def control_words(self, text: str) -> set[str]:
        """The control tokens that are spelled out in `text`."""
        words = {self.name(token) for token in self.tokenize(text, special=True) if self.is_special(token)}
        return {word for word in words if word and word in text}  # an unknown character is such a token, but no word

    def is_end(self, token: int) -> bool:
        """Whether generation ends at `token`."""
        return bool(native.llama_vocab_is_eog(self.native, token))

    @cached_property
    def ends(self) -> list[int]:
        """All tokens at which generation ends. Asks for each token of the vocabulary once: 0.1 s for 262,144."""
        is_end = native.llama_vocab_is_eog
        return [token for token in range(self.size) if is_end(self.native, token)]

    def differs(self, other: "Vocabulary") -> str:
        """What tells it from `other`, in words; empty: nothing, as far as some tokens of all parts of it say."""
        if self.size != other.size:
            return f"it has {self.size} tokens, the other {other.size}"
        if native.llama_vocab_type(self.native) != native.llama_vocab_type(other.native):
            return "they are of different kinds"
        for token in range(0, self.size, -(-self.size // _COMPARED_TOKENS_MAX)):
            if self.name(token) != other.name(token):
                return f"token {token} is another one"
        return ""

    def is_special(self, token: int) -> bool:
        """Whether `token` comes of text only when that is tokenized with `special`."""
        return token < self.size and bool(native.llama_vocab_get_attr(self.native, token) & _SPECIAL)
