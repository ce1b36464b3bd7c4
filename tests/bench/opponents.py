"""Handles on what the daemon is measured against: the raw low-level loop, and the plain asyncio echo.

Each runs in a process of its own, started here and ended with its context. What they do is in `raw_process` and
`echo_process`.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from tests.bench.daemons import ROOT


@dataclass(frozen=True, slots=True)
class Raw:
    """The raw loop's process; each call answers what `raw_process` says, times in ms."""

    process: "subprocess.Popen[str]"

    def load(self) -> dict[str, float]:
        """Fork a child that loads; `wall_ms` is from the order to its answer."""
        began = time.perf_counter()
        told = self._ask("load")
        return {**told, "wall_ms": (time.perf_counter() - began) * 1000}

    def stream(self, count: int, prompt: str) -> dict[str, float]:
        """Have the child generate."""
        return self._ask(f"stream {count} {prompt}")

    def unload(self) -> None:
        """End the child."""
        self._ask("exit")

    def _ask(self, line: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.heard()

    def heard(self) -> dict[str, float]:
        """The next line that it says."""
        assert self.process.stdout is not None
        told: dict[str, float] = json.loads(self.process.stdout.readline())
        return told


@contextlib.contextmanager
def raw_loop(model: Path, ctx: int) -> Iterator[Raw]:
    """A raw loop with the imports done and nothing loaded."""
    with child("tests.bench.raw_process", str(model), str(ctx)) as process:
        raw = Raw(process)
        raw.heard()
        yield raw


class Wire:
    """The simplest blocking client: send the frames, wait, take the answer."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str, frames: Sequence[bytes]) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(f"ipc://{path}")
        self._frames = frames

    def ask(self) -> list[bytes]:
        """One round trip."""
        self._socket.send_multipart(self._frames)
        if not self._socket.poll(10_000):
            raise SystemExit("bench: no answer")
        return self._socket.recv_multipart(zmq.NOBLOCK)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Echo:
    """A plain echo, and where it listens."""

    process: "subprocess.Popen[str]"
    path: str


@contextlib.contextmanager
def echo(path: Path, sizes: Sequence[int]) -> Iterator[Echo]:
    """An echo that answers with frames of `sizes` bytes."""
    with child("tests.bench.echo_process", str(path), *map(str, sizes)) as process:
        heard(process, "ready")
        yield Echo(process, str(path))


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of ours that ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def heard(process: "subprocess.Popen[str]", word: str) -> None:
    """Wait until a process of ours says `word`, and nothing else."""
    assert process.stdout is not None
    if (said := process.stdout.readline().strip()) != word:
        raise SystemExit(f"bench: {said!r} is not {word!r}")
