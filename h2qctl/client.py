"""The blocking client: one method per command of the catalogue.

Thread-safe: each thread has its own connection, opened at its first call. Not fork-safe: open a client after
the fork, never carry one across. `timeout` is in seconds and bounds a whole request, queueing and loading
included; without one a request may take as long as the daemon keeps saying that it is alive. A daemon that says
nothing for `silence_s` is given up. Every method raises `H2qError` and nothing else of its own.
"""

import threading
import weakref
from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Literal, Self, Unpack, overload

import zmq

from h2qctl import address, asks
from h2qctl.asks import ChatOptions, Decoding, Options, Turn
from h2qctl.channel import SETTLE_S, Channel
from h2qctl.errors import H2qError
from h2qctl.flow import Flow, OnBody, OnProgress, Reply, Stream, Watch
from h2qd.wire import messages as m
from h2qd.wire.limits import HEARTBEAT_MS

SILENCE_S = 5 * HEARTBEAT_MS / 1000
"""How long a request may hear nothing, in seconds, before the daemon is taken for gone or stuck."""


class Client:
    """A client of the daemon at `socket` (a path; see `address.find` for the default)."""

    def __init__(
        self,
        socket: str | None = None,
        *,
        timeout: float | None = None,
        silence_s: float = SILENCE_S,
        on_body: OnBody | None = None,
    ) -> None:
        self.socket, _ = address.find(socket)
        self._timeout = timeout
        self._silence_s = silence_s
        self._on_body = on_body
        self._closed = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._own = threading.local()
        self._guard = threading.Lock()
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all threads' connections. Calls that still wait in other threads end with `unreachable`."""
        with self._guard:
            self._closed = True
            channels = list(self._channels)
        own: Channel | None = getattr(self._own, "channel", None)
        try:
            if own is not None and not own.closed:
                own.settle(SETTLE_S)
        finally:
            for channel in channels:
                channel.close()
            self._context.term()

    # --- looking ------------------------------------------------------------------------------------

    def hello(self, client: str = "", *, timeout: float | None = None) -> m.HelloReply:
        """What the daemon speaks, its limits, and what this user may do."""
        return self._run("session.hello", m.Hello(client), m.HelloReply, timeout)

    def status(self, *, timeout: float | None = None) -> m.Status:
        """The daemon at a glance."""
        return self._run("daemon.status", m.Empty(), m.Status, timeout)

    def version(self, *, timeout: float | None = None) -> m.Version:
        """Versions of the daemon and of what it runs on."""
        return self._run("daemon.version", m.Empty(), m.Version, timeout)

    def config(self, *, timeout: float | None = None) -> m.Config:
        """The configuration in force, and where each value comes from."""
        return self._run("daemon.config", m.Empty(), m.Config, timeout)

    def doctor(self, *, timeout: float | None = None) -> m.Doctor:
        """What the daemon finds wrong with its surroundings."""
        return self._run("daemon.doctor", m.Empty(), m.Doctor, timeout)

    def ps(self, *, timeout: float | None = None) -> m.Ps:
        """Which models hold memory, and which requests run."""
        return self._run("model.ps", m.Empty(), m.Ps, timeout)

    def top(self, *, timeout: float | None = None) -> m.Top:
        """Memory by layer and worker, pressure, speed."""
        return self._run("daemon.top", m.Empty(), m.Top, timeout)

    def models(self, *, timeout: float | None = None) -> m.Models:
        """All registered models."""
        return self._run("model.list", m.Empty(), m.Models, timeout)

    def show(self, model: str, *, timeout: float | None = None) -> m.Show:
        """All that is known of a model."""
        return self._run("model.show", m.OfModel(model), m.Show, timeout)

    def explain(self, model: str, *, timeout: float | None = None) -> m.Explain:
        """The story of a model's transitions."""
        return self._run("model.explain", m.OfModel(model), m.Explain, timeout)

    def plan(
        self,
        model: str,
        *,
        ctx: int | None = None,
        slots: int | None = None,
        kv_type: m.KvType | None = None,
        timeout: float | None = None,
    ) -> m.Plan:
        """The memory, in bytes, that a load would take; what is not said is as a load would have it."""
        return self._run("model.plan", m.PlanAsk(model, ctx, slots, kv_type), m.Plan, timeout)

    def events(self, since: int | None = None, *, follow: bool = True, timeout: float | None = None) -> Watch:
        """Notices: those after number `since` that are still kept, then, with `follow`, whatever happens."""
        return Watch(self._flow("events.watch", m.Events(since, follow), timeout))

    # --- models and residency -----------------------------------------------------------------------

    def import_model(
        self,
        path: str | PathLike[str],
        name: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Imported:
        """Register a model file where it lies. A relative path counts from this process's folder."""
        return self._run("model.import", asks.import_file(path, name), m.Imported, timeout, on_progress)

    def pull(self, model: str, *, timeout: float | None = None, on_progress: OnProgress | None = None) -> m.Pulled:
        """Have a server fetch a model, REMOTE/NAME; giving up the call ends the fetching."""
        return self._run("model.pull", m.Pull(model), m.Pulled, timeout, on_progress)

    def remove(self, model: str, *, timeout: float | None = None) -> m.Removed:
        """Forget a model; its file stays."""
        return self._run("model.remove", m.OfModel(model), m.Removed, timeout)

    def load(
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
        return self._run("model.load", body, m.Residency, timeout, on_progress)

    def unload(
        self,
        model: str | None = None,
        *,
        force: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Unloaded:
        """Take a model's memory back; the active one's when none is named."""
        return self._run("model.unload", m.Unload(model, force), m.Unloaded, timeout, on_progress)

    def switch(
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
        return self._run("model.switch", body, m.Residency, timeout, on_progress)

    def pin(self, model: str, *, timeout: float | None = None) -> m.Pinned:
        """Keep a model from being evicted."""
        return self._run("model.pin", m.OfModel(model), m.Pinned, timeout)

    def unpin(self, model: str, *, timeout: float | None = None) -> m.Pinned:
        """Let a model be evicted again."""
        return self._run("model.unpin", m.OfModel(model), m.Pinned, timeout)

    # --- inference ----------------------------------------------------------------------------------

    def infer(
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
        return self._run("infer.text", body, m.Answer, timeout, on_progress)

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """As `infer`, piece by piece: iterate, then read the stream's `answer`."""
        body = asks.infer(prompt, model, options, stream=True)
        return Stream(self._flow("infer.text", body, timeout, on_progress))

    @overload
    def chat(
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
    def chat(
        self,
        messages: Sequence[Turn],
        model: str | None = None,
        *,
        stream: Literal[True],
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Turn],
        model: str | None = None,
        *,
        stream: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> m.Answer | Stream:
        """Answer a conversation through the model's own template; with `stream`, piece by piece.

        What the model wants called is in the answer's `tool_calls`; `h2qctl.tools` has the turns that follow.
        """
        body = asks.chat(messages, model, options, stream=stream)
        if stream:
            return Stream(self._flow("infer.chat", body, timeout, on_progress))
        return self._run("infer.chat", body, m.Answer, timeout, on_progress)

    def swarm(
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
        return self._run("infer.swarm", body, m.SwarmAnswer, timeout, on_progress)

    def embed(
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
        return self._run("infer.embed", body, m.Embeddings, timeout, on_progress)

    def score(
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
        return self._run("infer.score", body, m.Scored, timeout, on_progress)

    def tokenize(
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
        return self._run("text.tokenize", body, m.Tokens, timeout, on_progress)

    def detokenize(
        self,
        tokens: Sequence[int],
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> m.Detokenized:
        """The text of tokens."""
        body = m.Detokenize(tokens=list(tokens), model=model)
        return self._run("text.detokenize", body, m.Detokenized, timeout, on_progress)

    def sessions(self, *, timeout: float | None = None) -> m.Sessions:
        """Conversations whose KV cache is kept on disk: this user's; an admin's: all."""
        return self._run("sessions.list", m.Empty(), m.Sessions, timeout)

    def remove_session(
        self, session: str, model: str | None = None, *, timeout: float | None = None
    ) -> m.SessionRemoved:
        """Forget a conversation, with one model or with all."""
        return self._run("sessions.remove", m.OfSession(session, model), m.SessionRemoved, timeout)

    def cancel(self, request: str, *, timeout: float | None = None) -> m.Cancelled:
        """Cancel any request by the name that `ps` shows. One's own streams have a `cancel` of their own."""
        return self._run("request.cancel", m.Cancel(request=request), m.Cancelled, timeout)

    # --- how ----------------------------------------------------------------------------------------

    def _run(
        self,
        op: str,
        body: m.Ask,
        kind: type[Reply],
        timeout: float | None,
        on_progress: OnProgress | None = None,
    ) -> Reply:
        return self._flow(op, body, timeout, on_progress).finish(kind)

    def _flow(self, op: str, body: m.Ask, timeout: float | None, on_progress: OnProgress | None = None) -> Flow:
        limit_s = self._timeout if timeout is None else timeout
        return Flow(self._channel(), op, body, limit_s, on_progress, self._on_body)

    def _channel(self) -> Channel:
        """The connection of the calling thread; a new one when it has none or lost it."""
        channel: Channel | None = getattr(self._own, "channel", None)
        if channel is not None and not self._closed and channel.alive():
            return channel
        with self._guard:
            if self._closed:
                raise H2qError("unreachable", "cannot go on: this client was closed", "open a new client")
            self._own.channel = channel = Channel(self._context, self.socket, self._silence_s)
            self._channels.add(channel)
        return channel
