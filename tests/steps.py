"""Drives the llama engine in tests, a step at a time, and checks after each what must always hold."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from h2qd.wire.workers import Generate, Generated, GenerationFailed, Sampler, Text
from h2qd.worker.engine import Said
from h2qd.worker.llama.batch import Batch
from h2qd.worker.llama.engine import LlamaEngine

GREEDY = Sampler(temperature=0)


def batch_of(engine: LlamaEngine) -> Batch:
    assert engine._loaded is not None
    assert engine._loaded.batch is not None
    return engine._loaded.batch


def submit(engine: LlamaEngine, request: int, prompt: str, **options: Any) -> None:
    defaults: dict[str, Any] = {"max_tokens": 16, "sampler": GREEDY, "ignore_eos": True}
    engine.submit(Generate(request=request, prompt=prompt, **(defaults | options)))


def check(engine: LlamaEngine) -> None:
    """The caches are what the library has; a request is in one place; nobody waits beside a free place."""
    batch = batch_of(engine)
    assert all(batch.context.agrees(cache) for cache in batch.context.caches)
    at_work = [place.work for place in batch._places if place.work is not None]
    everywhere = [*at_work, *batch._line]
    assert len(everywhere) == len(set(everywhere)) == len(batch._open)
    assert set(everywhere) == set(batch._open.values())
    assert not any(slot.ended for slot in everywhere)
    assert not batch._line or len(at_work) == len(batch._places)
    for place in batch._places:
        slot = place.work
        if slot is not None:
            assert slot.cache is place.cache
            assert not slot.text or list(slot.text[: len(place.cache.tokens)]) == place.cache.tokens
            assert not batch.sessions.holds(place.cache), "a session's cells change while a request works on them"
        assert 0 <= place.cache.whole <= len(place.cache.tokens) <= batch.context.size
    held = Counter(held.key for held in batch.sessions._held.values())
    assert max(held.values(), default=1) == 1, "a session goes on in one place"


def run(engine: LlamaEngine, until: Callable[[list[Said]], bool] = lambda _: False) -> list[Said]:
    """Steps until the engine is idle, or what was said is enough; each request says one last word."""
    heard: list[Said] = []
    check(engine)
    while engine.busy and not until(heard):
        heard += engine.step()
        check(engine)
    ends = Counter(said.request for said in heard if isinstance(said, Generated | GenerationFailed))
    assert all(count == 1 for count in ends.values())
    assert not engine.busy or not set(ends) & set(batch_of(engine)._open)
    return heard


def text_of(heard: list[Said], request: int) -> str:
    return "".join(said.text for said in heard if isinstance(said, Text) and said.request == request)


def end_of(heard: list[Said], request: int) -> Generated:
    (end,) = [said for said in heard if isinstance(said, Generated | GenerationFailed) and said.request == request]
    assert isinstance(end, Generated), end
    return end


def answer(engine: LlamaEngine, prompt: str, **options: Any) -> tuple[str, Generated]:
    submit(engine, 1, prompt, **options)
    heard = run(engine)
    return text_of(heard, 1), end_of(heard, 1)
