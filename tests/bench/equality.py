"""Greedy answers, token for token, against llama.cpp's own server: 50 prompts, one at a time.

Both compute the same shapes then, so the figures are the same to the last bit: the server is told to make no
checkpoints, for which it would cut a prompt in two. With speculation a pass computes several rows at once, and rows
of other shapes are rounded otherwise: how many answers that changes is only told.
"""

import http.client
import json
from collections.abc import Iterator

from tests.bench import daemons
from tests.bench.figures import Bound, Row
from tests.bench.server import served
from tests.bench.setting import Setting

PROMPTS = 50
_TOKENS = 48
_BEGINNINGS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village,",
    "1, 2, 3, 5, 8,",
    "Dear Sir or Madam,",
    "The three most important things about computers are",
    "Q: What is the largest planet?\nA:",
    "SELECT name FROM users WHERE",
    "Der schnelle braune Fuchs",
    "In 1969, for the first time,",
)


def bench(setting: Setting) -> Iterator[Row]:
    """Answers that are equal, of all."""
    with (
        served(setting.model, 1, "--ctx-checkpoints", "0") as peer,
        daemons.running(setting.folder, {"demo": setting.model}, "worker: {threads: 2}") as daemon,
        daemon.client() as client,
    ):
        if peer is None:
            yield Row("greedy answers against llama-server: set H2Q_LLAMA_SERVER to measure it", "of all", 0.0)
            return
        equal = {True: 0, False: 0}
        for prompt in _prompts():
            theirs = _tokens(peer.port, prompt)
            for speculate in equal:
                answer = client.infer(
                    prompt,
                    "demo",
                    max_tokens=_TOKENS,
                    temperature=0,
                    ignore_eos=True,
                    logprobs=0,
                    speculate=speculate,
                )
                equal[speculate] += [one.token for one in answer.logprobs] == theirs
    bound = Bound(1.0, of="figure", at_least=True)
    yield Row(
        f"greedy answers of {_TOKENS} tokens equal to llama-server's", "of all", equal[False] / PROMPTS, bound=bound
    )
    yield Row("  with speculation", "of all", equal[True] / PROMPTS)


def _prompts() -> Iterator[str]:
    for number in range(PROMPTS):
        yield f"{number // len(_BEGINNINGS) * 7}. {_BEGINNINGS[number % len(_BEGINNINGS)]}"


def _tokens(port: int, prompt: str) -> list[int]:
    body = {"prompt": prompt, "n_predict": _TOKENS, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/completion", json.dumps(body | {"cache_prompt": False}))
    told = json.loads(connection.getresponse().read())
    connection.close()
    tokens: list[int] = told["tokens"]
    return tokens
