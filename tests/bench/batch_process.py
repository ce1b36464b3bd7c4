"""One model in a process of its own that serves several streams: our engine, or the raw loop it is measured against.

`python -m tests.bench.batch_process engine|steady|raw MODEL CTX SLOTS`. Loads, says so, then takes orders on standard
input, each a line of JSON, and answers each with a line: `rate` runs its prompts at once, `gaps` one stream, and a
long prompt beside it. The raw loop is `llama_decode` and numpy's argmax on one batch, all streams in step. As
`steady` the engine keeps the number of its threads, whatever else the device does.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from llama_cpp import llama_cpp as native

from h2qd.wire.workers import Generate, Generated, LoadModel, Sampler, Text
from h2qd.worker.engine import Beat
from h2qd.worker.llama.engine import LlamaEngine
from h2qd.worker.threads import thread_count
from tests.bench.setting import PROMPT_TOKENS

BATCH_TOKENS = 512


class Loop(Protocol):
    """What serves."""

    def rate(self, prompts: Sequence[str], tokens: int, sampler: Sampler) -> dict[str, Any]:
        """All prompts at once, `tokens` for each: `wall_ms` until the last, `first_ms` of each."""
        ...

    def gaps(self, prompt: str, long: str) -> dict[str, Any]:
        """The gaps between the tokens of a stream, alone and while a long prompt is computed, in ms."""
        ...


def main() -> int:
    """Serve standard input."""
    kind, model, ctx, slots = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    loop: Loop = Raw(model, ctx, slots) if kind == "raw" else Ours(model, ctx, slots, steady=kind == "steady")
    say(loaded=True)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "long" in order:
            say(**loop.gaps(order["prompt"], order["long"]))
        else:
            say(**loop.rate(order["prompts"], order["tokens"], Sampler(**order["sampler"])))
    return 0


class Ours:
    """The engine, driven as a worker's loop drives it."""

    def __init__(self, model: str, ctx: int, slots: int, *, steady: bool) -> None:
        self._engine = LlamaEngine(Beat())
        threads = thread_count(0) if steady else 0
        self._engine.load(LoadModel("llama", model, ctx, threads, slots=slots), lambda _: None)

    def rate(self, prompts: Sequence[str], tokens: int, sampler: Sampler) -> dict[str, Any]:
        """See `Loop`."""
        began = time.perf_counter()
        for request, prompt in enumerate(prompts):
            self._engine.submit(Generate(request, tokens, sampler, prompt=prompt, ignore_eos=True))
        first: dict[int, float] = {}
        ends = []
        while self._engine.busy:
            for said in self._engine.step():
                if isinstance(said, Text):
                    first.setdefault(said.request, (time.perf_counter() - began) * 1000)
                elif isinstance(said, Generated):
                    ends.append((said.prompt_tokens, said.completion_tokens, said.cached_tokens))
        wall_ms = (time.perf_counter() - began) * 1000
        if ends != [(PROMPT_TOKENS, tokens, 0)] * len(prompts):
            raise SystemExit(f"bench: the engine's answers are not what was asked for: {ends}")
        return {"wall_ms": wall_ms, "first_ms": list(first.values())}

    def gaps(self, prompt: str, long: str) -> dict[str, Any]:
        """See `Loop`."""
        self._engine.submit(Generate(0, 100_000, Sampler(temperature=0), prompt=prompt, ignore_eos=True))
        normal = self._gaps_until(lambda gaps, _: len(gaps) == 150)
        began = time.perf_counter()
        self._engine.submit(Generate(1, 1, Sampler(temperature=0), prompt=long, ignore_eos=True))
        beside = self._gaps_until(lambda _, ended: ended)
        long_ms = (time.perf_counter() - began) * 1000
        self._engine.cancel(0)
        while self._engine.busy:
            self._engine.step()
        return {"normal_ms": normal[20:], "beside_ms": beside, "long_ms": long_ms}

    def _gaps_until(self, enough: Any) -> list[float]:
        gaps: list[float] = []
        last = time.perf_counter()
        ended = False
        while not enough(gaps, ended):
            for said in self._engine.step():
                if isinstance(said, Text) and said.request == 0:
                    now = time.perf_counter()
                    gaps.append((now - last) * 1000)
                    last = now
                ended = ended or (isinstance(said, Generated) and said.request == 1)
        return gaps


class Raw:
    """The bare loop."""

    def __init__(self, model: str, ctx: int, slots: int) -> None:
        self._log = native.llama_log_callback(lambda *_: None)
        native.llama_log_set(self._log, None)
        native.llama_backend_init()
        loaded = native.llama_model_load_from_file(model.encode(), native.llama_model_default_params())
        params = native.llama_context_default_params()
        params.n_ctx = ctx
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = params.n_outputs_max = slots
        params.kv_unified = False
        params.swa_full = False
        params.no_perf = True
        params.n_threads = params.n_threads_batch = thread_count(0)
        self._context = native.llama_init_from_model(loaded, params)
        self._vocabulary = native.llama_model_get_vocab(loaded)
        self._size = native.llama_vocab_n_tokens(self._vocabulary)
        self._batch = native.llama_batch_init(BATCH_TOKENS, 0, 1)

    def rate(self, prompts: Sequence[str], tokens: int, sampler: Sampler) -> dict[str, Any]:
        """See `Loop`; `sampler` is taken for greedy."""
        if sampler.temperature != 0:
            raise SystemExit("bench: the raw loop takes the best token only")
        began = time.perf_counter()
        native.llama_memory_clear(native.llama_get_memory(self._context), True)
        texts = [self._tokenize(prompt) for prompt in prompts]
        last = self._decode(texts, [0] * len(texts))
        first_ms = (time.perf_counter() - began) * 1000
        for more in range(tokens - 1):
            last = self._decode([[token] for token in last], [len(text) + more for text in texts])
        return {"wall_ms": (time.perf_counter() - began) * 1000, "first_ms": [first_ms] * len(texts)}

    def gaps(self, prompt: str, long: str) -> dict[str, Any]:
        """See `Loop`."""
        raise NotImplementedError

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = (native.llama_token * (len(data) + 8))()
        count = native.llama_tokenize(self._vocabulary, data, len(data), room, len(room), True, False)
        return list(room[:count])

    def _decode(self, streams: Sequence[Sequence[int]], positions: Sequence[int]) -> list[int]:
        batch, at, rows = self._batch, 0, []
        for stream, (tokens, position) in enumerate(zip(streams, positions, strict=True)):
            for index, token in enumerate(tokens):
                batch.token[at] = token
                batch.pos[at] = position + index
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = stream
                batch.logits[at] = index == len(tokens) - 1
                at += 1
            rows.append(at - 1)
        batch.n_tokens = at
        if native.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        return [self._best(row) for row in rows]

    def _best(self, row: int) -> int:
        logits = np.ctypeslib.as_array(native.llama_get_logits_ith(self._context, row), (self._size,))
        return int(np.argmax(logits))


def say(**facts: Any) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
