"""What the golden frames hold: one sample of each request, reply, chunk, progress and error, with every field set.

`generate.py` writes them to the JSON files beside it; bindings in other languages read those. A case is never
changed within a protocol version: a reply that grows becomes a new case, and its old frames stay in the files.
"""

from dataclasses import dataclass

from h2qd.wire import messages as m
from h2qd.wire.frames import Kind, Request, request_frames, response_frames
from h2qd.wire.limits import ID_MAX, PROTOCOL_VERSION


@dataclass(frozen=True)
class Case:
    """A message: the file it stands in, its name and description there, and its frames."""

    file: str
    name: str
    description: str
    frames: list[bytes]


@dataclass(frozen=True)
class Refusal:
    """A request that is refused while it is read: with which code, and under which id (0: it could not be read)."""

    name: str
    description: str
    frames: list[bytes]
    code: str
    id: int


FACTS = m.ModelFacts(
    format="gguf",
    architecture="gemma3",
    title="Gemma 3 270M",
    quantization="Q4_K_M",
    parameters=268_098_176,
    file_bytes=253_115_840,
    tensor_bytes=247_463_936,
    context_length=32_768,
    layers=2,
    embedding=640,
    feed_forward=2048,
    vocabulary=262_144,
    heads=[4, 4],
    kv_heads=[1, 0],
    key_length=256,
    value_length=256,
    sliding_window=512,
    sliding=[True, False],
    recurrent_bytes=4096,
    chat_template=True,
)
ROW = m.ModelRow(
    name="gemma3:270m",
    type="local",
    state="ready",
    path="/var/lib/h2qd/gemma3.gguf",
    size_bytes=253_115_840,
    architecture="gemma3",
    quantization="Q4_K_M",
    parameters=268_098_176,
    context_length=32_768,
    available=False,
    reason="the file is gone",
)
RELEASED = m.Released(model="tiny", held_bytes=300_000_000, freed_bytes=299_500_000, ms=12.5)
LAYER = m.MemoryLayer(
    layer="models",
    limit_bytes=8_589_934_592,
    reserved_bytes=10_000_000,
    committed_bytes=300_000_000,
    free_bytes=8_279_934_592,
)
LOGPROB = m.TokenLogprob(
    token=1024,
    text=" größe",
    logprob=-0.5,
    top=[
        m.Alternative(token=1024, text=" größe", logprob=-0.5),
        m.Alternative(token=7, text="\ufffd", logprob=-1.25),
    ],
)
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
# Every command at least once with all its fields, and with none where it can be. Ids count the cases of a list, so
# new ones stand at its end.
REQUESTS: list[tuple[str, str, str, m.Ask]] = [
    ("session.hello", "session.hello", "who asks", m.Hello(client="golden/1")),
    ("session.hello.bare", "session.hello", "all fields at their defaults", m.Hello()),
    ("daemon.status", "daemon.status", "no fields", m.Empty()),
    ("daemon.version", "daemon.version", "no fields", m.Empty()),
    ("daemon.config", "daemon.config", "no fields", m.Empty()),
    ("daemon.doctor", "daemon.doctor", "no fields", m.Empty()),
    ("model.ps", "model.ps", "no fields", m.Empty()),
    ("model.list", "model.list", "no fields", m.Empty()),
    ("model.show", "model.show", "one model", m.OfModel(model="gemma3:270m")),
    ("model.explain", "model.explain", "one model", m.OfModel(model="gemma3:270m")),
    ("model.plan", "model.plan", "with a context", m.PlanAsk(model="gemma3:270m", ctx=8192, slots=2, kv_type="q4_0")),
    ("model.import", "model.import", "with a name", m.Import(path="/models/größe.gguf", name="grosse")),
    ("model.remove", "model.remove", "one model", m.OfModel(model="lib/gemma3")),
    (
        "model.load",
        "model.load",
        "all fields",
        m.Load(model="gemma3:270m", ctx=64, kv_type="q8_0", reset=True, force=True, exact=True),
    ),
    ("model.load.bare", "model.load", "required fields only", m.Load(model="gemma3:270m")),
    ("model.unload", "model.unload", "all fields", m.Unload(model="gemma3:270m", force=True)),
    ("model.unload.bare", "model.unload", "the active model", m.Unload()),
    ("model.switch", "model.switch", "all fields", m.Load(model="tiny", ctx=10_000_000, reset=True, force=True)),
    (
        "infer.text",
        "infer.text",
        "all fields but json_schema",
        m.Infer(
            prompt="Größe 🙂",
            temperature=0.5,
            top_k=10,
            top_p=0.75,
            min_p=0.125,
            repeat_penalty=1.25,
            repeat_last_n=32,
            seed=4_294_967_294,
            logit_bias={"0": -1000.0, "262143": 0.5},
            grammar='root ::= "yes" | "no"',
            model="gemma3:270m",
            max_tokens=16,
            stop=["\n\n", "END"],
            ignore_eos=True,
            stream=True,
            priority="high",
            window=4096,
            session="trip-2",
            overflow="shift",
            logprobs=20,
            speculate=False,
            adapters=[m.AdapterUse(name="polite"), m.AdapterUse(name="größer", scale=-0.5)],
        ),
    ),
    ("infer.text.bare", "infer.text", "a map of one entry under a 16-bit header", m.Infer(prompt="")),
    (
        "infer.chat",
        "infer.chat",
        "two turns and a JSON schema",
        m.Chat(
            messages=[m.ChatMessage(role="system", content="Be brief."), m.ChatMessage(role="user", content="Hi")],
            json_schema='{"type":"object"}',
        ),
    ),
    ("request.cancel.id", "request.cancel", "by id, the largest there is", m.Cancel(id=ID_MAX)),
    ("request.cancel.name", "request.cancel", "by the daemon's name for it", m.Cancel(request="r42")),
    ("stream.credit", "stream.credit", "the one request without an answer", m.Credit(id=65_536, chunks=4096)),
    ("events.watch", "events.watch", "all fields", m.Events(since=4_294_967_296, follow=False)),
    ("daemon.top", "daemon.top", "no fields", m.Empty()),
    ("model.pin", "model.pin", "one model", m.OfModel(model="gemma3:270m")),
    ("model.unpin", "model.unpin", "one model", m.OfModel(model="gemma3:270m")),
    (
        "infer.embed",
        "infer.embed",
        "all fields",
        m.Embed(
            texts=["Größe", ""],
            model="minilm",
            normalize=False,
            overflow="truncate",
            priority="low",
            adapters=[m.AdapterUse(name="polite")],
        ),
    ),
    (
        "infer.score",
        "infer.score",
        "all fields but window",
        m.Score(
            text=" Paris",
            context="The capital is",
            model="tiny",
            logprobs=True,
            priority="high",
            adapters=[m.AdapterUse(name="polite", scale=0.5)],
        ),
    ),
    ("infer.score.window", "infer.score", "a perplexity", m.Score(text="Größe", window=512)),
    (
        "text.tokenize",
        "text.tokenize",
        "all fields",
        m.Tokenize(text="<bos>x", model="tiny", special=True, pieces=True),
    ),
    ("text.detokenize", "text.detokenize", "all fields", m.Detokenize(tokens=[2, 262_143], model="tiny")),
    ("sessions.list", "sessions.list", "no fields", m.Empty()),
    ("sessions.remove", "sessions.remove", "all fields", m.OfSession(session="trip-2", model="tiny")),
    (
        "infer.swarm",
        "infer.swarm",
        "a prompt, and a judge",
        m.Swarm(
            models=["gemma3:270m", "tiny"],
            prompt="Größe?",
            max_tokens=16,
            stop=["\n"],
            priority="low",
            deadline_ms=30_000,
            method="judge",
            judge="gemma3:270m",
        ),
    ),
    (
        "infer.swarm.medoid",
        "infer.swarm",
        "a conversation, and an embedder",
        m.Swarm(
            models=["gemma3:270m", "tiny", "lab/large"],
            messages=[m.ChatMessage(role="user", content="Hi")],
            method="medoid",
            embedder="minilm",
        ),
    ),
    ("model.pull", "model.pull", "as its server writes it", m.Pull(model="box/hf.co/Org/Größe-GGUF:Q4_K_M")),
    (
        "infer.chat.tools",
        "infer.chat",
        "an image as bin, a call and what came of it, tools",
        m.Chat(
            messages=[
                m.ChatMessage(role="user", content="Größe?", images=[PNG, b"\xff\xd8\xff\xe0"]),
                m.ChatMessage(
                    role="assistant",
                    content="",
                    tool_calls=[m.PastCall(id="call_1", name="measure", arguments='{"of":"x"}')],
                ),
                m.ChatMessage(role="tool", content="1,70 m", tool_call_id="call_1", name="measure"),
            ],
            model="lab/large",
            tools=[m.Tool(name="measure", description="Größe", parameters='{"type":"object"}'), m.Tool(name="stop")],
            tool_choice="required",
            think="low",
        ),
    ),
    (
        "infer.chat.think",
        "infer.chat",
        "without thinking first",
        m.Chat(messages=[m.ChatMessage(role="user", content="Hi")], think=False),
    ),
]

REPLIES: list[tuple[str, str, m.Say]] = [
    (
        "session.hello",
        "limits and rights",
        m.HelloReply(
            protocol=1,
            version="0.1.0",
            access="admin",
            capabilities=["stream", "events"],
            heartbeat_ms=1000,
            control_bytes_max=65_536,
            prompt_bytes_max=4_194_304,
            requests_max=256,
        ),
    ),
    (
        "daemon.status",
        "during a switch",
        m.Status(
            version="0.1.0",
            pid=4_194_304,
            phase="serving",
            uptime_ms=86_400_000,
            policy="exclusive",
            active="gemma3:270m",
            resident=["gemma3:270m"],
            running=1,
            waiting=2,
            models=3,
            switch=m.SwitchView(target="tiny", phase="drain", unloading=["gemma3:270m"], age_ms=250),
            memory=m.MemoryView(
                limit_bytes=8_589_934_592,
                available_bytes=4_294_967_295,
                held_bytes=300_000_000,
                supervisor_bytes=65_535,
                max_bytes=17_179_869_184,
                level="warn",
                layers=[LAYER],
            ),
            degraded=["memory is short (warn): 81% of the device's memory is in use"],
        ),
    ),
    (
        "daemon.top",
        "a device under pressure",
        m.Top(
            level="critical",
            since_ms=12_000,
            used_share=92.5,
            total_bytes=17_179_869_184,
            available_bytes=1_288_490_188,
            layers=[LAYER],
            workers=[
                m.WorkerRow(
                    model="gemma3:270m",
                    state="ready",
                    held_bytes=300_000_000,
                    planned_bytes=310_000_000,
                    limit_bytes=387_500_000,
                    running=1,
                    waiting=2,
                    tokens_per_s=72.5,
                )
            ],
            requests=[],
            running=1,
            waiting=2,
            tokens_per_s=72.5,
            some_stall_share=4.25,
            full_stall_share=0.5,
            swap_used_bytes=4096,
            swap_in_bytes_per_s=8192.0,
            temperature_c=61.5,
            devices=[m.DeviceRow(name="Orin", total_bytes=8_589_934_592, used_bytes=65_536)],
        ),
    ),
    ("model.pin", "pinned from now on", m.Pinned(model="tiny", pinned=True, changed=True)),
    ("model.unpin", "it was not pinned", m.Pinned(model="tiny", pinned=False, changed=False)),
    (
        "daemon.version",
        "with libraries",
        m.Version(version="0.1.0", protocol=1, python="3.11.7", libraries={"zmq": "4.3.5", "llama": "0.3.36"}),
    ),
    (
        "daemon.config",
        "one value of each kind",
        m.Config(
            path="/etc/h2qd.yaml",
            values=[
                m.ConfigValue(key="socket.path", value="/run/h2qd.sock", source="/etc/h2qd.yaml:3"),
                m.ConfigValue(key="memory.limit_bytes", value=-1, source="default"),
                m.ConfigValue(key="memory.warn", value=0.75, source="H2QD_MEMORY_WARN"),
                m.ConfigValue(key="memory.strict", value=True, source="default"),
                m.ConfigValue(key="model", value=None, source="default"),
                m.ConfigValue(key="access.admin", value=["root", 1000], source="--admin"),
            ],
        ),
    ),
    (
        "daemon.doctor",
        "one finding of each verdict",
        m.Doctor(
            checks=[
                m.Check(name="socket", verdict="ok", detail="mode 0660"),
                m.Check(name="swap", verdict="warn", detail="512 MiB are in use", fix="swapoff -a"),
                m.Check(name="cgroup", verdict="fail", detail="not delegated", fix="Delegate=yes"),
            ]
        ),
    ),
    (
        "model.ps",
        "a model and a request",
        m.Ps(
            models=[
                m.ResidentRow(
                    name="gemma3:270m",
                    state="ready",
                    size_bytes=300_000_000,
                    planned_bytes=310_000_000,
                    ctx=4096,
                    device="cpu",
                    until_ms=1_800_000_000_000,
                    age_ms=61_000,
                    active=True,
                    pid=4711,
                    running=1,
                    waiting=2,
                    reason="asked for by uid 1000",
                    pinned=True,
                    kv_type="q8_0",
                    limit_bytes=387_500_000,
                    degraded=["KV cache q8_0 instead of f16"],
                ),
                m.ResidentRow(name="tiny", state="loading"),
            ],
            requests=[
                m.RequestRow(
                    request="r42",
                    op="infer.text",
                    state="decode",
                    model="gemma3:270m",
                    age_ms=1500,
                    tokens=12,
                    uid=1000,
                    pid=815,
                ),
            ],
        ),
    ),
    ("model.list", "one model, whose file is gone", m.Models(models=[ROW])),
    (
        "model.show",
        "all facts",
        m.Show(
            model=ROW,
            facts=FACTS,
            sha256="0f" * 32,
            ctx=4096,
            imported_at_ms=1_760_000_000_000,
            adapters=[m.AdapterRow(name="polite", path="/models/polite.gguf", size_bytes=3_814_240)],
        ),
    ),
    (
        "model.explain",
        "a failure and when it is tried again",
        m.Explain(
            model="tiny",
            state="failed",
            reason="load_failed",
            story=[
                m.StoryLine(at_ms=1_760_000_000_000, was="cold", now="loading", why="asked"),
                m.StoryLine(
                    at_ms=1_760_000_000_400, was="loading", now="failed", why="load_failed", detail="no tensors"
                ),
            ],
            failures=1,
            retry_after_ms=500,
        ),
    ),
    (
        "model.plan",
        "it fits once another is gone",
        m.Plan(
            model="gemma3:270m",
            ctx=4096,
            parts=[
                m.PlanPart(part="weights", size_bytes=247_463_936),
                m.PlanPart(part="kv_cache", size_bytes=9_437_184),
            ],
            total_bytes=256_901_120,
            limit_bytes=536_870_912,
            fits=True,
            unloads=["tiny"],
            reason="tiny must go first",
            slots=2,
            kv_type="q4_0",
            learned_bytes=-1_048_576,
            free_bytes=268_435_456,
            instead=m.Offer(model="gemma3:270m", ctx=2048, kv_type="q8_0", total_bytes=252_000_000),
        ),
    ),
    (
        "model.import",
        "a file registered",
        m.Imported(model="grosse", changed=True, path="/models/größe.gguf", sha256="a0" * 32, facts=FACTS),
    ),
    ("model.remove", "what was forgotten", m.Removed(model="lib/gemma3", path="/models/gemma3.gguf")),
    (
        "model.load",
        "loaded after another went",
        m.Residency(
            model="gemma3:270m",
            changed=True,
            ctx=4096,
            memory_bytes=300_000_000,
            load_ms=412.5,
            total_ms=512.25,
            unloaded=[RELEASED],
            was_active="tiny",
            kv_type="q8_0",
            degraded=["context 4096 instead of 8192"],
            draining=["small"],
            parked=["other"],
        ),
    ),
    ("model.unload", "what came back", m.Unloaded(model="tiny", changed=True, released=RELEASED)),
    (
        "model.switch",
        "already there",
        m.Residency(model="tiny", changed=False, ctx=64, memory_bytes=1, load_ms=0.0, total_ms=0.5),
    ),
    (
        "infer.text",
        "the end of an answer",
        m.Answer(
            request="r42",
            model="gemma3:270m",
            text="Ende.",
            finish="stop",
            usage=m.Usage(
                prompt_tokens=20,
                completion_tokens=128,
                cached_tokens=19,
                truncated_tokens=7,
                drafted_tokens=14,
                accepted_tokens=9,
            ),
            timings=m.Timings(
                queue_ms=0.5,
                prefill_ms=66.25,
                first_token_ms=80.0,
                decode_ms=1500.0,
                total_ms=1580.5,
                tokens_per_s=85.5,
            ),
            seed=4_294_967_294,
            logprobs=[LOGPROB],
            instead_of="lab/large",
        ),
    ),
    (
        "infer.embed",
        "two vectors",
        m.Embeddings(
            request="r44",
            model="minilm",
            pooling="mean",
            dimensions=2,
            vectors=[[0.75, -0.5], [1.0, 0.0]],
            prompt_tokens=9,
            truncated_tokens=1,
            queue_ms=0.5,
            compute_ms=12.5,
            total_ms=13.25,
        ),
    ),
    (
        "infer.score",
        "one token",
        m.Scored(
            request="r45",
            model="tiny",
            tokens=1,
            logprob=-0.5,
            perplexity=1.625,
            stderr=0.25,
            windows=0,
            logprobs=[LOGPROB],
            queue_ms=0.5,
            compute_ms=12.5,
            total_ms=13.25,
        ),
    ),
    ("text.tokenize", "with their texts", m.Tokens(model="tiny", tokens=[2, 1024], pieces=["", " größe"])),
    ("text.detokenize", "a text", m.Detokenized(model="tiny", text=" größe")),
    (
        "sessions.list",
        "one conversation",
        m.Sessions(
            sessions=[
                m.SessionRow(
                    session="trip-2",
                    model="gemma3:270m",
                    tokens=2048,
                    size_bytes=23_068_672,
                    used_at_ms=1_760_000_000_000,
                    uid=1000,
                )
            ],
            used_bytes=23_068_672,
            quota_bytes=2_147_483_648,
        ),
    ),
    ("sessions.remove", "what it took", m.SessionRemoved(session="trip-2", files=1, freed_bytes=23_068_672)),
    (
        "infer.chat",
        "a model that thought, and wants a tool called",
        m.Answer(
            request="r43",
            model="tiny",
            text="",
            finish="tool_calls",
            usage=m.Usage(prompt_tokens=1, completion_tokens=0),
            timings=m.Timings(
                queue_ms=0.0, prefill_ms=0.0, first_token_ms=0.0, decode_ms=0.0, total_ms=0.25, tokens_per_s=0.0
            ),
            seed=0,
            thinking="größer …",
            tool_calls=[m.ToolCall(id="call_1", name="measure", arguments='{"of":"x"}')],
        ),
    ),
    ("request.cancel", "it was passed on", m.Cancelled(request="r42")),
    ("events.watch", "the stream ended", m.EventsEnd(seq=ID_MAX)),
    (
        "infer.swarm",
        "one answered, one failed, and the judge too",
        m.SwarmAnswer(
            request="r48",
            answers=[
                m.SwarmRow(
                    model="tiny",
                    ok=True,
                    text=" 1,70 m",
                    finish="stop",
                    usage=m.Usage(prompt_tokens=3, completion_tokens=5),
                    timings=m.Timings(
                        queue_ms=0.5,
                        prefill_ms=10.25,
                        first_token_ms=12.5,
                        decode_ms=50.0,
                        total_ms=75.5,
                        tokens_per_s=80.0,
                    ),
                    seed=7,
                    instead_of="gemma3:270m",
                ),
                m.SwarmRow(
                    model="lab/large",
                    ok=False,
                    error=m.ErrorReply(
                        code="deadline_exceeded",
                        message="cannot finish the request: its deadline passed",
                        hint="raise the deadline",
                        request="r48.2",
                    ),
                ),
            ],
            consensus=m.Consensus(
                method="majority",
                text=" 1,70 m",
                models=["tiny"],
                agreement=1.0,
                votes=1,
                note="judge failed: cannot load lab/large",
            ),
            loads=1,
            total_ms=30_075.5,
        ),
    ),
    (
        "model.pull",
        "what it is called here and there",
        m.Pulled(model="box/hf.co/org/gr-e-gguf:q4_k_m", path="hf.co/Org/Größe-GGUF:Q4_K_M", facts=FACTS),
    ),
]

STREAMS: list[tuple[str, str, Kind, m.Say]] = [
    ("chunk.delta", "text of several tokens", Kind.CHUNK, m.Delta(text=" größe 🙂", tokens=3, logprobs=[LOGPROB])),
    ("chunk.delta.thinking", "no text yet", Kind.CHUNK, m.Delta(text="", tokens=1, thinking="größer")),
    (
        "chunk.notice",
        "a notice with data of each kind",
        Kind.CHUNK,
        m.Notice(
            seq=7,
            at_ms=1_760_000_000_000,
            topic="model",
            event="loaded",
            model="tiny",
            data={"ctx": 4096, "ms": 412.5, "first": True, "was": None, "by": "uid 1000"},
            missed=3,
        ),
    ),
    (
        "chunk.notice.bare",
        "of the daemon itself",
        Kind.CHUNK,
        m.Notice(seq=1, at_ms=0, topic="daemon", event="started"),
    ),
    (
        "progress",
        "waiting for a load",
        Kind.PROGRESS,
        m.Progress(phase="loading", request="r42", model="tiny", fraction=0.5, position=2),
    ),
    ("progress.bare", "only alive", Kind.PROGRESS, m.Progress(phase="decode")),
]

ERRORS: list[tuple[str, str, int, m.ErrorReply]] = [
    (
        "no_fit",
        "with facts and a hint",
        3,
        m.ErrorReply(
            code="no_fit",
            message="cannot load qwen3-8b: it needs 6.1 GiB, 4.2 GiB are free",
            hint="h2qctl plan qwen3-8b --ctx 2048",
            because=["gemma3 (3.0 GiB) has requests", "safety buffer 0.5 GiB"],
            request="r9",
        ),
    ),
    (
        "queue_full",
        "try again later",
        4,
        m.ErrorReply(code="queue_full", message="cannot queue", retryable=True, retry_after_ms=1500),
    ),
    ("malformed", "id 0: no id could be read", 0, m.ErrorReply(code="malformed", message="cannot read the envelope")),
]


def _cases() -> list[Case]:
    cases = [
        Case("requests", name, f"{op}: {what}", request_frames(Request(PROTOCOL_VERSION, number, op), body))
        for number, (name, op, what, body) in enumerate(REQUESTS, 1)
    ]
    deadline = Request(PROTOCOL_VERSION, ID_MAX, "daemon.status", deadline_ms=86_400_000)
    cases.append(Case("requests", "envelope.full", "the largest id and deadline", request_frames(deadline)))
    cases += [
        Case("replies", name, f"{name}: {what}", response_frames(number, Kind.REPLY, body))
        for number, (name, what, body) in enumerate(REPLIES, 1)
    ]
    cases += [Case("streams", name, what, response_frames(2**32, kind, body)) for name, what, kind, body in STREAMS]
    cases += [
        Case("errors", name, what, response_frames(number, Kind.ERROR, body)) for name, what, number, body in ERRORS
    ]
    return cases


CASES = _cases()

_STATUS = b"\x83\xa1v\x01\xa2id\x07\xa2op\xaddaemon.status"
_CREDIT = b"\x83\xa1v\x01\xa2id\x07\xa2op\xadstream.credit"
_INFER = b"\x83\xa1v\x01\xa2id\x07\xa2op\xaainfer.text"

REFUSALS = [
    Refusal("no_frames", "a message without frames", [], "malformed", 0),
    Refusal("delimiter", "what a REQ socket sends: an empty frame first", [b"", _STATUS, b"\x80"], "malformed", 0),
    Refusal("empty_envelope", "no bytes", [b"", b"\x80"], "malformed", 0),
    Refusal("envelope_is_list", "an array", [b"\x93\x01\x07\xa1x", b"\x80"], "malformed", 0),
    Refusal("envelope_cut", "the last byte is missing", [_STATUS[:-1], b"\x80"], "malformed", 0),
    Refusal("envelope_trailing", "one byte too many", [_STATUS + b"\x80", b"\x80"], "malformed", 0),
    Refusal("envelope_large", "over 1,024 bytes", [_STATUS + bytes(1024), b"\x80"], "too_large", 0),
    Refusal("id_negative", "id -1", [b"\x83\xa1v\x01\xa2id\xff\xa2op\xa1x", b"\x80"], "malformed", 0),
    Refusal(
        "id_large", "id 2^53", [b"\x83\xa1v\x01\xa2id\xcf\x00\x20\0\0\0\0\0\0\xa2op\xa1x", b"\x80"], "malformed", 0
    ),
    Refusal("id_float", "id 7.0", [b"\x83\xa1v\x01\xa2id\xca\x40\xe0\0\0\xa2op\xa1x", b"\x80"], "malformed", 0),
    Refusal("id_missing", "no id", [b"\x82\xa1v\x01\xa2op\xa1x", b"\x80"], "invalid_request", 0),
    Refusal("op_missing", "no op", [b"\x82\xa1v\x01\xa2id\x07", b"\x80"], "invalid_request", 7),
    Refusal("op_bytes", "op as bin", [b"\x83\xa1v\x01\xa2id\x07\xa2op\xc4\x01x", b"\x80"], "invalid_request", 7),
    Refusal(
        "envelope_key",
        "an unknown key",
        [b"\x84\xa1v\x01\xa2id\x07\xa2op\xa1x\xa1k\x01", b"\x80"],
        "invalid_request",
        7,
    ),
    Refusal("version", "version 2", [b"\x83\xa1v\x02\xa2id\x07\xa2op\xa1x", b"\x80"], "unsupported_version", 7),
    Refusal(
        "version_shape",
        "version 2, of another shape",
        [b"\x82\xa1v\x02\xa2id\x07", b"\x80"],
        "unsupported_version",
        7,
    ),
    Refusal("body_empty", "no bytes", [_STATUS, b""], "invalid_request", 7),
    Refusal("body_list", "an array", [_STATUS, b"\x90"], "invalid_request", 7),
    Refusal("body_trailing", "one byte too many", [_STATUS, b"\x80\xc0"], "invalid_request", 7),
    Refusal("body_key", "an unknown key", [_STATUS, b"\x81\xa1k\x01"], "invalid_request", 7),
    Refusal("body_int_key", "a key that is no string", [_STATUS, b"\x81\x01\x01"], "invalid_request", 7),
    Refusal("body_lies", "2^32-1 entries announced", [_STATUS, b"\xdf\xff\xff\xff\xff"], "invalid_request", 7),
    Refusal("field_missing", "no prompt", [_INFER, b"\x80"], "invalid_request", 7),
    Refusal("field_utf8", "a prompt that is no UTF-8", [_INFER, b"\x81\xa6prompt\xa1\xff"], "invalid_request", 7),
    Refusal(
        "field_surrogate", "half a surrogate pair", [_INFER, b"\x81\xa6prompt\xa3\xed\xb2\x80"], "invalid_request", 7
    ),
    Refusal("field_extension", "an extension type", [_INFER, b"\x81\xa6prompt\xd4\x01\x00"], "invalid_request", 7),
    Refusal(
        "field_nan",
        "temperature NaN",
        [_INFER, b"\x82\xa6prompt\xa0\xabtemperature\xcb\x7f\xf8\0\0\0\0\0\0"],
        "invalid_request",
        7,
    ),
    Refusal(
        "field_infinite",
        "temperature infinite",
        [_INFER, b"\x82\xa6prompt\xa0\xabtemperature\xca\x7f\x80\0\0"],
        "invalid_request",
        7,
    ),
    Refusal("field_bool", "true for a number", [_CREDIT, b"\x82\xa2id\xc3\xa6chunks\x01"], "invalid_request", 7),
    Refusal("field_range", "no chunks", [_CREDIT, b"\x82\xa2id\x01\xa6chunks\x00"], "invalid_request", 7),
    Refusal(
        "field_huge",
        "2^64-1",
        [_CREDIT, b"\x82\xa2id\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xa6chunks\x01"],
        "invalid_request",
        7,
    ),
]
