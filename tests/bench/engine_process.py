"""The engine in a process of its own, driven as a worker's loop drives it: a task in, its result out.

`python -m tests.bench.engine_process MODEL CTX`. Loads with one slot, says so, then takes tasks on standard input,
each a line of JSON as `wire.workers` has them, and answers each with a line: its result.
"""

import sys

import msgspec

from h2qd.wire.workers import LoadModel, Prefilling, Result, Task, Text
from h2qd.worker.engine import Beat
from h2qd.worker.llama.engine import LlamaEngine

OUTPUTS = 8
"""As the memory plan has it for one slot."""


def main() -> int:
    """Serve standard input."""
    engine = LlamaEngine(Beat())
    order = LoadModel("llama", sys.argv[1], int(sys.argv[2]), batch=128, outputs=OUTPUTS)
    print(msgspec.json.encode(engine.load(order, lambda _: None)).decode(), flush=True)
    for line in iter(sys.stdin.readline, ""):
        print(msgspec.json.encode(result(engine, msgspec.json.decode(line, type=Task))).decode(), flush=True)
    return 0


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
