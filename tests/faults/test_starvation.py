"""Clients that keep a model busy without a gap, and one who wants another model: it comes within its bound.

The bound is the patience, the answers that run by then, and an unload and a load; where there is room for both
models, no answer is waited for, and under a budget there is nothing to be patient for. Nobody's answer is cut off,
and the crowd is served again when its turn has come.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, started
from tests.pressure import MIB, bounded, model, write_config

CROWD = 2
PATIENCE_S = 0.4
TOKEN_MS = 5
TOKENS = 40
ANSWER_S = TOKENS * TOKEN_MS / 1000
LOAD_S = 0.2
SLACK_S = 1.2
"""What processes take to come and go, and to be weighed, on a machine that has other work."""

MODELS = {
    name: model(40 * MIB, load_ms=LOAD_S * 1000, tokens=TOKENS, token_ms=TOKEN_MS) for name in ("busy", "wanted")
}
ONE, BOTH = 64, 160
"""MiB that hold one of them, or both."""


def config(policy: str, limit_mib: int, patience_s: float) -> str:
    return f"""
residency: {{policy: {policy}, patience: {patience_s}s, restore: false}}
memory: {{model_limit: {limit_mib}MiB, working: 128MiB, safety_buffer: 16MiB}}
"""


@dataclass
class Crowd:
    """Clients that ask again as soon as they are answered. `answers`: when each came, and after how long."""

    daemon: DaemonProcess
    name: str
    answers: list[tuple[float, float]] = field(default_factory=list)
    errors: list[H2qError] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        with Client(str(self.daemon.socket)) as client:
            while not self.over.is_set():
                began = time.monotonic()
                try:
                    assert client.infer("hello", self.name).usage.completion_tokens == TOKENS
                except H2qError as error:
                    self.errors.append(error)
                now = time.monotonic()
                self.answers.append((now, now - began))

    def is_served(self, times: int) -> None:
        """Wait until so many more answers have come."""
        enough = len(self.answers) + times
        await_true(lambda: len(self.answers) >= enough, f"{self.name} is answered", 60)


@contextmanager
def crowd(daemon: DaemonProcess, name: str) -> Iterator[Crowd]:
    """A crowd in front of a model, that has all of its slots and more."""
    them = Crowd(daemon, name)
    threads = [threading.Thread(target=them.ask) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    try:
        them.is_served(CROWD)
        yield them
    finally:
        them.over.set()
        for thread in threads:
            thread.join()
    assert not them.errors, them.errors


@pytest.mark.parametrize(
    ("policy", "limit_mib", "patience_s", "bound_s"),
    [
        ("exclusive", ONE, PATIENCE_S, PATIENCE_S + ANSWER_S + LOAD_S + SLACK_S),
        ("exclusive", BOTH, PATIENCE_S, PATIENCE_S + LOAD_S + SLACK_S),
        ("budget", ONE, PATIENCE_S, PATIENCE_S + ANSWER_S + LOAD_S + SLACK_S),
        ("budget", BOTH, 60.0, LOAD_S + SLACK_S),
    ],
    ids=["exclusive", "exclusive, overlapping", "budget", "budget, side by side"],
)
def test_a_switch_passes_a_crowd(
    tmp_path: Path, policy: str, limit_mib: int, patience_s: float, bound_s: float
) -> None:
    with (
        bounded(1024 * MIB) as group,
        started(
            tmp_path, write_config(tmp_path, MODELS, config(policy, limit_mib, patience_s)), within=group.folder
        ) as daemon,
        crowd(daemon, "busy") as them,
    ):
        client = daemon.client()
        waits = []
        for _ in range(2):
            before = len(them.answers)
            began = time.monotonic()
            told = client.switch("wanted")
            waits.append(time.monotonic() - began)
            assert told.changed
            assert told.draining == (["busy"] if policy == "exclusive" and limit_mib == BOTH else [])
            print(
                f"switched after {waits[-1]:.2f} s of {bound_s:.2f}, {len(them.answers) - before} answers meanwhile"
            )
            them.is_served(CROWD)
            if limit_mib == BOTH and policy == "budget":
                client.unload("wanted")
        assert max(waits) < bound_s
        longest = max(wait for _, wait in them.answers)
        print(f"{len(them.answers)} answers, the longest wait {longest:.2f} s")


def test_two_crowds_take_turns(tmp_path: Path) -> None:
    """Both models are kept busy: nobody waits for longer than a turn of each, and no turn is a single answer."""
    patience_s = 0.2
    turn_s = patience_s + ANSWER_S + LOAD_S + SLACK_S
    with (
        bounded(1024 * MIB) as group,
        started(
            tmp_path, write_config(tmp_path, MODELS, config("exclusive", ONE, patience_s)), within=group.folder
        ) as daemon,
        crowd(daemon, "busy") as first,
        crowd(daemon, "wanted") as second,
    ):
        first.is_served(CROWD)
        second.is_served(CROWD)
        loads = [line for line in daemon.log("model.moved") if line["now"] == "loading"]
        answers = len(first.answers) + len(second.answers)
        longest = max(wait for _, wait in (*first.answers, *second.answers))
        print(f"{answers} answers in {len(loads)} loads; the longest wait {longest:.2f} s")
        assert longest < 2 * turn_s + CROWD * ANSWER_S
        assert answers > len(loads)
