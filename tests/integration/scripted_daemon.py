"""A daemon that says what a test tells it to: a real ROUTER on a real ipc socket, in a thread of its own.

Each operation has a canned answer (`SAMPLES`) until a test sets `daemon.on[op]`. Streams keep to the window
and stop on a cancel, as the protocol asks. `daemon.heard(op)` waits for a request and returns it.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from h2qd.wire import frames, limits
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.codes import CODES

GIB = 1 << 30
WAIT_S = 10.0

FACTS = m.ModelFacts(
    architecture="gemma3", quantization="Q4_K_M", parameters=268_098_176, layers=18, context_length=32768
)
ROW = m.ModelRow("gemma3", "local", "ready", "/models/gemma3.gguf", 253 << 20, "gemma3", "Q4_K_M", 268_098_176, 32768)
RESIDENT = m.ResidentRow(
    "gemma3", "ready", size_bytes=GIB, ctx=4096, until_ms=240_000, age_ms=3000, active=True, pid=42, running=1
)
REQUEST = m.RequestRow("r7", "infer.text", "running", model="gemma3", age_ms=1500, tokens=12, uid=1000, pid=77)
USAGE = m.Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=1)
TIMINGS = m.Timings(queue_ms=0.5, prefill_ms=10, first_token_ms=12.5, decode_ms=30, total_ms=45, tokens_per_s=100)
LAYERS = [
    m.MemoryLayer("models", 3 * GIB, GIB // 2, GIB, 3 * GIB // 2),
    m.MemoryLayer("working", GIB // 2, 0, 640 << 20, 0, 128 << 20),
]
TOP = m.Top(
    "warn",
    125_000,
    81.25,
    4 * GIB,
    2 * GIB,
    LAYERS,
    [m.WorkerRow("gemma3", "ready", GIB, 3 * GIB // 2, 2 * GIB, 1, 0, 12.34)],
    [REQUEST],
    1,
    0,
    12.34,
)
LOGPROBS = [
    m.TokenLogprob(14014, "Once", -0.5, [m.Alternative(14014, "Once", -0.5), m.Alternative(7, "In\n", -1.25)]),
    m.TokenLogprob(3324, " upon", -1.0),
]
RESIDENCY = m.Residency("gemma3", changed=True, ctx=4096, memory_bytes=GIB, load_ms=400, total_ms=450)


def answer(text: str = "a b c") -> m.Answer:
    return m.Answer("r7", "gemma3", text, "stop", USAGE, TIMINGS, seed=7)


SWARM = m.SwarmAnswer(
    "r7",
    [
        m.SwarmRow("gemma3", ok=True, text=" Paris.\n", finish="stop", usage=USAGE, timings=TIMINGS, seed=7),
        m.SwarmRow("small", ok=True, text="paris", finish="length", usage=USAGE, timings=TIMINGS, instead_of="large"),
        m.SwarmRow("broken", ok=False, error=m.ErrorReply("no_fit", "cannot load broken: it needs 6.1 GiB")),
    ],
    m.Consensus("majority", " Paris.\n", ["gemma3", "small"], 1.0, 2, "judge failed: it said 'no'"),
    1,
    1234.5,
)

SAMPLES: dict[type[m.Say], m.Say] = {
    type(sample): sample
    for sample in (
        m.HelloReply(1, "0.1.0", "admin", [], 1000, 65536, 4 << 20, 256),
        m.Status(
            "0.1.0",
            42,
            "serving",
            90_000,
            "exclusive",
            "gemma3",
            ["gemma3"],
            1,
            0,
            2,
            None,
            m.MemoryView(4 * GIB, 2 * GIB, GIB, 30 << 20),
        ),
        m.Version("0.1.0", 1, "3.11.7", {"zmq": "4.3.5"}),
        m.Config("/etc/h2qd.yaml", [m.ConfigValue("memory.max", 4 * GIB, "default")]),
        m.Doctor([m.Check("cgroup", "ok", "v2, delegated"), m.Check("swap", "warn", "on", "swapoff -a")]),
        m.Ps([RESIDENT], [REQUEST]),
        TOP,
        m.Pinned("gemma3", pinned=True, changed=True),
        m.Models([ROW, msgspec.structs.replace(ROW, name="qwen3", state="cold")]),
        m.Show(ROW, FACTS, "ab" * 32, 4096, 1_700_000_000_000),
        m.Explain("gemma3", "ready", "asked", [m.StoryLine(1_700_000_000_000, "cold", "loading", "load asked")]),
        m.Plan(
            "gemma3",
            4096,
            [m.PlanPart("weights", GIB), m.PlanPart("kv_cache", GIB // 2)],
            3 * GIB // 2,
            4 * GIB,
            True,
            ["qwen3"],
        ),
        m.Imported("gemma3", True, "/models/gemma3.gguf", "ab" * 32, FACTS),
        m.Pulled("box/gemma3:latest", "gemma3:latest", FACTS),
        m.Removed("gemma3", "/models/gemma3.gguf"),
        RESIDENCY,
        m.Unloaded("gemma3", changed=True, released=m.Released("gemma3", GIB, GIB, 120)),
        answer(),
        m.Embeddings("r7", "gemma3", "mean", 6, [[0.5, -0.25, 0.125, 0.0, 1.0, 1.0]], 5, 0, 0.5, 10, 11),
        m.Scored("r7", "gemma3", 2, -1.5, 2.117, 0.25, 0, LOGPROBS, 0.5, 10, 11),
        SWARM,
        m.Tokens("gemma3", [14014, 3324], ["Once", " upon"]),
        m.Detokenized("gemma3", "Once upon"),
        m.Sessions([m.SessionRow("trip", "gemma3", 300, 3 << 20, 1_700_000_000_000, os.getuid())], 3 << 20, GIB),
        m.SessionRemoved("trip", 1, 3 << 20),
        m.Cancelled("r7"),
        m.EventsEnd(3),
    )
}
NOTICES = [m.Notice(n, 1_700_000_000_000 + n, "model", "model.ready", "gemma3", {"ms": 400}) for n in (1, 2, 3)]


class Asked:
    """One request as the daemon sees it, and the ways to answer it."""

    def __init__(self, daemon: "ScriptedDaemon", peer: bytes, envelope: frames.Request, body: Any) -> None:
        self._daemon, self._peer = daemon, peer
        self.envelope, self.body, self.op, self.id = envelope, body, envelope.op, envelope.id
        self.credit = 0
        self.sent = 0
        self.unsent: Iterator[m.Say] | None = None
        self.end: m.Say | None = None

    @property
    def key(self) -> tuple[bytes, int]:
        return self._peer, self.id

    def raw(self, *parts: bytes) -> None:
        self._daemon.send([self._peer, *parts])

    def say(self, kind: frames.Kind, body: msgspec.Struct) -> None:
        self.raw(*frames.response_frames(self.id, kind, body))

    def reply(self, body: m.Say | None = None) -> None:
        kind = CATALOGUE[self.op].reply
        assert kind is not None
        self.say(frames.Kind.REPLY, body or SAMPLES[kind])

    def error(self, code: str, message: str = "cannot", **fields: Any) -> None:
        known = CODES.get(code)
        fields = {"hint": known.hint if known else "", "retryable": bool(known and known.retryable), **fields}
        self.say(frames.Kind.ERROR, m.ErrorReply(code, message, **fields))

    def progress(self, phase: str, **fields: Any) -> None:
        self.say(frames.Kind.PROGRESS, m.Progress(phase, "r7", **fields))

    def stream(self, chunks: Iterable[m.Say], end: m.Say) -> None:
        self.credit = getattr(self.body, "window", limits.CHUNK_WINDOW_DEFAULT)
        self.unsent, self.end = iter(chunks), end
        self._daemon.streams[self.key] = self
        self.pump()

    def pump(self) -> None:
        while self.credit and self.unsent is not None:
            chunk = next(self.unsent, None)
            if chunk is None:
                self.finish()
                assert self.end is not None
                return self.say(frames.Kind.REPLY, self.end)
            self.say(frames.Kind.CHUNK, chunk)
            self.credit -= 1
            self.sent += 1
        return None

    def finish(self) -> None:
        self._daemon.streams.pop(self.key, None)


Handler = Callable[[Asked], None]


class ScriptedDaemon:
    """The thread, its socket, and what it heard."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.on: dict[str, Handler] = {}
        self.log: list[Asked] = []
        self.streams: dict[tuple[bytes, int], Asked] = {}
        self._new: dict[str, queue.Queue[Asked]] = {op: queue.Queue() for op in CATALOGUE}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.bind(f"ipc://{path}")
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind("inproc://stop")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def heard(self, op: str) -> Asked:
        return self._new[op].get(timeout=WAIT_S)

    def send(self, parts: list[bytes]) -> None:
        """Only from a handler: sockets belong to the serving thread."""
        self._router.send_multipart(parts)

    def stop(self) -> None:
        if self._thread.is_alive():
            with self._context.socket(zmq.PAIR) as control:
                control.connect("inproc://stop")
                control.send(b"")
                self._thread.join(WAIT_S)
        self._context.destroy(0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._control, zmq.POLLIN)
        while self._control not in dict(poller.poll()):
            peer, *parts = self._router.recv_multipart()
            envelope, body = frames.split_request(parts)
            command = CATALOGUE[envelope.op]
            try:
                asked = Asked(self, peer, envelope, frames.decode_body(body, command.request, command.bytes_max))
            except frames.WireError as fault:
                refused = m.ErrorReply(fault.code, fault.message, CODES[fault.code].hint)
                self.send([peer, *frames.response_frames(envelope.id, frames.Kind.ERROR, refused)])
                continue
            self.log.append(asked)
            self._new[asked.op].put(asked)
            self.on.get(asked.op, self._canned)(asked)
        self._router.close(0)

    def _canned(self, asked: Asked) -> None:
        if asked.op == "stream.credit":
            if stream := self.streams.get((asked.key[0], asked.body.id)):
                stream.credit += asked.body.chunks
                stream.pump()
        elif asked.op == "request.cancel":
            if stream := self.streams.get((asked.key[0], asked.body.id)):
                stream.finish()
                stream.error("cancelled")
            asked.reply()
        elif asked.op == "events.watch":
            asked.stream(NOTICES, m.EventsEnd(3))
        elif getattr(asked.body, "stream", False):
            asked.stream([m.Delta(text, 1) for text in ("a ", "b ", "c")], answer(""))
        else:
            asked.reply()


def held(daemon: ScriptedDaemon) -> Handler:
    """A handler that says it is alive and answers only a cancel."""

    def handler(asked: Asked) -> None:
        asked.progress("queued", position=2)
        daemon.streams[asked.key] = asked

    return handler


@contextmanager
def scripted(folder: Path) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(folder / "h2qd.sock")
    try:
        yield daemon
    finally:
        daemon.stop()
