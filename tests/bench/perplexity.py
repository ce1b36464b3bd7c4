"""The perplexity of a real text: what the engine's scores come to, against llama.cpp's own tool.

The tool is `llama-perplexity` beside the server that `H2Q_LLAMA_SERVER` names; without it only the time is told. Both
read the same text, from Python's own reference, in windows of 512 tokens.
"""

import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from h2qd.wire.workers import Scored, ScoreText
from h2qd.worker.threads import thread_count
from tests.bench import tasks
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting

WINDOW = 512
ERROR_PERCENT_MAX = 0.5
_CHARS = 20_000
"""Nearly ten windows."""


def bench(setting: Setting) -> Iterator[Row]:
    """Perplexities, and scored tokens/s."""
    text = topics.topics["specialnames"][:_CHARS]
    with tasks.engine(setting.model, WINDOW) as engine:
        scored = engine.done(ScoreText(1, text, window=WINDOW))
    assert isinstance(scored, Scored)
    ours = math.exp(-scored.logprob / scored.tokens)
    yield Row("tokens of windows of 512, with the first halves", "tokens/s", _rate(scored))
    tool = Path(os.environ.get("H2Q_LLAMA_SERVER", "/")).with_name("llama-perplexity")
    if not tool.is_file():
        yield Row("perplexity: build llama-perplexity beside H2Q_LLAMA_SERVER to compare it", "", ours)
        return
    theirs = _theirs(tool, setting, text)
    yield Row("perplexity, against llama-perplexity", "", ours, theirs)
    error = abs(ours / theirs - 1) * 100
    yield Row("perplexity: difference", "%", error, bound=Bound(ERROR_PERCENT_MAX, of="figure"))


def _rate(scored: Scored) -> float:
    return scored.windows * WINDOW / scored.compute_ms * 1000


def _theirs(tool: Path, setting: Setting, text: str) -> float:
    file = setting.folder / "text"
    file.write_text(text, encoding="utf-8")
    threads = str(thread_count(0))
    command = [str(tool), "-m", str(setting.model), "-f", str(file), "-c", str(WINDOW), "-t", threads, "-tb", threads]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", told)
    if found is None:
        raise SystemExit(f"bench: llama-perplexity says no perplexity: {told[-500:]}")
    return float(found[1])
