"""OpenAI's API, as its own server, llama.cpp, vLLM and many others speak it: what is asked, what an answer means.

`temperature`, `top_p`, `seed`, `stop`, `max_tokens`, `logit_bias`, log-probabilities and a JSON schema are the API's.
`top_k`, `min_p`, `repeat_penalty`, `repeat_last_n` and `ignore_eos` are not: they are sent, under the names that
llama.cpp and vLLM know, only where they differ from their default, and a server that refuses them says so. A field of
the API that a server refuses (some models take no temperature) is left out from then on, if it was at its default.
How much a model thinks is `reasoning_effort`: none for not at all, medium where it is only said that it does. Token
numbers are not told by these servers, so they are 0.
"""

import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from h2qd.wire.limits import TEXTS_MAX
from h2qd.wire.names import shown
from h2qd.wire.workers import (
    DIMENSIONS_MAX,
    REMOTE_MODELS_MAX,
    ChosenToken,
    Embedded,
    EmbedTexts,
    Generate,
    Generated,
    HeldElsewhere,
    Listed,
    Loaded,
    LoadModel,
    RemoteModel,
    Sampler,
    Task,
)
from h2qd.worker.engine import EngineError
from h2qd.worker.remote import turns
from h2qd.worker.remote.dialect import check_vectors, schema, text_only
from h2qd.worker.remote.errors import RemoteError, broken_off, error_text, failed_midway, nonsense
from h2qd.worker.remote.pieces import ended, pieces
from h2qd.worker.remote.reply import Reply, chosen, likely
from h2qd.worker.remote.server import Server, decoded
from h2qd.worker.remote.sse import Events
from h2qd.worker.remote.transport import Answer

_NAME_CHARS_MAX = 256
_DEFAULT = Sampler()
_DISPENSABLE = ("temperature", "top_p", "seed", "stream_options")
_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]


# --- the shapes of answers; what is not named here is passed over ---------------------------------------------------


class _Likely(msgspec.Struct):
    token: str
    logprob: float


class _Chosen(_Likely):
    top_logprobs: list[_Likely] | None = None


class _Logprobs(msgspec.Struct):
    """`content` is of chats, and of llama.cpp's completions; the others are of completions."""

    content: list[_Chosen] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    """A piece of a call."""

    index: _Count | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    """`reasoning_content` is DeepSeek's and llama.cpp's, `reasoning` vLLM's and OpenRouter's."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # vLLM: the string that was stopped at
    logprobs: _Logprobs | None = None


class _Cached(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Cached | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Meta(msgspec.Struct):
    """llama.cpp's."""

    n_ctx_train: _Count | None = None
    n_params: _Count | None = None
    size: _Count | None = None


class _Model(msgspec.Struct):
    """`max_model_len` is vLLM's, `context_length` OpenRouter's."""

    id: str
    max_model_len: _Count | None = None
    context_length: _Count | None = None
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Vector(msgspec.Struct):
    embedding: Annotated[list[float], Meta(max_length=DIMENSIONS_MAX)]
    index: _Count = 0


class _Vectors(msgspec.Struct):
    data: Annotated[list[_Vector], Meta(max_length=TEXTS_MAX)]
    usage: _Usage | None = None


class _End(NamedTuple):
    """What the last parts of a stream told."""

    finish: str = ""
    usage: _Usage | None = None
    done: bool = False


class OpenAI:
    """One model at one endpoint; it holds nothing of this device."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._model = ""
        self._left_out: set[str] = set()
        self._length_field = "max_tokens"

    async def load(self, order: LoadModel) -> Loaded:
        """Look whether the endpoint lives and has the model. One that offers a single model answers to any name."""
        start_s = time.monotonic()
        self._model = order.path
        try:
            models = (await self.list_models()).models
        except RemoteError as error:
            if error.status not in (404, 405):
                raise
            models = []  # it lives, and lists nothing
        named = next((model for model in models if model.name == order.path), None)
        if named is None and len(models) > 1:
            raise EngineError("remote_failed", f"the server has no model {shown(order.path)!r} for this key")
        length = named.context_length if named is not None else 0
        ctx = min(order.ctx, length) if order.ctx and length else order.ctx or length
        return Loaded(ctx, (time.monotonic() - start_s) * 1000, device="remote")

    async def list_models(self) -> Listed:
        """Those that this key may use."""
        found = await self.server.look("/models", _Models)
        return Listed([_model(one) for one in found.data if len(one.id) <= _NAME_CHARS_MAX][:REMOTE_MODELS_MAX])

    async def pull(self, model: str, progress: Callable[[float], None]) -> Listed:  # noqa: ARG002 - the contract's
        """The API has no such thing."""
        raise EngineError("unsupported", f"cannot pull {shown(model)!r}: an endpoint has the models that it has")

    def check(self, order: Task) -> None:
        """Text and vectors only."""
        text_only(order)

    async def generate(self, order: Generate, reply: Reply) -> Generated:
        """A chat or a completion."""
        end = _End()
        async with AsyncExitStack() as stack:
            answer = await self._asked(order, stack)
            parts = await stack.enter_async_context(aclosing(pieces(answer, Events(), self.server.target.read_s)))
            async for part in parts:
                if part == b"[DONE]":
                    end = end._replace(done=True)
                    await ended(parts)
                    break
                end = _heard(part, end, reply)
        if not end.done and not end.finish:
            raise broken_off("the server's answer ended in the middle")
        usage = end.usage or _Usage()
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else 0
        return reply.end(
            end.finish or "stop",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=cached or 0,
        )

    async def embed(self, order: EmbedTexts) -> Embedded:
        """Vectors, made unit length here where that is asked for: not every server does it."""
        start_s = time.monotonic()
        body = {"model": self._model, "input": order.texts, "encoding_format": "float"}
        found = await self.server.ask("/embeddings", body, _Vectors)
        vectors = [one.embedding for one in sorted(found.data, key=lambda one: one.index)]
        check_vectors(vectors, len(order.texts))
        if order.normalize:
            vectors = [_unit(vector) for vector in vectors]
        tokens = found.usage.prompt_tokens if found.usage is not None else 0
        return Embedded(order.request, vectors, "unknown", tokens or 0, 0, (time.monotonic() - start_s) * 1000)

    @property
    def holds(self) -> bool:
        """Nothing that is known of."""
        return False

    async def held(self) -> HeldElsewhere:
        """Nothing that is known of."""
        return HeldElsewhere(0)

    async def let_go(self) -> HeldElsewhere:
        """There is nothing to let go of."""
        return HeldElsewhere(0)

    def abandon(self) -> None:
        """There is nothing to let go of."""

    async def _asked(self, order: Generate, stack: AsyncExitStack) -> Answer:
        """The answer's beginning; asked again without what the server turns out not to take."""
        path = "/completions" if order.prompt is not None else "/chat/completions"
        while True:
            try:
                return await stack.enter_async_context(self.server.stream(path, self._body(order)))
            except RemoteError as error:
                if error.status not in (400, 422) or not self._learned(error.param, order):
                    raise

    def _learned(self, param: str, order: Generate) -> bool:
        """Whether the refused field can be done without. Each is learned once, so this ends."""
        if param == self._length_field == "max_tokens":
            self._length_field = "max_completion_tokens"
            return True
        sampler = order.sampler
        wanted = param in ("temperature", "top_p") and getattr(sampler, param) != getattr(_DEFAULT, param)
        if param not in _DISPENSABLE or param in self._left_out or wanted:
            return False
        self._left_out.add(param)
        return True

    def _body(self, order: Generate) -> dict[str, Any]:
        sampler = order.sampler
        body: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            self._length_field: order.max_tokens,
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "seed": sampler.seed,
            **_extras(order),
        }
        if order.prompt is not None:
            body["prompt"] = order.prompt
        else:
            body |= {"messages": turns.for_openai(order.turns or []), **turns.beyond_text(order)}
        if order.stop:
            body["stop"] = order.stop
        if sampler.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampler.logit_bias.items()}
        if order.logprobs is not None:
            body |= {"logprobs": order.logprobs} if order.prompt is not None else _chat_logprobs(order.logprobs)
        if sampler.json_schema is not None:
            wanted = {"name": "answer", "schema": schema(sampler.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return {field: value for field, value in body.items() if field not in self._left_out}


def _extras(order: Generate) -> dict[str, Any]:
    """What the API does not have, where it is not at its default."""
    sampler = order.sampler
    extras: dict[str, Any] = {
        field: getattr(sampler, field)
        for field in ("top_k", "min_p", "repeat_penalty", "repeat_last_n")
        if getattr(sampler, field) != getattr(_DEFAULT, field)
    }
    if "repeat_penalty" in extras:
        extras["repetition_penalty"] = sampler.repeat_penalty  # vLLM's name
    if order.ignore_eos:
        extras["ignore_eos"] = True
    return extras


def _chat_logprobs(top: int) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}


def _heard(part: bytes, end: _End, reply: Reply) -> _End:
    """Tell what an event holds; what is known of the end by now. Raises `RemoteError`."""
    chunk = decoded(part, _Chunk)
    if bytes(chunk.error) != b"null":
        raise failed_midway(error_text(part))
    for choice in chunk.choices[:1]:
        delta = choice.delta or _Delta()
        thinking = delta.reasoning_content or delta.reasoning or ""
        reply.text(choice.text or delta.content or "", _logprobs(choice.logprobs), thinking)
        for call in delta.tool_calls or []:
            function = call.function or _Function()
            reply.call(call.index, call.id or "", function.name or "", function.arguments or "")
        if choice.finish_reason:
            end = end._replace(finish=_finish(choice))
    return end._replace(usage=chunk.usage) if chunk.usage is not None else end


def _finish(choice: _Choice) -> str:
    match choice.finish_reason:
        case "content_filter":
            raise RemoteError("remote_failed", "the server's content filter ended the answer")
        case "length":
            return "length"
        case _:
            return "stop_string" if isinstance(choice.stop_reason, str) else "stop"


def _logprobs(told: _Logprobs | None) -> list[ChosenToken]:
    if told is None:
        return []
    if told.content is not None:
        return [
            chosen(one.token, one.logprob, (likely(other.token, other.logprob) for other in one.top_logprobs or []))
            for one in told.content
        ]
    tokens, values = told.tokens or [], told.token_logprobs or []
    if len(tokens) != len(values):
        raise nonsense("its tokens and their probabilities are not as many")
    tops = (told.top_logprobs or []) + [None] * len(tokens)
    return [
        chosen(token, value or 0.0, (likely(text, logprob) for text, logprob in (top or {}).items()))
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _model(one: _Model) -> RemoteModel:
    meta = one.meta or _Meta()
    return RemoteModel(
        one.id,
        size_bytes=meta.size or 0,
        context_length=one.max_model_len or one.context_length or meta.n_ctx_train or 0,
        parameters=meta.n_params or 0,
    )


def _unit(vector: list[float]) -> list[float]:
    norm = math.hypot(*vector)
    return [value / norm for value in vector] if norm > 0 and math.isfinite(norm) else vector
