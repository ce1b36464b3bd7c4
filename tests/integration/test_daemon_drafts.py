"""Draft models through the whole daemon: from the configuration to the plan, the load and the answer."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2qctl import Client, H2qError
from tests import architectures
from tests.harness import DaemonProcess, started

pytestmark = pytest.mark.model

PROMPT = "the quick brown fox jumps over the lazy dog"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
NO_ROOM = "without its draft small: there is no room for it"


def models(folder: Path) -> None:
    model = architectures.write_model(architectures.LLAMA_F32, folder / "llama.gguf")
    shutil.copy(model, folder / "small.gguf")
    architectures.write_model(replace(architectures.LLAMA_F32, vocabulary=601), folder / "wider.gguf")
    # As many tokens, but of another kind: that is seen only where the files are loaded.
    architectures.write_model(replace(architectures.LLAMA_F32, merges=True), folder / "merging.gguf")


def config(folder: Path, name: str, memory: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        f"worker: {{threads: 1}}\nmodel: {{ctx: 512, degrade: false}}\n{memory}\nresidency: {{park: 1m}}\nmodels:\n"
        "  tiny: {path: llama.gguf, draft: small}\n"
        "  small: {path: small.gguf}\n"
        "  plain: {path: llama.gguf}\n"
        "  misled: {path: llama.gguf, draft: wider}\n"
        "  wider: {path: wider.gguf}\n"
        "  deceived: {path: llama.gguf, draft: merging}\n"
        "  merging: {path: merging.gguf}\n"
        "  alone: {path: llama.gguf, draft: nobody}\n"
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafts")
    models(folder)
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[DaemonProcess]:
    with started(folder, config(folder, "roomy")) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    return daemon.client()


def parts(client: Client, model: str) -> dict[str, int]:
    return {part.part: part.size_bytes for part in client.plan(model).parts}


def test_a_draft_is_in_the_plan_and_loaded(client: Client) -> None:
    with_it, without = parts(client, "tiny"), parts(client, "plain")
    assert with_it.pop("draft") > without["weights"]
    assert with_it == without
    assert (client.plan("tiny").fits, client.plan("tiny").reason) == (True, "")
    assert client.load("tiny").degraded == []
    (row,) = [row for row in client.ps().models if row.name == "tiny"]
    assert row.degraded == []
    assert row.planned_bytes == client.plan("tiny").total_bytes
    told = client.infer(PROMPT, "tiny", **GREEDY).text
    assert told == client.infer(PROMPT, "plain", **GREEDY).text


def test_it_comes_back_from_being_parked(client: Client) -> None:
    client.load("tiny")
    text = client.infer(PROMPT, "tiny", **GREEDY).text
    assert "tiny" in client.switch("plain").parked
    again = client.switch("tiny")
    assert (again.changed, again.degraded) == (True, [])
    assert client.infer(PROMPT, "tiny", **GREEDY).text == text


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("misled", "without its draft wider: its vocabulary has 601 tokens, that of the model 600"),
        (
            "deceived",
            "without its draft merging: its vocabulary is not that of the model: they are of different kinds",
        ),
        ("alone", "without its draft nobody: it is not registered"),
    ],
)
def test_a_draft_that_cannot_be_used_costs_no_load(
    client: Client, daemon: DaemonProcess, model: str, why: str
) -> None:
    assert client.load(model, exact=True).degraded == [why]
    (row,) = [row for row in client.ps().models if row.name == model]
    assert row.degraded == [why]
    assert row.planned_bytes is not None
    assert row.planned_bytes <= client.plan("plain").total_bytes
    assert client.infer(PROMPT, model, **GREEDY).text == client.infer(PROMPT, "plain", **GREEDY).text
    assert client.plan(model).fits
    if model == "deceived":
        assert {entry["model"] for entry in daemon.log("draft.unavailable")} == {"deceived"}


def test_a_file_that_changed_is_no_draft_any_more(folder: Path, tmp_path: Path) -> None:
    for name in ("llama.gguf", "small.gguf", "wider.gguf", "merging.gguf"):
        shutil.copy(folder / name, tmp_path / name)
    with started(tmp_path, config(tmp_path, "changing")) as daemon:
        client = daemon.client()
        client.show("small")
        (tmp_path / "small.gguf").write_bytes(b"GGUF")
        (why,) = client.load("tiny").degraded
        assert why == "without its draft small: its file is another one than when it was registered"
        assert client.infer(PROMPT, "tiny", **GREEDY).usage.completion_tokens == 40
        with pytest.raises(H2qError):
            client.load("small")


def test_without_room_a_model_is_loaded_without_its_draft(client: Client, folder: Path, tmp_path: Path) -> None:
    plan = client.plan("tiny")
    limit = plan.total_bytes - parts(client, "tiny")["draft"] // 2
    tight = config(folder, "tight", f"memory: {{model_limit: {limit // 2**10}KiB}}")
    with started(tmp_path, tight) as daemon:
        short = daemon.client()
        shown = short.plan("tiny")
        assert (shown.fits, shown.reason) == (False, NO_ROOM)
        assert shown.instead is not None
        assert (shown.instead.ctx, shown.instead.total_bytes) == (512, client.plan("plain").total_bytes)
        assert short.load("tiny").degraded == [NO_ROOM]
        (row,) = short.ps().models
        assert (row.degraded, row.ctx) == ([NO_ROOM], 512)
        assert short.infer(PROMPT, "tiny", **GREEDY).usage.completion_tokens == 40
