"""A remote engine driven as the loop drives it, in this process: what is asked, and all that is said to the end."""

import time
from types import TracebackType
from typing import Any, Self

from h2qd.wire.workers import (
    EmbedTexts,
    Generate,
    GenerationFailed,
    HeldElsewhere,
    Loaded,
    LoadModel,
    RemoteTarget,
    Result,
    Sampler,
    Task,
    Text,
    Turn,
)
from h2qd.worker.engine import Beat, Said
from h2qd.worker.remote.engine import RemoteEngine

PATIENCE_S = 20.0


class Desk:
    """Closes the engine at the end, which must leave no task and no connection."""

    def __init__(self) -> None:
        self.beat = Beat()
        self.asides: list[HeldElsewhere] = []
        self.engine = RemoteEngine(self.beat, self.asides.append)
        self.progress: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.engine.close()

    def load(self, kind: Any, url: str, model: str = "small", *, ctx: int = 256, **target: Any) -> Loaded:
        remote = RemoteTarget(kind, url, **{"connect_s": 2.0, "read_s": 10.0, **target})
        return self.engine.load(LoadModel(kind, model, ctx, remote=remote), self.progress.append)

    def run(self, *orders: Task) -> dict[int, list[Said]]:
        """All that is said of each request, to the last word of the last."""
        for order in orders:
            self.engine.submit(order)
        said: dict[int, list[Said]] = {order.request: [] for order in orders}
        deadline_s = time.monotonic() + PATIENCE_S
        while self.engine.busy:
            assert time.monotonic() < deadline_s
            for message in self.engine.step():
                said[message.request].append(message)
        for messages in said.values():
            assert [isinstance(message, Result | GenerationFailed) for message in messages].index(True) == (
                len(messages) - 1
            )
        return said

    def ask(self, order: Task) -> tuple[str, Said]:
        """The text of one request, and its last word."""
        messages = self.run(order)[order.request]
        return "".join(message.text for message in messages if isinstance(message, Text)), messages[-1]

    def cancel_in_mid_stream(self, *orders: Task) -> None:
        """Begin all of them, and give them up once one says something; until the engine is idle."""
        for order in orders:
            self.engine.submit(order)
        while not any(isinstance(message, Text) for message in self.engine.step()):
            pass
        for order in orders:
            self.engine.cancel(order.request)
        while self.engine.busy:
            self.engine.step()

    def fails(self, order: Task) -> GenerationFailed:
        _, last = self.ask(order)
        assert isinstance(last, GenerationFailed), last
        return last


def prompt(request: int = 1, text: str = "once upon a time", **fields: Any) -> Generate:
    return Generate(request, fields.pop("max_tokens", 100), fields.pop("sampler", Sampler()), prompt=text, **fields)


def chat(request: int = 1, text: str = "hello there", **fields: Any) -> Generate:
    turns = fields.pop("turns", [Turn("system", "be brief"), Turn("user", text)])
    return Generate(request, fields.pop("max_tokens", 100), fields.pop("sampler", Sampler()), turns=turns, **fields)


def embed(request: int = 1, *texts: str, **fields: Any) -> EmbedTexts:
    return EmbedTexts(request, list(texts) or ["one", "two"], **fields)
