"""The contract between the engine and a kind of server: `ollama.Ollama`, `openai.OpenAI`.

All of it runs in the talking thread's event loop, but `check`, `holds` and `abandon`. Everything that fails raises
`RemoteError` or `EngineError`. What is not asked of these servers at all is refused in `check`: scores and tokens.
"""

import json
from collections.abc import Callable
from typing import Protocol

import msgspec

from h2qd.wire.workers import (
    Embedded,
    EmbedTexts,
    Generate,
    Generated,
    HeldElsewhere,
    Listed,
    Loaded,
    LoadModel,
    Task,
)
from h2qd.worker.engine import EngineError
from h2qd.worker.remote import turns
from h2qd.worker.remote.errors import nonsense
from h2qd.worker.remote.reply import Reply
from h2qd.worker.remote.server import Server

VECTOR_NUMBERS_MAX = 800_000
"""Of one answer, over all its vectors: 9 bytes each, and a message to the supervisor has 8 MiB."""


class Dialect(Protocol):
    """How to speak to one kind of server, and about one model of it once loaded."""

    server: Server

    async def load(self, order: LoadModel) -> Loaded:
        """Make sure that the model can be asked, and is loaded where the server loads models."""
        ...

    async def list_models(self) -> Listed:
        """What models there are."""
        ...

    async def pull(self, model: str, progress: Callable[[float], None]) -> Listed:
        """Have the server fetch a model; then all models."""
        ...

    def check(self, order: Task) -> None:
        """Raises `EngineError` (unsupported, invalid_grammar) for what this kind of server cannot do."""
        ...

    async def generate(self, order: Generate, reply: Reply) -> Generated:
        """Text, told to `reply` as it comes."""
        ...

    async def embed(self, order: EmbedTexts) -> Embedded:
        """Vectors."""
        ...

    @property
    def holds(self) -> bool:
        """Whether the server holds this device's memory for the model. From any thread."""
        ...

    async def held(self) -> HeldElsewhere:
        """How much it holds now; asked only of one that `holds`."""
        ...

    async def let_go(self) -> HeldElsewhere:
        """Have it unload the model, and look until it did, or for a bounded time."""
        ...

    def abandon(self) -> None:
        """Have it unload the model without waiting to see it. From any thread; never raises."""
        ...


def text_only(order: Task) -> None:
    """Raises `EngineError` (unsupported, invalid_request, invalid_grammar) for what no server's API has."""
    if not isinstance(order, Generate | EmbedTexts):
        raise EngineError("unsupported", "cannot do this: a server that runs models has no API for it")
    if isinstance(order, Generate):
        if order.sampler.grammar is not None:
            raise EngineError("unsupported", "cannot use a grammar with a server: it takes a json_schema")
        if order.max_tokens == 0:
            raise EngineError("unsupported", "cannot only read the prompt: a server gives one token at least")
        if order.sampler.json_schema is not None:
            schema(order.sampler.json_schema)
        turns.check(order)


def schema(text: str) -> msgspec.Raw:
    """A client's JSON Schema as a part of a request: an object, and written anew, so that it is only that.

    Raises `EngineError` (invalid_grammar).
    """
    try:
        read = json.loads(text)
        if not isinstance(read, dict):
            raise EngineError("invalid_grammar", "cannot use the json_schema: it is no JSON object")
        return msgspec.Raw(msgspec.json.encode(read))
    except (ValueError, RecursionError):
        raise EngineError("invalid_grammar", "cannot use the json_schema: it is no JSON") from None


def check_vectors(vectors: list[list[float]], texts: int) -> None:
    """Raises `RemoteError` (remote_failed) unless there is one of the same size for each text, and they fit."""
    if len(vectors) != texts or len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise nonsense("it did not give a vector for each text")
    if len(vectors) * len(vectors[0]) > VECTOR_NUMBERS_MAX:
        raise nonsense("its vectors are larger than can be passed on: ask for fewer texts at a time")
