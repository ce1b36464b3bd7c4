"""One stream through the daemon against the raw low-level loop, on the same model, threads and prompts, in turns."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from h2qctl import Client
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import PROMPT_TOKENS, Setting, prompts, rounds

RATIO_MIN = 0.95
TOKENS = 128
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, in ms from its request, as who asked saw it."""

    first_ms: float
    total_ms: float

    @property
    def rate(self) -> float:
        """Tokens a second, the first one's time included."""
        return TOKENS / self.total_ms * 1000

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (TOKENS - 1) / (self.total_ms - self.first_ms) * 1000


def bench(setting: Setting) -> Iterator[Row]:
    """Rates in tokens/s, first tokens in ms."""
    ours: list[Run] = []
    floor: list[Run] = []
    with daemons.running(setting.folder, {"demo": setting.model}) as daemon, daemon.client() as client:
        ctx = client.load("demo").ctx
        with opponents.raw_loop(setting.model, ctx) as raw:
            raw.load()
            fresh = prompts()
            through(client, next(fresh))
            alone(raw, next(fresh))
            for turn in rounds(_ROUNDS, 90):
                prompt = next(fresh)
                if turn % 2:
                    floor.append(alone(raw, prompt))
                ours.append(through(client, prompt))
                if not turn % 2:
                    floor.append(alone(raw, prompt))
    rates = [run.rate for run in ours], [run.rate for run in floor]
    decodes = [run.decode_rate for run in ours], [run.decode_rate for run in floor]
    bound = Bound(RATIO_MIN, at_least=True)
    yield figures.paired(f"stream of {TOKENS} tokens, after the first", "tokens/s", *decodes, bound)
    yield figures.paired(f"stream of {TOKENS} tokens, in all", "tokens/s", *rates, bound)
    firsts = [run.first_ms for run in ours], [run.first_ms for run in floor]
    yield figures.paired(f"first token of {PROMPT_TOKENS}", "ms", *firsts)


def through(client: Client, prompt: str) -> Run:
    """The answer through the daemon: the text's first piece, and the reply that ends it."""
    began = time.perf_counter()
    stream = client.stream(prompt, "demo", max_tokens=TOKENS, ignore_eos=True, temperature=0)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    ended = time.perf_counter()
    answer = stream.answer
    if answer is None or (answer.usage.prompt_tokens, answer.usage.completion_tokens) != (PROMPT_TOKENS, TOKENS):
        raise SystemExit(f"bench: the stream was not what was asked for: {answer}")
    return Run((first - began) * 1000, (ended - began) * 1000)


def alone(raw: opponents.Raw, prompt: str) -> Run:
    """The same by the raw loop."""
    told = raw.stream(TOKENS, prompt)
    if told["prompt_tokens"] != PROMPT_TOKENS:
        raise SystemExit(f"bench: the raw loop's prompt has {told['prompt_tokens']} tokens")
    return Run(told["first_ms"], told["total_ms"])
