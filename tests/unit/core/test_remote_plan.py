"""The plan of a model that a server runs, and what follows from nothing of it being here."""

from h2qd.core.offers import plan_of
from h2qd.core.plan import ModelShape
from h2qd.core.records import Model, Rules
from h2qd.core.remote_plan import FORMATS, remote_plan
from tests.playbook import Playbook, load, registered, stop

GIB = 2**30
RUNNER = 64 * 2**20
SHARED = ModelShape(tensor_bytes=GIB, context_length=4096, format="ollama")


def test_it_is_the_servers_share_and_a_light_worker() -> None:
    plan, away = remote_plan(SHARED, 4096), remote_plan(ModelShape(format="openai"), 4096)
    assert plan.total_bytes == sum(size for _, size in plan.parts) == GIB + RUNNER + away.total_bytes
    assert 0 < away.total_bytes < 64 * 2**20
    assert remote_plan(ModelShape(tensor_bytes=-5), 1).total_bytes == away.total_bytes
    for kind in FORMATS:
        model = Model("lab/a", ModelShape(tensor_bytes=GIB, format=kind), 4096)
        assert plan_of(model, 4096, "f16", 4) == plan


def test_a_servers_model_is_not_parked() -> None:
    play = Playbook("b", rules=Rules(park_s=60.0)).when(registered("lab/a", shape=SHARED)).then()
    play.given_ready("lab/a").when(load(1, "b")).then(stop("lab/a"))
