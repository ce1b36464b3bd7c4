"""How much of a model goes onto an accelerator."""

from hypothesis import given
from hypothesis import strategies as st

from h2qd.core.offload import gpu_layers
from h2qd.core.plan import ModelShape, memory_plan
from h2qd.core.records import Rules
from tests.playbook import CTX, GIB, SHAPE, Playbook, accelerator, load, start

LAYERS = SHAPE.layers + 1
PLAN = memory_plan(SHAPE, CTX)


def test_a_model_that_fits_goes_as_a_whole() -> None:
    assert gpu_layers(SHAPE, PLAN, 2 * PLAN.total_bytes) == LAYERS


def test_half_of_the_memory_takes_some_layers() -> None:
    assert 0 < gpu_layers(SHAPE, PLAN, PLAN.total_bytes // 2) < LAYERS


def test_without_an_accelerator_nothing_goes() -> None:
    assert gpu_layers(SHAPE, PLAN, 0) == 0


@given(st.integers(0, 2**40), st.integers(0, 2**20))
def test_more_memory_never_takes_fewer_layers(free: int, more: int) -> None:
    assert 0 <= gpu_layers(SHAPE, PLAN, free) <= gpu_layers(SHAPE, PLAN, free + more) <= LAYERS


def test_a_shape_without_layers_or_weights_is_no_trouble() -> None:
    nothing = ModelShape()
    assert gpu_layers(nothing, memory_plan(nothing, 1), GIB) in (0, 1)


def test_a_load_is_given_the_layers_that_fit_what_was_read_last() -> None:
    play = Playbook("a").when(accelerator(64 * GIB)).then()
    play.when(load(1, "a")).then(start("a", gpu_layers=LAYERS))


def test_a_load_is_given_none_where_models_are_to_compute_on_the_cpu() -> None:
    play = Playbook("a", rules=Rules(offload=False)).when(accelerator(64 * GIB)).then()
    play.when(load(1, "a")).then(start("a", gpu_layers=0))
