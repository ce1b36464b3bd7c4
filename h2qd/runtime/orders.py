"""What a client asked of a model, as the order that a worker understands: one function a command.

Defaults are filled in here (the seed is drawn), names become a user's own (sessions), and what contradicts itself is
refused. Pure but for the seed. Called by `commands`; the answers are put together in `results`.
"""

import secrets
from collections.abc import Sequence

import msgspec

from h2qd.core.records import Fault
from h2qd.runtime import conversation
from h2qd.runtime.refusal import Refusal
from h2qd.wire import messages as m
from h2qd.wire.workers import (
    DetokenizeTokens,
    EmbedTexts,
    Generate,
    Sampler,
    ScoreText,
    Task,
    TokenizeText,
    Tool,
    Turn,
)

PRIORITIES: dict[m.Priority, int] = {"low": 0, "normal": 1, "high": 2}


def session_key(uid: int, name: str) -> str:
    """What workers and files call a user's session."""
    return f"{uid}-{name}"


def infer(request: int, uid: int, ask: m.Infer) -> Task:
    """Continue a prompt. Raises `Refusal`."""
    return _generate(request, uid, ask, prompt=ask.prompt)


def chat(request: int, uid: int, ask: m.Chat) -> Task:
    """Answer a conversation. Raises `Refusal`."""
    conversation.check_tools(ask)
    turns = conversation.turns(ask.messages)
    if ask.session is not None and any(turn.images for turn in turns):
        raise Refusal(Fault("unsupported", "cannot keep images in a session: leave out the session, or the images"))
    return msgspec.structs.replace(
        _generate(request, uid, ask, turns=turns),
        tools=[Tool(tool.name, tool.description, tool.parameters) for tool in ask.tools],
        tool_choice=ask.tool_choice,
        think=ask.think,
    )


def _generate(
    request: int, uid: int, ask: m.Generation, *, prompt: str | None = None, turns: list[Turn] | None = None
) -> Generate:
    return Generate(
        request=request,
        max_tokens=ask.max_tokens,
        sampler=_sampler(ask),
        prompt=prompt,
        turns=turns,
        stop=ask.stop,
        ignore_eos=ask.ignore_eos,
        session=session_key(uid, ask.session) if ask.session is not None else "",
        overflow=ask.overflow,
        logprobs=ask.logprobs,
        speculate=ask.speculate,
        adapters=_adapters(ask.adapters),
        priority=PRIORITIES[ask.priority],
    )


def _adapters(uses: Sequence[m.AdapterUse]) -> dict[str, float]:
    """The scale of each adapter by its name. Raises `Refusal`."""
    names = {use.name for use in uses}
    if len(names) < len(uses):
        raise Refusal(Fault("invalid_request", "cannot use an adapter twice at a time"))
    return {use.name: use.scale for use in uses}


def embed(request: int, ask: m.Embed) -> Task:
    """Turn texts into vectors. Raises `Refusal`."""
    truncate = ask.overflow == "truncate"
    adapters = _adapters(ask.adapters)
    return EmbedTexts(request, ask.texts, ask.normalize, truncate, PRIORITIES[ask.priority], adapters)


def score(request: int, ask: m.Score) -> Task:
    """Tell how likely a text is. Raises `Refusal`."""
    if ask.context and ask.window is not None:
        raise Refusal(Fault("invalid_request", "cannot score windows after a context: give one of both"))
    adapters = _adapters(ask.adapters)
    return ScoreText(request, ask.text, ask.context, ask.window, ask.logprobs, PRIORITIES[ask.priority], adapters)


def tokenize(request: int, ask: m.Tokenize) -> Task:
    """Cut a text into tokens."""
    return TokenizeText(request, ask.text, ask.special, ask.pieces)


def detokenize(request: int, ask: m.Detokenize) -> Task:
    """Put tokens together."""
    return DetokenizeTokens(request, ask.tokens)


def _sampler(ask: m.Sampling) -> Sampler:
    """The sampling fields for a worker: the seed drawn, biases keyed by token."""
    if ask.grammar is not None and ask.json_schema is not None:
        raise Refusal(Fault("invalid_request", "cannot use a grammar and a json_schema at a time"))
    return Sampler(
        temperature=ask.temperature,
        top_k=ask.top_k,
        top_p=ask.top_p,
        min_p=ask.min_p,
        repeat_penalty=ask.repeat_penalty,
        repeat_last_n=ask.repeat_last_n,
        seed=secrets.randbelow(2**32 - 1) if ask.seed is None else ask.seed,
        logit_bias={int(token): bias for token, bias in ask.logit_bias.items()},
        grammar=ask.grammar,
        json_schema=ask.json_schema,
    )
