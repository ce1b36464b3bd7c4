"""Commands: what a client's message becomes. Each operation of the catalogue has one handler, in one table.

A handler that only looks answers at once from the state; one that wants something of a model makes a ticket
(`claims`) and lets the core decide. Bodies are decoded here, by the catalogue's types, after the access check and
never before the size check. A handler that fails by our own defect answers `internal`; details go to the log.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from h2qd import __version__
from h2qd.core.admission import SHUTTING_DOWN
from h2qd.core.events import ForgetAsked, PinAsked, RequestAbandoned
from h2qd.core.records import Fault, Want
from h2qd.logs import get_logger
from h2qd.runtime import orders, views
from h2qd.runtime.adapters import Adapters
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.claims import Claims, now
from h2qd.runtime.imports import Imports
from h2qd.runtime.jobs import Jobs, defect
from h2qd.runtime.notices import Notices
from h2qd.runtime.pulls import Pulls
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.remotes import Remotes
from h2qd.runtime.residents import Residents
from h2qd.runtime.saved import SavedSessions
from h2qd.runtime.server import Client, Server
from h2qd.runtime.supervisor import Supervisor
from h2qd.runtime.swarm import Swarms, checked
from h2qd.store.registry import Manifest
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE, Access
from h2qd.wire.frames import Request, WireError, decode_body
from h2qd.wire.limits import (
    CHUNK_WINDOW_DEFAULT,
    CHUNK_WINDOW_MAX,
    CONTROL_BYTES_MAX,
    HEARTBEAT_MS,
    PROMPT_BYTES_MAX,
    PROTOCOL_VERSION,
    REQUESTS_PER_CLIENT_MAX,
)
from h2qd.wire.names import name_fault, shown, suggest_name

log = get_logger()

_CANCELLED = Fault("cancelled", "cannot go on: the request was cancelled")
_GONE = Fault("cancelled", "cannot go on: the client went away")
_TOO_LATE = Fault("deadline_exceeded", "cannot finish the request: its deadline passed")

CAPABILITIES = (
    "stream",
    "credit",
    "cancel",
    "deadline",
    "events",
    "chat",
    "grammar",
    "json_schema",
    "tools",
    "images",
    "think",
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the commands that look report from outside the state: plain functions of no arguments."""

    status: Callable[[], m.Status]
    version: Callable[[], m.Version]
    config: Callable[[], m.Config]
    doctor: Callable[[], m.Doctor]
    top: Callable[[], m.Top]


class Commands:
    """The handlers, by operation."""

    def __init__(
        self,
        supervisor: Supervisor,
        calls: Calls,
        residents: Residents,
        notices: Notices,
        imports: Imports,
        remotes: Remotes,
        pulls: Pulls,
        sessions: SavedSessions,
        claims: Claims,
        manifests: Mapping[str, Manifest],
        missing: Mapping[str, m.ModelRow],
        surroundings: Surroundings,
        access: Callable[[int], Access | None],
        adapters: Adapters,
        tell_progress: Callable[[Call], None],
    ) -> None:
        self._supervisor = supervisor
        self._calls = calls
        self._residents = residents
        self._notices = notices
        self._imports = imports
        self._remotes = remotes
        self._pulls = pulls
        self._sessions = sessions
        self._claims = claims
        self._manifests = manifests
        self._missing = missing
        self._access = access
        self._adapters = adapters
        self._tell_progress = tell_progress
        self._jobs = Jobs(calls)
        self._swarms = Swarms(supervisor, calls, self._begin)
        self._handlers: dict[str, _Handler] = {
            "session.hello": self._hello,
            "daemon.status": lambda call, _: calls.reply(call, surroundings.status()),
            "daemon.version": lambda call, _: calls.reply(call, surroundings.version()),
            "daemon.config": lambda call, _: calls.reply(call, surroundings.config()),
            "daemon.doctor": lambda call, _: calls.reply(call, surroundings.doctor()),
            "daemon.top": lambda call, _: calls.reply(call, surroundings.top()),
            "model.ps": lambda call, _: calls.reply(call, views.ps(supervisor.state, residents, calls)),
            "model.list": self._list,
            "model.show": self._show,
            "model.explain": self._explain,
            "model.plan": self._plan,
            "model.import": self._import,
            "model.pull": self._pull,
            "model.remove": self._remove,
            "model.load": self._load,
            "model.switch": self._switch,
            "model.unload": self._unload,
            "model.pin": lambda call, ask: self._pin(call, ask, pinned=True),
            "model.unpin": lambda call, ask: self._pin(call, ask, pinned=False),
            "infer.text": self._infer,
            "infer.chat": self._chat,
            "infer.swarm": self._swarm,
            "infer.embed": self._embed,
            "infer.score": self._score,
            "text.tokenize": self._tokenize,
            "text.detokenize": self._detokenize,
            "sessions.list": self._list_sessions,
            "sessions.remove": self._remove_session,
            "request.cancel": self._cancel,
            "events.watch": self._watch,
        }

    # --- the door ---------------------------------------------------------------------------------

    def handle(self, server: Server, client: Client, request: Request, body: bytes) -> None:
        """Take one message."""
        try:
            decoded = self._decode(client, request, body)
            if isinstance(decoded, m.Credit):
                self._credit(client, decoded)
                return
            call = self._calls.open(client, request)
        except WireError as error:
            log.debug("request.malformed", client=client.number, uid=client.uid, code=error.code, why=error.message)
            server.refuse(client, request.id, error)
            return
        call.deadline = None if request.deadline_ms is None else call.arrived + request.deadline_ms / 1000
        self._begin(call, decoded)

    def _begin(self, call: Call, ask: m.Ask) -> None:
        """Have a call handled: it is answered, or will be."""
        try:
            self._handlers[call.op](call, ask)
        except Refusal as refusal:
            self._calls.error(call, refusal.fault)
        except Exception:  # our defect must cost this request only
            log.exception("request.defect", request=call.name, op=call.op)
            if not call.ended:
                self._calls.error(call, defect(call))
        if call.deadline is not None and not call.ended:
            call.alarm = asyncio.get_running_loop().call_at(call.deadline, self._late, call)

    def _decode(self, client: Client, request: Request, body: bytes) -> m.Ask:
        """The body of a command that the client may use. Raises `WireError`."""
        command = CATALOGUE.get(request.op)
        if command is None:
            raise WireError("unknown_command", f"cannot do {shown(request.op)}: no such command", request.id)
        access = self._access(client.uid)
        if access is None or access < command.access:
            text = f"cannot do {request.op}: user {client.uid} needs {command.access.name.lower()} access"
            raise WireError("not_permitted", text, request.id)
        return decode_body(body, command.request, command.bytes_max, request.id)

    def gone(self, call: Call) -> None:
        """Nobody hears of this call any more."""
        self._end(call, _GONE)

    def stop_jobs(self) -> None:
        """The daemon stops: jobs end now."""
        self._jobs.give_all_up(SHUTTING_DOWN)

    def _end(self, call: Call, fault: Fault) -> None:
        """End a call from outside: a job is cancelled, a watch ended, a claim on a model given up."""
        if self._notices.forget(call):
            self._calls.error(call, fault)
        elif not self._jobs.give_up(call, fault):
            self._supervisor.post(RequestAbandoned(now(), call.number, fault))

    def _late(self, call: Call) -> None:
        """The deadline passed; that of a claim on a model has gone to the core, that of a swarm to its parts."""
        if call.deadline is not None:
            self._end(call, _TOO_LATE)

    def beat(self) -> None:
        """Give every call in flight a sign of life."""
        for call in self._calls:
            if not call.ended:  # its client may have been found gone meanwhile
                self._tell_progress(call)

    # --- looking ----------------------------------------------------------------------------------

    def _hello(self, call: Call, _: m.Hello) -> None:
        access = self._access(call.client.uid) or Access.READ
        reply = m.HelloReply(
            protocol=PROTOCOL_VERSION,
            version=__version__,
            access=access.name.lower(),
            capabilities=list(CAPABILITIES),
            heartbeat_ms=HEARTBEAT_MS,
            control_bytes_max=CONTROL_BYTES_MAX,
            prompt_bytes_max=PROMPT_BYTES_MAX,
            requests_max=REQUESTS_PER_CLIENT_MAX,
        )
        self._calls.reply(call, reply)

    def _list(self, call: Call, _: m.Empty) -> None:
        state = self._supervisor.state
        models = state.models
        rows = [views.model_row(state, self._manifests[name], model) for name, model in models.items()]
        rows += [row for name, row in self._missing.items() if name not in models]
        self._calls.reply(call, m.Models(sorted(rows, key=lambda row: row.name)))

    def _show(self, call: Call, ask: m.OfModel) -> None:
        name = self._claims.known(ask.model)
        state, manifest = self._supervisor.state, self._manifests[name]
        model = state.models[name]
        row = views.model_row(state, manifest, model)
        adapters = [m.AdapterRow(file.name, file.path, file.size_bytes) for file in self._adapters.files(name)]
        shown_model = m.Show(row, manifest.facts, manifest.sha256, model.ctx, manifest.imported_at_ms, adapters)
        self._calls.reply(call, shown_model)

    def _explain(self, call: Call, ask: m.OfModel) -> None:
        state = self._supervisor.state
        self._calls.reply(call, views.explain(state, state.models[self._claims.known(ask.model)]))

    def _plan(self, call: Call, ask: m.PlanAsk) -> None:
        state = self._supervisor.state
        self._calls.reply(call, views.plan(state, state.models[self._claims.known(ask.model)], ask))

    # --- models and residency ---------------------------------------------------------------------

    def _import(self, call: Call, ask: m.Import) -> None:
        if not ask.path.startswith("/") or "\0" in ask.path:
            raise Refusal(Fault("invalid_request", f"cannot import {shown(ask.path)}: give an absolute path"))
        name = ask.name or suggest_name(ask.path.rsplit("/", 1)[-1].removesuffix(".gguf"))
        if (fault := name_fault(name)) is not None:
            raise Refusal(Fault("invalid_name", f"cannot register {shown(name)}: {fault}"))
        if self._supervisor.state.stopping:
            raise Refusal(SHUTTING_DOWN)
        call.model = name
        self._jobs.begin(call, self._imported(ask.path, name, self._progress_of(call, "inspecting")))

    def _progress_of(self, call: Call, phase: str) -> Callable[[float], None]:
        """How a job tells its client how far it is."""

        def progress(fraction: float) -> None:
            if not call.ended:
                self._calls.tell_progress(call, m.Progress(phase, call.name, call.model, round(fraction, 3)))

        return progress

    async def _imported(self, path: str, name: str, progress: Callable[[float], None]) -> m.Imported:
        manifest, changed = await self._imports.run(path, name, "import", None, progress)
        return m.Imported(manifest.name, changed, manifest.path, manifest.sha256, manifest.facts)

    def _pull(self, call: Call, ask: m.Pull) -> None:
        server, model = self._remotes.to_pull(ask.model)
        if self._supervisor.state.stopping:
            raise Refusal(SHUTTING_DOWN)
        call.model = shown(ask.model)
        self._calls.tell_progress(call, m.Progress("pulling", call.name, call.model))
        self._jobs.begin(call, self._pulled(server, model, self._progress_of(call, "pulling")))

    async def _pulled(self, server: str, model: str, progress: Callable[[float], None]) -> m.Pulled:
        manifest = await self._pulls.run(server, model, progress)
        return m.Pulled(manifest.name, manifest.path, manifest.facts)

    def _remove(self, call: Call, ask: m.OfModel) -> None:
        call.model = self._remotes.called(ask.model)
        self._supervisor.post(ForgetAsked(now(), call.number, call.model))

    def _load(self, call: Call, ask: m.Load) -> None:
        self._make_resident(call, ask, activate=False)

    def _switch(self, call: Call, ask: m.Load) -> None:
        self._make_resident(call, ask, activate=True)

    def _make_resident(self, call: Call, ask: m.Load, *, activate: bool) -> None:
        self._claims.claim(
            call,
            ask.model,
            Want.RESIDENT,
            ctx=ask.ctx or 0,
            kv_type=ask.kv_type or "",
            force=ask.force,
            reset=ask.reset,
            exact=ask.exact,
            activate=activate,
        )

    def _unload(self, call: Call, ask: m.Unload) -> None:
        self._claims.claim(call, ask.model, Want.COLD, force=ask.force)

    def _pin(self, call: Call, ask: m.OfModel, *, pinned: bool) -> None:
        call.model = self._claims.known(ask.model)
        self._supervisor.post(PinAsked(now(), call.number, call.model, pinned))

    # --- inference --------------------------------------------------------------------------------

    def _infer(self, call: Call, ask: m.Infer) -> None:
        self._claims.text(call, ask, orders.infer(call.number, call.client.uid, ask))

    def _chat(self, call: Call, ask: m.Chat) -> None:
        self._claims.text(call, ask, orders.chat(call.number, call.client.uid, ask))

    def _swarm(self, call: Call, ask: m.Swarm) -> None:
        for name in (ask.judge, ask.embedder):
            if name is not None:
                self._claims.known(name)
        self._jobs.begin(call, self._swarms.answer(call, checked(ask)))

    def _embed(self, call: Call, ask: m.Embed) -> None:
        self._claims.work(call, ask.model, ask.priority, orders.embed(call.number, ask))

    def _score(self, call: Call, ask: m.Score) -> None:
        self._claims.work(call, ask.model, ask.priority, orders.score(call.number, ask))

    def _tokenize(self, call: Call, ask: m.Tokenize) -> None:
        self._claims.work(call, ask.model, "high", orders.tokenize(call.number, ask))  # takes no slot, and no time

    def _detokenize(self, call: Call, ask: m.Detokenize) -> None:
        self._claims.work(call, ask.model, "high", orders.detokenize(call.number, ask))

    # --- sessions ---------------------------------------------------------------------------------

    def _list_sessions(self, call: Call, _: m.Empty) -> None:
        everybodys = (self._access(call.client.uid) or Access.READ) >= Access.ADMIN
        self._jobs.begin(call, self._sessions.list(None if everybodys else call.client.uid))

    def _remove_session(self, call: Call, ask: m.OfSession) -> None:
        model = None if ask.model is None else self._claims.known(ask.model)
        self._jobs.begin(call, self._sessions.remove(call.client.uid, ask.session, model))

    def _credit(self, client: Client, credit: m.Credit) -> None:
        if (call := self._calls.of_client(client, credit.id)) is not None:
            call.credit = min(call.credit + credit.chunks, 2 * CHUNK_WINDOW_MAX)
            self._calls.pump(call)

    def _cancel(self, call: Call, ask: m.Cancel) -> None:
        if (ask.id is None) == (ask.request is None):
            raise Refusal(Fault("invalid_request", "cannot cancel: give either id or request"))
        if ask.id is not None:
            target = self._calls.of_client(call.client, ask.id)
        else:
            target = self._calls.named(ask.request or "")
        if target is None or target is call:
            what = shown(ask.request or str(ask.id))
            raise Refusal(Fault("no_such_request", f"cannot cancel {what}: no such request is in flight"))
        mine = target.client.uid == call.client.uid
        if not mine and (self._access(call.client.uid) or Access.READ) < Access.ADMIN:
            raise Refusal(Fault("not_permitted", f"cannot cancel {target.name}: it is another user's"))
        self._calls.reply(call, m.Cancelled(target.name))
        self._end(target, _CANCELLED)

    # --- notices ----------------------------------------------------------------------------------

    def _watch(self, call: Call, ask: m.Events) -> None:
        self._notices.watch(call, ask.since, follow=ask.follow, window=CHUNK_WINDOW_DEFAULT)


_Handler: TypeAlias = Callable[[Call, Any], None]
"""A handler takes the call and its body, decoded as the catalogue says."""
