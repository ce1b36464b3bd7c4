"""Somebody else on the device eats its memory, for real: what goes, what stays, how soon, and what is said about it.

The device is a cgroup that the daemon lives in together with the eater, so it is the kernel that measures, and nobody
outside runs short. The eater stays below the group's limit: it is the daemon that has to give way, not the kernel.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import pytest

from h2qctl import Client, H2qError
from h2qd.wire.messages import Notice
from tests.harness import ROOT, DaemonProcess, await_true, background, code_of, daemon_environment, started
from tests.pressure import MIB, Bounded, Eater, bounded, model, write_config

DEVICE_BYTES = 1024 * MIB
WARN, CRITICAL, EMERGENCY = 0.6, 0.75, 0.9
BITE = 0.01
"""So far below a threshold the eater stops, and so far above it goes with its next bite: then it is crossed."""

REACTION_S_MAX = 1.2
DWELL_S = 0.5


def config(dwell_s: float = DWELL_S, margin_mib: int = 64) -> str:
    return f"""
residency: {{policy: budget, park: 1m, restore: false}}
memory: {{model_limit: 300MiB, working: 128MiB, safety_buffer: 16MiB}}
guard: {{warn: 60%, critical: 75%, emergency: 90%, leave_gap: 5%, dwell: {dwell_s}s, calm: 60s}}
worker: {{memory_margin: {margin_mib}MiB}}
shutdown: {{drain: 0s}}
"""


GROWTH_BYTES = 256 * 1024
"""What a token costs the model that outgrows its plan."""

LONG = {"tokens": 100_000, "token_ms": 5}

MODELS = {
    "kept": model(80 * MIB, **LONG),
    "idle": model(80 * MIB),
    "idle2": model(80 * MIB),
    "parked": model(0, context_bytes=80 * MIB),
    "small": model(8 * MIB),
    "slow": model(8 * MIB, load_ms=60_000),
    "grows": model(8 * MIB, leak_bytes_per_token=GROWTH_BYTES, tokens=100_000, token_ms=10),
}
KEYS = {"parked": {"priority": -2}, "idle": {"priority": -1}}
"""Who goes first, so that it need not be guessed from the time that loads took."""


@dataclass
class Notices:
    """What the daemon tells, as it comes, and when it came."""

    heard: list[tuple[float, Notice]] = field(default_factory=list)
    news: Event = field(default_factory=Event)

    def follow(self, client: Client) -> None:
        with contextlib.suppress(H2qError):  # the daemon ends
            for notice in client.events(since=0):
                self.heard.append((time.monotonic(), notice))
                self.news.set()

    def of(self, event: str, **fields: object) -> list[tuple[float, Notice]]:
        """Those of one kind, with these attributes or data."""
        return [
            (at, notice)
            for at, notice in list(self.heard)
            if notice.event == event
            and all(notice.data.get(key, getattr(notice, key, None)) == value for key, value in fields.items())
        ]

    def awaited(self, event: str, beyond: int = 0, timeout_s: float = 20, **fields: object) -> float:
        """When a notice came, the first such one or the first `beyond` so many; waits for it."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.of(event, **fields)) <= beyond:
            left = deadline - time.monotonic()
            assert left > 0, (event, fields, [notice for _, notice in self.heard][-20:])
            self.news.wait(left)
            self.news.clear()
        return found[beyond][0]


@dataclass
class Scene:
    """A daemon on a small device, somebody who listens to it, and somebody who eats."""

    group: Bounded
    daemon: DaemonProcess
    client: Client
    notices: Notices
    eater: Eater

    def resident(self) -> set[str]:
        return {row.name for row in self.client.ps().models}

    def crosses(self, level: str, share: float) -> float:
        """Fill the device to a level's threshold and beyond; the time from then until the word about it."""
        told = len(self.notices.of("memory.level", now=level))
        self.eater.fill_to(share - BITE)
        began = time.monotonic()
        self.eater.fill_to(share + BITE)
        ate = time.monotonic()
        heard = self.notices.awaited("memory.level", beyond=told, now=level)
        print(f"{level}: told {heard - ate:+.3f} s after the bite, which took {ate - began:.3f} s")
        return heard - ate


@contextlib.contextmanager
def scene(folder: Path, text: str) -> Iterator[Scene]:
    with bounded(DEVICE_BYTES) as group:
        path = write_config(folder, MODELS, text, KEYS)
        with started(folder, path, within=group.folder) as daemon, group.eater() as eater:
            notices = Notices()
            reader = daemon.client()
            Thread(target=notices.follow, args=[reader], daemon=True).start()
            notices.awaited("model.registered", model=list(MODELS)[-1])
            yield Scene(group, daemon, daemon.client(), notices, eater)


class Answer:
    """A long answer in the making: how many pieces have come, and how it ended."""

    def __init__(self, daemon: DaemonProcess, name: str) -> None:
        self.pieces = 0
        self._daemon = daemon
        self._name = name
        self.end: Future[None] = background(self._consume)
        await_true(lambda: self.pieces > 0 or self.end.done(), "it answers")

    def _consume(self) -> None:
        with Client(str(self._daemon.socket)) as client:
            for _ in client.stream("hello", self._name, max_tokens=65_536):
                self.pieces += 1

    def goes_on(self) -> None:
        """It is not over, and more of it comes."""
        before = self.pieces
        await_true(lambda: self.pieces > before or self.end.done(), "it goes on")
        assert not self.end.done()


def test_what_goes_and_in_which_order(tmp_path: Path) -> None:
    with scene(tmp_path, config()) as at:
        client, notices = at.client, at.notices
        client.load("parked")
        client.load("idle")
        client.load("kept")
        client.load("idle2")  # a fourth does not fit: the lowest priority is parked for it
        assert [row.name for row in client.ps().models if row.state == "parked"] == ["parked"]
        answer = Answer(at.daemon, "kept")
        supervisor_bytes = at.daemon.rss_bytes()

        assert at.crosses("warn", WARN) < REACTION_S_MAX
        notices.awaited("memory.relieved", model="parked", what="drop parked")
        await_true(lambda: at.resident() == {"idle", "idle2", "kept"}, "what is parked goes, and nothing else")
        assert client.load("small").changed, "there is room, and loads are still admitted"
        client.unload("small")

        assert at.crosses("critical", CRITICAL) < REACTION_S_MAX
        refused(at, "small")
        notices.awaited("memory.relieved", model="idle", what="evict idle")
        notices.awaited("memory.level", was="critical", now="warn")
        assert at.resident() == {"idle2", "kept"}, "the one of the lowest priority was enough"
        answer.goes_on()

        assert at.crosses("emergency", EMERGENCY) < REACTION_S_MAX
        notices.awaited("memory.relieved", model="idle2", what="evict idle")
        notices.awaited("memory.level", was="emergency")
        assert at.resident() == {"kept"}
        answer.goes_on()

        at.eater.fill_to(EMERGENCY + BITE)
        assert code_of(answer.end) == "memory_pressure"
        relieved = [notice.data["what"] for _, notice in notices.of("memory.relieved")]
        assert relieved[:4] == ["drop parked", "evict idle", "evict idle", "cut off the lowest priority"]
        assert set(relieved[4:]) <= {"evict idle"}, "it has no work any more"
        print(
            f"the daemon: {at.daemon.rss_bytes() - supervisor_bytes:+} bytes; the answer had {answer.pieces} pieces"
        )

        at.eater.eat(0)
        freed = time.monotonic()
        normal = notices.awaited("memory.level", now="normal")
        print(f"normal {normal - freed:.2f} s after the end of the meal, with a dwell of {DWELL_S} s")
        assert DWELL_S <= normal - freed < DWELL_S + 2 * REACTION_S_MAX
        assert client.load("idle").changed
        assert client.infer("hello", "kept", max_tokens=3).finish == "length"
        assert client.status().memory.level == "normal"
        assert at.group.group.oom_kills == 0
        everything_is_told(at)


def refused(at: Scene, name: str) -> None:
    """A load hears that there is no memory now, and when to come again."""
    with pytest.raises(H2qError) as caught:
        at.client.load(name)
    assert caught.value.code == "memory_pressure"
    assert caught.value.retryable
    assert caught.value.retry_after_ms == DWELL_S * 1000


def everything_is_told(at: Scene) -> None:
    """What the guard did stands in the log and in what `h2qctl events` shows, in the same order."""
    told = subprocess.run(
        [sys.executable, "-m", "h2qctl", "events", "--json", "--since", "0", "--no-follow"],
        cwd=ROOT,
        env=daemon_environment(at.daemon.folder),
        stdout=subprocess.PIPE,
        check=True,
    )
    shown = [line["chunk"] for line in map(json.loads, told.stdout.splitlines()) if "chunk" in line]
    for event in ("memory.level", "memory.relieved"):
        from_client = [(n.get("model"), n["data"]) for n in shown if n["event"] == event]
        from_log = [
            (line.get("model"), {k: v for k, v in line.items() if k not in ("at", "level", "event", "model")})
            for line in at.daemon.log(event)
        ]
        assert from_client == from_log
        assert from_client == [(n.model, n.data) for _, n in at.notices.of(event)]
        assert from_client


def test_one_eviction_that_helps_is_enough_for_a_while(tmp_path: Path) -> None:
    dwell_s = DWELL_S
    with scene(tmp_path, config(dwell_s)) as at:
        notices = at.notices
        for name in ("idle", "idle2"):
            at.client.load(name)
        at.crosses("critical", CRITICAL)
        notices.awaited("memory.relieved", model="idle")
        notices.awaited("memory.level", was="critical", now="warn")

        at.crosses("critical", CRITICAL)
        at.eater.fill_to(WARN)
        notices.awaited("memory.level", beyond=1, was="critical")
        assert len(notices.of("memory.relieved")) == 1, "a peak within the calm passes"
        assert at.resident() == {"idle2"}

        at.crosses("critical", CRITICAL)
        pressed = notices.awaited("memory.level", beyond=2, now="critical")
        relieved = notices.awaited("memory.relieved", model="idle2")
        print(f"pressure that stays: relieved after {relieved - pressed:.2f} s, with a dwell of {dwell_s} s")
        assert dwell_s - 0.1 < relieved - pressed < dwell_s + REACTION_S_MAX


def test_what_is_pinned_or_loads_goes_at_the_very_end(tmp_path: Path) -> None:
    with scene(tmp_path, config()) as at:
        at.client.load("idle")
        at.client.pin("idle")
        slow = background(lambda: at.daemon.client().load("slow"))
        await_true(lambda: "slow" in at.resident(), "it loads")
        at.crosses("critical", CRITICAL)
        refused(at, "small")
        assert at.resident() == {"idle", "slow"}
        at.crosses("emergency", EMERGENCY)
        assert code_of(slow) == "memory_pressure"
        at.notices.awaited("memory.relieved", model="idle", what="evict idle")
        assert [(n.model, n.data["what"]) for _, n in at.notices.of("memory.relieved")] == [
            ("slow", "give up load"),
            ("idle", "evict idle"),
        ]
        await_true(lambda: at.resident() == set(), "both are gone")
        assert at.client.status().phase == "serving", "the daemon is not"


def held_bytes(client: Client, name: str) -> int:
    return next(row.held_bytes for row in client.top().workers if row.model == name)


def test_who_took_more_than_planned_goes_before_who_did_not(tmp_path: Path) -> None:
    with scene(tmp_path, config(margin_mib=600)) as at:
        client = at.client
        client.load("kept")
        client.load("grows")
        kept, grows = Answer(at.daemon, "kept"), Answer(at.daemon, "grows")
        await_true(lambda: held_bytes(client, "grows") > 80 * MIB, "it has grown")
        at.crosses("emergency", EMERGENCY)
        at.notices.awaited("memory.relieved", model="grows", what="end worker over its plan")
        assert code_of(grows.end) == "memory_pressure"
        at.notices.awaited("memory.level", was="emergency")
        kept.goes_on()
        assert len(at.notices.of("memory.relieved")) == 1


THRASH = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # those pages are charged to whoever wrote them
sys.stdin.readline()
while True:
    for offset in range(0, os.fstat(fd).st_size, 65536):
        os.pread(fd, 65536, offset)
"""


def test_a_stall_is_heard_at_once(tmp_path: Path) -> None:
    """Tasks that wait for memory count as one level more; the kernel says so before the next look."""
    with scene(tmp_path, config()) as at, contextlib.ExitStack() as undo:
        found = next(check for check in at.client.doctor().checks if check.name == "pressure")
        if found.verdict != "ok":
            pytest.skip(found.detail)
        file = tmp_path / "file"
        file.write_bytes(os.urandom(MIB) * 64)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        room = at.group.room("thrash", 16 * MIB)
        undo.callback(room.close)
        child = subprocess.Popen([sys.executable, "-c", THRASH, str(file)], stdin=subprocess.PIPE)
        undo.callback(child.communicate)
        undo.callback(child.kill)
        room.enter(child.pid)
        at.client.load("idle")
        at.crosses("warn", WARN)
        assert at.resident() == {"idle"}
        assert child.stdin is not None
        os.write(child.stdin.fileno(), b"\n")
        began = time.monotonic()
        critical = at.notices.awaited("memory.level", now="critical")
        relieved = at.notices.awaited("memory.relieved", model="idle")
        print(f"stalled: told after {critical - began:.3f} s, relieved after {relieved - began:.3f} s")
        assert at.group.used_bytes() < CRITICAL * DEVICE_BYTES, "by its use of memory alone it is not"
