"""A conversation as tokens: what the template writes may hold control tokens, what people wrote may not.

Where a message spells out a control token, a mark is put inside the word before the template runs, and the rendered
text is cut there before it is tokenized, so no piece holds the word. Called by `engine`.
"""

from h2qd.wire.workers import Turn
from h2qd.worker.engine import EngineError
from h2qd.worker.llama.template import ChatTemplate
from h2qd.worker.torch.vocabulary import Vocabulary

_MARK = "\ufdd0"
"""A noncharacter: no text has a use for it."""

_ROUNDS_MAX = 8
"""Words of control tokens can overlap, so that breaking one leaves another."""


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
        words = [word for word in vocabulary.controls if word in text]
        if not words:
            return text
        for word in words:
            text = text.replace(word, word[0] + _MARK + word[1:])
    raise EngineError("invalid_messages", "cannot use a message: it spells out control tokens of the model")
