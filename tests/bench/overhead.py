"""What it costs to ask a server through the daemon: the same streams from the same server, direct by HTTP, in turns.

The server is scripted: one that answers at a pace, as a model would (its first text and its rate are bounded), and
one that sends as fast as it can, which tells the price of a token: that is more than a server of models ever asks of
the daemon, so it is for information. Both sides keep their connection. Times are as who asks sees them.
"""

import http.client
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from h2qctl import Client, H2qError
from tests.bench import daemons, figures, opponents
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting, rounds

ADDED_MS_MAX = 3.0
RATIO_MIN = 0.97
TOKENS = 200
FAST_TOKENS = 4000
_WORD_MS = 2.0
_ROUNDS = 40
_CHAT = [{"role": "user", "content": "hello there"}]
_START_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of so many tokens, in ms from its request."""

    tokens: int
    first_ms: float
    total_ms: float

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return (self.tokens - 1) / (self.total_ms - self.first_ms) * 1000


def bench(setting: Setting) -> Iterator[Row]:
    """First texts in ms, rates in tokens/s."""
    words = (str(TOKENS), str(_WORD_MS), str(FAST_TOKENS))
    with opponents.child("tests.bench.peer_process", *words) as peer:
        assert peer.stdout is not None
        paced, fast = peer.stdout.readline().strip(), peer.stdout.readline().strip()
        remotes = f"remotes:\n  p: {{type: openai, url: '{paced}'}}\n  f: {{type: openai, url: '{fast}'}}\n"
        with daemons.running(setting.folder, {}, remotes) as daemon, daemon.client() as client:
            _load(client, "p/paced")
            ours, floor = _in_turns(client, "p/paced", paced, TOKENS)
            added = [mine.first_ms - theirs.first_ms for mine, theirs in zip(ours, floor, strict=True)]
            bound = Bound(ADDED_MS_MAX, of="figure")
            yield Row("a server's first text through the daemon: added", "ms", statistics.median(added), bound=bound)
            firsts = [run.first_ms for run in ours], [run.first_ms for run in floor]
            yield figures.paired("a server's first text", "ms", *firsts)
            rates = [run.rate for run in ours], [run.rate for run in floor]
            what = f"a server's stream of {TOKENS} tokens, one in {_WORD_MS:g} ms"
            yield figures.paired(what, "tokens/s", *rates, Bound(RATIO_MIN, at_least=True))
            _load(client, "f/fast")
            ours, floor = _in_turns(client, "f/fast", fast, FAST_TOKENS)
            rates = [run.rate for run in ours], [run.rate for run in floor]
            yield figures.paired(f"a server's stream of {FAST_TOKENS} tokens, as fast as it can", "tokens/s", *rates)


def _load(client: Client, model: str) -> None:
    """Load a model once its server was asked what it has."""
    began = time.perf_counter()
    while True:
        try:
            client.switch(model)
        except H2qError as error:
            if error.code != "no_such_model" or time.perf_counter() - began > _START_S_MAX:
                raise
            time.sleep(0.01)
        else:
            return


def _in_turns(client: Client, model: str, url: str, tokens: int) -> tuple[list[Run], list[Run]]:
    """Answers through the daemon, and direct ones; the first of each does not count."""
    ours: list[Run] = []
    floor: list[Run] = []
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        for turn in rounds(_ROUNDS + 1, 90):
            if turn % 2:
                floor.append(direct(connection, parts.path, model.partition("/")[2], tokens))
            ours.append(through(client, model, tokens))
            if not turn % 2:
                floor.append(direct(connection, parts.path, model.partition("/")[2], tokens))
    return ours[1:], floor[1:]


def through(client: Client, model: str, tokens: int) -> Run:
    """An answer through the daemon."""
    began = time.perf_counter()
    stream = client.chat(_CHAT, model, max_tokens=tokens, stream=True)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    ended = time.perf_counter()
    if stream.answer is None or stream.answer.text != "word " * tokens:
        raise SystemExit(f"bench: the stream was not what was asked for: {stream.answer}")
    return Run(tokens, (first - began) * 1000, (ended - began) * 1000)


def direct(connection: http.client.HTTPConnection, prefix: str, model: str, tokens: int) -> Run:
    """The same over HTTP, in the words that the daemon's worker uses."""
    body = {"model": model, "messages": _CHAT, "max_tokens": tokens, "stream": True}
    body["stream_options"] = {"include_usage": True}
    began = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"{prefix}/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    first, heard = 0.0, 0
    while line := response.readline():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            if choices and choices[0]["delta"].get("content"):
                first = first or time.perf_counter()
                heard += 1
    ended = time.perf_counter()
    if response.status != http.client.OK or heard != tokens:
        raise SystemExit(f"bench: the server said {response.status} and {heard} words")
    return Run(tokens, (first - began) * 1000, (ended - began) * 1000)
