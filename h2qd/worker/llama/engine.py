"""The engine contract (`h2qd.worker.engine`) on llama.cpp: one model, at most one context, a request for each slot.

Turns an order into what is at work: a prompt and a chooser, sequences to score, texts to make vectors of. What a step
does is in `batch`, or in `encoder` for models made for vectors. There may be twice as many requests as slots, for
those of a higher priority pass others; beyond that, waiting is the supervisor's business. What needs no context (the
tokens of a text, the text of tokens) is answered by the next step. Called by the worker's loop.
"""

import time
from collections import deque
from collections.abc import Sequence

from llama_cpp import llama_cpp as native

from h2qd.wire.workers import (
    ChannelError,
    Detokenized,
    DetokenizeTokens,
    EmbedTexts,
    Generate,
    GenerationFailed,
    Loaded,
    LoadModel,
    ResumeModel,
    ScoreText,
    SessionsSaved,
    Task,
    Tokenized,
    TokenizeText,
    frame,
)
from h2qd.worker.disk import Disk, check_key, open_disk, remove
from h2qd.worker.engine import Beat, EngineError, Progress, Said, text_alone
from h2qd.worker.llama import model
from h2qd.worker.llama.adapters import used
from h2qd.worker.llama.batch import Batch
from h2qd.worker.llama.encoder import Encoder
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.overflow import fit
from h2qd.worker.llama.sampler import open_chooser
from h2qd.worker.llama.scoring import Scoring, sequences
from h2qd.worker.llama.slot import Slot
from h2qd.worker.llama.vectors import Texts, Vectors
from h2qd.worker.llama.vocabulary import Vocabulary
from h2qd.worker.prompt import prompt_tokens, too_long
from h2qd.worker.template import ChatTemplate


class LlamaEngine:
    """Runs what `load` loaded."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._loaded: _Loaded | None = None

    def load(self, order: LoadModel, progress: Progress) -> Loaded:
        """Load the model. Raises `EngineError`: file_not_found, invalid_model_file, load_failed."""
        start_s = time.perf_counter()
        self._loaded = _Loaded(model.load(order, progress, self._beat), open_disk(order))
        return self._ready(self._loaded, order, start_s)

    @property
    def unsaved(self) -> int:
        """How many sessions are newer in the cache than on disk."""
        batch = self._loaded.batch if self._loaded is not None else None
        return batch.sessions.unsaved if batch is not None else 0

    def save(self) -> SessionsSaved:
        """Write those."""
        batch = self._loaded.batch if self._loaded is not None else None
        return batch.sessions.save() if batch is not None else SessionsSaved(0, 0, 0, 0)

    def forget(self, session: str) -> None:
        """Neither keep nor save this session."""
        loaded = self._loaded
        if loaded is None:
            return
        if loaded.batch is not None:
            loaded.batch.forget(session)
        elif loaded.disk is not None:
            remove(loaded.disk, session)

    def park(self) -> None:
        """Free the context, keep the model and its vocabulary."""
        loaded = self._loaded
        if loaded is None or not loaded.open or loaded.busy:
            raise RuntimeError("only an idle engine with a context can be parked")
        loaded.close_batch()
        loaded.model.free_context()

    def resume(self, order: ResumeModel) -> Loaded:
        """A context for the parked model. Raises `EngineError` (load_failed)."""
        start_s = time.perf_counter()
        loaded = self._loaded
        if loaded is None or loaded.open:
            raise RuntimeError("only a parked engine can be resumed")
        self._beat.tick()
        loaded.model.open_context(order)
        return self._ready(loaded, order, start_s)

    def _ready(self, loaded: "_Loaded", order: LoadModel | ResumeModel, start_s: float) -> Loaded:
        loaded.open_batch(self._beat, order.kv_type)
        took_ms = (time.perf_counter() - start_s) * 1000
        undrafted = loaded.model.undrafted if order.draft_ctx else ""
        return Loaded(loaded.size, took_ms, loaded.model.device, undrafted=undrafted)

    def submit(self, order: Task) -> None:
        """Take a request.

        Raises `EngineError`: not_loaded, queue_full, invalid_request, context_overflow, unsupported, invalid_grammar,
        no_chat_template, invalid_messages.
        """
        start_s = time.perf_counter()
        loaded = self._loaded
        if loaded is None:
            raise EngineError("not_loaded", "cannot do this: no model is loaded")
        if not loaded.open:
            raise EngineError("not_loaded", "cannot do this: the model is parked")
        match order:
            case Generate():
                self._generate(order, loaded, start_s)
            case ScoreText():
                batch = loaded.free_batch("score")
                found = sequences(order, loaded.vocabulary, batch.context.size)
                adapters = used(order.adapters, loaded.model.adapters)
                batch.join(Scoring(order, found, batch.context, loaded.vocabulary, adapters, start_s))
            case EmbedTexts():
                loaded.embed(order, start_s)
            case TokenizeText() | DetokenizeTokens():
                loaded.translate(order)

    def _generate(self, order: Generate, loaded: "_Loaded", start_s: float) -> None:
        text_alone(order)
        batch = loaded.free_batch("generate")
        if order.session:
            check_key(order.session)
        if order.overflow == "shift" and batch.context.unshiftable:
            raise EngineError("unsupported", f"cannot shift this model's context: {batch.context.unshiftable}")
        adapters = used(order.adapters, loaded.model.adapters)
        size = batch.context.size
        prompt = loaded.prompt(order, size)
        fitted = fit(prompt, size, order.max_tokens, order.overflow)
        if fitted is None:
            raise too_long(f"{len(prompt)} tokens", size)
        banned = loaded.vocabulary.ends if order.ignore_eos else ()
        chooser = open_chooser(order.sampler, loaded.vocabulary, fitted.tokens, banned=banned)
        batch.join(Slot(order, fitted, size, loaded.vocabulary, chooser, adapters, start_s, batch.draft_model))

    def cancel(self, request: int) -> None:
        """Give `request` up, at the latest after one pass; a prefill of its own is cut short. From any thread."""
        loaded = self._loaded
        at_work = (loaded.batch or loaded.encoder) if loaded is not None else None
        if at_work is not None:
            at_work.cancel(request)

    def step(self) -> Sequence[Said]:
        """Pieces of prompts, or a token for everybody else, in turns."""
        loaded = self._loaded
        if loaded is None or not loaded.busy:
            return []
        self._beat.tick()
        return loaded.step()

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        loaded = self._loaded
        return loaded is not None and loaded.busy

    def stop(self) -> None:
        """Nothing of this engine lives outside of its process."""

    def close(self) -> None:
        """Free the model; only when idle."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close_batch()
            loaded.model.free()


class _Loaded:
    """What there is once a model is loaded; no `batch` while it is parked, no `disk` where sessions are not kept."""

    def __init__(self, loaded: Model, disk: Disk | None) -> None:
        self.model = loaded
        self.disk = disk
        self.vocabulary = Vocabulary(loaded.model)
        self.batch: Batch | None = None
        self.encoder: Encoder | None = None
        self._translations: deque[TokenizeText | DetokenizeTokens] = deque()
        self._template: ChatTemplate | None = None

    def open_batch(self, beat: Beat, kv_type: str) -> None:
        """What works on the native context, which was made before."""
        if self.model.encodes:
            self.encoder = Encoder(self.model, beat)
        else:
            self.batch = Batch(self.model, beat, self.disk, kv_type)

    def close_batch(self) -> None:
        """Let go of what lies around the native context, which may be freed then."""
        at_work = self.batch or self.encoder
        self.batch = self.encoder = None
        if at_work is not None:
            at_work.close()

    @property
    def open(self) -> bool:
        """There is a context: the model is not parked."""
        return self.batch is not None or self.encoder is not None

    @property
    def size(self) -> int:
        """What one request may use of the context, in tokens; of a model made for vectors, what one text may have."""
        if self.batch is not None:
            return self.batch.context.size
        return self.encoder.size if self.encoder is not None else 0

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        at_work = self.batch or self.encoder
        return bool(self._translations) or (at_work is not None and at_work.busy)

    def step(self) -> Sequence[Said]:
        """A translation that waits, and one pass of the others."""
        said: list[Said] = []
        if self._translations:
            said.append(self._translated(self._translations.popleft()))
        at_work = self.batch or self.encoder
        return said + at_work.step() if at_work is not None and at_work.busy else said

    def free_batch(self, verb: str) -> Batch:
        """The batch, which takes another request. Raises `EngineError` (unsupported, queue_full)."""
        if self.batch is None or self.model.pooling:
            raise EngineError("unsupported", f"cannot {verb}: this model was made to turn texts into vectors only")
        if self.batch.full:
            raise _full(len(self.batch.context.caches))
        return self.batch

    def embed(self, order: EmbedTexts, start_s: float) -> None:
        """Take the texts into what makes vectors of them. Raises `EngineError`."""
        width = native.llama_model_n_embd_out(self.model.model)
        batch, encoder = self.batch, self.encoder
        adapters = used(order.adapters, self.model.adapters)
        if encoder is not None:
            if encoder.full:
                raise _full(encoder.slots)
            encoder.join(order, Texts(order, self.vocabulary, encoder.size, width), adapters, start_s)
        elif batch is not None:
            if batch.full:
                raise _full(len(batch.context.caches))
            texts = Texts(order, self.vocabulary, batch.context.size, width)
            batch.join(Vectors(order, texts, batch.context, adapters, start_s))

    def translate(self, order: TokenizeText | DetokenizeTokens) -> None:
        """Answer with the next step. Raises `EngineError` (invalid_request)."""
        if isinstance(order, DetokenizeTokens):
            for token in order.tokens:
                if not 0 <= token < self.vocabulary.size:
                    raise EngineError(
                        "invalid_request", f"cannot tell the text of token {token}: there are {self.vocabulary.size}"
                    )
        self._translations.append(order)

    def _translated(self, order: TokenizeText | DetokenizeTokens) -> Said:
        answer: Tokenized | Detokenized
        if isinstance(order, DetokenizeTokens):
            answer = Detokenized(order.request, self.vocabulary.detokenize(order.tokens))
        else:
            tokens = self.vocabulary.tokenize(order.text, special=order.special)
            pieces = [self.vocabulary.shown(token) for token in tokens] if order.pieces else []
            answer = Tokenized(order.request, tokens, pieces)
        try:
            frame(answer)
        except ChannelError:  # how long a token's text is, is for the vocabulary to say
            return GenerationFailed(order.request, "invalid_request", "cannot tell it in one message: ask for less")
        return answer

    def prompt(self, order: Generate, room: int) -> list[int]:
        """The tokens of a prompt or a conversation, at least one, for `room` tokens. Raises `EngineError`."""
        limit = room if order.overflow == "refuse" else None
        return prompt_tokens(order, self.vocabulary, self._chat_template, room=limit)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            source = native.llama_model_chat_template(self.model.model, None)
            if not source:
                raise EngineError("no_chat_template", "cannot answer a conversation: the model has no chat template")
            self._template = ChatTemplate(source)
        return self._template


def _full(count: int) -> EngineError:
    return EngineError("queue_full", f"cannot take another request: this engine works on {count} at a time")
