"""The contract between a worker's loop and what generates: one engine per worker process.

The loop calls `load` once, then `submit`, `forget` and `step`, and while the engine is idle `save`, and `park` and
`resume` in turn, all from its main thread; `cancel` comes from the reader thread. An engine grows its `Beat` at every
step of real work, also inside a long load or prefill: the supervisor tells a slow engine from a hung one by nothing
else. Nothing here knows of channels or processes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from h2qd.wire.abilities import beyond_text
from h2qd.wire.codes import CODES
from h2qd.wire.workers import (
    GenerationFailed,
    HeldElsewhere,
    Loaded,
    LoadModel,
    Prefilling,
    Result,
    ResumeModel,
    SessionsSaved,
    Task,
    Text,
)

Said: TypeAlias = Prefilling | Text | Result | GenerationFailed
"""What a step may say of a request. A `Result` or `GenerationFailed` comes exactly once, and last."""

Progress: TypeAlias = Callable[[float], None]
"""Takes how much is done, 0..1; cheap, may be called as often as an engine likes, from the main thread."""

Aside: TypeAlias = Callable[[HeldElsewhere], None]
"""Takes what an engine has to say of no request, also while it is idle. From any thread."""


class EngineError(Exception):
    """A load or a request that the engine refuses: `code` is one of `codes.CODES`.

    `away`: a server was to answer, and is not there, or fails; so it may be for all that it is asked.
    """

    def __init__(self, code: str, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(code)
        self.code = code
        self.message = message
        self.away = away


class Beat:
    """Counts the steps of an engine. One thread ticks; any thread may read `count`."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def tick(self) -> None:
        """One more step was done: a piece of a load, a chunk of a prefill, a token."""
        self.count += 1


class Engine(Protocol):
    """What generates. It may serve several requests at a time; one that serves one refuses a second."""

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Make `order.path` ready. Called once, before anything else.

        `Loaded.ctx` is what one request may use: the context is shared out evenly among the slots.

        Raises `EngineError`: file_not_found, invalid_model_file, load_failed. The worker exits then.
        """
        ...

    @property
    def unsaved(self) -> int:
        """How many sessions the KV cache holds that are newer there than on disk.

        1 for a model that a server on this device holds for this worker.
        """
        ...

    def save(self) -> SessionsSaved | HeldElsewhere:
        """Write the unsaved sessions to disk. Called when idle, before `park` and before a stop.

        A session that cannot be written is forgotten: that costs its next request a prefill. Raises nothing for that.
        For a model that a server holds: have it let go, and tell what it holds then.
        """
        ...

    def forget(self, session: str) -> None:
        """Neither keep nor save this session; unknown ones are ignored. Between two steps."""
        ...

    def park(self) -> None:
        """Free what requests need and keep the model, so that `resume` is fast. Called when idle, not when parked.

        Freed memory goes back to the kernel before this returns.
        """
        ...

    def resume(self, order: ResumeModel) -> Loaded:
        """Make the parked model ready again, with the context that `order` asks for. Called when parked only.

        Raises `EngineError` (load_failed). The worker exits then.
        """
        ...

    def submit(self, order: Task) -> None:
        """Take a request; the steps that follow work on it. Must not compute for long.

        There may be as many of a higher priority as there are slots on top of a full engine: those that run at a
        lower one pause for them.

        Raises `EngineError` for a request that it refuses (not_loaded while parked), and goes on with the others.
        """
        ...

    def cancel(self, request: int) -> None:
        """Give `request` up soon, inside prefill and decode too; unknown requests are ignored. From any thread.

        A cancelled request ends with `Generated` of finish "cancelled".
        """
        ...

    def step(self) -> Sequence[Said]:
        """Do one piece of work: chunks of prefills, or a token for each request that is past its prefill, in turns.

        What one request cannot stand is said as `GenerationFailed`; an exception means that the whole
        engine is in doubt, and ends the worker. Empty when nothing can be said yet, or when idle.
        """
        ...

    @property
    def busy(self) -> bool:
        """Requests are at hand, so `step` has work and the beat should grow. Read from any thread."""
        ...

    def stop(self) -> None:
        """The process exits right after this: let go of what lives outside of it, if anything. From any thread.

        Must not wait, nor free memory: exit does that faster, and a load or a step may still be running.
        """
        ...

    def close(self) -> None:
        """Free what was loaded, for who goes on after it (tests, benchmarks); idle only; safe to call twice."""
        ...


def text_alone(order: Task) -> None:
    """Raises `EngineError` (unsupported) for what only servers can do; asked by engines that know text alone."""
    if (why := beyond_text(order)) is not None:
        raise EngineError("unsupported", why)


def _unheard(_: HeldElsewhere) -> None:
    """For who does not listen to asides."""


def open_engine(backend: str, beat: Beat, aside: Aside = _unheard) -> Engine:
    """A new engine of this kind, not loaded yet. Raises `EngineError` (load_failed): unknown, or not installed."""
    if backend == "llama":
        try:
            from h2qd.worker.llama.engine import LlamaEngine  # noqa: PLC0415 - other backends do without the library
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(
                "load_failed", "llama-cpp-python is not installed, or its library does not load on this machine"
            ) from error
        return LlamaEngine(beat)
    if backend == "torch":
        try:
            from h2qd.worker.torch.engine import TorchEngine  # noqa: PLC0415 - large: only who needs it pays for it
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(
                "load_failed", "torch, transformers and safetensors are not installed: pip install 'h2qd[torch]'"
            ) from error
        return TorchEngine(beat)
    if backend == "fake":
        from h2qd.worker.fake import FakeEngine  # noqa: PLC0415 - only tests ask for it

        return FakeEngine(beat)
    if backend in ("ollama", "openai"):
        try:
            from h2qd.worker.remote.engine import RemoteEngine  # noqa: PLC0415 - HTTP and TLS are for who speaks them
        except ImportError as error:
            raise EngineError("load_failed", "httpcore2, which speaks to servers, is not installed") from error
        return RemoteEngine(beat, aside)
    raise EngineError(
        "load_failed", f"this build has no backend {backend!r}: it has llama, torch, ollama, openai, fake"
    )
