"""Loads a model file, and makes and frees the contexts that run it. Called by `engine`: one load, one context a time.

It decides the load's parameters and nothing else: what fits into memory is the supervisor's plan. A draft model is
loaded with the model that it guesses for, and goes with it; one that cannot be used is told of, and costs no load.
Invariant: when `load` raises, nothing native is left behind; a model has at most one context.
"""

import ctypes
import os
from dataclasses import dataclass, field

from llama_cpp import llama_cpp as native

from h2qd.gguf.errors import GgufError
from h2qd.gguf.reader import identity, read_header
from h2qd.wire.names import shown
from h2qd.wire.workers import DraftFile, LoadModel, ResumeModel
from h2qd.worker.engine import Beat, EngineError, Progress
from h2qd.worker.heap import trim_heap
from h2qd.worker.llama import log
from h2qd.worker.llama.adapters import Adapter, load_adapters
from h2qd.worker.llama.graph import check_read
from h2qd.worker.llama.vocabulary import Vocabulary
from h2qd.worker.threads import thread_count

_LOAD_MODE_MMAP = native.LLAMA_LOAD_MODE_MMAP

ENCODED_TOKENS_MAX = 2048
"""Of a text that an encoder takes: it needs buffers for the logits of each token, though it has none."""

_POOLINGS: dict[int, str] = {
    native.LLAMA_POOLING_TYPE_MEAN: "mean",
    native.LLAMA_POOLING_TYPE_CLS: "cls",
    native.LLAMA_POOLING_TYPE_LAST: "last",
}
_ENCODERS = frozenset(
    {"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert"}
    | {"nomic-bert-moe"}
)
"""Architectures whose attention goes both ways whatever the file says; the library gives them no KV cache."""

_WORDPIECE_TOKENS_MIN = 104
"""Up to here the library supposes control tokens of such a vocabulary; it ends the process where they are missing."""

_WORD_CHARS_MAX = 64

_KV_TYPES: dict[str, int] = {
    "f16": native.GGML_TYPE_F16,
    "q8_0": native.GGML_TYPE_Q8_0,
    "q4_0": native.GGML_TYPE_Q4_0,
}


@dataclass(slots=True)
class Model:
    """A loaded model: the addresses of the native model and context; `context` 0: it has none now.

    The context computes `batch` tokens at once at most, and the logits of `outputs` of them. `adapts`: there may be
    fewer threads than `threads` at times, since nobody set their number.
    `pooling` is set for a model made for vectors (mean, cls or last): it does not generate. `encodes`: its context
    takes whole texts only, see `encoder`. `draft` guesses what it says; `undrafted`: why there is no such.
    """

    model: int
    context: int
    device: str
    threads: int
    adapts: bool
    pooling: str = ""
    encodes: bool = False
    batch: int = 0
    outputs: int = 0
    adapters: dict[str, Adapter] = field(default_factory=dict)
    draft: "Model | None" = None
    undrafted: str = ""

    def open_context(self, order: LoadModel | ResumeModel) -> None:
        """Make the context of `order`, and that of the draft, for a model without one.

        Raises `EngineError` (load_failed), but not for the draft's sake.
        """
        log.capture()  # what it told of the file is no reason for this
        params = _context_params(order, self.threads)
        if self.encodes:
            _encode(params, self.pooling, min(order.ctx // order.slots, native.llama_model_n_ctx_train(self.model)))
        context: int | None = native.llama_init_from_model(self.model, params)
        if not context:
            raise _no_context(order)
        self.context = context
        self.batch, self.outputs = params.n_batch, params.n_outputs_max
        if order.draft_ctx > 0:
            self._open_draft(ResumeModel(order.draft_ctx, batch=order.draft_batch))

    def _open_draft(self, order: ResumeModel) -> None:
        if self.draft is None:
            self.undrafted = self.undrafted or "it was not loaded with the model"
            return
        try:
            self.draft.open_context(order)
        except EngineError as error:
            self.undrafted = error.message
        else:
            self.undrafted = ""

    def free_context(self) -> None:
        """Give the context's memory back, to the kernel too; what it points to may not be used after."""
        for model in (self, self.draft):
            if model is not None:
                context, model.context = model.context, 0
                native.llama_free(context)  # which takes a null as nothing
        trim_heap()

    def free(self) -> None:
        """Give the memory back; once, and nothing of it may be used after."""
        if self.draft is not None:
            self.draft.free()
        native.llama_free(self.context)
        self.adapters.clear()  # the library frees them with the model
        native.llama_model_free(self.model)


def load(order: LoadModel, progress: Progress, beat: Beat) -> Model:
    """The model at `order.path` with a context of at least `order.ctx` tokens, in equal shares for `order.slots`.

    Raises `EngineError`: file_not_found, invalid_model_file, load_failed.
    """
    _check_file(order)
    native.llama_backend_init()
    layers = order.gpu_layers if native.llama_supports_gpu_offload() else 0
    address = _load_file(order.path, layers, progress, beat)
    device = "gpu" if layers > 0 else "cpu"
    model = Model(address, 0, device, thread_count(order.threads), adapts=order.threads == 0 and device == "cpu")
    try:
        _check_kind(model.model)
        model.pooling, model.encodes = _pooling(model.model)
        model.adapters = load_adapters(order, model.model, beat)
        if model.adapters:
            check_read(model.model, model.adapters, model.threads, beat, encodes=model.encodes)
        if order.draft is not None:
            model.draft, model.undrafted = _load_draft(order.draft, model, beat)
        model.open_context(order)  # after them: they are in the size of its graphs
    except BaseException:
        model.free()
        raise
    return model


def _load_file(path: str, gpu_layers: int, progress: Progress, beat: Beat) -> int:
    """The native model of a file that was checked. Raises `EngineError` (load_failed)."""

    def tell(fraction: float, _data: object) -> bool:
        beat.tick()
        progress(fraction)
        return True

    log.capture()
    params = native.llama_model_default_params()
    params.load_mode = _LOAD_MODE_MMAP
    params.n_gpu_layers = gpu_layers
    params.progress_callback = callback = native.llama_progress_callback(tell)
    address: int | None = native.llama_model_load_from_file(os.fsencode(path), params)
    del callback  # it had to outlive the call
    if not address:
        raise _refused_file(path)
    return address


def _load_draft(file: DraftFile, target: Model, beat: Beat) -> tuple[Model | None, str]:
    """The model in `file`, on the CPU, or why it cannot guess for `target`. It has no context yet."""
    try:
        if list(file.verified) != identity(os.stat(file.path)):  # noqa: PTH116 - a path as the wire gives it
            return None, "its file is another one than when it was registered"
        address = _load_file(file.path, 0, lambda _: None, beat)
    except (OSError, ValueError):
        return None, "its file cannot be read"
    except EngineError as error:
        return None, error.message
    why = _unfit_draft(address, target.model)
    if why:
        native.llama_model_free(address)
        return None, why
    return Model(address, 0, "cpu", target.threads, target.adapts), ""


def _unfit_draft(draft: int, target: int) -> str:
    """Why one native model cannot guess for the other; empty: it can."""
    try:
        _check_kind(draft)
        made_for_vectors = any(_pooling(model)[0] for model in (draft, target))
    except EngineError as error:
        return error.message
    if made_for_vectors:
        return "models made to turn texts into vectors say nothing"
    if any(
        native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model) for model in (draft, target)
    ):
        return "a recurrent model cannot take guesses back"
    difference = Vocabulary(draft).differs(Vocabulary(target))
    return f"its vocabulary is not that of the model: {difference}" if difference else ""


def _check_file(order: LoadModel) -> None:
    try:
        if list(order.verified) != identity(os.stat(order.path)):  # noqa: PTH116 - a path as the wire gives it
            read_header(order.path)
    except GgufError as error:
        raise EngineError("invalid_model_file", str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
        raise EngineError("file_not_found", f"cannot read the model file: {reason}") from error


def _check_kind(model: int) -> None:
    """Refuse what decodes no text token by token: later calls would end the process at an assertion."""
    if native.llama_model_has_encoder(model) or not native.llama_model_has_decoder(model):
        raise EngineError("load_failed", "cannot load the model: it has an encoder, this engine runs decoders only")
    if native.llama_model_is_diffusion(model):
        raise EngineError(
            "load_failed", "cannot load the model: it is a diffusion model, this engine runs decoders only"
        )
    vocabulary = native.llama_model_get_vocab(model)
    size = native.llama_vocab_n_tokens(vocabulary)
    if size <= 0:
        raise EngineError("load_failed", "cannot load the model: it has no vocabulary")
    if native.llama_vocab_type(vocabulary) == native.LLAMA_VOCAB_TYPE_WPM and size < _WORDPIECE_TOKENS_MIN:
        raise EngineError("load_failed", "cannot load the model: its vocabulary lacks its own control tokens")


def _pooling(model: int) -> tuple[str, bool]:
    """What a model made for vectors makes them of, and whether it needs whole texts for that. Raises `EngineError`.

    The library tells it of a context only. Where nothing is said, a model that generates has none, others the mean.
    """
    architecture = _told(model, "general.architecture")
    told = _told(model, f"{architecture}.pooling_type")
    pooling = int(told) if told.isdecimal() else native.LLAMA_POOLING_TYPE_NONE
    if pooling == native.LLAMA_POOLING_TYPE_RANK:
        raise EngineError("load_failed", "cannot load the model: it ranks pairs of texts, this engine does not")
    both_ways = _told(model, f"{architecture}.attention.causal") == "false" or architecture in _ENCODERS
    name = _POOLINGS.get(pooling, "mean" if both_ways else "")
    return name, both_ways or name in {"mean", "cls"}


def _told(model: int, key: str) -> str:
    """What the model's file says under `key`; empty when it says nothing, or more than fits."""
    value = ctypes.create_string_buffer(_WORD_CHARS_MAX)
    length = native.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode("utf-8", "replace") if 0 <= length < len(value) else ""


def _encode(params: native.llama_context_params, pooling: str, tokens: int) -> None:
    """Have the context turn whole texts of at most so many tokens into vectors."""
    params.embeddings = True
    params.pooling_type = next(number for number, name in _POOLINGS.items() if name == pooling)
    params.n_batch = params.n_ubatch = max(1, min(tokens, ENCODED_TOKENS_MAX))
    params.n_outputs_max = params.n_batch


def _context_params(order: LoadModel | ResumeModel, threads: int) -> native.llama_context_params:
    params = native.llama_context_default_params()
    params.n_ctx = order.ctx
    params.n_batch = params.n_ubatch = order.batch
    params.n_seq_max = order.slots
    # Left alone, the compute buffer holds the logits of a whole batch.
    params.n_outputs_max = _outputs(order)
    # Each slot has cells of its own: what one writes never slows, crowds out or rounds differently another.
    params.kv_unified = False
    params.type_k = params.type_v = _KV_TYPES[order.kv_type]
    if order.kv_type != "f16":
        # Values in blocks can be read by flash attention only; left to itself, the library would decide later.
        params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False  # sliding-window layers keep their window, not the whole context
    params.pooling_type = native.LLAMA_POOLING_TYPE_NONE  # a text's last token is an output like any other
    params.no_perf = True
    return params


def _outputs(order: LoadModel | ResumeModel) -> int:
    return max(order.outputs, order.slots)  # a token of each slot in any case


def _refused_file(path: str) -> EngineError:
    told = log.last_error().replace(path, "the file")  # a path is not for every client
    return EngineError("load_failed", f"cannot load the model: {shown(told or 'the library refused the file')}")


def _no_context(order: LoadModel | ResumeModel) -> EngineError:
    told = log.last_error() or "the library gave no reason"
    setting = f"{order.ctx} tokens, {order.slots} slots and a KV cache of {order.kv_type}"
    return EngineError("load_failed", f"cannot make a context of {setting} for the model: {shown(told)}")
