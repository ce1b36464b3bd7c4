"""An engine that runs a script instead of a model: for tests of everything around engines.

A script is a small JSON file given in place of a model file: it says how long a load takes, what is
answered, and what goes wrong when. Time, memory, crashes and hangs are real; the text is not.
Stop strings, sampling and sessions are ignored, and nothing but text is computed.
Only an environment with H2Q_TEST=1 may use it.
"""

import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Annotated, BinaryIO, Literal, NoReturn

import msgspec

from h2qd.wire.messages import ModelFacts
from h2qd.wire.workers import (
    Generate,
    Generated,
    GenerationFailed,
    Loaded,
    LoadModel,
    Prefilling,
    ResumeModel,
    SessionsSaved,
    Task,
    Text,
)
from h2qd.worker.engine import Beat, EngineError, Progress, Said, text_alone

SCRIPT_BYTES_MAX = 64 * 1024
_LOAD_STEPS = 20
_PREFILL_STEPS = 10

_Ms = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the engine does. `*_at_token` counts an answer's tokens from 0; that token is not produced.

    `tokens` is an answer's texts, or how many "tok0 tok1 …" there are. `memory_bytes` are touched during the
    load, `leak_bytes_per_token` later; `context_bytes` at the end of a load, until the model is parked, and again
    when it is resumed. `load_crash_at` is a fraction of the load. `wedge_at_token` stops the
    process dead with the interpreter's lock held: not even Ping is answered. `hang_at_token` stops the engine
    only. `prompt_tokens` None: the words of the prompt. `exit_code` is the status that StopWorker ends with.
    """

    h2qd_fake: Literal[1]
    facts: ModelFacts = ModelFacts(format="fake", architecture="fake", title="fake", context_length=4096)
    load_ms: _Ms = 0
    load_fail: tuple[str, str] | None = None
    load_crash_at: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    load_hang: bool = False
    memory_bytes: _Count = 0
    context_bytes: _Count = 0
    park_ms: _Ms = 0
    save_ms: _Ms = 0
    resume_ms: _Ms = 0
    resume_fail: tuple[str, str] | None = None
    tokens: list[str] | _Count = 8
    token_ms: _Ms = 0
    prefill_ms: _Ms = 0
    prompt_tokens: _Count | None = None
    crash_at_token: _Count | None = None
    hang_at_token: _Count | None = None
    wedge_at_token: _Count | None = None
    fail_at_token: _Count | None = None
    leak_bytes_per_token: _Count = 0
    ignore_sigterm: bool = False
    ignore_stop: bool = False
    ignore_cancel: bool = False
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0

    def answer(self) -> list[str]:
        """The texts of an answer's tokens."""
        if isinstance(self.tokens, list):
            return self.tokens
        return [f"tok{n} " for n in range(self.tokens)]


_decoder = msgspec.json.Decoder(Script)


def allowed() -> bool:
    """Whether this process may take a script for a model."""
    return os.environ.get("H2Q_TEST") == "1"


def is_script(file: BinaryIO) -> bool:
    """Whether `file` is meant as a script; leaves it at its beginning. No model format begins with a brace."""
    start = file.read(1)
    file.seek(0)
    return start == b"{"


def read_script(file: BinaryIO) -> Script:
    """The script in `file`, its facts with the format "fake". Raises `EngineError` (invalid_model_file)."""
    text = file.read(SCRIPT_BYTES_MAX + 1)
    if len(text) > SCRIPT_BYTES_MAX:
        raise EngineError("invalid_model_file", f"cannot read a script of over {SCRIPT_BYTES_MAX} bytes")
    try:
        script = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError("invalid_model_file", f"cannot read the script: {error}") from error
    return msgspec.structs.replace(script, facts=msgspec.structs.replace(script.facts, format="fake"))


class _Run:
    """A request at work."""

    def __init__(self, order: Generate, prompt_tokens: int) -> None:
        self.order = order
        self.prompt_tokens = prompt_tokens
        self.cancelled = threading.Event()
        self.prefill_steps = 0
        self.tokens = 0
        self.start_s = time.monotonic()
        self.prefilled_s = 0.0
        self.first_token_s = 0.0


class FakeEngine:
    """Runs one request at a time, the others in the order of their arrival."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._script = Script(h2qd_fake=1)
        self._answer: list[str] = []
        self._ctx = 0
        self._runs: deque[_Run] = deque()
        self._memory: list[bytearray] = []
        self._context: bytearray | None = None  # None: parked, or not loaded

    # --- the contract of `engine.Engine` --------------------------------------------------------------

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Follow the script at `order.path`. Raises `EngineError`: what it says, or that there is no script."""
        start_s = time.monotonic()
        if not allowed():
            raise EngineError("load_failed", "this build has no backend 'fake': it is for tests")
        self._script = script = _script_at(order.path)
        self._answer = script.answer()  # once: a long one takes longer to write than a token may
        if script.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(_LOAD_STEPS + 1):
            fraction = step / _LOAD_STEPS
            self._beat.tick()
            progress(fraction)
            if script.load_crash_at is not None and fraction >= script.load_crash_at:
                _crash()
            if script.load_hang:
                _hang()
            if step < _LOAD_STEPS:
                self._take_memory(script.memory_bytes // _LOAD_STEPS)
                time.sleep(script.load_ms / 1000 / _LOAD_STEPS)
        if script.load_fail is not None:
            raise EngineError(*script.load_fail)
        return self._ready(order, start_s)

    @property
    def unsaved(self) -> int:
        """One, if the script says how long it takes."""
        return int(self._script.save_ms > 0)

    def save(self) -> SessionsSaved:
        """Take `save_ms`, and say that a session was saved."""
        time.sleep(self._script.save_ms / 1000)
        return SessionsSaved(1, 0, 0, self._script.save_ms)

    def forget(self, session: str) -> None:
        """Nothing is kept."""

    def park(self) -> None:
        """Let `context_bytes` go, after `park_ms`."""
        time.sleep(self._script.park_ms / 1000)
        self._context = None

    def resume(self, order: ResumeModel) -> Loaded:
        """Take `context_bytes` again, after `resume_ms`. Raises `EngineError`: what the script says."""
        start_s = time.monotonic()
        self._beat.tick()
        time.sleep(self._script.resume_ms / 1000)
        if self._script.resume_fail is not None:
            raise EngineError(*self._script.resume_fail)
        return self._ready(order, start_s)

    def _ready(self, order: LoadModel | ResumeModel, start_s: float) -> Loaded:
        """A context of `order.ctx` tokens, of which one request may use a slot's share."""
        self._context = bytearray(b"\x01") * self._script.context_bytes
        self._ctx = order.ctx // order.slots
        return Loaded(self._ctx, (time.monotonic() - start_s) * 1000)

    def submit(self, order: Task) -> None:
        """Queue a request. Raises `EngineError`: not_loaded, unsupported, context_overflow."""
        if not isinstance(order, Generate):
            raise EngineError("unsupported", "cannot do this: the script generates text")
        text_alone(order)
        if self._context is None:
            raise EngineError("not_loaded", "cannot generate: the model is parked")
        texts = [order.prompt] if order.prompt is not None else [turn.content for turn in order.turns or []]
        count = self._script.prompt_tokens
        if count is None:
            count = sum(len(text.split()) for text in texts)
        if count > self._ctx:
            raise EngineError("context_overflow", f"the prompt has {count} tokens, the context holds {self._ctx}")
        self._runs.append(_Run(order, count))

    def cancel(self, request: int) -> None:
        """Give a request up, also one that waits; the script may say not to."""
        if self._script.ignore_cancel:
            return
        for run in list(self._runs):
            if run.order.request == request:
                run.cancelled.set()

    def step(self) -> Sequence[Said]:
        """A tenth of a prefill, or a token, of the first request that is not cancelled."""
        if not self._runs:
            return []
        run = self._runs[0]
        if run.cancelled.is_set():
            return [self._finish(run, "cancelled")]
        self._beat.tick()
        if run.prefill_steps < _PREFILL_STEPS:
            return self._prefill(run)
        return self._decode(run)

    @property
    def busy(self) -> bool:
        """Requests run or wait."""
        return bool(self._runs)

    def stop(self) -> None:
        """Refuse to stop, or stop with another status, if the script says so."""
        if self._script.ignore_stop:
            _hang()
        if self._script.exit_code:
            os._exit(self._script.exit_code)

    def close(self) -> None:
        """Let go of memory and requests."""
        self._memory.clear()
        self._context = None
        self._runs.clear()

    # --- one step -------------------------------------------------------------------------------------

    def _prefill(self, run: _Run) -> list[Said]:
        if run.cancelled.wait(self._script.prefill_ms / 1000 / _PREFILL_STEPS):
            return [self._finish(run, "cancelled")]
        run.prefill_steps += 1
        run.prefilled_s = time.monotonic()
        total = run.prompt_tokens
        return [Prefilling(run.order.request, total * run.prefill_steps // _PREFILL_STEPS, total)]

    def _decode(self, run: _Run) -> list[Said]:
        texts = self._answer
        if run.tokens >= run.order.max_tokens:
            return [self._finish(run, "length")]
        if run.tokens >= len(texts) and not (run.order.ignore_eos and texts):
            return [self._finish(run, "stop")]
        self._meet_accident(run.tokens)
        if self._script.fail_at_token == run.tokens:
            self._runs.popleft()
            return [GenerationFailed(run.order.request, "generation_failed", "the script says so")]
        if run.cancelled.wait(self._script.token_ms / 1000):
            return [self._finish(run, "cancelled")]
        self._take_memory(self._script.leak_bytes_per_token)
        text = texts[run.tokens % len(texts)]
        if run.tokens == 0:
            run.first_token_s = time.monotonic()
        run.tokens += 1
        return [Text(run.order.request, text, 1)]

    def _meet_accident(self, token: int) -> None:
        if self._script.crash_at_token == token:
            _crash()
        if self._script.hang_at_token == token:
            _hang()
        if self._script.wedge_at_token == token:
            _wedge()

    def _finish(self, run: _Run, finish: str) -> Generated:
        self._runs.popleft()
        end_s = time.monotonic()
        prefilled_s = run.prefilled_s or end_s
        first_s = run.first_token_s or end_s
        return Generated(
            request=run.order.request,
            finish=finish,
            prompt_tokens=run.prompt_tokens,
            completion_tokens=run.tokens,
            cached_tokens=0,
            prefill_ms=(prefilled_s - run.start_s) * 1000,
            first_token_ms=(first_s - run.start_s) * 1000,
            decode_ms=(end_s - prefilled_s) * 1000,
        )

    def _take_memory(self, size: int) -> None:
        if size:
            self._memory.append(bytearray(b"\x01") * size)  # written, so that it is really resident


def _script_at(path: str) -> Script:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path as the wire gives it
            return read_script(file)
    except OSError as error:
        raise EngineError("file_not_found", "cannot open the script") from error


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    _hang()  # until the signal is delivered


def _hang() -> NoReturn:
    while True:
        threading.Event().wait()


def _wedge() -> NoReturn:
    """Sleep as native code does that does not give the interpreter's lock back."""
    while True:
        ctypes.PyDLL(None).pause()
