"""The engine in a process of its own, driven as a worker's loop drives it: a task in, its result out.

`python -m tests.bench.engine_process MODEL CTX [DRAFT]`. Loads with one slot, says so, then takes tasks on standard
input, each a line of JSON as `wire.workers` has them, and answers each with a line: its result.
"""

import os
import sys

import msgspec

from h2qd.core.drafting import DRAFT_CTX_MAX
from h2qd.gguf.reader import identity
from h2qd.wire.workers import DraftFile, LoadModel, Prefilling, Result, Task, Text
from h2qd.worker.engine import Beat
from h2qd.worker.llama.engine import LlamaEngine

OUTPUTS = 8
"""As the memory plan has it for one slot."""


def main() -> int:
    """Serve standard input."""
    engine = LlamaEngine(Beat())
    ctx = int(sys.argv[2])
    draft = _draft(sys.argv[3]) if len(sys.argv) > 3 else None
    draft_ctx = min(ctx, DRAFT_CTX_MAX) if draft is not None else 0
    order = LoadModel("llama", sys.argv[1], ctx, batch=128, outputs=OUTPUTS, draft=draft, draft_ctx=draft_ctx)
    print(msgspec.json.encode(engine.load(order, lambda _: None)).decode(), flush=True)
    for line in iter(sys.stdin.readline, ""):
        print(msgspec.json.encode(result(engine, msgspec.json.decode(line, type=Task))).decode(), flush=True)
    return 0


def _draft(path: str) -> DraftFile:
    return DraftFile("draft", path, list(identity(os.stat(path))))  # noqa: PTH116 - a path as an order gives it


def result(engine: LlamaEngine, task: Task) -> Result:
    """What it says of `task` in the end."""
    engine.submit(task)
    while engine.busy:
        for said in engine.step():
            if isinstance(said, Result):
                return said
            if not isinstance(said, Text | Prefilling):
                raise SystemExit(f"bench: the engine failed: {said}")
    raise SystemExit("bench: the engine said nothing")


if __name__ == "__main__":
    sys.exit(main())
