"""Loads a model file and makes the context that runs it; frees both. Called by `engine`, once.

It decides the load's parameters and nothing else: what fits into memory is the supervisor's plan. Invariant: when
`load` raises, nothing native is left behind.
"""

import os
from dataclasses import dataclass

from llama_cpp import llama_cpp as native

from h2qd.gguf.errors import GgufError
from h2qd.gguf.reader import identity, read_header
from h2qd.wire.names import shown
from h2qd.wire.workers import LoadModel
from h2qd.worker.engine import Beat, EngineError, Progress
from h2qd.worker.llama import log
from h2qd.worker.llama.threads import thread_count

BATCH_TOKENS = 512
"""A piece of a prefill. Larger ones gain little on a CPU, and cost buffers and time to a cancel."""

_LOAD_MODE_MMAP = native.LLAMA_LOAD_MODE_MMAP


@dataclass(slots=True)
class Model:
    """A loaded model: the addresses of the native model and context."""

    model: int
    context: int
    device: str

    def free(self) -> None:
        """Give the memory back; once, and nothing of it may be used after."""
        native.llama_free(self.context)
        native.llama_model_free(self.model)


def load(order: LoadModel, progress: Progress, beat: Beat) -> Model:
    """The model at `order.path` with a context of at least `order.ctx` tokens.

    Raises `EngineError`: file_not_found, invalid_model_file, load_failed.
    """
    _check_file(order)
    log.capture()
    native.llama_backend_init()
    offload = bool(native.llama_supports_gpu_offload())

    def tell(fraction: float, _data: object) -> bool:
        beat.tick()
        progress(fraction)
        return True

    params = native.llama_model_default_params()
    params.load_mode = _LOAD_MODE_MMAP
    params.n_gpu_layers = -1 if offload else 0
    params.progress_callback = callback = native.llama_progress_callback(tell)
    model = native.llama_model_load_from_file(os.fsencode(order.path), params)
    del callback  # it had to outlive the call
    if not model:
        raise _failure(order, "the library refused the file")
    try:
        context = _open_context(model, order)
    except BaseException:
        native.llama_model_free(model)
        raise
    return Model(model, context, "gpu" if offload else "cpu")


def _check_file(order: LoadModel) -> None:
    try:
        if list(order.verified) != identity(os.stat(order.path)):  # noqa: PTH116 - a path as the wire gives it
            read_header(order.path)
    except GgufError as error:
        raise EngineError("invalid_model_file", str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
        raise EngineError("file_not_found", f"cannot read the model file: {reason}") from error


def _open_context(model: int, order: LoadModel) -> int:
    _check_kind(model)
    context: int | None = native.llama_init_from_model(model, _context_params(order))
    if not context:
        raise _failure(order, f"there is no context of {order.ctx} tokens for it")
    return context


def _check_kind(model: int) -> None:
    """Refuse what decodes no text token by token: later calls would end the process at an assertion."""
    if native.llama_model_has_encoder(model) or not native.llama_model_has_decoder(model):
        raise EngineError("load_failed", "cannot load the model: it has an encoder, this engine runs decoders only")
    if native.llama_model_is_diffusion(model):
        raise EngineError(
            "load_failed", "cannot load the model: it is a diffusion model, this engine runs decoders only"
        )
    if native.llama_vocab_n_tokens(native.llama_model_get_vocab(model)) <= 0:
        raise EngineError("load_failed", "cannot load the model: it has no vocabulary")


def _context_params(order: LoadModel) -> native.llama_context_params:
    params = native.llama_context_default_params()
    params.n_ctx = order.ctx
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_seq_max = 1
    params.n_outputs_max = 1  # logits of the last token only: left alone, the compute buffer holds a batch of them
    params.n_threads = params.n_threads_batch = thread_count(order.threads)
    params.swa_full = False  # sliding-window layers keep their window, not the whole context
    params.no_perf = True
    return params


def _failure(order: LoadModel, reason: str) -> EngineError:
    told = log.last_error().replace(order.path, "the file")  # a path is not for every client
    return EngineError("load_failed", f"cannot load the model: {shown(told or reason)}")
