"""A swarm: several models asked the same, and one answer made of theirs.

Each part is a call of its own, handled like a client's, so the core admits, queues and ends it like any other and
decides what goes for it; this module only says who is asked when. What is resident is asked at once; only when
nothing of that is left the next model is, so that no model goes while a part still wants it, and none loads twice.
A model that is to judge, or to make the vectors, is asked last of those. Called by `commands`, as a job.
Invariant: when the job ends, by whatever end, every part has ended or was told to.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from h2qd.core.events import RequestAbandoned
from h2qd.core.records import Fault
from h2qd.core.states import Status
from h2qd.runtime import consensus
from h2qd.runtime.calls import Call, Calls
from h2qd.runtime.consensus import Verdict
from h2qd.runtime.refusal import Refusal
from h2qd.runtime.supervisor import Supervisor
from h2qd.wire import messages as m
from h2qd.wire.names import shown

_GIVEN_UP = Fault("cancelled", "cannot go on: the request that this was part of has ended")
_TOO_LATE = Fault("deadline_exceeded", "cannot ask this model: the deadline passed")
_THERE = (Status.READY, Status.LOADING)
_JUDGE_TOKENS_MAX = 4
_NOTE_CHARS_MAX = 300
_OPS: dict[type[m.Ask], str] = {m.Infer: "infer.text", m.Chat: "infer.chat", m.Embed: "infer.embed"}


def checked(ask: m.Swarm) -> m.Swarm:
    """The request, if it can be meant. Raises `Refusal`."""
    if (ask.prompt is None) == (ask.messages is None):
        raise _invalid("give either a prompt or messages")
    if len(set(ask.models)) < len(ask.models):
        raise _invalid("a model is named twice")
    for method, helper in (("judge", ask.judge), ("medoid", ask.embedder)):
        if (ask.method == method) != (helper is not None):
            raise _invalid("the method judge takes a judge, medoid an embedder, and the others neither")
    if ask.method == "judge" and any(message.images or message.tool_calls for message in ask.messages or ()):
        raise _invalid("a judge reads text, and the messages hold images or tool calls: choose another method")
    return ask


def _invalid(why: str) -> Refusal:
    return Refusal(Fault("invalid_request", f"cannot ask a swarm: {why}"))


class Swarms:
    """Who asks them. `begin` has a call handled, so that it ends."""

    def __init__(self, supervisor: Supervisor, calls: Calls, begin: Callable[[Call, m.Ask], None]) -> None:
        self._supervisor = supervisor
        self._calls = calls
        self._begin = begin

    async def answer(self, whole: Call, ask: m.Swarm) -> m.SwarmAnswer:
        """Ask them all, and make one answer. Raises `Refusal` when nobody answers."""
        whole.priority = ask.priority
        swarm = _Swarm(self._supervisor, self._calls, self._begin, whole, ask)
        rows = await swarm.rows()
        whole.notes.update(models=len(rows), answered=sum(row.ok for row in rows), loads=len(swarm.loaded))
        if not any(row.ok for row in rows):
            raise Refusal(_nobody(rows))
        agreed = None if ask.method == "none" else await swarm.consensus([row for row in rows if row.ok])
        total_ms = round((time.monotonic() - whole.arrived) * 1000, 2)
        return m.SwarmAnswer(whole.name, rows, agreed, len(swarm.loaded), total_ms)


class _Swarm:
    """One request for a swarm. `loaded`: the workers that loaded a model for it."""

    def __init__(
        self,
        supervisor: Supervisor,
        calls: Calls,
        begin: Callable[[Call, m.Ask], None],
        whole: Call,
        ask: m.Swarm,
    ) -> None:
        self._supervisor = supervisor
        self._calls = calls
        self._begin = begin
        self._whole = whole
        self._until, whole.deadline = whole.deadline, None  # the parts end by then, and so the whole does
        self._ask = ask
        self._parts = 0
        self.loaded: set[tuple[str, float]] = set()

    # --- asking -----------------------------------------------------------------------------------

    async def rows(self) -> list[m.SwarmRow]:
        """What each model said, in the order asked."""
        models, rows = self._ask.models, dict[str, m.SwarmRow]()
        self._tell("asking", 0.0)

        async def ask(model: str) -> None:
            rows[model] = _row(model, await self._part(self._for(model)))
            self._tell("asking", len(rows) / len(models))

        while left := [model for model in models if model not in rows]:
            async with asyncio.TaskGroup() as group:
                for model in self._next(left):
                    group.create_task(ask(model))
        return [rows[model] for model in models]

    def _next(self, left: Sequence[str]) -> list[str]:
        """Those that are there; else the one that costs least now, or is of most use at the end."""
        models = self._supervisor.state.models
        if there := [name for name in left if name in models and models[name].status in _THERE]:
            return there
        later = (self._ask.judge, self._ask.embedder)
        return [min(left, key=lambda name: (name in later, name in models and models[name].status != Status.PARKED))]

    def _for(self, model: str) -> m.Infer | m.Chat:
        """What one model is asked."""
        ask = self._ask
        how = {name: getattr(ask, name) for name in m.Decoding.__struct_fields__}
        if ask.messages is not None:
            return m.Chat(messages=ask.messages, model=model, **how)
        return m.Infer(prompt=ask.prompt or "", model=model, **how)

    async def _part(self, body: m.Infer | m.Chat | m.Embed) -> object:
        """Have a model asked, and wait for its last word: a reply or an `ErrorReply`."""
        heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._parts += 1
        part = self._calls.part(
            self._whole, self._parts, _OPS[type(body)], lambda end: None if heard.done() else heard.set_result(end)
        )
        part.deadline = self._deadline(part)
        if part.deadline is not None and part.deadline <= part.arrived:
            self._calls.error(part, _TOO_LATE)  # nothing is to be unloaded for it any more
        else:
            self._begin(part, body)
        try:
            return await heard
        finally:
            self._note_load(part)
            if not part.ended:  # the whole was given up
                self._supervisor.post(RequestAbandoned(time.monotonic(), part.number, _GIVEN_UP))

    def _deadline(self, part: Call) -> float | None:
        """When a part must end: that of its own, and no later than the whole's."""
        own = None if self._ask.deadline_ms is None else part.arrived + self._ask.deadline_ms / 1000
        return min((at for at in (own, self._until) if at is not None), default=None)

    def _note_load(self, part: Call) -> None:
        model = self._supervisor.state.models.get(part.model or "")
        if model is not None and model.loaded_at > part.arrived:
            self.loaded.add((model.name, model.loaded_at))

    def _tell(self, phase: str, fraction: float | None = None) -> None:
        self._calls.tell_progress(self._whole, m.Progress(phase, self._whole.name, None, fraction))

    # --- one answer -------------------------------------------------------------------------------

    async def consensus(self, rows: Sequence[m.SwarmRow]) -> m.Consensus:
        """What they agree on, by the method asked for; by the majority where that fails."""
        keys = [consensus.normalised(row.text) for row in rows]
        if len(consensus.distinct(keys)) == 1 or self._ask.method == "majority":
            return _consensus(rows, self._ask.method, consensus.majority(keys))
        verdict = await (self._judge(rows, keys) if self._ask.method == "judge" else self._medoid(rows, keys))
        if isinstance(verdict, Verdict):
            return _consensus(rows, self._ask.method, verdict)
        note = shown(f"{self._ask.method} failed: {verdict}", _NOTE_CHARS_MAX)
        return _consensus(rows, "majority", consensus.majority(keys), note)

    async def _judge(self, rows: Sequence[m.SwarmRow], keys: Sequence[str]) -> Verdict | str:
        """What the judge chose of the different answers, or why it did not."""
        self._tell("judging")
        firsts = consensus.distinct(keys)
        body = m.Infer(
            prompt=consensus.judge_prompt(_question(self._ask), [rows[at].text for at in firsts]),
            model=self._ask.judge,
            temperature=0,
            max_tokens=_JUDGE_TOKENS_MAX,
            grammar=consensus.judge_grammar(len(firsts)),
            overflow="truncate",
            priority=self._ask.priority,
        )
        end = await self._part(body)
        if not isinstance(end, m.Answer):
            return _why(end)
        choice = consensus.judged(end.text, len(firsts))
        return f"it said {shown(end.text, 40)!r}" if choice is None else consensus.chosen(keys, firsts[choice])

    async def _medoid(self, rows: Sequence[m.SwarmRow], keys: Sequence[str]) -> Verdict | str:
        """The answer in the middle of those that say something, or why it cannot be told."""
        self._tell("comparing")
        said = [at for at, key in enumerate(keys) if key]
        body = m.Embed(
            texts=[rows[at].text for at in said],
            model=self._ask.embedder,
            overflow="truncate",
            priority=self._ask.priority,
        )
        end = await self._part(body)
        if not isinstance(end, m.Embeddings):
            return _why(end)
        if len(end.vectors) != len(said) or len({len(vector) for vector in end.vectors}) != 1:
            return "its vectors do not fit the answers"
        middle = consensus.medoid([keys[at] for at in said], end.vectors)
        return Verdict(said[middle.chosen], tuple(said[at] for at in middle.voters), middle.agreement)


def _row(model: str, end: object) -> m.SwarmRow:
    """What came of one model."""
    if isinstance(end, m.Answer):
        return m.SwarmRow(
            model=end.model,
            ok=True,
            text=end.text,
            finish=end.finish,
            usage=end.usage,
            timings=end.timings,
            seed=end.seed,
            instead_of=end.instead_of,
        )
    return m.SwarmRow(model=model, ok=False, error=end if isinstance(end, m.ErrorReply) else None)


def _consensus(rows: Sequence[m.SwarmRow], method: m.Method, verdict: Verdict, note: str = "") -> m.Consensus:
    return m.Consensus(
        method=method,
        text=rows[verdict.chosen].text,
        models=[rows[at].model for at in verdict.voters],
        agreement=round(verdict.agreement, 4),
        votes=len(verdict.voters),
        note=note,
    )


def _nobody(rows: Sequence[m.SwarmRow]) -> Fault:
    """That all failed: the code is the first one's, the reasons are everybody's."""
    errors = [row.error for row in rows if row.error is not None]
    code = errors[0].code if errors else "internal"
    after = [error.retry_after_ms / 1000 for error in errors if error.retry_after_ms is not None]
    return Fault(
        code,
        f"cannot answer: none of {len(rows)} models did",
        tuple(error.message for error in errors),
        min(after, default=None),
        errors[0].hint if errors else "",
    )


def _question(ask: m.Swarm) -> str:
    if ask.messages is None:
        return ask.prompt or ""
    return "\n".join(f"{message.role}: {message.content}" for message in ask.messages)


def _why(end: object) -> str:
    return end.message if isinstance(end, m.ErrorReply) else "it did not answer"
