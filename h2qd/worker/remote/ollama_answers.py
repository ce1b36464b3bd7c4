"""The shapes of an Ollama's answers. What is not named here is passed over; what does not fit is no answer.

As docs/api.md and api/types.go of Ollama have them; tests/peers/OLLAMA.md says where. Durations are in ns, sizes in
bytes. Used by `ollama` and `weights`.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from h2qd.wire.limits import TEXTS_MAX
from h2qd.wire.workers import DIMENSIONS_MAX

Amount = Annotated[int, Meta(ge=0, le=2**53 - 1)]

_FROM = re.compile(r"^FROM (.+)$", re.MULTILINE)


class Version(msgspec.Struct):
    """Of the server."""

    version: str


class Details(msgspec.Struct):
    """Of a model, as its publisher has them."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: Amount = 0


class Model(msgspec.Struct):
    """A model that the server has on disk."""

    name: str
    size: Amount = 0
    details: Details = msgspec.field(default_factory=Details)
    capabilities: list[str] | None = None


class Models(msgspec.Struct):
    """Of /api/tags."""

    models: list[Model]


class Running(msgspec.Struct):
    """A model that the server has in memory. `size` is of all of it, `size_vram` of what is on a GPU."""

    name: str
    digest: str = ""
    size: Amount = 0
    size_vram: Amount = 0
    context_length: Amount = 0


class AllRunning(msgspec.Struct):
    """Of /api/ps."""

    models: list[Running] | None = None


class Likely(msgspec.Struct):
    """A token that could have been chosen."""

    token: str
    logprob: float


class Chosen(Likely):
    """A token that was, and others."""

    top_logprobs: list[Likely] | None = None


class Function(msgspec.Struct):
    """What is called, and with what."""

    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class Call(msgspec.Struct):
    """All of a call."""

    id: str = ""
    function: Function = msgspec.field(default_factory=Function)


class Message(msgspec.Struct):
    """A piece of what the model says."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[Call] | None = None


class Part(msgspec.Struct):
    """A line of an answer: of a chat (`message`), a completion (`response`), or an error that came midway."""

    message: Message | None = None
    response: str = ""
    thinking: str = ""
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: Amount = 0
    prompt_eval_duration: Amount = 0
    eval_count: Amount = 0
    eval_duration: Amount = 0
    logprobs: list[Chosen] | None = None
    error: str | None = None


class Vectors(msgspec.Struct):
    """Of /api/embed."""

    embeddings: Annotated[list[Annotated[list[float], Meta(max_length=DIMENSIONS_MAX)]], Meta(max_length=TEXTS_MAX)]
    prompt_eval_count: Amount = 0


class Pulled(msgspec.Struct):
    """A line of /api/pull, about one layer or all of it."""

    status: str = ""
    digest: str = ""
    total: Amount = 0
    completed: Amount = 0
    error: str | None = None


class Shown(msgspec.Struct):
    """What /api/show tells of a model. One that has a `remote_host` runs there, and holds no memory here."""

    capabilities: list[str] | None = None
    modelfile: str = ""
    remote_host: str = ""

    @property
    def weights(self) -> str:
        """The file, by its name there; empty where it is not told."""
        found = _FROM.search(self.modelfile)
        return found[1] if found is not None else ""
