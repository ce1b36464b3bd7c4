"""llama.cpp with nothing around it, for comparisons."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray


class Raw:
    """The library with nothing around it: every token of one sequence at once, and all that it says of them."""

    def __init__(
        self, path: Path, *, embeddings: bool, pooling: int = -1, adapters: Mapping[Path, float] | None = None
    ) -> None:
        self.model = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
        files = [native.llama_adapter_lora_init(self.model, str(file).encode()) for file in adapters or ()]
        params = native.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.embeddings = embeddings
        params.pooling_type = pooling
        params.n_threads = params.n_threads_batch = 1
        self.context = native.llama_init_from_model(self.model, params)
        self.vocabulary = native.llama_model_get_vocab(self.model)
        if adapters:
            addresses = (native.llama_adapter_lora_p_ctypes * len(files))(*files)
            scales = (ctypes.c_float * len(files))(*adapters.values())
            assert native.llama_set_adapters_lora(self.context, addresses, len(files), scales) == 0

    def decode(self, tokens: Sequence[int]) -> None:
        batch = native.llama_batch_init(512, 0, 1)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.n_tokens = len(tokens)
        if memory := native.llama_get_memory(self.context):
            native.llama_memory_clear(memory, True)
        assert native.llama_decode(self.context, batch) == 0
        native.llama_batch_free(batch)

    def logprobs(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Of each token but the first, given those before it."""
        self.decode(tokens)
        size = native.llama_vocab_n_tokens(self.vocabulary)
        found = []
        for index, token in enumerate(tokens[1:]):
            logits = np.ctypeslib.as_array(native.llama_get_logits_ith(self.context, index), (size,))
            logits = logits.astype(np.float64)
            found.append(logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum()))
        return np.array(found)

    def vector(self, tokens: Sequence[int], *, pooled: bool) -> NDArray[np.float64]:
        self.decode(tokens)
        width = native.llama_model_n_embd_out(self.model)
        if pooled:
            address = native.llama_get_embeddings_seq(self.context, 0)
        else:
            address = native.llama_get_embeddings_ith(self.context, len(tokens) - 1)
        return np.ctypeslib.as_array(address, (width,)).astype(np.float64)

    def close(self) -> None:
        native.llama_free(self.context)
        native.llama_model_free(self.model)


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector of length 1 in this direction."""
    return vector / float(np.linalg.norm(vector))
