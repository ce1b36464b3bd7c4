"""What a request for text begins with, as tokens: its prompt, or its conversation through the model's template.

Whether it fits the context is for the engines to say, in the words of `too_long`. Called by them; knows none.
Invariant: there is at least one token.
"""

from collections.abc import Callable

from h2qd.wire.workers import Generate
from h2qd.worker.chat import Vocabulary, chat_tokens
from h2qd.worker.engine import EngineError
from h2qd.worker.template import ChatTemplate

CHARS_PER_TOKEN_MAX = 256
"""No text is made of longer tokens than this; longer texts than fit are refused without tokenizing them."""


def prompt_tokens(
    order: Generate, vocabulary: Vocabulary, template: Callable[[], ChatTemplate], *, room: int | None
) -> list[int]:
    """The tokens. A text that is far too long for `room` tokens is not even read; None: there is no limit.

    Raises `EngineError`: invalid_request, context_overflow, no_chat_template, invalid_messages.
    """
    if (order.prompt is None) == (order.turns is None):
        raise EngineError("invalid_request", "cannot generate: give a prompt or a conversation, one of both")
    texts = [order.prompt or "", *(turn.content for turn in order.turns or ())]
    size = sum(map(len, texts))
    if room is not None and size > room * CHARS_PER_TOKEN_MAX:
        raise too_long(f"{size} characters", room)
    if order.turns is not None:
        tokens = chat_tokens(order.turns, template(), vocabulary)
    else:
        tokens = vocabulary.tokenize(order.prompt or "", special=False)
        if vocabulary.bos is not None and (vocabulary.adds_bos or not tokens):
            tokens.insert(0, vocabulary.bos)
    if not tokens:
        raise EngineError("invalid_request", "cannot continue an empty prompt: this model has no beginning token")
    return tokens


def too_long(has: str, room: int) -> EngineError:
    """The refusal of a prompt that has so much, by a context of `room` tokens."""
    return EngineError(
        "context_overflow",
        f"cannot fit the prompt: it has {has}, the context holds {room} and needs room for an answer",
    )
