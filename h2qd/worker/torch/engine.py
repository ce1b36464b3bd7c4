"""The engine contract (`h2qd.worker.engine`) on PyTorch: one model folder, a request for each slot.

Turns an order into what is at work; what a step does is in `batch`. There may be twice as many requests as slots, for
those of a higher priority pass others. The tokens of a text, and the text of tokens, are answered by the next step.
Called by the worker's loop.
"""

import gc
import time
from collections import deque
from collections.abc import Sequence

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
from h2qd.worker.disk import Disk, check_key, open_disk, remove
from h2qd.worker.engine import Beat, EngineError, Progress, Said, text_alone
from h2qd.worker.heap import trim_heap
from h2qd.worker.prompt import prompt_tokens, too_long
from h2qd.worker.template import ChatTemplate
from h2qd.worker.torch import model
from h2qd.worker.torch.batch import Batch
from h2qd.worker.torch.generation import Generation
from h2qd.worker.torch.model import Model
from h2qd.worker.torch.sampler import Chooser
from h2qd.worker.torch.scoring import Scoring
from h2qd.worker.torch.vectors import Vectors
from h2qd.worker.torch.work import Work


class TorchEngine:
    """Runs what `load` loaded."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._model: Model | None = None
        self._template: ChatTemplate | None = None
        self._disk: Disk | None = None  # None: sessions are not kept there
        self._batch: Batch | None = None  # None: parked, or not loaded
        self._spellings: deque[TokenizeText | DetokenizeTokens] = deque()

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Load the model. Raises `EngineError`: file_not_found, invalid_model_file, load_failed."""
        start_s = time.perf_counter()
        if order.adapters:
            raise EngineError("load_failed", "cannot load adapters with a model folder: they are for GGUF models")
        self._model = model.load(order, progress, self._beat)
        self._disk = open_disk(order) if self._model.generates else None
        return self._ready(self._model, order, start_s)

    @property
    def unsaved(self) -> int:
        """How many sessions are newer in their cells than on disk."""
        return self._batch.sessions.unsaved if self._batch is not None else 0

    def save(self) -> SessionsSaved:
        """Write those."""
        return self._batch.sessions.save() if self._batch is not None else SessionsSaved(0, 0, 0, 0.0)

    def forget(self, session: str) -> None:
        """Neither keep nor save this session."""
        if self._batch is not None:
            self._batch.forget(session)
        elif self._disk is not None:
            remove(self._disk, session)

    def park(self) -> None:
        """Keep the weights; cells go."""
        self._batch = None
        trim_heap()

    def resume(self, order: ResumeModel) -> Loaded:
        """Take requests again."""
        start_s = time.perf_counter()
        if self._model is None or self._batch is not None:
            raise RuntimeError("only a parked engine can be resumed")
        self._beat.tick()
        return self._ready(self._model, order, start_s)

    def _ready(self, loaded: Model, order: LoadModel | ResumeModel, start_s: float) -> Loaded:
        loaded.batch = max(1, order.batch)
        loaded.ctx = min(max(1, order.ctx // order.slots), loaded.facts.context_length)
        self._batch = Batch(loaded, order.slots, self._disk)
        return Loaded(loaded.ctx, (time.perf_counter() - start_s) * 1000, loaded.device)

    def submit(self, order: Task) -> None:
        """Take a request.

        Raises `EngineError`: not_loaded, queue_full, unsupported, invalid_request, context_overflow,
        no_chat_template, invalid_messages, invalid_grammar.
        """
        loaded = self._model
        if loaded is None:
            raise EngineError("not_loaded", "cannot do this: no model is loaded")
        if isinstance(order, TokenizeText | DetokenizeTokens):
            self._spellings.append(_spellable(order, loaded))
            return
        if self._batch is None:
            raise EngineError("not_loaded", "cannot do this: the model is parked")
        if self._batch.full:
            raise EngineError("queue_full", "cannot take another request: this engine has as many as it can")
        self._batch.join(self._work(order, loaded))

    def _work(self, order: Generate | EmbedTexts | ScoreText, loaded: Model) -> Work:
        start_s = time.perf_counter()
        if isinstance(order, EmbedTexts):
            return Vectors(order, loaded, start_s)
        if not loaded.generates:
            raise EngineError("unsupported", "cannot do this: the model turns texts into vectors, and nothing else")
        if isinstance(order, ScoreText):
            return Scoring(order, loaded, start_s)
        text_alone(order)
        if order.session:
            check_key(order.session)
        if order.adapters:
            raise EngineError("unsupported", "cannot use adapters with a model folder: they are for GGUF models")
        prompt = prompt_tokens(order, loaded.vocabulary, self._chat_template, room=loaded.ctx)
        if len(prompt) + 1 > loaded.ctx:
            raise too_long(f"{len(prompt)} tokens", loaded.ctx)
        banned = loaded.vocabulary.ends if order.ignore_eos else ()
        grammar = loaded.grammars.open(order.sampler)
        chooser = Chooser(order.sampler, loaded.vocabulary.size, prompt, banned=banned, grammar=grammar)
        return Generation(order, prompt, loaded, chooser, start_s)

    def cancel(self, request: int) -> None:
        """Give `request` up within the pass; at its end, where the pass serves others too. From any thread."""
        batch = self._batch
        if batch is not None:
            batch.cancel(request)

    def step(self) -> Sequence[Said]:
        """A token for everybody who answers, or a piece of someone's text."""
        if self._model is None or not self.busy:
            return []
        self._beat.tick()
        if self._spellings:
            return [_spelled(self._spellings.popleft(), self._model)]
        self._model.crew.muster()
        return self._batch.step() if self._batch is not None else []

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        return bool(self._spellings) or (self._batch is not None and self._batch.busy)

    def stop(self) -> None:
        """Nothing of this engine lives outside of its process."""

    def close(self) -> None:
        """Let go of the model; only when idle."""
        self._model = self._template = self._batch = self._disk = None
        self._spellings.clear()
        gc.collect()  # modules and their hooks refer to each other
        trim_heap()

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            if self._model is None or not self._model.vocabulary.template:
                raise EngineError("no_chat_template", "cannot answer a conversation: the model has no chat template")
            self._template = ChatTemplate(self._model.vocabulary.template)
        return self._template


def _spellable(order: TokenizeText | DetokenizeTokens, loaded: Model) -> TokenizeText | DetokenizeTokens:
    size = loaded.vocabulary.size
    if isinstance(order, DetokenizeTokens) and any(not 0 <= token < size for token in order.tokens):
        raise EngineError("invalid_request", f"cannot spell such a token: the model knows {size}")
    return order


def _spelled(order: TokenizeText | DetokenizeTokens, loaded: Model) -> Said:
    """Text to tokens, or back."""
    vocabulary = loaded.vocabulary
    if isinstance(order, DetokenizeTokens):
        return Detokenized(order.request, vocabulary.text(order.tokens))
    tokens = vocabulary.tokenize(order.text, special=order.special)
    return Tokenized(order.request, tokens, [vocabulary.piece(token) for token in tokens] if order.pieces else [])
