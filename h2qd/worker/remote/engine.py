"""The engine of a model that a server runs: requests go out as they come, `step` collects what is said of them.

Nothing is computed here. All talking is done in one thread (`talk`), in the words of one kind of server (`dialect`).
A request that fails is a `GenerationFailed`, and the worker lives on whatever the server does: whether a server is
gone for good is for the supervisor to judge. Called by the loop, through `engine.open_engine`.
Invariant: what is said, raised or logged went through the server's `scrubbed`, so no key is in it.
"""

import asyncio
import queue
from collections.abc import Awaitable, Sequence
from typing import TypeVar, assert_never

from h2qd.wire.workers import (
    EmbedTexts,
    Generate,
    Generated,
    GenerationFailed,
    HeldElsewhere,
    Listed,
    ListModels,
    Loaded,
    LoadModel,
    PullModel,
    RemoteTarget,
    Result,
    ResumeModel,
    Task,
)
from h2qd.worker import journal
from h2qd.worker.engine import Aside, Beat, EngineError, Progress, Said
from h2qd.worker.remote.dialect import Dialect
from h2qd.worker.remote.ollama import Ollama
from h2qd.worker.remote.openai import OpenAI
from h2qd.worker.remote.reply import Reply
from h2qd.worker.remote.secret import read_secret
from h2qd.worker.remote.server import Server
from h2qd.worker.remote.talk import Talk

_STEP_MESSAGES_MAX = 16
"""Said by one step: the loop joins texts, each at most a line of a stream, and a message of its own has 8 MiB."""
_STEP_S = 0.25
"""How long a step waits for something to be said, so that the loop can take new requests."""
WATCH_S = 5.0
"""Between two looks at what a server on this device holds for us."""

T = TypeVar("T")


class RemoteEngine:
    """One model at one server. `aside` hears, in the talking thread, what is said of no request."""

    def __init__(self, beat: Beat, aside: Aside) -> None:
        self._talk = Talk(beat)
        self._aside = aside
        self._dialect: Dialect | None = None
        self._limit = asyncio.Semaphore(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # touched in the talking thread only
        self._open: set[int] = set()  # touched in the main thread only
        self._watching: asyncio.Task[None] | None = None
        self._said: queue.SimpleQueue[Said | Exception] = queue.SimpleQueue()
        self._told = HeldElsewhere(0)

    # --- the contract of `engine.Engine` --------------------------------------------------------------

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """See that the server lives and has the model, and have it load it. Raises `EngineError`."""
        if order.remote is None:
            raise EngineError("load_failed", "cannot speak to a server: the order names none")
        self._limit = asyncio.Semaphore(max(1, order.remote.concurrency))
        target = order.remote

        async def work(_: Progress) -> Loaded:
            self._dialect = _dialect(target)
            return await _guarded(self._dialect, self._dialect.load(order))

        try:
            loaded = self._talk.run(work, progress)
        except EngineError:
            self.stop()  # the server may have loaded it all the same
            raise
        if self._speaker.holds:
            self._told = HeldElsewhere(loaded.elsewhere_bytes)
            self._talk.post(self._start_watch)
        return loaded

    @property
    def unsaved(self) -> int:
        """One, while a server on this device holds the model for us: to let it go takes its time."""
        return int(self._speaker.holds)

    def save(self) -> HeldElsewhere:
        """Have the server unload the model. What it could not be seen to let go of is in the answer."""
        try:
            return self._talk.run(lambda _: self._speaker.let_go(), _unheard)
        except EngineError as error:
            journal.record(
                "remote.unload_failed", code=error.code, message=self._speaker.server.scrubbed(error).message
            )
            return self._told

    def forget(self, session: str) -> None:
        """Servers are told no sessions."""

    def park(self) -> None:
        """There is nothing to park. Raises `EngineError` (unsupported)."""
        raise EngineError("unsupported", "cannot park a model that a server runs")

    def resume(self, order: ResumeModel) -> Loaded:
        """As `park`."""
        raise EngineError("unsupported", f"cannot resume a model that a server runs, with {order.ctx} tokens")

    def submit(self, order: Task) -> None:
        """Send a request, or have it wait for a connection. Raises `EngineError` (unsupported, invalid_grammar)."""
        self._speaker.check(order)
        self._open.add(order.request)
        self._talk.post(lambda: self._begin(order))

    def cancel(self, request: int) -> None:
        """Close the request's connection."""
        self._talk.post(lambda: self._give_up(request))

    def step(self) -> Sequence[Said]:
        """What was said since the last step; waits a moment for it. Raises what is a defect of this engine."""
        said: list[Said] = []
        if not self._open:
            return said
        try:
            item = self._said.get(timeout=_STEP_S)
            while True:
                if isinstance(item, Exception):
                    raise item
                said.append(item)
                if isinstance(item, Result | GenerationFailed):
                    self._open.discard(item.request)
                if len(said) == _STEP_MESSAGES_MAX:
                    return said
                item = self._said.get_nowait()
        except queue.Empty:
            return said

    @property
    def busy(self) -> bool:
        """Requests are under way."""
        return bool(self._open)

    def stop(self) -> None:
        """Tell a server on this device that it may unload the model; without waiting to see it."""
        if self._dialect is not None:
            self._dialect.abandon()

    def close(self) -> None:
        """Close connections and end the thread."""
        if self._dialect is not None:
            self._talk.run(lambda _: self._speaker.server.close(), _unheard)
        self._talk.close()

    # --- in the talking thread ------------------------------------------------------------------------

    def _begin(self, order: Task) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(order))
        self._tasks[order.request] = task
        task.add_done_callback(lambda ended: self._ended(order.request, ended))

    def _ended(self, request: int, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step has said nothing."""
        del self._tasks[request]
        if task.cancelled():
            self._said.put(_cancelled(request))

    def _give_up(self, request: int) -> None:
        if (task := self._tasks.get(request)) is not None:
            task.cancel()

    async def _answer(self, order: Task) -> None:
        """One request, to its last word."""
        assert isinstance(order, Generate | EmbedTexts)  # noqa: S101 - `check` refuses all others
        with self._talk.working():
            reply = Reply(order, self._said.put) if isinstance(order, Generate) else None
            last: Result | GenerationFailed
            try:
                async with self._limit:
                    last = await self._result(order, reply)
            except asyncio.CancelledError:
                last = reply.end("cancelled") if reply is not None else _cancelled(order.request)
            except EngineError as error:
                error = self._speaker.server.scrubbed(error)
                last = GenerationFailed(order.request, error.code, error.message, error.away)
            except Exception as error:  # noqa: BLE001 - a defect of ours: raised again by the next step
                self._said.put(error)
                return
            self._said.put(last)

    async def _result(self, order: Generate | EmbedTexts, reply: Reply | None) -> Result:
        if isinstance(order, EmbedTexts):
            return await self._speaker.embed(order)
        assert reply is not None  # noqa: S101 - made for each Generate
        return await self._speaker.generate(order, reply)

    def _start_watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Tell once what is there, then when somebody else unloads the model, or a request had it loaded again."""
        told = None
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                held = await self._speaker.held()
            except EngineError:
                continue  # a request will say what is wrong with the server; what it holds is not known
            if held != told:
                told = self._told = held
                self._aside(held)

    @property
    def _speaker(self) -> Dialect:
        """What a load made; the loop asks for nothing before."""
        if self._dialect is None:
            raise EngineError("not_loaded", "cannot ask: no server is known yet")
        return self._dialect


def ask_server(order: ListModels | PullModel, beat: Beat, progress: Progress) -> Listed:
    """What the server of `order` has, after it pulled a model if that was asked for. Raises `EngineError`."""
    talk = Talk(beat)

    async def work(tell: Progress) -> Listed:
        dialect = _dialect(order.remote)
        try:
            match order:
                case ListModels():
                    return await _guarded(dialect, dialect.list_models())
                case PullModel(model=model):
                    return await _guarded(dialect, dialect.pull(model, tell))
                case _:
                    assert_never(order)
        finally:
            await dialect.server.close()

    try:
        return talk.run(work, progress)
    finally:
        talk.close()


def _dialect(target: RemoteTarget) -> Dialect:
    """Made in the talking thread, where its connections belong. Raises `EngineError` (load_failed)."""
    server = Server(target, read_secret(target))
    return Ollama(server) if target.kind == "ollama" else OpenAI(server)


async def _guarded(dialect: Dialect, work: Awaitable[T]) -> T:
    try:
        return await work
    except EngineError as error:
        raise dialect.server.scrubbed(error) from None


def _cancelled(request: int) -> Generated:
    return Generated(request, "cancelled", 0, 0, 0, 0, 0, 0)


def _unheard(_: float) -> None:
    """Progress that nobody asked for."""
