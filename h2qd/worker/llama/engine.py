"""The engine contract (`h2qd.worker.engine`) on llama.cpp: one model, at most one context, a request for each slot.

Turns an order into a prompt and a chooser; what is at work, and what a step does, is in `batch`. More requests than
slots are refused: waiting is the supervisor's business. Called by the worker's loop.
"""

import time
from collections.abc import Sequence

from llama_cpp import llama_cpp as native

from h2qd.wire.workers import Generate, Loaded, LoadModel, ResumeModel, SessionsSaved, Task
from h2qd.worker.engine import Beat, EngineError, Progress, Said
from h2qd.worker.llama import model
from h2qd.worker.llama.batch import Batch
from h2qd.worker.llama.chat import chat_tokens
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.sampler import open_chooser
from h2qd.worker.llama.template import ChatTemplate
from h2qd.worker.llama.vocabulary import Vocabulary

BYTES_PER_TOKEN_MAX = 256
"""No text is made of longer tokens than this; longer prompts are refused without tokenizing them."""


class LlamaEngine:
    """Runs what `load` loaded."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._loaded: _Loaded | None = None

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Load the model. Raises `EngineError`: file_not_found, invalid_model_file, load_failed."""
        start_s = time.perf_counter()
        self._loaded = _Loaded(model.load(order, progress, self._beat))
        return self._ready(self._loaded, start_s)

    @property
    def unsaved(self) -> int:
        """Nothing is kept across loads yet."""
        return 0

    def save(self) -> SessionsSaved:
        """Nothing is kept across loads yet."""
        return SessionsSaved(0, 0, 0, 0)

    def forget(self, session: str) -> None:
        """Nothing is kept across loads yet."""

    def park(self) -> None:
        """Free the context, keep the model and its vocabulary."""
        loaded = self._loaded
        if loaded is None or loaded.batch is None or loaded.batch.busy:
            raise RuntimeError("only an idle engine with a context can be parked")
        loaded.close_batch()
        loaded.model.free_context()

    def resume(self, order: ResumeModel) -> Loaded:
        """A context for the parked model. Raises `EngineError` (load_failed)."""
        start_s = time.perf_counter()
        loaded = self._loaded
        if loaded is None or loaded.batch is not None:
            raise RuntimeError("only a parked engine can be resumed")
        self._beat.tick()
        loaded.model.open_context(order)
        return self._ready(loaded, start_s)

    def _ready(self, loaded: "_Loaded", start_s: float) -> Loaded:
        batch = loaded.batch = Batch(loaded.model, loaded.vocabulary, self._beat)
        return Loaded(batch.context.size, (time.perf_counter() - start_s) * 1000, loaded.model.device)

    def submit(self, order: Task) -> None:
        """Take a request.

        Raises `EngineError`: not_loaded, queue_full, invalid_request, context_overflow, invalid_grammar,
        no_chat_template, invalid_messages.
        """
        if not isinstance(order, Generate):
            raise EngineError("unsupported", "cannot do this yet")
        start_s = time.perf_counter()
        loaded = self._loaded
        if loaded is None:
            raise EngineError("not_loaded", "cannot generate: no model is loaded")
        batch = loaded.batch
        if batch is None:
            raise EngineError("not_loaded", "cannot generate: the model is parked")
        if batch.full:
            count = len(batch.context.caches)
            raise EngineError("queue_full", f"cannot take another request: this engine works on {count} at a time")
        size = batch.context.size
        prompt = loaded.prompt(order, size)
        if len(prompt) + 1 > size:
            raise _overflow(f"has {len(prompt)} tokens", size)
        banned = loaded.vocabulary.ends if order.ignore_eos else ()
        batch.join(order, prompt, open_chooser(order.sampler, loaded.vocabulary, prompt, banned=banned), start_s)

    def cancel(self, request: int) -> None:
        """Give `request` up, at the latest after one pass; a prefill of its own is cut short. From any thread."""
        loaded = self._loaded
        batch = loaded.batch if loaded is not None else None
        if batch is not None:
            batch.cancel(request)

    def step(self) -> Sequence[Said]:
        """Pieces of prompts, or a token for everybody else, in turns."""
        if self._loaded is None or self._loaded.batch is None or not self._loaded.batch.busy:
            return []
        self._beat.tick()
        return self._loaded.batch.step()

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        loaded = self._loaded
        batch = loaded.batch if loaded is not None else None
        return batch is not None and batch.busy

    def stop(self) -> None:
        """Nothing of this engine lives outside of its process."""

    def close(self) -> None:
        """Free the model; only when idle."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close_batch()
            loaded.model.free()


class _Loaded:
    """What there is once a model is loaded; no `batch` while it is parked."""

    def __init__(self, loaded: Model) -> None:
        self.model = loaded
        self.vocabulary = Vocabulary(loaded.model)
        self.batch: Batch | None = None
        self._template: ChatTemplate | None = None

    def close_batch(self) -> None:
        """Let go of what lies around the native context, which may be freed then."""
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.close()

    def prompt(self, order: Generate, room: int) -> list[int]:
        """The tokens of a prompt or a conversation, at least one, for `room` tokens. Raises `EngineError`."""
        if (order.prompt is None) == (order.turns is None):
            raise EngineError("invalid_request", "cannot generate: give a prompt or a conversation, one of both")
        texts = [order.prompt or "", *(turn.content for turn in order.turns or ())]
        size = sum(map(len, texts))
        if size > room * BYTES_PER_TOKEN_MAX:
            raise _overflow(f"has {size} characters", room)
        if order.turns is not None:
            tokens = chat_tokens(order.turns, self._chat_template(), self.vocabulary)
        else:
            tokens = self.vocabulary.tokenize(order.prompt or "", special=False)
            if self.vocabulary.bos is not None and (self.vocabulary.adds_bos or not tokens):
                tokens.insert(0, self.vocabulary.bos)
        if not tokens:
            raise EngineError("invalid_request", "cannot continue an empty prompt: this model has no beginning token")
        return tokens

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            source = native.llama_model_chat_template(self.model.model, None)
            if not source:
                raise EngineError("no_chat_template", "cannot answer a conversation: the model has no chat template")
            self._template = ChatTemplate(source)
        return self._template


def _overflow(what: str, size: int) -> EngineError:
    return EngineError(
        "context_overflow", f"cannot fit the prompt: it {what}, the context holds {size} and needs room for an answer"
    )
