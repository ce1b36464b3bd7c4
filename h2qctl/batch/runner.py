"""Asks the daemon for the lines of a batch, a model at a time, several at once, and writes down how each ended.

Whatever concerns one line becomes its line in the output, and the others go on; once it is plain that a model cannot
be used at all, its other lines get the same error without being tried. What ends the run is a daemon that stays away,
an output that cannot be written, an input that changed, or the user; then the same command goes on later.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator
from itertools import count
from time import monotonic
from typing import NamedTuple
from weakref import WeakValueDictionary

from h2qctl.aio import AsyncClient
from h2qctl.batch import jobs, patience
from h2qctl.batch.board import Board
from h2qctl.batch.company import CRASHES, CRASHES_MAX, Company
from h2qctl.batch.jobs import BadLineError, Job
from h2qctl.batch.journal import Journal
from h2qctl.batch.source import Group, Source
from h2qctl.errors import H2qError
from h2qd.wire import messages as m
from h2qd.wire.limits import REQUESTS_PER_CLIENT_MAX

CONCURRENCY_MAX = REQUESTS_PER_CLIENT_MAX - 8
"""Of what one connection may have in flight, some is left for questions of the run's own."""

_CONCURRENCY = 4
"""Where the daemon does not tell how many requests the model answers at once."""

_SYNC_S = 1.0
_PLAN_TIMEOUT_S = 5.0
_UNUSABLE = frozenset(
    {"no_such_model", "file_not_found", "invalid_model_file", "no_fit", "pinned", "load_failed", "model_failed"}
)
"""What is true of a model, whatever it is asked."""


class Settings(NamedTuple):
    """What the user chose. `each_s` bounds each attempt at a line, `wait_s` how long the daemon may be away."""

    concurrency: int | None = None
    each_s: float | None = None
    retries: int = patience.RETRIES
    wait_s: float = patience.WAIT_S


class Runner:
    """One run over `source`, into `journal`."""

    def __init__(
        self, client: AsyncClient, source: Source, journal: Journal, settings: Settings, board: Board
    ) -> None:
        self._client = client
        self._source = source
        self._journal = journal
        self._settings = settings
        self._board = board
        self._gate = patience.Gate(client, settings.wait_s)
        self._company = Company()
        self._unusable: H2qError | None = None
        self._sessions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, groups: list[Group]) -> None:
        """Do all groups in their order. Raises `H2qError` when the run cannot go on."""
        syncing = asyncio.create_task(self._sync())
        working = asyncio.create_task(self._groups(groups))
        try:
            await asyncio.wait((syncing, working), return_when=asyncio.FIRST_COMPLETED)
            (syncing if syncing.done() else working).result()
        finally:
            await _end(syncing, working)

    async def _groups(self, groups: list[Group]) -> None:
        for group in groups:
            self._unusable = None
            self._board.model(group.model or "unreadable lines")
            wide = await self._concurrency(group)
            lines = iter(group.lines)
            workers = [asyncio.create_task(self._work(lines, group.model)) for _ in range(wide)]
            try:
                await asyncio.gather(*workers)
            finally:
                await _end(*workers)

    async def _concurrency(self, group: Group) -> int:
        """How many lines are under way at once: no more than the model has slots, or as the user says."""
        wide = self._settings.concurrency
        if wide is None and group.model is not None:
            with contextlib.suppress(H2qError):  # the lines themselves will tell what is wrong
                wide = (await self._client.plan(group.model, timeout=_PLAN_TIMEOUT_S)).slots
        return min(wide or _CONCURRENCY, CONCURRENCY_MAX, len(group.lines))

    async def _work(self, lines: Iterator[int], model: str | None) -> None:
        for number in lines:
            line = self._source.read(number)
            try:
                job = jobs.parse(line)
            except BadLineError as error:
                self._failed(number, error.id, error)
                continue
            async with self._turn(job):
                await self._line(number, job, model)

    async def _line(self, number: int, job: Job, model: str | None) -> None:
        if self._unusable is not None:
            self._failed(number, job.id, self._unusable)
            return
        try:
            answer = await self._answer(job, model)
        except patience.AwayError:
            raise
        except H2qError as error:
            if error.code in _UNUSABLE:
                self._unusable = error
            self._failed(number, job.id, error)
            return
        self._journal.answered(number, job.id, answer)
        tokens = answer.usage.completion_tokens if isinstance(answer, m.Answer) else answer.prompt_tokens
        self._board.line(tokens, ok=True)

    async def _answer(self, job: Job, model: str | None) -> m.Answer | m.Embeddings:
        """The daemon's answer, after as many attempts as it takes and may take. Raises `H2qError`."""
        crashes = 0
        for attempt in count(1):
            if self._gate.shut:
                self._board.waiting(away=True)
                await self._gate.passed()
                self._board.waiting(away=False)
            try:
                async with self._company.entered(alone=crashes > 0):
                    began_s = monotonic()
                    return await self._ask(job, model)
            except H2qError as error:
                crashes += error.code in CRASHES
                late = error.code == "timeout" and monotonic() - began_s >= (self._settings.each_s or math.inf)
                if not error.retryable or late or attempt > self._settings.retries or crashes == CRASHES_MAX:
                    raise
                if patience.away(error):
                    self._gate.shut = True
                    continue
                pause_s = patience.wait_s(attempt, error)
            await asyncio.sleep(pause_s)
        raise AssertionError  # the attempts have no end of their own

    async def _ask(self, job: Job, model: str | None) -> m.Answer | m.Embeddings:
        client, each_s = self._client, self._settings.each_s
        answer: m.Answer | m.Embeddings
        match job.call:
            case "infer":
                answer = await client.infer(job.subject, model, timeout=each_s, **job.options)
            case "chat":
                answer = await client.chat(job.subject, model, timeout=each_s, **job.options)
            case "embed":
                answer = await client.embed(job.subject, model, timeout=each_s, **job.options)
        return answer

    def _turn(self, job: Job) -> asyncio.Lock:
        """What a line must hold while it runs: those of one session take turns, in the order of the input."""
        session = job.options.get("session")
        if not session:
            return asyncio.Lock()
        return self._sessions.setdefault(session, asyncio.Lock())

    def _failed(self, number: int, name: str | None, error: H2qError) -> None:
        self._journal.failed(number, name, error.reply)
        self._board.line(0, ok=False)

    async def _sync(self) -> None:
        """Have the disk keep the output, each second, off the loop: a slow disk must not make the daemon wait."""
        while True:
            await asyncio.sleep(_SYNC_S)
            await asyncio.to_thread(self._journal.sync)


async def _end(*tasks: "asyncio.Task[None]") -> None:
    """Cancel what still runs, and see it end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
