"""What a worker made of an order, as the reply that a client gets: one function a kind of result.

Derived figures (rates, perplexity, times with the queue in them) are computed here. Reads the call and changes
nothing of it but what it says in the log. Called by `perform`; the orders are put together in `orders`.
"""

import math
import time
from collections.abc import Sequence
from typing import assert_never

from h2qd.runtime.calls import Call
from h2qd.wire import messages as m
from h2qd.wire.names import shown
from h2qd.wire.workers import (
    ChosenToken,
    Detokenized,
    Embedded,
    Generate,
    Generated,
    LikelyToken,
    Result,
    Scored,
    Task,
    Tokenized,
)

_EXPONENT_MAX = 700.0
"""Of the perplexity, which stays a finite number."""


def reply(call: Call, order: Task, result: Result) -> m.Say:
    """The last word to a call; its figures go to the log."""
    model = call.model or ""
    match result:
        case Generated():
            call.notes.update(
                finish=result.finish,
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
                cached_tokens=result.cached_tokens,
            )
            return _answer(call, order, result)
        case Embedded():
            call.notes.update(texts=len(result.vectors), prompt_tokens=result.prompt_tokens)
            return _embeddings(call, result)
        case Scored():
            call.notes.update(tokens=result.tokens)
            return _scored(call, result)
        case Tokenized(tokens=tokens, pieces=pieces):
            return m.Tokens(model, tokens, pieces)
        case Detokenized(text=text):
            return m.Detokenized(model, text)
        case _:
            assert_never(result)


def logprobs(chosen: Sequence[ChosenToken]) -> list[m.TokenLogprob]:
    """As clients see them."""
    return [m.TokenLogprob(one.token, one.text, one.logprob, _alternatives(one.top)) for one in chosen]


def _alternatives(likeliest: Sequence[LikelyToken]) -> list[m.Alternative]:
    return [m.Alternative(one.token, one.text, one.logprob) for one in likeliest]


def _answer(call: Call, order: Task, result: Generated) -> m.Answer:
    """The end of a text. The decode rate leaves out the first token, which prefill pays for."""
    rest = call.text.take() if call.text is not None else None
    queue_ms = _queue_ms(call)
    decoded = max(0, result.completion_tokens - 1)
    return m.Answer(
        request=call.name,
        model=call.model or "",
        text=rest.text if rest is not None else "",
        finish=shown(result.finish, 32),
        usage=m.Usage(
            result.prompt_tokens,
            result.completion_tokens,
            result.cached_tokens,
            result.truncated_tokens,
            result.drafted_tokens,
            result.accepted_tokens,
        ),
        timings=m.Timings(
            queue_ms=round(queue_ms, 2),
            prefill_ms=round(result.prefill_ms, 2),
            first_token_ms=round(queue_ms + result.first_token_ms, 2),
            decode_ms=round(result.decode_ms, 2),
            total_ms=_total_ms(call),
            tokens_per_s=round(decoded * 1000 / result.decode_ms, 2) if result.decode_ms > 0 else 0.0,
        ),
        seed=order.sampler.seed if isinstance(order, Generate) else 0,
        logprobs=rest.logprobs if rest is not None else [],
        instead_of=call.asked if call.asked != call.model else "",
        thinking=rest.thinking if rest is not None else "",
        tool_calls=[m.ToolCall(one.id, one.name, one.arguments) for one in result.tool_calls],
    )


def _embeddings(call: Call, result: Embedded) -> m.Embeddings:
    return m.Embeddings(
        request=call.name,
        model=call.model or "",
        pooling=shown(result.pooling, 32),
        dimensions=len(result.vectors[0]) if result.vectors else 0,
        vectors=result.vectors,
        prompt_tokens=result.prompt_tokens,
        truncated_tokens=result.truncated_tokens,
        queue_ms=round(_queue_ms(call), 2),
        compute_ms=round(result.compute_ms, 2),
        total_ms=_total_ms(call),
    )


def _scored(call: Call, result: Scored) -> m.Scored:
    """With the standard error of the perplexity, from that of the mean of the tokens' log-probabilities."""
    count = max(1, result.tokens)
    mean = -result.logprob / count
    perplexity = math.exp(min(_EXPONENT_MAX, mean))
    variance = max(0.0, result.squares / count - mean * mean)
    return m.Scored(
        request=call.name,
        model=call.model or "",
        tokens=result.tokens,
        logprob=result.logprob,
        perplexity=perplexity,
        stderr=perplexity * math.sqrt(variance / max(1, count - 1)),
        windows=result.windows,
        logprobs=logprobs(result.logprobs),
        queue_ms=round(_queue_ms(call), 2),
        compute_ms=round(result.compute_ms, 2),
        total_ms=_total_ms(call),
    )


def _queue_ms(call: Call) -> float:
    return (call.granted - call.arrived) * 1000


def _total_ms(call: Call) -> float:
    return round((time.monotonic() - call.arrived) * 1000, 2)
