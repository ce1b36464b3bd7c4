"""A handle on `engine_process`: tasks of one engine, one at a time."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from h2qd.wire.workers import Loaded, Result, Task
from tests.bench import opponents


@dataclass(frozen=True, slots=True)
class Tasks:
    """An engine that is loaded."""

    process: "subprocess.Popen[str]"

    def done(self, task: Task) -> Result:
        """The result of `task`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(task).decode() + "\n")
        self.process.stdin.flush()
        result: Result = msgspec.json.decode(self.process.stdout.readline(), type=Result)
        return result


@contextlib.contextmanager
def engine(model: Path, ctx: int, draft: Path | None = None) -> Iterator[Tasks]:
    """The engine with one slot, in a process of its own; with a draft model, if one is given."""
    words = [str(model), str(ctx), *([] if draft is None else [str(draft)])]
    with opponents.child("tests.bench.engine_process", *words) as process:
        assert process.stdout is not None
        loaded = msgspec.json.decode(process.stdout.readline(), type=Loaded)
        assert not loaded.undrafted, loaded
        yield Tasks(process)
