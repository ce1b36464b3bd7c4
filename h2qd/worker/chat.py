"""A conversation as tokens: what the template writes may hold control tokens, what people wrote may not.

Where a message spells out a control token ("<end_of_turn>"), a mark is put inside the word before the template runs,
and the rendered text is cut there before it is tokenized, so no piece holds the word. Messages without such words, so
nearly all, are tokenized in one piece with the rest, as the model was taught. Called by `prompt`; knows no engine.
"""

from collections.abc import Collection
from typing import Protocol

from h2qd.wire.workers import Turn
from h2qd.worker.engine import EngineError
from h2qd.worker.template import ChatTemplate

_MARK = "\ufdd0"
"""A noncharacter: no text has a use for it."""

_ROUNDS_MAX = 8
"""Words of control tokens can overlap, so that breaking one leaves another."""


class Vocabulary(Protocol):
    """What is asked of a model's tokens."""

    bos: int | None
    adds_bos: bool

    @property
    def bos_name(self) -> str:
        """How the token of a text's beginning is written; may be empty."""
        ...

    @property
    def eos_name(self) -> str:
        """How the token of a text's end is written; may be empty."""
        ...

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`, with none added. `special`: control tokens written out in it count as such."""
        ...

    def control_words(self, text: str) -> Collection[str]:
        """The control tokens that are spelled out in `text`, none of them empty."""
        ...


def chat_tokens(turns: list[Turn], template: ChatTemplate, vocabulary: Vocabulary) -> list[int]:
    """The tokens of the prompt. Raises `EngineError` (invalid_messages, no_chat_template)."""
    harmless = [Turn(turn.role, _without_controls(turn.content, vocabulary)) for turn in turns]
    text = template.render(harmless, bos=vocabulary.bos_name, eos=vocabulary.eos_name)
    tokens = [token for piece in text.split(_MARK) for token in vocabulary.tokenize(piece, special=True)]
    if vocabulary.adds_bos and vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
        tokens.insert(0, vocabulary.bos)
    return tokens


def _without_controls(text: str, vocabulary: Vocabulary) -> str:
    text = text.replace(_MARK, "")
    for _ in range(_ROUNDS_MAX):
        words = {word for piece in text.split(_MARK) for word in vocabulary.control_words(piece)}
        if not words:
            return text
        for word in sorted(words, key=lambda word: (-len(word), word)):
            text = text.replace(word, word[0] + _MARK + word[1:])
    raise EngineError("invalid_messages", "cannot use a message: it spells out control tokens of the model")
