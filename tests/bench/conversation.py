"""A conversation of 2,000 tokens whose model is switched away and back: what its next turn waits for.

The floor is the first token of a text as long that nothing has in its cache. The switch itself is timed apart. Both
turns are compared with the same conversation that was not interrupted, word by word.
"""

import time
from collections.abc import Iterator

from h2qctl import Client
from h2qd.wire import messages as m
from tests.bench import daemons, figures
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

TOKENS = 2000
FIRST_TOKEN_RATIO_MAX = 0.05
_ROUNDS = 5
_ANSWER_TOKENS = 32
_NEXT = "\n\nAnd then, on the next morning, they saw that"


def bench(setting: Setting) -> Iterator[Row]:
    """Times in ms."""
    back, fresh, switches, same = [], [], [], 0
    models = {"a": setting.model, "b": setting.model}
    with daemons.running(setting.folder, models, "model: {ctx: 2560}") as daemon, daemon.client() as client:
        client.switch("b")
        for turn in rounds(_ROUNDS, 150):
            opening = f"{turn} " + "tree " * (TOKENS - 4)
            client.switch("a")
            stayed = _turns(client, opening, f"stays{turn}")
            again = _turn(client, opening, f"goes{turn}")
            client.switch("b")
            began = time.perf_counter()
            client.switch("a")
            switches.append((time.perf_counter() - began) * 1000)
            went = _turn(client, opening + again.text + _NEXT, f"goes{turn}")
            if went.usage.cached_tokens < TOKENS:
                raise SystemExit(f"bench: only {went.usage.cached_tokens} tokens came back")
            same += (again.text, went.text) == stayed
            back.append(went.timings.first_token_ms)
            fresh.append(
                _turn(client, f"{turn + 100} " + opening[2:] + again.text + _NEXT, None).timings.first_token_ms
            )
            client.switch("b")
    what = f"first token of the next turn, {TOKENS} tokens into a conversation, after a switch away and back"
    yield figures.paired(f"{what}, against prefilling", "ms", back, fresh, Bound(FIRST_TOKEN_RATIO_MAX))
    yield Row("  the switch back", "ms", sorted(switches)[len(switches) // 2])
    yield Row(
        "  conversations word for word as without the switch",
        "of all",
        same / len(back),
        bound=Bound(1, "figure", at_least=True),
    )


def _turns(client: Client, opening: str, session: str) -> tuple[str, str]:
    first = _turn(client, opening, session)
    return first.text, _turn(client, opening + first.text + _NEXT, session).text


def _turn(client: Client, prompt: str, session: str | None) -> m.Answer:
    return client.infer(prompt, "a", max_tokens=_ANSWER_TOKENS, temperature=0, ignore_eos=True, session=session)
