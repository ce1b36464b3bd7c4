"""A worker's life: orders in, an engine's answers out. Runs in a forked child; `zygote` calls `serve`.

Two threads. The *reader* takes every message as it comes and answers at once what must not wait for the
engine: Ping, CancelGeneration, StopWorker unless it is to save first, and the end of the channel, which ends the
process wherever the engine is. The *main* thread takes the other orders in turn and is the only one that works the
engine.
What a message means for memory or policy is the supervisor's business.
An order to park or resume that comes out of turn (a request runs, nothing is loaded, nothing is parked) goes to the
log and is otherwise ignored: the supervisor gave it by mistake, and requests must not pay for that.

Invariant: every Task is answered with exactly one Result or GenerationFailed, unless the process dies.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn, TypeAlias, assert_never

import msgspec

from h2qd.wire.workers import (
    CancelGeneration,
    ChannelError,
    DetokenizeTokens,
    EmbedTexts,
    ForgetSession,
    FromWorker,
    Generate,
    GenerationFailed,
    Inspected,
    InspectFile,
    Listed,
    ListModels,
    Loaded,
    LoadFailed,
    Loading,
    LoadModel,
    Parked,
    ParkModel,
    Ping,
    Pong,
    PullModel,
    Result,
    ResumeModel,
    SavingSessions,
    ScoreText,
    StopWorker,
    Task,
    Text,
    TokenizeText,
)
from h2qd.worker import journal
from h2qd.worker.channel import Channel
from h2qd.worker.engine import Beat, Engine, EngineError, Progress, Said, open_engine
from h2qd.worker.inspect import inspect_file
from h2qd.worker.remote.secret import hide_memory

EXIT_STOPPED = os.EX_OK
"""StopWorker, or a LoadFailed that was said."""
EXIT_FAULT = os.EX_SOFTWARE
"""The engine or the conversation broke; stderr says how."""
EXIT_ORPHANED = os.EX_IOERR
"""The supervisor is gone."""

_PROGRESS_S_MIN = 0.05
"""At most this often is progress told."""

_Order: TypeAlias = (
    LoadModel | ParkModel | ResumeModel | InspectFile | ListModels | PullModel | Task | ForgetSession | StopWorker
)


def serve(sock: socket.socket) -> int:
    """Work for the supervisor at the other end of `sock`. Returns the process's exit status, or ends the process."""
    return Worker(Channel(sock)).run()


class Worker:
    """One channel and, once loaded, one engine."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._beat = Beat()
        self._engine: Engine | None = None
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._requests = _Requests()
        self._parked = False
        self._preparing = False  # a load, a resumption or an inspection is under way
        self._progress_told_s = 0.0

    # --- reader thread ------------------------------------------------------------------------------

    def _read(self) -> NoReturn:
        try:
            for message in self._channel.receive():
                self._notice(message)
        except ChannelError as error:
            journal.record("worker.channel_broken", error)
            os._exit(EXIT_FAULT)
        except Exception as error:  # noqa: BLE001 - a worker that cannot hear must not live
            journal.record("worker.reader_failed", error)
            os._exit(EXIT_FAULT)
        os._exit(EXIT_ORPHANED)

    def _notice(self, message: _Order | CancelGeneration | Ping) -> None:
        match message:
            case Ping(n):
                self._say(Pong(n, self._beat.count, self._busy))
            case CancelGeneration(request):
                if self._requests.give_up(request) and self._engine is not None:
                    self._engine.cancel(request)
            case StopWorker(save=save):
                if save and not self._busy:
                    self._orders.put(message)
                else:
                    self._exit()
            case Generate() | EmbedTexts() | ScoreText() | TokenizeText() | DetokenizeTokens():
                self._requests.arrived(message.request)
                self._orders.put(message)
            case (
                LoadModel()
                | ParkModel()
                | ResumeModel()
                | InspectFile()
                | ListModels()
                | PullModel()
                | ForgetSession()
            ):
                self._orders.put(message)
            case _:
                assert_never(message)

    # --- main thread --------------------------------------------------------------------------------

    def run(self) -> int:
        """Take orders until something ends the process; the status to end it with."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            while True:
                self._take(self._orders.get())
                while self._engine is not None and self._engine.busy:
                    self._take_waiting()
                    self._tell(self._engine.step())
        except EngineError as refusal:  # of a load or an inspection: a request's is answered where it is taken
            self._say(LoadFailed(refusal.code, refusal.message, refusal.away))
            return EXIT_STOPPED
        except Exception as error:  # noqa: BLE001 - whatever an engine throws becomes answers and an exit
            journal.record("worker.engine_failed", error)
            self._give_in()
            return EXIT_FAULT

    def _take_waiting(self) -> None:
        """Orders that came while the engine worked: more requests may join it."""
        while not self._orders.empty():
            self._take(self._orders.get())

    def _take(self, order: _Order) -> None:
        match order:
            case LoadModel():
                self._load(order)
            case ParkModel():
                self._park()
            case ResumeModel():
                self._resume(order)
            case InspectFile(path):
                self._preparing = True
                self._done(inspect_file(path, self._progress, self._beat))
            case ListModels() | PullModel():
                self._preparing = True
                hide_memory()
                self._done(_ask_server(order, self._progress, self._beat))
            case Generate() | EmbedTexts() | ScoreText() | TokenizeText() | DetokenizeTokens():
                self._submit(order)
            case ForgetSession(session):
                if self._engine is not None:
                    self._engine.forget(session)
            case StopWorker():
                self._save()
                self._exit()
            case _:
                assert_never(order)

    def _exit(self) -> NoReturn:
        if self._engine is not None:
            self._engine.stop()
        os._exit(EXIT_STOPPED)

    def _save(self) -> None:
        """Write what sessions hold, before it is freed."""
        engine = self._engine
        if engine is not None and not self._parked and not engine.busy and engine.unsaved:
            self._say(SavingSessions(engine.unsaved))
            self._say(engine.save())

    def _load(self, order: LoadModel) -> None:
        if self._engine is not None:
            raise EngineError("load_failed", "cannot load a second model: a worker holds one")
        self._preparing = True
        if order.remote is not None:
            hide_memory()
        self._engine = open_engine(order.backend, self._beat, self._say)
        self._done(self._engine.load(order, self._progress))

    def _park(self) -> None:
        if self._engine is None or self._engine.busy:
            journal.record("worker.order_ignored", order="park", parked=int(self._parked))
            return
        if not self._parked:
            self._save()
            self._engine.park()
            self._parked = True
        self._say(Parked())

    def _resume(self, order: ResumeModel) -> None:
        if self._engine is None or not self._parked:
            journal.record("worker.order_ignored", order="resume", parked=int(self._parked))
            return
        self._preparing = True
        loaded = self._engine.resume(order)
        self._parked = False
        self._done(loaded)

    def _done(self, prepared: Loaded | Inspected | Listed) -> None:
        """Say it as no longer busy: who hears it may ask at once."""
        self._preparing = False
        self._say(prepared)

    def _submit(self, order: Task) -> None:
        if self._engine is None:
            text = "cannot generate: this worker holds no model"
            self._tell([GenerationFailed(order.request, "not_loaded", text)])
            return
        try:
            self._engine.submit(order)
        except EngineError as refusal:
            self._tell([GenerationFailed(order.request, refusal.code, refusal.message)])
            return
        if self._requests.given_up(order.request):  # the reader saw the cancel before the engine saw the request
            self._engine.cancel(order.request)

    def _tell(self, said: Sequence[Said]) -> None:
        messages = coalesced(said)
        for message in messages:
            if isinstance(message, Result | GenerationFailed):
                self._requests.ended(message.request)
        if messages:
            self._say(*messages)

    def _give_in(self) -> None:
        """The engine is in doubt: what waits for it gets its answer before the process ends."""
        if self._preparing:
            self._say(LoadFailed("load_failed", "the engine failed while it loaded"))
        for request in self._requests.open():
            self._say(GenerationFailed(request, "generation_failed", "the engine failed and was given up"))

    def _progress(self, fraction: float) -> None:
        now_s = time.monotonic()
        if now_s - self._progress_told_s >= _PROGRESS_S_MIN:
            self._progress_told_s = now_s
            self._say(Loading(min(1.0, max(0.0, fraction))))

    # --- either thread ------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return self._preparing or bool(self._requests.open())

    def _say(self, *messages: FromWorker) -> None:
        try:
            self._channel.send(*messages)
        except OSError:  # also inside a native library's callback, where an exception would get lost
            os._exit(EXIT_ORPHANED)


def _ask_server(order: ListModels | PullModel, progress: Progress, beat: Beat) -> Listed:
    """What a server has. Raises `EngineError`."""
    try:
        from h2qd.worker.remote.engine import ask_server  # noqa: PLC0415 - HTTP and TLS are for who speaks them
    except ImportError as error:
        raise EngineError("load_failed", "httpcore2, which speaks to servers, is not installed") from error
    return ask_server(order, beat, progress)


class _Requests:
    """Requests from their arrival to their end, and whether they were given up; shared by both threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up: dict[int, bool] = {}

    def arrived(self, request: int) -> None:
        with self._lock:
            self._given_up[request] = False

    def give_up(self, request: int) -> bool:
        """Whether there was something to give up: a cancel may come after the end."""
        with self._lock:
            if request not in self._given_up:
                return False
            self._given_up[request] = True
            return True

    def given_up(self, request: int) -> bool:
        with self._lock:
            return self._given_up.get(request, False)

    def ended(self, request: int) -> None:
        with self._lock:
            self._given_up.pop(request, None)

    def open(self) -> list[int]:
        with self._lock:
            return list(self._given_up)


def coalesced(said: Iterable[Said]) -> list[Said]:
    """What one step said, with the texts of each request joined into its first; order is otherwise kept."""
    messages: list[Said] = []
    first: dict[int, int] = {}
    for message in said:
        if isinstance(message, Text):
            at = first.setdefault(message.request, len(messages))
            if at < len(messages):
                earlier = messages[at]
                assert isinstance(earlier, Text)  # noqa: S101 - `first` holds the places of texts only
                messages[at] = msgspec.structs.replace(
                    earlier,
                    text=earlier.text + message.text,
                    tokens=earlier.tokens + message.tokens,
                    logprobs=earlier.logprobs + message.logprobs,
                    thinking=earlier.thinking + message.thinking,
                )
                continue
        messages.append(message)
    return messages
