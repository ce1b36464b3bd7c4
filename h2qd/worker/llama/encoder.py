"""Texts to vectors with a model made for it (bert and the like): whole texts at a time, pooled as it was taught.

Takes the place of `batch` for such a model, called by `engine`. Nothing is cached: attention goes both ways, so a
text is computed in one pass or not at all. Short texts share a pass, of all requests in turns that use the same
adapters; it is cut short only when nobody in it is wanted.
Invariant: a request is at work exactly from `join` to its last message.
"""

from dataclasses import dataclass, field

import numpy as np
from llama_cpp import llama_cpp as native

from h2qd.wire.workers import EmbedTexts, GenerationFailed
from h2qd.worker.engine import Beat, Said
from h2qd.worker.llama.adapters import Used, apply
from h2qd.worker.llama.context import ABORTED
from h2qd.worker.llama.model import Model
from h2qd.worker.llama.vectors import Texts, answered, finished

_SHARED_TOKENS_MAX = 512
"""In a pass of several texts: more at once are no faster, and the library has room for logits of each token."""


@dataclass(slots=True, eq=False)
class _Job:
    order: EmbedTexts
    texts: Texts
    adapters: Used
    start_s: float
    cancelled: bool = False
    served: int = 0
    vectors: list[list[float]] = field(default_factory=list)


class Encoder:
    """Wraps the context of `model`, which must outlive it; `close` must come before that is freed.

    `size` is what one text may hold, in tokens.
    """

    def __init__(self, model: Model, beat: Beat) -> None:
        self.pooling = model.pooling
        self.slots: int = native.llama_n_seq_max(model.context)
        self.size = model.batch
        self._context = model.context
        self._loaded = model.adapters
        self._memory = native.llama_get_memory(model.context)
        # With a KV cache, the library would cut texts of several lengths into passes of their own, and pool each.
        self._at_once = 1 if self._memory else self.slots
        self._width: int = native.llama_model_n_embd_out(model.model)
        self._batch = native.llama_batch_init(model.batch, 0, 1)
        self._jobs: list[_Job] = []
        self._taken: list[tuple[_Job, int]] = []  # the texts in the pass that runs
        self._steps = 0
        self._beat = beat
        self._interrupted = native.ggml_abort_callback(lambda _data: self._unwanted())
        native.llama_set_abort_callback(self._context, self._interrupted, None)

    def close(self) -> None:
        """Let go of what is at work, and of what was allocated."""
        self._jobs.clear()
        native.llama_set_abort_callback(self._context, native.ggml_abort_callback(), None)
        native.llama_batch_free(self._batch)

    @property
    def busy(self) -> bool:
        """Requests are at work."""
        return bool(self._jobs)

    @property
    def full(self) -> bool:
        """As many wait as there are slots."""
        return len(self._jobs) >= 2 * self.slots

    def join(self, order: EmbedTexts, texts: Texts, adapters: Used, start_s: float) -> None:
        """Take a request; not when `full`."""
        self._jobs.append(_Job(order, texts, adapters, start_s))

    def cancel(self, request: int) -> None:
        """Have `request` end with the next step. From any thread."""
        for job in list(self._jobs):
            if job.order.request == request:
                job.cancelled = True

    def step(self) -> list[Said]:
        """One pass, or the ends of what was cancelled."""
        self._steps += 1
        if cancelled := [job for job in self._jobs if job.cancelled]:
            return [said for job in cancelled for said in self._fail(job, "cancelled", "the request was cancelled")]
        self._taken = taken = self._next()
        if self._loaded:  # the library does nothing where they are the same as before
            apply(self._context, taken[0][0].adapters, self._loaded)
        status = self._compute([job.texts.tokens[at] for job, at in taken])
        if status == ABORTED:  # by cancels, which the next step answers
            return []
        said: list[Said] = []
        for sequence, (job, _) in enumerate(taken):
            if job not in self._jobs:  # a text before this one failed
                continue
            vector = self._vector(sequence, job) if status == 0 else None
            if vector is None:
                why = "the model computed no finite numbers" if status == 0 else f"llama_decode returned {status}"
                said += self._fail(job, "generation_failed", f"cannot go on: {why}")
                continue
            job.vectors.append(vector)
            if len(job.vectors) == len(job.texts.tokens):
                self._jobs.remove(job)
                said.append(answered(job.order, job.texts, job.vectors, self.pooling, job.start_s))
        return said

    def _next(self) -> list[tuple[_Job, int]]:
        """The texts of the next pass: at least one, from who was served longest ago; as many as fit, of one set."""
        taken: list[tuple[_Job, int]] = []
        room = self.size
        ordered = sorted(self._jobs, key=lambda job: job.served)
        for job in (job for job in ordered if job.adapters == ordered[0].adapters):
            for at in range(len(job.vectors), len(job.texts.tokens)):
                count = len(job.texts.tokens[at])
                if taken and (len(taken) == self._at_once or count > room):
                    break
                taken.append((job, at))
                room = min(room, _SHARED_TOKENS_MAX) - count
                job.served = self._steps
        return taken

    def _compute(self, texts: list[list[int]]) -> int:
        batch, at = self._batch, 0
        for sequence, text in enumerate(texts):
            for position, token in enumerate(text):
                batch.token[at] = token
                batch.pos[at] = position
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = 1
                at += 1
        batch.n_tokens = at
        native.llama_memory_clear(self._memory, False) if self._memory else None
        status: int = native.llama_decode(self._context, batch)
        native.llama_synchronize(self._context)
        return status

    def _unwanted(self) -> bool:
        """Asked by a pass, many times: also the sign that it moves."""
        self._beat.tick()
        return all(job.cancelled for job, _ in self._taken)

    def _vector(self, sequence: int, job: _Job) -> list[float] | None:
        address = native.llama_get_embeddings_seq(self._context, sequence)
        if not address:
            return None
        return finished(np.ctypeslib.as_array(address, (self._width,)), normalize=job.order.normalize)

    def _fail(self, job: _Job, code: str, message: str) -> list[Said]:
        self._jobs.remove(job)
        return [GenerationFailed(job.order.request, code, message)]
