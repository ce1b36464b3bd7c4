"""The asyncio client: the methods of `Client`, as coroutines and asynchronous iterators.

One connection carries all requests of the client, so any number of them can be under way at once. It belongs to
the event loop that made its first request. A task that is cancelled while it waits cancels its request at the
daemon. `timeout` and `silence_s` are in seconds and mean what they mean for `Client`.
"""
# ruff: noqa: ASYNC109  # a timeout here is the request's deadline, which the daemon is told and keeps

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Literal, Self, Unpack, overload

import zmq.asyncio

from h2qctl import address, asks
from h2qctl.asks import ChatOptions, Decoding, Options, Turn
from h2qctl.channel import SETTLE_S
from h2qctl.client import SILENCE_S
from h2qctl.errors import H2qError
from h2qctl.flow import OnProgress, Reply
from h2qctl.line import AsyncFlow, Line
from h2qctl.streams import AsyncStream, AsyncWatch
from h2qd.wire import messages as m


class AsyncClient:
    """A client of the daemon at `socket` (a path; see `address.find` for the default)."""

    def __init__(
        self, socket: str | None = None, *, timeout: float | None = None, silence_s: float = SILENCE_S
    ) -> None:
        self.socket, _ = address.find(socket)
        self._timeout = timeout
        self._silence_s = silence_s
        self._closed = False
        self._context = zmq.asyncio.Context()
        self._line: Line | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is in flight and hang up. Calls that still wait in other tasks end with an error."""
        self._closed = True
        if self._line is not None:
            await self._line.close(SETTLE_S)
        self._context.term()

    # --- looking ------------------------------------------------------------------------------------

    async def hello(self, client: str = "", *, timeout: float | None = None) -> m.HelloReply:
        """What the daemon speaks, its limits, and what this user may do."""
        return await self._run("session.hello", m.Hello(client), m.HelloReply, timeout)

    async def status(self, *, timeout: float | None = None) -> m.Status:
        """The daemon at a glance."""
        return await self._run("daemon.status", m.Empty(), m.Status, timeout)

    async def version(self, *, timeout: float | None = None) -> m.Version:
        """Versions of the daemon and of what it runs on."""
        return await self._run("daemon.version", m.Empty(), m.Version, timeout)

    async def config(self, *, timeout: float | None = None) -> m.Config:
        """The configuration in force, and where each value comes from."""
        return await self._run("daemon.config", m.Empty(), m.Config, timeout)

    async def doctor(self, *, timeout: float | None = None) -> m.Doctor:
        """What the daemon finds wrong with its surroundings."""
        return await self._run("daemon.doctor", m.Empty(), m.Doctor, timeout)

    async def ps(self, *, timeout: float | None = None) -> m.Ps:
        """Which models hold memory, and which requests run."""
        return await self._run("model.ps", m.Empty(), m.Ps, timeout)

    async def top(self, *, timeout: float | None = None) -> m.Top:
        """Memory by layer and worker, pressure, speed."""
        return await self._run("daemon.top", m.Empty(), m.Top, timeout)

    async def models(self, *, timeout: float | None = None) -> m.Models:
        """All registered models."""
        return await self._run("model.list", m.Empty(), m.Models, timeout)

    async def show(self, model: str, *, timeout: float | None = None) -> m.Show:
        """All that is known of a model."""
        return await self._run("model.show", m.OfModel(model), m.Show, timeout)

    async def explain(self, model: str, *, timeout: float | None = None) -> m.Explain:
        """The story of a model's transitions."""
        return await self._run("model.explain", m.OfModel(model), m.Explain, timeout)

    async def plan(
        self,
        model: str,
        *,
        ctx: int | None = None,
        slots: int | None = None,
        kv_type: m.KvType | None = None,
        timeout: float | None = None,
    ) -> m.Plan:
        """The memory, in bytes, that a load would take; what is not said is as a load would have it."""
        return await self._run("model.plan", m.PlanAsk(model, ctx, slots, kv_type), m.Plan, timeout)

    def events(self, since: int | None = None, *, follow: bool = True, timeout: float | None = None) -> AsyncWatch:
        """Notices: those after number `since` that are still kept, then, with `follow`, whatever happens."""
        return AsyncWatch(self._flow("events.watch", m.Events(since, follow), timeout))

    # --- models and residency -----------------------------------------------------------------------

    async def import_model(
        self,
        path: str | PathLike[str],
        name: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Imported:
        """Register a model file where it lies. A relative path counts from this process's folder."""
        return await self._run("model.import", asks.import_file(path, name), m.Imported, timeout, on_progress)

    async def pull(
        self, model: str, *, timeout: float | None = None, on_progress: OnProgress | None = None
    ) -> m.Pulled:
        """Have a server fetch a model, REMOTE/NAME; giving up the call ends the fetching."""
        return await self._run("model.pull", m.Pull(model), m.Pulled, timeout, on_progress)

    async def remove(self, model: str, *, timeout: float | None = None) -> m.Removed:
        """Forget a model; its file stays."""
        return await self._run("model.remove", m.OfModel(model), m.Removed, timeout)

    async def load(
        self,
        model: str,
        *,
        ctx: int | None = None,
        kv_type: m.KvType | None = None,
        exact: bool = False,
        force: bool = False,
        reset: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Residency:
        """Make a model resident.

        `exact`: with what was asked for or not at all; `force` cuts off running work on what must go; `reset`
        forgets the model's failures.
        """
        body = m.Load(model, ctx=ctx, kv_type=kv_type, reset=reset, force=force, exact=exact)
        return await self._run("model.load", body, m.Residency, timeout, on_progress)

    async def unload(
        self,
        model: str | None = None,
        *,
        force: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Unloaded:
        """Take a model's memory back; the active one's when none is named."""
        return await self._run("model.unload", m.Unload(model, force), m.Unloaded, timeout, on_progress)

    async def switch(
        self,
        model: str,
        *,
        ctx: int | None = None,
        kv_type: m.KvType | None = None,
        exact: bool = False,
        force: bool = False,
        reset: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Residency:
        """Make a model the active one, unloading what must go. The options are those of `load`."""
        body = m.Load(model, ctx=ctx, kv_type=kv_type, reset=reset, force=force, exact=exact)
        return await self._run("model.switch", body, m.Residency, timeout, on_progress)

    async def pin(self, model: str, *, timeout: float | None = None) -> m.Pinned:
        """Keep a model from being evicted."""
        return await self._run("model.pin", m.OfModel(model), m.Pinned, timeout)

    async def unpin(self, model: str, *, timeout: float | None = None) -> m.Pinned:
        """Let a model be evicted again."""
        return await self._run("model.unpin", m.OfModel(model), m.Pinned, timeout)

    # --- inference ----------------------------------------------------------------------------------

    async def infer(
        self,
        prompt: str,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> m.Answer:
        """Continue `prompt` with `model`, or with the active one. The answer's `text` is whole."""
        body = asks.infer(prompt, model, options, stream=False)
        return await self._run("infer.text", body, m.Answer, timeout, on_progress)

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """As `infer`, piece by piece: iterate, then read the stream's `answer`."""
        body = asks.infer(prompt, model, options, stream=True)
        return AsyncStream(self._flow("infer.text", body, timeout, on_progress))

    @overload
    async def chat(
        self,
        messages: Sequence[Turn],
        model: str | None = None,
        *,
        stream: Literal[False] = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> m.Answer: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Turn],
        model: str | None = None,
        *,
        stream: Literal[True],
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncStream: ...

    async def chat(
        self,
        messages: Sequence[Turn],
        model: str | None = None,
        *,
        stream: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> m.Answer | AsyncStream:
        """Answer a conversation through the model's own template; with `stream`, piece by piece.

        What the model wants called is in the answer's `tool_calls`; `h2qctl.tools` has the turns that follow.
        """
        body = asks.chat(messages, model, options, stream=stream)
        if stream:
            return AsyncStream(self._flow("infer.chat", body, timeout, on_progress))
        return await self._run("infer.chat", body, m.Answer, timeout, on_progress)

    async def swarm(
        self,
        asked: str | Sequence[Turn],
        models: Sequence[str],
        *,
        method: m.Method | None = None,
        judge: str | None = None,
        embedder: str | None = None,
        deadline_s: float | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Decoding],
    ) -> m.SwarmAnswer:
        """Ask several models a prompt or a conversation; all answers, and one made of them by `method`.

        Without it, that is by the `judge` or `embedder` if one is named, else by the majority. Each model has
        `deadline_s` from its turn on, its load included; who fails has a row that says why.
        """
        body = asks.swarm(asked, models, method, judge, embedder, deadline_s, options)
        return await self._run("infer.swarm", body, m.SwarmAnswer, timeout, on_progress)

    async def embed(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        normalize: bool = True,
        overflow: Literal["refuse", "truncate"] | None = None,
        priority: m.Priority | None = None,
        adapters: asks.Adapters | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Embeddings:
        """A vector for each text, of length 1 with `normalize`; at most `TEXTS_MAX` (64) texts at once."""
        body = asks.embed(texts, model, normalize, overflow, priority, adapters)
        return await self._run("infer.embed", body, m.Embeddings, timeout, on_progress)

    async def score(
        self,
        text: str,
        model: str | None = None,
        *,
        context: str = "",
        window: int | None = None,
        logprobs: bool = False,
        priority: m.Priority | None = None,
        adapters: asks.Adapters | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Scored:
        """How likely `text` is after `context`; with `window`, its perplexity in windows of so many tokens."""
        body = asks.score(text, model, context, window, logprobs, priority, adapters)
        return await self._run("infer.score", body, m.Scored, timeout, on_progress)

    async def tokenize(
        self,
        text: str,
        model: str | None = None,
        *,
        special: bool = False,
        pieces: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Tokens:
        """The tokens of `text`, and with `pieces` what each reads like; `special`: control tokens count as such."""
        body = m.Tokenize(text=text, model=model, special=special, pieces=pieces)
        return await self._run("text.tokenize", body, m.Tokens, timeout, on_progress)

    async def detokenize(
        self,
        tokens: Sequence[int],
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Detokenized:
        """The text of tokens."""
        body = m.Detokenize(tokens=list(tokens), model=model)
        return await self._run("text.detokenize", body, m.Detokenized, timeout, on_progress)

    async def sessions(self, *, timeout: float | None = None) -> m.Sessions:
        """Conversations whose KV cache is kept on disk: this user's; an admin's: all."""
        return await self._run("sessions.list", m.Empty(), m.Sessions, timeout)

    async def remove_session(
        self, session: str, model: str | None = None, *, timeout: float | None = None
    ) -> m.SessionRemoved:
        """Forget a conversation, with one model or with all."""
        return await self._run("sessions.remove", m.OfSession(session, model), m.SessionRemoved, timeout)

    async def cancel(self, request: str, *, timeout: float | None = None) -> m.Cancelled:
        """Cancel any request by the name that `ps` shows. One's own streams have a `cancel` of their own."""
        return await self._run("request.cancel", m.Cancel(request=request), m.Cancelled, timeout)

    # --- how ----------------------------------------------------------------------------------------

    async def _run(
        self,
        op: str,
        body: m.Ask,
        kind: type[Reply],
        timeout: float | None,
        on_progress: OnProgress | None = None,
    ) -> Reply:
        return await self._flow(op, body, timeout, on_progress).finish(kind)

    def _flow(self, op: str, body: m.Ask, timeout: float | None, on_progress: OnProgress | None = None) -> AsyncFlow:
        limit_s = self._timeout if timeout is None else timeout
        return AsyncFlow(self._connected(), op, body, limit_s, on_progress)

    def _connected(self) -> Line:
        """The connection; a new one when there is none or it was lost."""
        if self._closed:
            raise H2qError("unreachable", "cannot go on: this client was closed", "open a new client")
        if self._line is None or self._line.closed:
            self._line = Line(self._context, self.socket, self._silence_s)
        return self._line
