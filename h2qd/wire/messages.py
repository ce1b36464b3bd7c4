"""The bodies of all commands, their replies, chunks and progress. One struct a shape; the catalogue pairs them.

Units: sizes in bytes (`_bytes`), durations in milliseconds (`_ms`), wall-clock times in milliseconds
since 1970 (`_at_ms`). Requests refuse unknown keys, replies may grow. No field is untyped.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from h2qd.wire import limits

Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Path = Annotated[str, Meta(min_length=1, max_length=limits.PATH_CHARS_MAX)]
Count = Annotated[int, Meta(ge=0, le=limits.ID_MAX)]
Scalar = str | int | float | bool | None
Label = Annotated[str, Meta(max_length=limits.LABEL_CHARS_MAX)]
Ctx = Annotated[int, Meta(ge=64, le=10_000_000)]
KvType = Literal["f16", "q8_0", "q4_0"]
"""What a KV cache is made of: 16 bits an element, or blocks of 8 or 4 bits."""

Slots = Annotated[int, Meta(ge=1, le=limits.SLOTS_MAX)]
Level = Literal["normal", "warn", "critical", "emergency"]
"""How far the device is on its way out of memory."""

Priority = Literal["low", "normal", "high"]
Overflow = Literal["refuse", "truncate", "shift"]
"""What becomes of a text that outgrows the context: an error; its middle is left out; the oldest tokens make room for
new ones while the answer grows."""

Method = Literal["none", "majority", "judge", "medoid"]
"""How one answer is made of several."""

SessionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LayerCounts = Annotated[list[Count], Meta(max_length=limits.LAYERS_MAX)]


class Ask(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every request body."""


class Say(Struct, frozen=True):
    """Base of everything the daemon says."""


# --- any request ------------------------------------------------------------------------------------


class Empty(Ask, frozen=True):
    """A request without arguments."""


class ErrorReply(Say, frozen=True):
    """Why a request failed. `because` holds facts with numbers, `hint` the command that helps."""

    code: str
    message: str
    hint: str = ""
    because: list[str] = []
    retryable: bool = False
    retry_after_ms: int | None = None
    request: str | None = None


class Progress(Say, frozen=True):
    """A request is alive. Sent when its phase changes, and when nothing else was said of it for `HEARTBEAT_MS`.

    `phase`: queued, draining, unloading, loading, inspecting, pulling, prefill, decode; of a swarm asking, judging,
    comparing. `model`: whom that is about, while room is made the one that goes. `fraction` is 0..1 where known: of a
    swarm, how many of its models are done; of a pull, how much came of what the server spoke of by then.
    """

    phase: str
    request: str = ""
    model: str | None = None
    fraction: float | None = None
    position: int | None = None


# --- session ----------------------------------------------------------------------------------------


class Hello(Ask, frozen=True):
    """Who the client is; optional, and answered with what the daemon speaks."""

    client: Annotated[str, Meta(max_length=128)] = ""


class HelloReply(Say, frozen=True):
    """Version, capabilities and limits; `access` is what this user may do: read, use or admin."""

    protocol: int
    version: str
    access: str
    capabilities: list[str]
    heartbeat_ms: int
    control_bytes_max: int
    prompt_bytes_max: int
    requests_max: int


class Version(Say, frozen=True):
    """Versions of the daemon and of what it runs on."""

    version: str
    protocol: int
    python: str
    libraries: dict[str, str]


# --- looking ----------------------------------------------------------------------------------------


class ResidentRow(Say, frozen=True):
    """A model that holds memory, or is on its way there or back. `size_bytes` is measured (PSS) once it is ready.

    `until_ms`: time left until it goes for being idle. `limit_bytes`: where the kernel ends its process.
    `degraded`: what it was given less than asked for, in words. `available` is false, for `reason`, while the server
    that runs it is away.
    """

    name: str
    state: str
    size_bytes: int | None = None
    planned_bytes: int | None = None
    ctx: int | None = None
    device: str = "cpu"
    until_ms: int | None = None
    age_ms: int = 0
    active: bool = False
    pid: int | None = None
    running: int = 0
    waiting: int = 0
    reason: str = ""
    pinned: bool = False
    kv_type: str = "f16"
    limit_bytes: int | None = None
    degraded: list[str] = []
    available: bool = True


class RequestRow(Say, frozen=True):
    """A request in flight."""

    request: str
    op: str
    state: str
    model: str | None = None
    age_ms: int = 0
    tokens: int = 0
    uid: int | None = None
    pid: int | None = None
    priority: str = "normal"


class Ps(Say, frozen=True):
    """Who holds memory, and what runs."""

    models: list[ResidentRow]
    requests: list[RequestRow]


class SwitchView(Say, frozen=True):
    """The switch under way. `phase`: drain, unload, load or rollback."""

    target: str
    phase: str
    unloading: list[str]
    age_ms: int


class MemoryLayer(Say, frozen=True):
    """One layer of the budget: `limit_bytes` = `reserved_bytes` + `committed_bytes` + `free_bytes` - `over_bytes`.

    `layer`: models, working or buffer. Reserved is planned and not held yet, committed is held as measured.
    """

    layer: str
    limit_bytes: int
    reserved_bytes: int
    committed_bytes: int
    free_bytes: int
    over_bytes: int = 0


class MemoryView(Say, frozen=True):
    """The device's memory as it binds this daemon: `limit_bytes` of it are for models, who hold `held_bytes`."""

    limit_bytes: int
    available_bytes: int
    held_bytes: int
    supervisor_bytes: int
    max_bytes: int = 0
    level: Level = "normal"
    layers: list[MemoryLayer] = []


class ServerRow(Say, frozen=True):
    """A server that models run on, and that something speaks against. `breaker`: closed, open or half-open.

    Unless it is closed, requests for its models are refused, until it answered when it is asked again, in
    `retry_after_ms`. `failures`: of requests, in a row.
    """

    name: str
    breaker: Literal["closed", "open", "half-open"]
    failures: int
    reason: str
    retry_after_ms: int | None = None


class Status(Say, frozen=True):
    """The daemon at a glance. `phase`: starting, serving or stopping. `degraded`: what is not as it should be.

    `servers`: those that something speaks against.
    """

    version: str
    pid: int
    phase: str
    uptime_ms: int
    policy: str
    active: str | None
    resident: list[str]
    running: int
    waiting: int
    models: int
    switch: SwitchView | None
    memory: MemoryView
    degraded: list[str] = []
    servers: list[ServerRow] = []


class DeviceRow(Say, frozen=True):
    """The memory of a device of its own, such as a GPU."""

    name: str
    total_bytes: int
    used_bytes: int


class WorkerRow(Say, frozen=True):
    """A worker's memory: what it holds (PSS), its plan, where the kernel ends it; and how fast it answers."""

    model: str
    state: str
    held_bytes: int
    planned_bytes: int
    limit_bytes: int | None = None
    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0


class Top(Say, frozen=True):
    """The device's memory now, by layer and by worker. Shares are percent, None where the kernel does not tell.

    `used_share`: how much of what this daemon may see used is used, which the level follows. `stall_share`: of the
    last 10 s, in which some (`some`) or all (`full`) tasks waited for memory.
    """

    level: Level
    since_ms: int
    used_share: float
    total_bytes: int
    available_bytes: int
    layers: list[MemoryLayer]
    workers: list[WorkerRow]
    requests: list[RequestRow]
    running: int
    waiting: int
    tokens_per_s: float
    some_stall_share: float | None = None
    full_stall_share: float | None = None
    swap_used_bytes: int = 0
    swap_in_bytes_per_s: float = 0.0
    temperature_c: float | None = None
    devices: list[DeviceRow] = []
    switch: SwitchView | None = None


class ModelFacts(Say, frozen=True):
    """What a model file says of itself, read by a bounded reader; the input of the memory plan.

    Per-layer lists have `layers` entries (or one, when all layers are alike). `kv_heads[i]` is 0 for a layer
    without attention. `sliding_window` is the window in tokens of the layers marked in `sliding`, 0 for none.
    `recurrent_width` is how many elements of a token a recurrent layer works on. `merges` are the tokenizer's rules.
    `repacked_bytes` is what copies in another layout, which the engine makes on this device, add to the tensors.
    Bounded, because a worker that read a hostile file is who fills it in.
    """

    format: Label = "gguf"
    architecture: Label = ""
    title: Label = ""
    quantization: Label = ""
    parameters: Count = 0
    file_bytes: Count = 0
    tensor_bytes: Count = 0
    context_length: Count = 0
    layers: Count = 0
    embedding: Count = 0
    feed_forward: Count = 0
    vocabulary: Count = 0
    heads: LayerCounts = []
    kv_heads: LayerCounts = []
    key_length: Count = 0
    value_length: Count = 0
    sliding_window: Count = 0
    sliding: Annotated[list[bool], Meta(max_length=limits.LAYERS_MAX)] = []
    recurrent_bytes: Count = 0
    recurrent_width: Count = 0
    merges: Count = 0
    repacked_bytes: Count = 0
    chat_template: bool = False


class ModelRow(Say, frozen=True):
    """A registered model. `type`: local, ollama or openai; `path`: its file, or its name at the server that has it.

    `available` is false, for `reason`, while its file cannot be used, or the server that runs it is away; who asks
    for it is refused with `code` then.
    """

    name: str
    type: str
    state: str
    path: str
    size_bytes: int
    architecture: str
    quantization: str
    parameters: int
    context_length: int
    available: bool = True
    reason: str = ""
    code: str = ""


class Models(Say, frozen=True):
    """All registered models, by name."""

    models: list[ModelRow]


class OfModel(Ask, frozen=True):
    """A request about one model."""

    model: Name


class AdapterRow(Say, frozen=True):
    """A LoRA adapter of a model; `size_bytes` is its file's, 0 where that could not be seen."""

    name: str
    path: str
    size_bytes: int


class Show(Say, frozen=True):
    """All that is known of a model. `adapters`: what requests can name."""

    model: ModelRow
    facts: ModelFacts
    sha256: str
    ctx: int
    imported_at_ms: int
    adapters: list[AdapterRow] = []


class StoryLine(Say, frozen=True):
    """One transition of a model: when, from which state to which, and why."""

    at_ms: int
    was: str
    now: str
    why: str
    detail: str = ""


class Explain(Say, frozen=True):
    """The story of a model's transitions, oldest first, and what it would take to go on.

    `server`: the one that runs it, where something speaks against that.
    """

    model: str
    state: str
    reason: str
    story: list[StoryLine]
    failures: int = 0
    retry_after_ms: int | None = None
    server: ServerRow | None = None


class PlanAsk(Ask, frozen=True):
    """Which memory a load would take; what is not said is as a load would have it. `ctx` is for each of `slots`."""

    model: Name
    ctx: Ctx | None = None
    slots: Slots | None = None
    kv_type: KvType | None = None


class PlanPart(Say, frozen=True):
    """One part of a plan, e.g. weights, kv_cache, compute, overhead."""

    part: str
    size_bytes: int


class Offer(Say, frozen=True):
    """A lesser load that would fit."""

    model: str
    ctx: int
    kv_type: str
    total_bytes: int


class Plan(Say, frozen=True):
    """What a load would take, what there is, and what would be unloaded first.

    `total_bytes` is the sum of the parts and of `learned_bytes`, by which loads measured before differ from them.
    `free_bytes`: of the limit, not spoken for. `instead`: what a load would be given when it does not fit.
    """

    model: str
    ctx: int
    parts: list[PlanPart]
    total_bytes: int
    limit_bytes: int
    fits: bool
    unloads: list[str]
    reason: str = ""
    slots: int = 1
    kv_type: str = "f16"
    learned_bytes: int = 0
    free_bytes: int = 0
    instead: Offer | None = None


class ConfigValue(Say, frozen=True):
    """One configuration key as it is in force. `source`: default, FILE:LINE, an environment variable or an option."""

    key: str
    value: Scalar | Sequence[str | int]
    source: str


class Config(Say, frozen=True):
    """The configuration in force."""

    path: str
    values: list[ConfigValue]


class Check(Say, frozen=True):
    """One finding of the doctor. `verdict`: ok, warn or fail."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


class Doctor(Say, frozen=True):
    """The daemon's own findings."""

    checks: list[Check]


# --- models and residency ---------------------------------------------------------------------------


class Import(Ask, frozen=True):
    """Register a model file in place. `path` is absolute, as the daemon sees it."""

    path: Path
    name: Name | None = None


class Imported(Say, frozen=True):
    """What was registered. `changed` is false when the same file stood under this name already."""

    model: str
    changed: bool
    path: str
    sha256: str
    facts: ModelFacts


class Pull(Ask, frozen=True):
    """Have a server of the configuration fetch a model. `model` is REMOTE/NAME, NAME as the server writes it."""

    model: Name


class Pulled(Say, frozen=True):
    """What the server has now. `model` is what it is called here, `path` the server's own name for it."""

    model: str
    path: str
    facts: ModelFacts


class Removed(Say, frozen=True):
    """The model is no longer registered; its file was left alone."""

    model: str
    path: str


class Load(Ask, frozen=True):
    """Make a model resident. `reset` forgets its failures first; `force` cuts off running work on what must go.

    `exact`: refuse rather than give less than was asked for.
    """

    model: Name
    ctx: Ctx | None = None
    kv_type: KvType | None = None
    reset: bool = False
    force: bool = False
    exact: bool = False


class Unload(Ask, frozen=True):
    """Take a model's memory back; without a name, the active one's. `force` cuts off running work."""

    model: Name | None = None
    force: bool = False


class Released(Say, frozen=True):
    """What an unload gave back: `freed_bytes` of `held_bytes` (PSS of the process tree), in `ms`."""

    model: str
    held_bytes: int
    freed_bytes: int
    ms: float


class Pinned(Say, frozen=True):
    """Whether a model is pinned now: only its operator's word takes its memory then."""

    model: str
    pinned: bool
    changed: bool


class Residency(Say, frozen=True):
    """The outcome of a load or switch. `changed` is false when the model was resident already.

    `degraded`: what was given less than asked for, in words. `draining`: what goes once its running work has ended;
    `parked`: what keeps its process for a fast return.
    """

    model: str
    changed: bool
    ctx: int
    memory_bytes: int
    load_ms: float
    total_ms: float
    unloaded: list[Released] = []
    was_active: str | None = None
    kv_type: str = "f16"
    degraded: list[str] = []
    draining: list[str] = []
    parked: list[str] = []


class Unloaded(Say, frozen=True):
    """The outcome of an unload. `changed` is false when the model held no memory."""

    model: str
    changed: bool
    released: Released | None = None


# --- inference --------------------------------------------------------------------------------------

TokenKey = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})\Z")]
Prompt = Annotated[str, Meta(max_length=limits.PROMPT_BYTES_MAX)]
Stop = Annotated[str, Meta(min_length=1, max_length=limits.STOP_CHARS_MAX)]
Bias = Annotated[float, Meta(ge=-1000, le=1000)]
Grammar = Annotated[str, Meta(min_length=1, max_length=limits.GRAMMAR_CHARS_MAX)]


class Sampling(Ask, frozen=True):
    """How tokens are chosen. `temperature` 0 is greedy. `seed` absent: the daemon draws one and tells it.

    `logit_bias` maps a token's number, written in decimal, to what is added to its logit.
    """

    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.8
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 40
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    repeat_last_n: Annotated[int, Meta(ge=0, le=65536)] = 64
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Meta(max_length=limits.LOGIT_BIAS_MAX)] = {}
    grammar: Grammar | None = None
    json_schema: Grammar | None = None


class AdapterUse(Ask, frozen=True):
    """One of the model's LoRA adapters, and how strongly it works: 1 as it was trained, 0 not at all."""

    name: Name
    scale: Annotated[float, Meta(ge=-10, le=10)] = 1.0


AdapterUses = Annotated[list[AdapterUse], Meta(max_length=limits.ADAPTERS_USED_MAX)]


class Decoding(Sampling, frozen=True):
    """How an answer is made: its tokens, its length, its turn. What all that asks for text shares.

    `priority` orders those who wait, and who is given up first when the device runs out of memory; for a higher one
    a running request of a lower one gives its slot up and goes on later. `speculate`: guess tokens from the text so
    far, where that is faster.
    """

    max_tokens: Annotated[int, Meta(ge=0, le=limits.TOKENS_MAX)] = 512
    stop: Annotated[list[Stop], Meta(max_length=limits.STOPS_MAX)] = []
    ignore_eos: bool = False
    priority: Priority = "normal"
    overflow: Overflow = "refuse"
    speculate: bool = True


class Generation(Decoding, frozen=True):
    """What infer and chat share. `window` is how many chunks may be under way without `stream.credit`.

    `session`: go on from what the cache holds of this conversation, and keep it there across unloads. `logprobs`:
    tell each token's log-probability, and those of so many of the likeliest. `adapters`: what the model answers with
    besides its weights; `model.show` lists those that it has.
    """

    model: Name | None = None
    stream: bool = False
    window: Annotated[int, Meta(ge=1, le=limits.CHUNK_WINDOW_MAX)] = limits.CHUNK_WINDOW_DEFAULT
    session: SessionName | None = None
    logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS_MAX)] | None = None
    adapters: AdapterUses = []


class Infer(Generation, frozen=True, kw_only=True):
    """Continue a plain prompt."""

    prompt: Prompt


CallId = Annotated[str, Meta(max_length=limits.TOOL_NAME_CHARS_MAX)]
CalledName = Annotated[str, Meta(min_length=1, max_length=limits.TOOL_NAME_CHARS_MAX)]
Arguments = Annotated[str, Meta(max_length=limits.TOOL_ARGUMENTS_CHARS_MAX)]
ToolName = Annotated[
    str, Meta(min_length=1, max_length=limits.TOOL_NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/-]*\Z")
]
Image = Annotated[bytes, Meta(min_length=1, max_length=limits.IMAGE_BYTES_MAX)]
Think = bool | Literal["low", "medium", "high"]
"""Whether, or how much, a model thinks before it answers."""


class Tool(Ask, frozen=True):
    """What a model may have called; nothing here calls it. `parameters`: a JSON Schema of its arguments, as text."""

    name: ToolName
    description: Annotated[str, Meta(max_length=limits.TOOL_TEXT_CHARS_MAX)] = ""
    parameters: Grammar = '{"type":"object","properties":{}}'


class PastCall(Ask, frozen=True):
    """A call that an assistant's turn made, as an answer told it. `arguments`: a JSON object, as text."""

    id: CallId
    name: CalledName
    arguments: Arguments


class ChatMessage(Ask, frozen=True):
    """One turn of a conversation.

    `content` is empty where a turn has none. `images` of a user's turn: PNG, JPEG, GIF or WebP, as they are in their
    files. `tool_calls` of an assistant's turn: what it called. `tool_call_id` and `name` of a turn of the role
    `tool`: which call its content is the outcome of, and of which tool; either is found by the other, where the
    turns before made the call.
    """

    role: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z]+\Z")]
    content: Prompt
    images: Annotated[list[Image], Meta(max_length=limits.IMAGES_MAX)] = []
    tool_calls: Annotated[list[PastCall], Meta(max_length=limits.TOOL_CALLS_MAX)] = []
    tool_call_id: CallId = ""
    name: Annotated[str, Meta(max_length=limits.TOOL_NAME_CHARS_MAX)] = ""


class Chat(Generation, frozen=True, kw_only=True):
    """Answer a conversation through the model's own template.

    `tools`: what the model may call; `tool_choice`: auto (as it likes), none, required (any of them), or the name of
    the one that it must call. `think`: whether, or how much, it thinks first; absent: as is its own way. Tools,
    images and `think` are for models of servers: others refuse them as `unsupported`.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES_MAX)]
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS_MAX)] = []
    tool_choice: ToolName = "auto"
    think: Think | None = None


class Usage(Say, frozen=True):
    """Tokens counted. `cached_tokens` of the prompt were not prefilled again.

    `truncated_tokens` were left out, or given up on the way, because the context is too small. Of `drafted_tokens`,
    which were guessed, `accepted_tokens` are in the answer.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    truncated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Timings(Say, frozen=True):
    """Where the time went. `first_token_ms` counts from the request's arrival; the rate covers decode only."""

    queue_ms: float
    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    total_ms: float
    tokens_per_s: float


class Alternative(Say, frozen=True):
    """A token that might have come, and the natural logarithm of its probability."""

    token: int
    text: str
    logprob: float


class TokenLogprob(Say, frozen=True):
    """A token that came, and how likely it was by the model's own word, before sampling; `top`: the likeliest.

    `text` is as the token alone reads: part of a character shows as U+FFFD.
    """

    token: int
    text: str
    logprob: float
    top: list[Alternative] = []


class Delta(Say, frozen=True):
    """A piece of an answer: the text of `tokens` tokens, cut at no character; `thinking` came before the text."""

    text: str
    tokens: int
    logprobs: list[TokenLogprob] = []
    thinking: str = ""


class ToolCall(Say, frozen=True):
    """A tool that the model wants called. `arguments`: a JSON object, as text; whether they fit is not checked."""

    id: str
    name: str
    arguments: str


class Answer(Say, frozen=True):
    """The end of an answer. `text` is whole when the request did not stream, else what no chunk carried.

    `finish`: stop (end of text), stop_string, length, tool_calls. `instead_of`: the model that was asked for, where
    `model` answered in its place. `thinking`, told like `text`: what the model thought before, which is no part of
    its answer. `tool_calls` are whole: one that `max_tokens` cut off is left out.
    """

    request: str
    model: str
    text: str
    finish: str
    usage: Usage
    timings: Timings
    seed: int
    logprobs: list[TokenLogprob] = []
    instead_of: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = []


class Swarm(Decoding, frozen=True, kw_only=True):
    """Ask several models the same, either `prompt` or `messages`, and make one answer of theirs.

    Those that are resident are asked at once, then the others one after another. Each has `deadline_ms` from its turn
    on, its load included. `method`: none (only the answers); majority (what most say, but for case, blanks and
    punctuation around words, by the first 8,000 characters); judge (the model `judge` chooses); medoid (the answer
    nearest to all others by the vectors of the model `embedder`). Judge and embedder are not asked where all say the
    same; where they fail the majority counts, and the reply says so. What a model thinks is no part of its answer. A
    judge reads text: it is not asked about `messages` with images or tool calls.
    """

    models: Annotated[list[Name], Meta(min_length=1, max_length=limits.SWARM_MODELS_MAX)]
    prompt: Prompt | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES_MAX)] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.DEADLINE_MS_MAX)] | None = None
    method: Method = "majority"
    judge: Name | None = None
    embedder: Name | None = None


class SwarmRow(Say, frozen=True):
    """What one model of a swarm answered, or with `ok` false its `error`; the fields are those of an answer."""

    model: str
    ok: bool
    text: str = ""
    finish: str = ""
    usage: Usage | None = None
    timings: Timings | None = None
    seed: int | None = None
    instead_of: str = ""
    error: ErrorReply | None = None


class Consensus(Say, frozen=True):
    """One answer out of several. `method` is how it was found in the end, `note` why that is not as asked for.

    `models` gave this answer, `votes` of them; `text` is as the first of them put it, or as it was chosen.
    `agreement`, 0..1, is the share of votes among those who answered; of a medoid, its mean cosine with the others.
    """

    method: Method
    text: str
    models: list[str]
    agreement: float
    votes: int
    note: str = ""


class SwarmAnswer(Say, frozen=True):
    """What came of a swarm: a row for each model, in the order asked, and their consensus, unless `method` is none.

    `loads`: how many models were loaded for it.
    """

    request: str
    answers: list[SwarmRow]
    consensus: Consensus | None
    loads: int
    total_ms: float


class Embed(Ask, frozen=True, kw_only=True):
    """Turn texts into vectors. `overflow` refuse or truncate: a text longer than the context loses its end.

    `adapters`: what the model makes them with besides its weights, see `infer.text`.
    """

    texts: Annotated[list[Prompt], Meta(min_length=1, max_length=limits.TEXTS_MAX)]
    model: Name | None = None
    normalize: bool = True
    overflow: Literal["refuse", "truncate"] = "refuse"
    priority: Priority = "normal"
    adapters: AdapterUses = []


class Embeddings(Say, frozen=True):
    """A vector of `dimensions` for each text, in order. `pooling`: mean, cls or last: what they were made of."""

    request: str
    model: str
    pooling: str
    dimensions: int
    vectors: list[list[float]]
    prompt_tokens: int
    truncated_tokens: int
    queue_ms: float
    compute_ms: float
    total_ms: float


class Score(Ask, frozen=True, kw_only=True):
    """How likely a model finds `text`, which follows `context`.

    Without `window` the text is one sequence and each of its tokens is scored. With it, the text is cut into windows
    of so many tokens, each of them on its own, and the second half of each is scored: perplexity as it is usually
    measured. `logprobs`: tell those of each token as well. `adapters`: what the model judges with besides its
    weights, see `infer.text`.
    """

    text: Prompt
    context: Prompt = ""
    model: Name | None = None
    window: Ctx | None = None
    logprobs: bool = False
    priority: Priority = "low"
    adapters: AdapterUses = []


class Scored(Say, frozen=True):
    """`logprob` is the sum over `tokens` scored tokens (natural logarithm), `perplexity` exp(-logprob / tokens).

    `stderr` is the standard error of the perplexity. `windows`: how many there were, 0 for one sequence.
    """

    request: str
    model: str
    tokens: int
    logprob: float
    perplexity: float
    stderr: float
    windows: int
    logprobs: list[TokenLogprob]
    queue_ms: float
    compute_ms: float
    total_ms: float


class Tokenize(Ask, frozen=True, kw_only=True):
    """The tokens of a text. `special`: control tokens written out count as such. `pieces`: tell their texts too."""

    text: Annotated[str, Meta(max_length=limits.TOKENIZE_CHARS_MAX)]
    model: Name | None = None
    special: bool = False
    pieces: bool = False


class Tokens(Say, frozen=True):
    """The tokens, none added. `pieces` are what each reads like alone."""

    model: str
    tokens: list[int]
    pieces: list[str] = []


class Detokenize(Ask, frozen=True, kw_only=True):
    """The text of tokens."""

    tokens: Annotated[list[TokenId], Meta(max_length=limits.TOKENIZE_CHARS_MAX)]
    model: Name | None = None


class Detokenized(Say, frozen=True):
    """The text; bytes that are no characters show as U+FFFD."""

    model: str
    text: str


# --- sessions ---------------------------------------------------------------------------------------


class SessionRow(Say, frozen=True):
    """A conversation's KV cache on disk: `tokens` of `model`, last written at `used_at_ms`. `uid`: whose it is."""

    session: str
    model: str
    tokens: int
    size_bytes: int
    used_at_ms: int
    uid: int


class Sessions(Say, frozen=True):
    """What is kept on disk, the latest first, and how much may be.

    A conversation of a resident model is written when that model goes, or when another needs its place.
    """

    sessions: list[SessionRow]
    used_bytes: int
    quota_bytes: int


class OfSession(Ask, frozen=True):
    """A request about one of this user's sessions; without `model`, with all models."""

    session: SessionName
    model: Name | None = None


class SessionRemoved(Say, frozen=True):
    """What was kept of it is gone: `files` of them, `freed_bytes` in all."""

    session: str
    files: int
    freed_bytes: int


class Cancel(Ask, frozen=True):
    """Cancel one of this connection's requests by its envelope `id`, or any by the `request` name that `ps` shows."""

    id: Annotated[int, Meta(ge=0, le=limits.ID_MAX)] | None = None
    request: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class Cancelled(Say, frozen=True):
    """The cancel was passed on; the request itself ends with the code `cancelled`."""

    request: str


class Credit(Ask, frozen=True):
    """The client has taken `chunks` more chunks of its request `id`. The one command without a reply."""

    id: Annotated[int, Meta(ge=0, le=limits.ID_MAX)]
    chunks: Annotated[int, Meta(ge=1, le=limits.CHUNK_WINDOW_MAX)]


# --- notices ----------------------------------------------------------------------------------------


class Events(Ask, frozen=True):
    """Subscribe to notices. `since`: those after this number that are still kept; `follow`: go on after them."""

    since: Count | None = None
    follow: bool = True


class Notice(Say, frozen=True):
    """Something happened. `topic`: model, request, switch, memory, server or daemon.

    `missed` notices before it were dropped for this reader.
    """

    seq: int
    at_ms: int
    topic: str
    event: str
    model: str | None = None
    data: dict[str, Scalar] = {}
    missed: int = 0


class EventsEnd(Say, frozen=True):
    """The subscription ended; `seq` is the last notice's number."""

    seq: int
