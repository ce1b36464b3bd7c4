"""Several streams of a model folder: one pass for all of them, against a pass for each, in turns in the same process.

The model is made for the run: random numbers in the sizes of a small llama, kept in 8 bits. What it says means
nothing, and takes as long as if it did. A pass for each is the same engine with one row in a pass. Prompts count too,
and are read alike on both sides.
"""

import time
from collections.abc import Iterator
from typing import Any

from h2qd.wire.workers import Generate, LoadModel, Sampler
from h2qd.worker.engine import Beat
from tests.bench import figures
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

CLIENTS = (1, 2, 4, 8)
TOKENS = 32
RATIO_MIN = {1: 0.8, 2: 1.15, 4: 1.4, 8: 1.8}
"""Against turns; the rows of a pass cost something too, so eight are not eight times as fast."""
_ROUNDS = 4
_SLOTS = 8
_SHARE_TOKENS = 256
_PROMPT = "Yesterday a small computer"
SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32_000,
}


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s."""
    from h2qd.worker.torch.engine import TorchEngine  # noqa: PLC0415 - large: only this bench pays for it
    from tests import folders  # noqa: PLC0415

    folders.tiny(setting.folder, dtype="bfloat16", **SIZES)
    engine = TorchEngine(Beat())
    order = LoadModel(
        "torch", str(setting.folder), _SLOTS * _SHARE_TOKENS, slots=_SLOTS, quantize="int8", batch=_SHARE_TOKENS
    )
    engine.load(order, lambda _: None)
    model = engine._model
    assert model is not None

    def rate(clients: int, rows_max: int) -> float:
        model.rows_max = rows_max
        began_s = time.perf_counter()
        for request in range(clients):
            engine.submit(Generate(request, TOKENS, Sampler(temperature=0), prompt=_PROMPT, ignore_eos=True))
        while engine.busy:
            engine.step()
        return clients * TOKENS / (time.perf_counter() - began_s)

    rate(_SLOTS, _SLOTS)  # kernels are prepared once for each shape
    for clients in CLIENTS:
        rates: dict[int, list[float]] = {_SLOTS: [], 1: []}
        for turn in rounds(_ROUNDS, 30):
            for rows_max in (_SLOTS, 1) if turn % 2 else (1, _SLOTS):
                rates[rows_max].append(rate(clients, rows_max))
        yield figures.paired(
            f"model folder: {clients} stream{'s' if clients > 1 else ''} in one pass, against turns",
            "tokens/s",
            rates[_SLOTS],
            rates[1],
            Bound(RATIO_MIN[clients], at_least=True),
        )
    engine.close()
