"""Ollama's API: what is asked of a server, and what its answers mean.

A model whose memory is this device's is loaded on a lease (`keep_alive`), which every request renews, and an idle
worker too, so that a worker that is killed leaves nothing there for good. It is unloaded with `keep_alive: 0`, proved
by /api/ps. On another machine the server's own rule holds. Every request repeats the load's `num_ctx`: with another
Ollama would load the model anew. For the same reason `shift` is never sent. Names that share `weights` share what is
loaded; its memory counts where it stands in /api/ps, under the name that had it loaded. Models that can think do,
unless they are asked not to. Which tool is called cannot be chosen there, only that none is. Vectors are always of
unit length there.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec

from h2qd.wire.names import shown, tagged
from h2qd.wire.workers import (
    REMOTE_MODELS_MAX,
    RUNNING_MAX,
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
    RunningModel,
    Task,
)
from h2qd.worker.engine import EngineError
from h2qd.worker.remote import turns
from h2qd.worker.remote.dialect import check_vectors, schema, text_only
from h2qd.worker.remote.errors import RemoteError, broken_off, failed_midway, nonsense
from h2qd.worker.remote.ndjson import Lines
from h2qd.worker.remote.ollama_answers import (
    AllRunning,
    Chosen,
    Model,
    Models,
    Part,
    Pulled,
    Running,
    Shown,
    Vectors,
    Version,
)
from h2qd.worker.remote.pieces import ended, pieces
from h2qd.worker.remote.reply import Reply, chosen, likely
from h2qd.worker.remote.server import Server, decoded
from h2qd.worker.remote.weights import Weights

LOAD_S_MAX = 600.0
"""A large model from a slow disk; Ollama itself gives up after 5 minutes without progress."""
UNLOAD_S_MAX = 15.0
LEASE_S = 300
"""How long a model stays there that nobody speaks of any more."""
RENEW_S = LEASE_S / 3
"""A model that nobody spoke of for so long is spoken of when it is looked for: two such times may fail."""
_RENEW_S_MAX = 5.0
"""A renewal is nothing to do there; and an unload waits for one that is under way."""
_LOOK_S = 0.1
"""Between two looks whether a model went."""
_PULL_S = 600.0
"""Silence of a pull while the server checks what it fetched."""
_ABANDON_S = 0.2
_NAME_CHARS_MAX = 256
_FAILED = 500
_NS_PER_MS = 1e6
_PARAMETERS = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([KMBT]?)")
_SCALE = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Ollama:
    """One model at one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._model = ""
        self._ctx = 0
        self._given_ctx = 0
        self._file = ""
        self._runs_elsewhere = False
        self._weights = Weights(server)
        self._holds = False
        self._embeds_only = False
        self._renewed_s = 0.0
        self._turn = asyncio.Lock()  # a renewal that crossed an unload would load the model again

    async def load(self, order: LoadModel) -> Loaded:
        """Have the server load the model, and see in /api/ps that it did."""
        start_s = time.monotonic()
        self._model, self._ctx = order.path, order.ctx
        await self.server.look("/api/version", Version)
        try:
            await self._have_loaded()
        except RemoteError as error:
            error.away = error.away and error.status != _FAILED  # the server is there: it is this model's fault
            raise
        if self._runs_elsewhere:
            return Loaded(order.ctx, (time.monotonic() - start_s) * 1000, device="remote")
        running = await self._running()
        there = await self._there(running)
        if there is None:
            raise RemoteError("remote_failed", "the server loaded the model, but does not show it as loaded")
        self._given_ctx = there.context_length
        took_ms = (time.monotonic() - start_s) * 1000
        size = self._ours_bytes(running) if self._holds else 0
        return Loaded(there.context_length or order.ctx, took_ms, _device(there), size)

    async def list_models(self) -> Listed:
        """All models that the server has on disk."""
        version = (await self.server.look("/api/version", Version)).version
        found = (await self.server.look("/api/tags", Models)).models
        models = [_model(one) for one in found if len(one.name) <= _NAME_CHARS_MAX]
        running = self._taking(await self._running()) if self._shares_memory() else []
        return Listed(models[:REMOTE_MODELS_MAX], shown(version, 64), running)

    async def pull(self, model: str, progress: Callable[[float], None]) -> Listed:
        """Have the server fetch `model`; the fraction is of the layers that it spoke of by then.

        Of the last of a layer, and of small ones, it says nothing.
        """
        layers: dict[str, tuple[int, int]] = {}
        done = False
        async with self.server.stream("/api/pull", {"model": model, "stream": True}) as answer:
            patience_s = max(_PULL_S, self.server.target.read_s)
            async with aclosing(pieces(answer, Lines(), patience_s)) as lines:
                async for line in lines:
                    told = decoded(line, Pulled)
                    if told.error is not None:
                        raise RemoteError("remote_failed", f"the server cannot pull: {shown(told.error, 500)}")
                    done = done or told.status == "success"
                    if told.digest and told.total and (told.digest in layers or len(layers) < REMOTE_MODELS_MAX):
                        layers[told.digest] = (min(told.completed, told.total), told.total)
                        progress(sum(have for have, _ in layers.values()) / sum(size for _, size in layers.values()))
        if not done:
            raise broken_off("the server's pull ended in the middle")
        progress(1.0)
        return await self.list_models()

    def check(self, order: Task) -> None:
        """Text and vectors, without what the options of Ollama do not have."""
        text_only(order)
        if isinstance(order, Generate) and (order.sampler.logit_bias or order.ignore_eos):
            raise EngineError("unsupported", "cannot use logit_bias or ignore_eos: Ollama has no such options")
        if isinstance(order, Generate) and order.tool_choice not in ("auto", "none"):
            raise EngineError("unsupported", "cannot have a tool called: Ollama leaves that to the model, or to none")
        if isinstance(order, EmbedTexts) and not order.normalize:
            raise EngineError("unsupported", "cannot leave vectors as they are: Ollama makes them of unit length")

    async def generate(self, order: Generate, reply: Reply) -> Generated:
        """A chat through the model's template, or a prompt as it stands."""
        path, body = ("/api/chat", self._chat(order)) if order.prompt is None else ("/api/generate", self._raw(order))
        read_s = self.server.target.read_s
        async with self.server.stream(path, body) as answer, aclosing(pieces(answer, Lines(), read_s)) as lines:
            async for line in lines:
                part = decoded(line, Part)
                if part.error is not None:
                    raise failed_midway(part.error)
                _heard(part, reply)
                if part.done:
                    await ended(lines)
                    return _ended(part, reply)
        raise broken_off("the server's answer ended in the middle")

    async def embed(self, order: EmbedTexts) -> Embedded:
        """Vectors."""
        start_s = time.monotonic()
        body = self._body(input=order.texts, truncate=order.truncate)
        found = await self.server.ask("/api/embed", body, Vectors)
        check_vectors(found.embeddings, len(order.texts))
        took_ms = (time.monotonic() - start_s) * 1000
        return Embedded(order.request, found.embeddings, "unknown", found.prompt_eval_count, 0, took_ms)

    @property
    def holds(self) -> bool:
        """From the load until it was seen to let go."""
        return self._holds

    async def held(self) -> HeldElsewhere:
        """What /api/ps shows; what is there, and was long not asked for anything, is kept for longer.

        What others had loaded with another context is theirs to keep: to speak of it would load it anew.
        """
        running = await self._running()
        there = await self._there(running)
        if there is not None and there.context_length == self._given_ctx:
            await self._renew()
        return self._holding(running)

    async def let_go(self) -> HeldElsewhere:
        """Ask for the unload, then look until the model is gone, or `UNLOAD_S_MAX`: somebody else may be using it."""
        async with self._turn:
            give_up_s = time.monotonic() + UNLOAD_S_MAX
            await self.server.ask("/api/generate", self._farewell(), Part)
            while True:
                running = await self._running()
                self._holds = await self._there(running) is not None
                if not self._holds or time.monotonic() > give_up_s:
                    self._renewed_s = math.inf  # nor is it kept for longer
                    return self._holding(running)
                await asyncio.sleep(_LOOK_S)

    def abandon(self) -> None:
        """Send the request for the unload, to this device only, and do not wait: Ollama obeys before it answers."""
        if self._holds:
            self.server.transport.send_blind("/api/generate", msgspec.json.encode(self._farewell()), _ABANDON_S)

    # --- what is asked --------------------------------------------------------------------------------

    async def _have_loaded(self) -> None:
        model = await self.server.ask("/api/show", {"model": self._model}, Shown)
        can = model.capabilities or []
        self._file = model.weights
        self._runs_elsewhere = bool(model.remote_host)
        if self._runs_elsewhere:
            return  # to speak of it costs there, and tells nothing
        self._holds = self._shares_memory()
        self._embeds_only = "embedding" in can and "completion" not in can
        await self._touch(LOAD_S_MAX)

    async def _renew(self) -> None:
        """Have the server keep a model, which it has, if it is time to say so."""
        async with self._turn:
            if self._holds and time.monotonic() >= self._renewed_s + RENEW_S:
                try:
                    async with asyncio.timeout(_RENEW_S_MAX):
                        await self._touch(_RENEW_S_MAX)
                except TimeoutError:
                    raise broken_off("the server did not say in time that it keeps the model") from None

    async def _touch(self, head_s: float) -> None:
        """Have the model loaded, or the lease of one that is there renewed, and nothing else."""
        if self._embeds_only:
            await self.server.ask("/api/embed", self._body(input=[]), Vectors, head_s=head_s)
        else:
            await self.server.ask("/api/generate", self._body(prompt="", stream=False), Part, head_s=head_s)

    def _body(self, **fields: object) -> dict[str, Any]:
        """A request about the model: `fields`, and what must be the same in all."""
        self._renewed_s = time.monotonic()
        options: dict[str, Any] = {"num_ctx": self._ctx} if self._ctx else {}
        body: dict[str, Any] = {"model": self._model, "options": options, **fields}
        return body | {"keep_alive": LEASE_S} if self._holds else body

    def _farewell(self) -> dict[str, Any]:
        return {"model": self._model, "prompt": "", "stream": False, "keep_alive": 0}

    def _chat(self, order: Generate) -> dict[str, Any]:
        body = self._text(order) | {"messages": turns.for_ollama(order.turns or [])}
        if order.tools and order.tool_choice != "none":
            body["tools"] = turns.tools(order)
        if order.think is not None:
            body["think"] = order.think
        return body | {"truncate": order.overflow != "refuse"}

    def _raw(self, order: Generate) -> dict[str, Any]:
        return self._text(order) | {"prompt": order.prompt, "raw": True, "truncate": order.overflow != "refuse"}

    def _text(self, order: Generate) -> dict[str, Any]:
        sampler = order.sampler
        body = self._body(stream=True)
        body["options"] |= {
            "num_predict": order.max_tokens,
            "temperature": sampler.temperature,
            "top_k": sampler.top_k,
            "top_p": sampler.top_p,
            "min_p": sampler.min_p,
            "repeat_penalty": sampler.repeat_penalty,
            "repeat_last_n": sampler.repeat_last_n,
            "seed": sampler.seed,
        }
        if order.stop:
            body["options"]["stop"] = order.stop
        if sampler.json_schema is not None:
            body["format"] = schema(sampler.json_schema)
        if order.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": order.logprobs}
        return body

    # --- what it holds --------------------------------------------------------------------------------

    def _shares_memory(self) -> bool:
        setting = self.server.target.shares_memory
        return setting == "true" or (setting == "auto" and self.server.transport.is_this_device)

    async def _running(self) -> list[Running]:
        return (await self.server.look("/api/ps", AllRunning)).models or []

    async def _there(self, running: list[Running]) -> Running | None:
        """What our requests are answered with: our model, or another name's that has the same weights."""
        if (ours := self._ours(running)) is not None:
            return ours
        for one in running:
            if self._file and await self._weights.behind(one.name, one.digest) == self._file:
                return one
        return None

    def _ours(self, running: list[Running]) -> Running | None:
        return next((one for one in running if tagged(one.name) == tagged(self._model)), None)

    def _ours_bytes(self, running: list[Running]) -> int:
        """What stands under our name; what stands under another's is counted there, and only there."""
        ours = self._ours(running)
        return self._in_memory(ours) if ours is not None else 0

    def _holding(self, running: list[Running]) -> HeldElsewhere:
        return HeldElsewhere(self._ours_bytes(running), self._taking(running))

    def _taking(self, running: list[Running]) -> list[RunningModel]:
        """What takes this device's memory of all that the server has in memory."""
        taking = [RunningModel(one.name, self._in_memory(one)) for one in running if len(one.name) <= _NAME_CHARS_MAX]
        return [one for one in taking if one.size_bytes][:RUNNING_MAX]

    def _in_memory(self, model: Running) -> int:
        """What of a model is not in a GPU's own memory."""
        return model.size if self.server.target.gpu_shares_memory else max(0, model.size - model.size_vram)


def _device(model: Running) -> str:
    if model.size_vram <= 0:
        return "cpu"
    return "gpu" if model.size_vram >= model.size else "cpu+gpu"


def _model(one: Model) -> RemoteModel:
    size = _PARAMETERS.fullmatch(one.details.parameter_size.upper())
    return RemoteModel(
        one.name,
        size_bytes=one.size,
        context_length=one.details.context_length,
        family=shown(one.details.family, 64),
        quantization=shown(one.details.quantization_level, 64),
        parameters=round(float(size[1]) * _SCALE[size[2]]) if size is not None else 0,
        embeds="embedding" in (one.capabilities or []),
    )


def _logprobs(told: list[Chosen] | None) -> list[ChosenToken]:
    return [
        chosen(one.token, one.logprob, (likely(other.token, other.logprob) for other in one.top_logprobs or []))
        for one in told or []
    ]


def _heard(part: Part, reply: Reply) -> None:
    """Tell what a line holds. Raises `RemoteError`."""
    if part.message is None:
        reply.text(part.response, _logprobs(part.logprobs), part.thinking)
        return
    reply.text(part.message.content, _logprobs(part.logprobs), part.message.thinking)
    for call in part.message.tool_calls or []:
        if not call.function.name:
            raise nonsense("it calls a tool without a name")  # without one it would go on with the call before
        reply.call(None, call.id, call.function.name, bytes(call.function.arguments).decode("utf-8", "replace"))


def _ended(part: Part, reply: Reply) -> Generated:
    """The last line's figures. What the load took, where the model had gone, is time before the first token."""
    return reply.end(
        "length" if part.done_reason == "length" else "stop",
        prompt_tokens=part.prompt_eval_count,
        completion_tokens=part.eval_count,
        prefill_ms=part.prompt_eval_duration / _NS_PER_MS,
        decode_ms=part.eval_duration / _NS_PER_MS,
    )
