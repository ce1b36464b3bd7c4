"""The memory plan against what loads really take: the bundled model, and made-up ones of other architectures.

Each row is one load, filled to the brim in a process of its own (`estimate_process`); its figure is how far the plan
was off. The last rows are loads that were planned with the lesson of one load before.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from h2qd.core.drafting import draft_plan
from h2qd.core.lessons import Lesson, correction_bytes
from h2qd.core.plan import ModelShape, memory_plan
from h2qd.gguf.facts import facts
from h2qd.gguf.reader import read_header
from h2qd.gguf.repack import repacked_bytes
from h2qd.runtime.shapes import shape_of
from h2qd.wire.messages import KvType
from tests import architectures
from tests.bench.estimate_process import Load
from tests.bench.figures import Bound, Row
from tests.bench.setting import Setting

ERROR_PERCENT_MAX = 5.0
LEARNED_PERCENT_MAX = 2.0
_MIB = 2**20
_ROOT = Path(__file__).parents[2]

_BUNDLED: list[tuple[int, int, KvType, bool]] = [
    (512, 1, "f16", True),
    (512, 1, "q8_0", False),
    (1024, 2, "q4_0", True),
    (2048, 1, "f16", False),
    (2048, 4, "q8_0", True),
    (4096, 1, "f16", True),
    (4096, 2, "q8_0", False),
    (8192, 1, "q4_0", True),
    (8192, 4, "f16", True),
    (16_384, 2, "f16", False),
    (16_384, 4, "q4_0", True),
    (32_768, 1, "f16", True),
    (32_768, 1, "q8_0", True),
    (32_768, 4, "f16", False),
]
_OTHERS: list[tuple[int, int, KvType, bool]] = [(1024, 1, "f16", True), (8192, 2, "q8_0", False)]
_TAUGHT_BY: tuple[int, int, KvType, bool] = (4096, 1, "f16", True)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A load as it was planned and as it was measured, in bytes."""

    load: Load
    planned_bytes: int
    measured_bytes: int

    @property
    def error_percent(self) -> float:
        """By how much the plan was too large; negative: too small."""
        return error_percent(self.planned_bytes, self.measured_bytes)

    @property
    def lesson(self) -> Lesson:
        """What it teaches."""
        load = self.load
        return Lesson(load.ctx, load.slots, load.kv_type, self.planned_bytes, self.measured_bytes)


class Loads:
    """A process that measures loads."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def estimate(self, load: Load) -> Estimate:
        """Plan and measure `load`; it must succeed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asdict(load)) + "\n")
        stdin.flush()
        held = json.loads(stdout.readline())["held_bytes"]
        assert held, f"no load of {load}"
        return Estimate(load, planned_bytes(load), held)


@contextmanager
def measuring() -> Iterator[Loads]:
    """A process that measures loads, until the block ends."""
    command = [sys.executable, "-m", "tests.bench.estimate_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            yield Loads(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def planned_bytes(load: Load) -> int:
    """What the plan says of `load` on this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if load.repack else ""
    planned = memory_plan(_shape(load.path, cpuinfo), load.ctx, load.slots, load.kv_type).total_bytes
    return planned + (draft_plan(_shape(load.draft, cpuinfo), load.ctx).total_bytes if load.draft else 0)


def _shape(path: str, cpuinfo: str) -> ModelShape:
    header = read_header(path)
    return shape_of(msgspec.structs.replace(facts(header), repacked_bytes=repacked_bytes(header, cpuinfo)))


def error_percent(planned: int, measured: int) -> float:
    """By how much `planned` is too large; negative: too small."""
    return 100 * (planned / measured - 1)


def bench(setting: Setting) -> Iterator[Row]:
    """Errors in % of what was measured."""
    models = [("gemma3-270m", setting.model, _BUNDLED)]
    models += [(name, architectures.write(name, setting.folder), _OTHERS) for name in architectures.MODELS]
    with measuring() as loads:
        for name, path, settings in models:
            for ctx, slots, kv_type, repack in settings:
                found = loads.estimate(Load(str(path), ctx, slots, kv_type, repack))
                yield _row(name, found, found.planned_bytes, ERROR_PERCENT_MAX)
            yield from _with_draft(loads, name, path, setting.folder)
            yield from _after_one_load(loads, name, path)


def _with_draft(loads: Loads, name: str, path: Path, folder: Path) -> Iterator[Row]:
    """With a copy of itself as its draft model, in a file of its own; recurrent models can have none."""
    if _shape(str(path), "").recurrent_bytes:
        return
    draft = folder / f"{name}-draft.gguf"
    shutil.copy(path, draft)
    found = loads.estimate(Load(str(path), 4096, draft=str(draft)))
    yield _row(f"{name} with a draft", found, found.planned_bytes, ERROR_PERCENT_MAX)
    draft.unlink()


def _after_one_load(loads: Loads, name: str, path: Path) -> Iterator[Row]:
    """The same load again, and one with other settings, both planned with the lesson of the first."""
    first = loads.estimate(Load(str(path), *_TAUGHT_BY))
    again = loads.estimate(first.load)
    yield _row(f"{name}, second load", again, _learned(first, again), LEARNED_PERCENT_MAX)
    other = loads.estimate(Load(str(path), 2048, 2, "q8_0"))
    yield _row(f"{name}, after another load", other, _learned(first, other), ERROR_PERCENT_MAX)


def _learned(first: Estimate, later: Estimate) -> int:
    load, planned = later.load, later.planned_bytes
    return planned + correction_bytes((first.lesson,), load.ctx, load.slots, load.kv_type, planned)


def _row(name: str, found: Estimate, planned: int, limit: float) -> Row:
    load = found.load
    error = error_percent(planned, found.measured_bytes)
    settings = f"ctx {load.ctx}, {load.slots} slots, {load.kv_type}{', repacked' if load.repack else ''}"
    sizes = f"planned {planned / _MIB:.1f}, measured {found.measured_bytes / _MIB:.1f} MiB ({error:+.1f} %)"
    return Row(f"{name}, {settings}: {sizes}", "%", abs(error), bound=Bound(limit, of="figure"))
