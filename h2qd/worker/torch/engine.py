"""The engine contract (`h2qd.worker.engine`) on PyTorch: one model folder, several requests in turns.

Turns an order into a piece of work and gives each a step in its turn, those of the highest priority first. No session
is kept: each answer has a KV cache of its own, which ends with it. Called by the worker's loop.
"""

import gc
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from h2qd.wire.workers import (
    Detokenized,
    DetokenizeTokens,
    EmbedTexts,
    Generate,
    Loaded,
    LoadModel,
    ResumeModel,
    ScoreText,
    SessionsSaved,
    Task,
    Tokenized,
    TokenizeText,
)
from h2qd.worker.engine import Beat, EngineError, Progress, Said, text_alone
from h2qd.worker.llama.template import ChatTemplate
from h2qd.worker.torch import model
from h2qd.worker.torch.chat import chat_tokens
from h2qd.worker.torch.generation import Generation
from h2qd.worker.torch.memory import trim_heap
from h2qd.worker.torch.model import CHARS_PER_TOKEN_MAX, Model, Wanted
from h2qd.worker.torch.sampler import Chooser
from h2qd.worker.torch.scoring import Scoring
from h2qd.worker.torch.vectors import Vectors

_EVERYBODY = 2
"""As many requests of a higher priority as there are slots may come on top of a full engine."""


class Work(Protocol):
    """A request at work."""

    request: int
    priority: int
    wanted: Wanted
    ended: bool

    def step(self) -> Sequence[Said]:
        """Do a piece of it."""
        ...


class TorchEngine:
    """Runs what `load` loaded."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._model: Model | None = None
        self._template: ChatTemplate | None = None
        self._slots = 0  # 0: parked, or not loaded
        self._works: deque[Work] = deque()

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Load the model. Raises `EngineError`: file_not_found, invalid_model_file, load_failed."""
        start_s = time.perf_counter()
        if order.adapters:
            raise EngineError("load_failed", "cannot load adapters with a model folder: they are for GGUF models")
        self._model = model.load(order, progress, self._beat)
        return self._ready(self._model, order, start_s)

    @property
    def unsaved(self) -> int:
        """Nothing is kept across loads."""
        return 0

    def save(self) -> SessionsSaved:
        """Nothing is kept across loads."""
        return SessionsSaved(0, 0, 0, 0.0)

    def forget(self, session: str) -> None:
        """Nothing is kept across requests."""

    def park(self) -> None:
        """Keep the weights; caches ended with their requests."""
        self._slots = 0
        trim_heap()

    def resume(self, order: ResumeModel) -> Loaded:
        """Take requests again."""
        start_s = time.perf_counter()
        if self._model is None or self._slots:
            raise RuntimeError("only a parked engine can be resumed")
        self._beat.tick()
        return self._ready(self._model, order, start_s)

    def _ready(self, loaded: Model, order: LoadModel | ResumeModel, start_s: float) -> Loaded:
        self._slots = order.slots
        loaded.batch = max(1, order.batch)
        loaded.ctx = min(max(1, order.ctx // order.slots), loaded.facts.context_length)
        return Loaded(loaded.ctx, (time.perf_counter() - start_s) * 1000, loaded.device)

    def submit(self, order: Task) -> None:
        """Take a request.

        Raises `EngineError`: not_loaded, queue_full, unsupported, invalid_request, context_overflow,
        no_chat_template, invalid_messages.
        """
        loaded = self._model
        if loaded is None:
            raise EngineError("not_loaded", "cannot do this: no model is loaded")
        if isinstance(order, TokenizeText | DetokenizeTokens):
            self._works.append(_Spelling(order, loaded))
            return
        if not self._slots:
            raise EngineError("not_loaded", "cannot do this: the model is parked")
        if len(self._works) >= self._slots * _EVERYBODY:
            raise EngineError("queue_full", f"cannot take another request: this engine has {len(self._works)}")
        self._works.append(self._work(order, loaded))

    def _work(self, order: Generate | EmbedTexts | ScoreText, loaded: Model) -> Work:
        start_s = time.perf_counter()
        if isinstance(order, EmbedTexts):
            return Vectors(order, loaded, start_s)
        if not loaded.generates:
            raise EngineError("unsupported", "cannot do this: the model turns texts into vectors, and nothing else")
        if isinstance(order, ScoreText):
            return Scoring(order, loaded, start_s)
        text_alone(order)
        if order.adapters:
            raise EngineError("unsupported", "cannot use adapters with a model folder: they are for GGUF models")
        prompt = self._prompt(order, loaded)
        if len(prompt) + 1 > loaded.ctx:
            raise _overflow(f"has {len(prompt)} tokens", loaded.ctx)
        banned = loaded.vocabulary.ends if order.ignore_eos else ()
        chooser = Chooser(order.sampler, loaded.vocabulary.size, prompt, banned=banned)
        return Generation(order, prompt, loaded, chooser, start_s)

    def cancel(self, request: int) -> None:
        """Give `request` up, at the latest after a layer of a pass. From any thread."""
        for work in list(self._works):
            if work.request == request:
                work.wanted.cancelled = True

    def step(self) -> Sequence[Said]:
        """A piece of the work whose turn it is."""
        if not self._works:
            return []
        self._beat.tick()
        if self._model is not None:
            self._model.crew.muster()
        highest = max(work.priority for work in self._works)
        work = next(work for work in self._works if work.priority == highest or work.wanted.cancelled)
        said = work.step()
        self._works.remove(work)
        if not work.ended:
            self._works.append(work)
        return said

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        return bool(self._works)

    def stop(self) -> None:
        """Nothing of this engine lives outside of its process."""

    def close(self) -> None:
        """Let go of the model; only when idle."""
        self._model = self._template = None
        self._works.clear()
        gc.collect()  # modules and their hooks refer to each other
        trim_heap()

    def _prompt(self, order: Generate, loaded: Model) -> list[int]:
        """The tokens of a prompt or a conversation, at least one. Raises `EngineError`."""
        if (order.prompt is None) == (order.turns is None):
            raise EngineError("invalid_request", "cannot generate: give a prompt or a conversation, one of both")
        texts = [order.prompt or "", *(turn.content for turn in order.turns or ())]
        size = sum(map(len, texts))
        if size > loaded.ctx * CHARS_PER_TOKEN_MAX:
            raise _overflow(f"has {size} characters", loaded.ctx)
        vocabulary = loaded.vocabulary
        if order.turns is not None:
            tokens = chat_tokens(order.turns, self._chat_template(loaded), vocabulary)
        else:
            tokens = vocabulary.tokenize(order.prompt or "", special=False)
            if vocabulary.bos is not None and (vocabulary.adds_bos or not tokens):
                tokens.insert(0, vocabulary.bos)
        if not tokens:
            raise EngineError("invalid_request", "cannot continue an empty prompt: this model has no beginning token")
        return tokens

    def _chat_template(self, loaded: Model) -> ChatTemplate:
        if self._template is None:
            if not loaded.vocabulary.template:
                raise EngineError("no_chat_template", "cannot answer a conversation: the model has no chat template")
            self._template = ChatTemplate(loaded.vocabulary.template)
        return self._template


class _Spelling:
    """Text to tokens, or back."""

    def __init__(self, order: TokenizeText | DetokenizeTokens, loaded: Model) -> None:
        self.request = order.request
        self.priority = 2**31  # it takes no time worth waiting for
        self.wanted = Wanted()
        self.ended = False
        self._order = order
        self._vocabulary = loaded.vocabulary
        if isinstance(order, DetokenizeTokens) and any(not 0 <= t < self._vocabulary.size for t in order.tokens):
            raise EngineError(
                "invalid_request", f"cannot spell such a token: the model knows {self._vocabulary.size}"
            )

    def step(self) -> Sequence[Said]:
        """All of it."""
        self.ended = True
        order = self._order
        if isinstance(order, DetokenizeTokens):
            return [Detokenized(order.request, self._vocabulary.text(order.tokens))]
        tokens = self._vocabulary.tokenize(order.text, special=order.special)
        return [Tokenized(order.request, tokens, [self._vocabulary.piece(t) for t in tokens] if order.pieces else [])]


def _overflow(what: str, size: int) -> EngineError:
    return EngineError(
        "context_overflow", f"cannot fit the prompt: it {what}, the context holds {size} and needs room for an answer"
    )
