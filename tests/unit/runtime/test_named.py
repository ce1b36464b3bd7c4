"""When models of the configuration that could not be registered are tried again; no process, no file."""

import asyncio
import itertools
from collections.abc import Coroutine

import pytest

from h2qd.config.schema import Model
from h2qd.core.records import Fault
from h2qd.runtime.named import Named
from h2qd.runtime.refusal import Refusal
from h2qd.wire.messages import ModelRow

LOOKS_MAX = 1000


class Files:
    """Imports of one file, whose identity is what each look finds next; the last one stays."""

    def __init__(self, fault: Fault, *identities: list[int]) -> None:
        self.fault: Fault | None = fault
        self.identities = list(identities)
        self.looks = 0
        self.tries: list[int] = []
        self.mended_at = 0

    async def identity(self, path: str) -> list[int]:
        assert path == "/m.gguf"
        self.looks += 1
        assert self.looks < LOOKS_MAX
        return self.identities.pop(0) if len(self.identities) > 1 else self.identities[0]

    async def run(self, _path: str, _name: str, source: str, _backend: str | None, _tell: object) -> None:
        assert source == "config"
        self.tries.append(self.looks)
        if self.fault is not None and len(self.tries) != self.mended_at:
            raise Refusal(self.fault)


def named(files: Files) -> tuple[Named, dict[str, ModelRow]]:
    missing: dict[str, ModelRow] = {}
    models = {"m": Model(path="/m.gguf"), "box/a": Model()}
    return Named(models, files, {}, missing, look_s=0.0), missing  # type: ignore[arg-type]


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


@pytest.mark.parametrize("code", ["file_not_found", "invalid_model_file"])
def test_a_file_is_tried_again_once_it_has_changed_and_rests(code: str) -> None:
    async def scenario() -> None:
        files = Files(Fault(code, "cannot"), [], [], [1], [2], [3], [3])
        them, missing = named(files)
        await them.register()
        assert (missing["m"].code, missing["m"].reason, missing["m"].available) == (code, "cannot", False)
        files.fault = None
        await them.follow()
        assert files.tries == [1, 7], "not while it grew: at the second look that saw the same"
        assert missing == {}

    run(scenario())


def test_what_is_no_fault_of_the_file_is_tried_less_and_less_often() -> None:
    async def scenario() -> None:
        files = Files(Fault("worker_hung", "cannot"), [1])
        them, missing = named(files)
        await them.register()
        assert missing["m"].code == "worker_hung"
        files.mended_at = 5
        await them.follow()
        gaps = [after - before for before, after in itertools.pairwise(files.tries)]
        assert gaps == [2, 3, 5, 9], "a look for each time that it waits, and one before it is tried"
        assert missing == {}

    run(scenario())
