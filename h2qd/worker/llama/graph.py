"""What a pass of the library reads: whether its graph for a model computes with what an adapter changes.

The library adds an adapter's matrices where a graph asks for it (`build_lora_mm`). Graphs of some architectures
multiply some weights directly, and pass over what an adapter has for them without a word. Which do is nowhere told,
so one token is computed in a small context of its own, with all adapters, and each operation of that pass is looked
at. Called by `model`, at a load with adapters. Invariant: the context is freed before this returns.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

from llama_cpp import llama_cpp as native

from h2qd.wire.names import shown
from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.llama.adapters import Adapter, apply

_CTX_TOKENS = 32
_HALF = ".lora_a"


class _Tensor(ctypes.Structure):
    """ggml.h, `struct ggml_tensor`: up to its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def check_read(model: int, adapters: Mapping[str, Adapter], threads: int, beat: Beat, *, encodes: bool) -> None:
    """See that a pass of the native `model` reads all of each adapter.

    Raises `EngineError`: invalid_model_file where it does not, load_failed where that cannot be seen.
    """
    read = _read_by_a_pass(model, adapters, threads, beat, encodes=encodes)
    for name, adapter in adapters.items():
        passed_over = sorted(adapter.changes - read)
        if passed_over:
            more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
            raise EngineError(
                "invalid_model_file",
                f"cannot load the adapter {shown(name)}: the library computes this architecture without what it has"
                f" for {shown(passed_over[0])}{more}",
            )


def _read_by_a_pass(
    model: int, adapters: Mapping[str, Adapter], threads: int, beat: Beat, *, encodes: bool
) -> set[str]:
    """The names of the weights beside which a pass reads an adapter's matrices."""
    read: set[str] = set()

    def look(tensor: Any, asked: bool, _data: object) -> bool:
        if asked and (source := ctypes.cast(tensor, ctypes.POINTER(_Tensor)).contents.src[0]):
            name: str = source.contents.name.decode("utf-8", "replace")
            if "#" in name:  # a copy on another device is called device#name#number
                name = name.split("#")[1]
            if name.endswith(_HALF):
                read.add(name.removesuffix(_HALF))
        return False  # no need to stop after it

    def go_on(_data: object) -> bool:
        beat.tick()  # it may be the first to read all of the model's file
        return False

    params = native.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = _CTX_TOKENS, 1, 1, 1
    params.n_threads = params.n_threads_batch = threads
    params.pooling_type = native.LLAMA_POOLING_TYPE_NONE
    params.embeddings = encodes
    params.no_perf = True
    params.cb_eval = looking = native.ggml_backend_sched_eval_callback(look)
    params.abort_callback = going_on = native.ggml_abort_callback(go_on)
    context = native.llama_init_from_model(model, params)
    if not context:
        raise EngineError("load_failed", "cannot make a context to see what a pass does with adapters")
    try:
        apply(context, tuple((name, 1.0) for name in adapters), adapters)
        token = (native.llama_token * 1)(0)
        status = native.llama_decode(context, native.llama_batch_get_one(token, 1))
    finally:
        native.llama_free(context)
    del looking, going_on  # they had to outlive the calls
    if status != 0:
        raise EngineError("load_failed", f"cannot see what a pass does with adapters: llama_decode returned {status}")
    return read
