"""The raw low-level loop: `llama_decode` and numpy's argmax, nothing else.

`python -m tests.bench.raw_process MODEL CTX`
Imports first, then takes one word a line on standard input. `load` forks a child that loads MODEL, says how long that
took, and serves `stream N PROMPT` until `exit`; everything is answered by one line of JSON. It uses the C binding
with the parameters of a sensible server and as many threads as the daemon takes: file-mapped weights, one output
row, no state kept between streams.
"""

import json
import os
import sys
import time

import numpy as np
from llama_cpp import llama_cpp as native

from h2qd.worker.threads import thread_count

BATCH_TOKENS = 512


def main() -> int:
    """Serve standard input."""
    path, ctx = sys.argv[1].encode(), int(sys.argv[2])
    say(imported=True)
    for line in iter(sys.stdin.readline, ""):
        if line.split() != ["load"]:
            raise SystemExit(f"what is {line!r}?")
        child = os.fork()
        if child == 0:
            serve(path, ctx)
            os._exit(0)
        os.waitpid(child, 0)
        say(gone=True)
    return 0


def serve(path: bytes, ctx: int) -> None:
    """Load, then stream until told to exit."""
    began = time.perf_counter()
    loop = RawLoop(path, ctx)
    say(load_ms=(time.perf_counter() - began) * 1000)
    for line in iter(sys.stdin.readline, ""):
        word, *rest = line.rstrip("\n").split(" ", 2)
        if word == "exit":
            return
        say(**loop.stream(int(rest[0]), rest[1]))


class RawLoop:
    """A loaded model and its context."""

    def __init__(self, path: bytes, ctx: int) -> None:
        self._log = native.llama_log_callback(lambda *_: None)
        native.llama_log_set(self._log, None)
        native.llama_backend_init()
        self._model = native.llama_model_load_from_file(path, native.llama_model_default_params())
        params = native.llama_context_default_params()
        params.n_ctx = ctx
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_outputs_max = 1
        params.swa_full = False
        params.no_perf = True
        params.n_threads = params.n_threads_batch = thread_count(0)
        self._context = native.llama_init_from_model(self._model, params)
        self._vocabulary = native.llama_model_get_vocab(self._model)
        self._size = native.llama_vocab_n_tokens(self._vocabulary)
        self._batch = native.llama_batch_init(BATCH_TOKENS, 0, 1)

    def stream(self, count: int, prompt: str) -> dict[str, float]:
        """`count` greedy tokens after `prompt`: times in ms from the start."""
        began = time.perf_counter()
        tokens = self._tokenize(prompt)
        native.llama_memory_clear(native.llama_get_memory(self._context), True)
        self._decode(tokens, 0)
        token = self._best()
        first = time.perf_counter()
        for position in range(len(tokens), len(tokens) + count - 1):
            self._decode([token], position)
            token = self._best()
        return {
            "prompt_tokens": len(tokens),
            "first_ms": (first - began) * 1000,
            "total_ms": (time.perf_counter() - began) * 1000,
        }

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = (native.llama_token * (len(data) + 8))()
        count = native.llama_tokenize(self._vocabulary, data, len(data), room, len(room), True, False)
        return list(room[:count])

    def _decode(self, tokens: list[int], position: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 0
        batch.logits[len(tokens) - 1] = 1
        if native.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def _best(self) -> int:
        logits = np.ctypeslib.as_array(native.llama_get_logits_ith(self._context, -1), (self._size,))
        return int(np.argmax(logits))


def say(**facts: float) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
