"""The second turn of a conversation of 1,000 tokens with a model folder: what its first token waits for.

Against the same turn prefilled anew, in turns in the same process: where the model stayed, and where it was unloaded
and loaded in between, so that the cells come from disk. The model is made for the run, as for `torch`. The load
itself is not counted: it is the same for all.
"""

from collections.abc import Iterator
from typing import Any

from h2qd.wire.workers import Generate, LoadModel, Sampler
from h2qd.worker.engine import Beat
from tests.bench import figures
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds
from tests.bench.torch import SIZES

TOKENS = 1000
FIRST_TOKEN_RATIO_MAX = 0.2
_ROUNDS = 5
_CTX = 1280
_ANSWER_TOKENS = 16
_WARMING = "x" * 200
_NEXT = " And then, on the next morning,"


def bench(setting: Setting) -> Iterator[Row]:
    """Times in ms."""
    from tests import folders  # noqa: PLC0415 - large: only who measures it pays for it

    folders.tiny(setting.folder / "model", dtype="bfloat16", max_position_embeddings=_CTX, **SIZES)
    stayed, returned, fresh = [], [], []
    there = range(TOKENS // 2, _CTX)
    for turn in rounds(_ROUNDS, 60):
        opening = f"{turn} " + "tree " * ((TOKENS - 2) // 5)
        engine = _loaded(setting)
        fresh.append(_first_token_ms(_turn(engine, opening + _NEXT, ""), range(1)))
        _turn(engine, opening, "1-stays")
        stayed.append(_first_token_ms(_turn(engine, opening + _NEXT, "1-stays"), there))
        _turn(engine, opening, "1-goes")
        if engine.save().failed:
            raise SystemExit("bench: the conversation was not written")
        engine.close()
        engine = _loaded(setting)
        returned.append(_first_token_ms(_turn(engine, opening + _NEXT, "1-goes"), there))
        engine.close()
    what = f"model folder: first token of the second turn, {TOKENS} tokens into a conversation"
    yield figures.paired(f"{what}, against prefilling", "ms", stayed, fresh, Bound(FIRST_TOKEN_RATIO_MAX))
    yield figures.paired("  after an unload and a load", "ms", returned, fresh, Bound(FIRST_TOKEN_RATIO_MAX))


def _loaded(setting: Setting) -> Any:
    from h2qd.worker.torch.engine import TorchEngine  # noqa: PLC0415 - large: only who measures it pays for it

    engine = TorchEngine(Beat())
    sessions: dict[str, Any] = {
        "sessions": str(setting.folder / "sessions"),
        "sessions_bytes": 2**30,
        "sha256": "ab" * 32,
    }
    path = str(setting.folder / "model")
    engine.load(LoadModel("torch", path, _CTX, quantize="int8", batch=128, **sessions), lambda _: None)
    _turn(engine, _WARMING, "")  # kernels are prepared by the first pass of each shape
    return engine


def _turn(engine: Any, prompt: str, session: str) -> Any:
    order = Generate(1, _ANSWER_TOKENS, Sampler(temperature=0), prompt=prompt, ignore_eos=True, session=session)
    engine.submit(order)
    while engine.busy:
        said = engine.step()
    return said[-1]


def _first_token_ms(end: Any, cached: range) -> float:
    if end.cached_tokens not in cached:
        raise SystemExit(f"bench: {end.cached_tokens} tokens were there")
    return float(end.first_token_ms)
