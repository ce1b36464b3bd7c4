"""What the supervisor, the zygote and the workers say to each other, and how it is framed on their stream sockets.

A frame is a 4-byte big-endian length and that many bytes of msgpack. Every worker speaks this whatever it
serves: weights on the device, a remote server, a job. Both ends are ours, but a worker runs native code on
hostile files, so the supervisor bounds and validates what it says like any other peer.
"""

import struct
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from h2qd.wire.limits import LOGPROBS_MAX, TEXTS_MAX, TOOL_CALLS_MAX, WORKER_FRAME_BYTES_MAX
from h2qd.wire.messages import Arguments, CalledName, CallId, Count, KvType, Label, ModelFacts, Overflow, Think

_HEAD = struct.Struct("!I")

# What a worker says ends up in replies, so it keeps the rules of the wire: counts below 2**53, finite times.
Ms = Annotated[float, Meta(ge=0, le=1e12)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Word = Annotated[str, Meta(max_length=64)]
Reason = Annotated[str, Meta(max_length=16384)]
Piece = Annotated[str, Meta(max_length=4096)]
Logarithm = Annotated[float, Meta(ge=-1e12, le=0)]

REMOTE_MODELS_MAX = 10_000
"""Models of one server."""

RUNNING_MAX = 256
"""Of those, the ones in memory at a time."""

DIMENSIONS_MAX = 65536
"""Of a vector that a text is turned into."""


class _Message(msgspec.Struct, frozen=True, tag_field="t", tag=str.lower, forbid_unknown_fields=True):
    """Base of all worker messages; told apart by `t`."""


# --- supervisor -> zygote (one file descriptor, the worker's end of a socket pair, travels with each Fork) ----


class Fork(_Message, frozen=True):
    """Fork a worker that serves the descriptor sent along. `nice` and `oom_score_adj` are set before it works."""

    worker: int
    oom_score_adj: int = 900
    nice: int = 0


# --- zygote -> supervisor ----------------------------------------------------------------------------


class ZygoteReady(_Message, frozen=True):
    """Imports are done. `libraries` maps names to versions."""

    pid: Count
    libraries: Annotated[dict[Word, Word], Meta(max_length=64)] = {}


class Forked(_Message, frozen=True):
    """The worker runs, as `pid`."""

    worker: Count
    pid: Count


class Reaped(_Message, frozen=True):
    """The worker is gone. `status` is an exit code, or minus the signal; `peak_bytes` its largest resident set."""

    worker: Count
    pid: Count
    status: Annotated[int, Meta(ge=-255, le=255)]
    peak_bytes: Count


# --- supervisor -> worker ----------------------------------------------------------------------------


class RemoteTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that runs models, and how to speak to it. `kind`: ollama or openai. Times in seconds.

    The key is never in a message: `key_env` names a variable of this process's environment, `key_credential` a file
    in $CREDENTIALS_DIRECTORY. `rate_per_min` 0: not limited. `shares_memory`: whether what it loads takes this
    device's memory; auto: it does when its address is this device's. `gpu_shares_memory`: what it loads onto a GPU
    does, too. `private_addresses`: link-local and metadata addresses may be spoken to.
    """

    kind: Literal["ollama", "openai"]
    url: str
    key_env: str = ""
    key_credential: str = ""
    connect_s: float = 5.0
    read_s: float = 120.0
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    verify: bool = True
    proxy: str = ""
    concurrency: int = 4
    rate_per_min: int = 0
    shares_memory: Literal["true", "auto", "false"] = "auto"
    gpu_shares_memory: bool = False
    private_addresses: bool = False


class AdapterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A LoRA adapter of a model; `size_bytes` of its file are in the memory plan."""

    name: str
    path: str
    size_bytes: int


class DraftFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that guesses what another says; `verified` as in LoadModel: it is loaded only while that matches."""

    name: str
    path: str
    verified: list[int]


class LoadModel(_Message, frozen=True):
    """Load `path` with a context of `ctx` tokens for `slots` sequences. `threads` 0: as many as this process may use.

    `kv_type`: what the KV cache is made of, one of `messages.KvType`. `gpu_layers` go onto an accelerator, where the
    engine can use one.
    `verified`: the file's (device, inode, size, mtime_ns) when its header was last checked, else empty:
    unless it still matches, the header is checked again before native code sees the file.
    `batch` tokens are computed at once at most, and the logits of `outputs` of them: both are in the memory plan.
    `sessions`: the folder of saved sessions, empty for none; they may take `sessions_bytes` there. `sha256` is the
    file's, so that no other model's cache is restored. With `remote`, `path` is the model's name at that server.
    `quantize`: what weights are turned into as they are loaded, for engines that can; empty: nothing.
    `adapters` are checked against the model, and loaded with it. So is `draft`, with a context of `draft_ctx` tokens
    that is planned for a batch of `draft_batch`; a draft that cannot be used costs no load, see `Loaded`.
    """

    backend: str
    path: str
    ctx: int
    threads: int = 0
    verified: list[int] = []
    slots: int = 1
    kv_type: KvType = "f16"
    gpu_layers: int = 0
    batch: int = 512
    outputs: int = 1
    sessions: str = ""
    sessions_bytes: int = 0
    sha256: str = ""
    remote: RemoteTarget | None = None
    quantize: str = ""
    adapters: list[AdapterFile] = []
    draft: DraftFile | None = None
    draft_ctx: int = 0
    draft_batch: int = 64


class ListModels(_Message, frozen=True):
    """Which models a server has; answered with Listed, or LoadFailed and the worker's exit."""

    remote: RemoteTarget


class PullModel(_Message, frozen=True):
    """Have a server fetch a model; answered with Loading as it goes on, then Listed; or LoadFailed and the exit."""

    remote: RemoteTarget
    model: str


class ParkModel(_Message, frozen=True):
    """Save sessions, free the context and keep the model; answered with Parked. Only an idle worker is asked."""


class ResumeModel(_Message, frozen=True):
    """Make a context for the parked model again; answered with Loaded, or LoadFailed and the worker's exit.

    `draft_ctx` 0: none for its draft model.
    """

    ctx: int
    slots: int = 1
    kv_type: KvType = "f16"
    batch: int = 512
    outputs: int = 1
    draft_ctx: int = 0
    draft_batch: int = 64


class InspectFile(_Message, frozen=True):
    """Check a model file's header, hash it, and say what it is."""

    path: str


class Sampler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens are chosen; as `messages.Sampling`, with the seed drawn and biases keyed by token."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0
    logit_bias: dict[int, float] = {}
    grammar: str | None = None
    json_schema: str | None = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that a model wants called, or wanted in an earlier turn; `arguments` is a JSON object."""

    id: CallId
    name: CalledName
    arguments: Arguments


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a conversation; as `messages.ChatMessage`."""

    role: str
    content: str
    images: list[bytes] = []
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""
    name: str = ""


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model may have called; as `messages.Tool`."""

    name: str
    description: str
    parameters: str


class Generate(_Message, frozen=True):
    """Answer `prompt`, or `turns` through the model's chat template; exactly one of the two is given.

    `adapters`: the scale of each adapter that is used, by name. `tools`, `tool_choice` and `think` as in
    `messages.Chat`.
    """

    request: int
    max_tokens: int
    sampler: Sampler
    prompt: str | None = None
    turns: list[Turn] | None = None
    stop: list[str] = []
    ignore_eos: bool = False
    session: str = ""
    overflow: Overflow = "refuse"
    logprobs: int | None = None
    speculate: bool = True
    priority: int = 1
    adapters: dict[str, float] = {}
    tools: list[Tool] = []
    tool_choice: str = "auto"
    think: Think | None = None


class EmbedTexts(_Message, frozen=True):
    """Turn each of `texts` into a vector; answered with Embedded or GenerationFailed. `adapters` as in Generate."""

    request: int
    texts: list[str]
    normalize: bool = True
    truncate: bool = False
    priority: int = 1
    adapters: dict[str, float] = {}


class ScoreText(_Message, frozen=True):
    """How likely `text` is after `context`, see `messages.Score`; answered with Scored or GenerationFailed.

    `adapters` as in Generate.
    """

    request: int
    text: str
    context: str = ""
    window: int | None = None
    logprobs: bool = False
    priority: int = 0
    adapters: dict[str, float] = {}


class TokenizeText(_Message, frozen=True):
    """The tokens of a text; answered with Tokenized or GenerationFailed."""

    request: int
    text: str
    special: bool = False
    pieces: bool = False


class DetokenizeTokens(_Message, frozen=True):
    """The text of tokens; answered with Detokenized or GenerationFailed."""

    request: int
    tokens: list[int]


class ForgetSession(_Message, frozen=True):
    """Keep nothing of this session: not in the KV cache, and not when the model goes. Not answered."""

    session: str


class CancelGeneration(_Message, frozen=True):
    """Stop working on `request`; it is answered all the same: cancelled, failed, or with what was done by then."""

    request: int


class Ping(_Message, frozen=True):
    """Asks whether the worker, and its engine, still move."""

    n: int


class StopWorker(_Message, frozen=True):
    """Exit with status 0. `save`: when idle, after saving sessions, which is told before and after."""

    save: bool = False


# --- worker -> supervisor ----------------------------------------------------------------------------


class Loading(_Message, frozen=True):
    """Progress of a load or an inspection, 0..1."""

    fraction: Fraction


class Loaded(_Message, frozen=True):
    """The model is ready. `ctx`: what one request may use; `load_ms` counts from LoadModel or ResumeModel.

    `elsewhere_bytes`: this device's memory that another process holds for it, such as a server on this device.
    `undrafted`: why there is no draft model, where one was asked for.
    """

    ctx: Count
    load_ms: Ms
    device: Word = "cpu"
    elsewhere_bytes: Count = 0
    undrafted: Reason = ""


class RunningModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that a server has in memory, and how much of this device's memory that is."""

    name: Label
    size_bytes: Count


class HeldElsewhere(_Message, frozen=True):
    """What another process holds of this device's memory for the model has changed; 0: it is proved that it went.

    `running`: all models that it holds memory of this device for.
    """

    elsewhere_bytes: Count
    running: Annotated[list[RunningModel], Meta(max_length=RUNNING_MAX)] = []


class RemoteModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that a server has. `size_bytes` and `context_length` are 0 where it does not say."""

    name: Label
    size_bytes: Count = 0
    context_length: Count = 0
    family: Label = ""
    quantization: Label = ""
    parameters: Count = 0
    embeds: bool = False


class Listed(_Message, frozen=True):
    """What a ListModels found; `version` is the server's own word. `running` is as in HeldElsewhere."""

    models: Annotated[list[RemoteModel], Meta(max_length=REMOTE_MODELS_MAX)]
    version: Word = ""
    running: Annotated[list[RunningModel], Meta(max_length=RUNNING_MAX)] = []


class Parked(_Message, frozen=True):
    """The context is gone; the model is kept."""


class LoadFailed(_Message, frozen=True):
    """The model cannot be loaded; the worker exits. `code` is one of the public codes.

    `away`: as in `GenerationFailed`.
    """

    code: Word
    message: Reason
    away: bool = False


class Inspected(_Message, frozen=True):
    """What an InspectFile found. `identity` is (device, inode, size, mtime_ns)."""

    facts: ModelFacts
    sha256: Word
    identity: Annotated[list[int], Meta(max_length=4)]


class Prefilling(_Message, frozen=True):
    """`done` of `total` prompt tokens are in the KV cache."""

    request: Count
    done: Count
    total: Count


class LikelyToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A token, the text it reads as alone, and the natural logarithm of its probability."""

    token: Count
    text: Piece
    logprob: Logarithm


class ChosenToken(LikelyToken, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A token that came, and the likeliest at its place."""

    top: Annotated[list[LikelyToken], Meta(max_length=LOGPROBS_MAX)] = []


class Text(_Message, frozen=True):
    """More of the answer: whole characters, of `tokens` tokens; `logprobs` of those, where they were asked for.

    `thinking`: what came before the text, and is none of it.
    """

    request: Count
    text: str
    tokens: Count
    logprobs: list[ChosenToken] = []
    thinking: str = ""


class Generated(_Message, frozen=True):
    """The answer is complete. `finish`: stop, stop_string, length, tool_calls or cancelled. Times in ms.

    `tool_calls` are whole. `prompt_tokens` are those computed or cached, without the `truncated_tokens`.
    """

    request: Count
    finish: Word
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count
    prefill_ms: Ms
    first_token_ms: Ms
    decode_ms: Ms
    truncated_tokens: Count = 0
    drafted_tokens: Count = 0
    accepted_tokens: Count = 0
    tool_calls: Annotated[list[ToolCall], Meta(max_length=TOOL_CALLS_MAX)] = []


class Embedded(_Message, frozen=True):
    """A vector of finite numbers for each text. `pooling`: mean, cls or last."""

    request: Count
    vectors: Annotated[list[Annotated[list[float], Meta(max_length=DIMENSIONS_MAX)]], Meta(max_length=TEXTS_MAX)]
    pooling: Word
    prompt_tokens: Count
    truncated_tokens: Count
    compute_ms: Ms


class Scored(_Message, frozen=True):
    """`logprob` is the sum over `tokens`, `squares` the sum of their squares; `windows` 0: one sequence."""

    request: Count
    tokens: Count
    logprob: Logarithm
    squares: Annotated[float, Meta(ge=0)]
    windows: Count
    logprobs: list[ChosenToken]
    compute_ms: Ms


class Tokenized(_Message, frozen=True):
    """The tokens of a text; `pieces` where they were asked for."""

    request: Count
    tokens: list[Count]
    pieces: list[Piece] = []


class Detokenized(_Message, frozen=True):
    """The text of tokens."""

    request: Count
    text: str


class SavingSessions(_Message, frozen=True):
    """Before a model's context goes, so many sessions are written: that takes its time."""

    sessions: Count


class SessionsSaved(_Message, frozen=True):
    """So many sessions were written, or could not be (`failed`, `why` says it of one)."""

    saved: Count
    failed: Count
    size_bytes: Count
    took_ms: Ms
    why: Reason = ""


class GenerationFailed(_Message, frozen=True):
    """The request cannot be answered; the worker goes on. `code` is one of the public codes.

    `away`: nobody was there to answer, or the server failed (5xx, 408): that may be so for all that it is asked.
    """

    request: Count
    code: Word
    message: Reason
    away: bool = False


class Pong(_Message, frozen=True):
    """Here. `beat` grows with every step of the engine; `busy` says that it should be growing."""

    n: Count
    beat: Count
    busy: bool


ToZygote: TypeAlias = Fork
FromZygote: TypeAlias = ZygoteReady | Forked | Reaped
Task: TypeAlias = Generate | EmbedTexts | ScoreText | TokenizeText | DetokenizeTokens
"""What is done with a resident model, for one request."""

Result: TypeAlias = Generated | Embedded | Scored | Tokenized | Detokenized
"""How a task ends, unless it fails."""

ToWorker: TypeAlias = (
    LoadModel
    | ParkModel
    | ResumeModel
    | InspectFile
    | ListModels
    | PullModel
    | Task
    | ForgetSession
    | CancelGeneration
    | Ping
    | StopWorker
)
FromWorker: TypeAlias = (
    Loading
    | Loaded
    | HeldElsewhere
    | Listed
    | Parked
    | LoadFailed
    | Inspected
    | Prefilling
    | Text
    | Result
    | GenerationFailed
    | SavingSessions
    | SessionsSaved
    | Pong
)

_encoder = msgspec.msgpack.Encoder()
from_zygote = msgspec.msgpack.Decoder(FromZygote)
to_zygote = msgspec.msgpack.Decoder(ToZygote)
to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What these decoders raise at bytes that are no message: a reader treats each of them as a `ChannelError`."""


class ChannelError(Exception):
    """The peer broke the framing or said something that is no message; the channel is of no further use."""


def frame(message: msgspec.Struct) -> bytes:
    """`message` as it travels. Raises `ChannelError` when it is larger than a frame may be, or holds no Unicode."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError as error:
        raise ChannelError(f"cannot send text that is not Unicode: {error}") from None
    if len(body) > WORKER_FRAME_BYTES_MAX:
        raise ChannelError(f"cannot send a message of {len(body)} bytes: at most {WORKER_FRAME_BYTES_MAX}")
    return _HEAD.pack(len(body)) + body


class Reassembler:
    """Bytes in as they arrive, whole message bodies out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies completed by `data`. Raises `ChannelError` at a length over the limit."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEAD.size:
                (length,) = _HEAD.unpack_from(self._buffer, start)
                if length > WORKER_FRAME_BYTES_MAX:
                    raise ChannelError(f"cannot read a message of {length} bytes: at most {WORKER_FRAME_BYTES_MAX}")
                end = start + _HEAD.size + length
                if len(self._buffer) < end:
                    return
                body = bytes(self._buffer[start + _HEAD.size : end])
                start = end
                yield body
        finally:
            del self._buffer[:start]
