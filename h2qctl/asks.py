"""Request bodies from what a caller wrote: the conversions that both clients and all verbs share.

An option that is absent or None stays off the wire, so that the daemon's default holds. Values are checked
by the daemon, which is the only judge; here only the forms that Python offers are brought to the wire's form.
"""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from os.path import abspath
from typing import Any, Literal, TypedDict

from msgspec import structs

from h2qctl.tools import definitions, turn
from h2qd.wire import messages as m

Turn = Mapping[str, Any] | m.ChatMessage
"""A message: itself, or a mapping with `role` and `content`, and what else `tools.turn` takes."""

ToolLike = Mapping[str, Any] | m.Tool

Adapters = Mapping[str, float] | Sequence[m.AdapterUse]
"""Adapters by name, each with its scale."""


class Decoding(TypedDict, total=False):
    """How an answer is made; see `h2qd.wire.messages.Decoding` for meanings and ranges."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    logit_bias: Mapping[int | str, float] | None
    grammar: str | None
    json_schema: str | None
    priority: m.Priority | None
    overflow: m.Overflow | None
    speculate: bool | None


class Options(Decoding, total=False):
    """What infer and chat take beside the text; see `h2qd.wire.messages.Generation` for meanings and ranges."""

    window: int | None
    session: str | None
    logprobs: int | None
    adapters: Adapters | None


class ChatOptions(Options, total=False):
    """What chat takes besides; see `h2qd.wire.messages.Chat`. A tool may be a mapping, also as OpenAI writes it."""

    tools: Sequence[ToolLike] | None
    tool_choice: str | None
    think: m.Think | None


def import_file(path: str | PathLike[str], name: str | None) -> m.Import:
    """The body that registers the file at `path`; a relative path counts from this process's folder."""
    return m.Import(abspath(fspath(path)), name)  # noqa: PTH100  # pathlib would cost each start 6 ms


def infer(prompt: str, model: str | None, options: Options, *, stream: bool) -> m.Infer:
    """The body that continues `prompt`. Raises TypeError on an option that does not exist."""
    return m.Infer(prompt=prompt, model=model, stream=stream, **_fields(options))


def chat(messages: Sequence[Turn], model: str | None, options: ChatOptions, *, stream: bool) -> m.Chat:
    """The body that answers `messages`. Raises ValueError for what is no tool, or no image."""
    return m.Chat(messages=list(map(turn, messages)), model=model, stream=stream, **_fields(options))


def swarm(
    asked: str | Sequence[Turn],
    models: Sequence[str],
    method: m.Method | None,
    judge: str | None,
    embedder: str | None,
    deadline_s: float | None,
    options: Decoding,
) -> m.Swarm:
    """The body that asks `models` a prompt, or a conversation. A judge or an embedder says which method is meant."""
    prompt, messages = (asked, None) if isinstance(asked, str) else (None, list(map(turn, asked)))
    return m.Swarm(
        models=list(models),
        prompt=prompt,
        messages=messages,
        deadline_ms=None if deadline_s is None else max(1, round(deadline_s * 1000)),
        method=method or ("judge" if judge is not None else "medoid" if embedder is not None else "majority"),
        judge=judge,
        embedder=embedder,
        **_fields(options),
    )


def embed(
    texts: str | Sequence[str],
    model: str | None,
    normalize: bool,
    overflow: Literal["refuse", "truncate"] | None,
    priority: m.Priority | None,
    adapters: Adapters | None,
) -> m.Embed:
    """The body that turns texts into vectors; one text may stand alone."""
    several = [texts] if isinstance(texts, str) else list(texts)
    how = m.Embed(texts=several, model=model, normalize=normalize, adapters=_uses(adapters or ()))
    return structs.replace(how, overflow=overflow or how.overflow, priority=priority or how.priority)


def score(
    text: str,
    model: str | None,
    context: str,
    window: int | None,
    logprobs: bool,
    priority: m.Priority | None,
    adapters: Adapters | None,
) -> m.Score:
    """The body that asks how likely `text` is."""
    how = m.Score(text=text, context=context, model=model, window=window, logprobs=logprobs)
    return structs.replace(how, priority=priority or how.priority, adapters=_uses(adapters or ()))


def _uses(adapters: Adapters) -> list[m.AdapterUse]:
    if isinstance(adapters, Mapping):
        return [m.AdapterUse(name, scale) for name, scale in adapters.items()]
    return list(adapters)


def _fields(options: Decoding) -> dict[str, Any]:
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "stop" in fields:
        fields["stop"] = [fields["stop"]] if isinstance(fields["stop"], str) else list(fields["stop"])
    if "logit_bias" in fields:
        fields["logit_bias"] = {str(token): bias for token, bias in fields["logit_bias"].items()}
    if "adapters" in fields:
        fields["adapters"] = _uses(fields["adapters"])
    if "tools" in fields:
        fields["tools"] = definitions(fields["tools"])
    return fields
