"""LoRA adapters through the whole daemon: from the configuration to the answer, and what does not fit."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from h2qctl import Client, H2qError
from h2qd.wire.messages import AdapterUse
from tests import architectures
from tests.adapters import write_adapter
from tests.harness import DaemonProcess, background, script, started

pytestmark = pytest.mark.model

PROMPT = "the quick brown fox jumps over the lazy dog and then sleeps by the river"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("adapters")
    model = architectures.write_model(architectures.LLAMA_F32, folder / "llama.gguf")
    for seed, name in enumerate(("polite", "rude"), 1):
        write_adapter(folder / f"{name}.gguf", model, seed)
    (folder / "broken.gguf").write_bytes((folder / "rude.gguf").read_bytes()[:-4096])
    script(folder, "other")
    config = folder / "h2qd.yaml"
    config.write_text(
        "worker: {threads: 1}\nmodel: {ctx: 512, slots: 2}\nmodels:\n"
        "  tiny: {path: llama.gguf, adapters: [polite=polite.gguf, rude=rude.gguf], fallback: [other]}\n"
        "  plain: {path: llama.gguf}\n"
        "  broken: {path: llama.gguf, adapters: [broken=broken.gguf], fallback: [tiny]}\n"
        "  lost: {path: llama.gguf, adapters: [polite=none.gguf]}\n"
        "  other: {path: other.json, backend: fake}\n"
    )
    with started(folder, config) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    return daemon.client()


def ways(client: Client) -> list[Callable[..., Any]]:
    """Whatever takes adapters."""
    return [partial(client.infer, **GREEDY), client.score, client.embed]


def test_a_request_names_what_it_is_answered_with(client: Client) -> None:
    texts = [
        client.infer(PROMPT, "tiny", adapters=adapters, **GREEDY).text
        for adapters in ({}, {"polite": 1.0}, {"rude": 1.0}, {"polite": 1.0, "rude": -2.0}, {"polite": 0.0})
    ]
    assert len(set(texts)) == 4
    assert texts[4] == texts[0] == client.infer(PROMPT, "plain", **GREEDY).text


def test_scores_and_vectors_are_made_with_them(client: Client) -> None:
    sets: list[dict[str, float]] = [{}, {"polite": 1.0}, {"polite": 1.0, "rude": -2.0}, {"polite": 0.0}]
    scores = [client.score(PROMPT, "tiny", adapters=adapters).logprob for adapters in sets]
    vectors = [tuple(client.embed(PROMPT, "tiny", adapters=adapters).vectors[0]) for adapters in sets]
    assert (len(set(scores)), len(set(vectors))) == (3, 3)
    assert scores[3] == scores[0] == client.score(PROMPT, "plain").logprob
    assert vectors[3] == vectors[0] == tuple(client.embed(PROMPT, "plain").vectors[0])


def test_who_comes_together_is_answered_as_if_alone(client: Client, daemon: DaemonProcess) -> None:
    sets: list[dict[str, float]] = [{"polite": 1.0}, {"rude": 1.0}]
    alone = [client.infer(PROMPT, "tiny", adapters=adapters, **GREEDY).text for adapters in sets]

    def answer(adapters: dict[str, float]) -> str:
        with Client(str(daemon.socket)) as own:
            return own.infer(PROMPT, "tiny", adapters=adapters, **GREEDY).text

    together = [background(partial(answer, adapters)) for adapters in sets]
    assert [one.result(60) for one in together] == alone


def test_a_session_goes_on_after_a_switch(client: Client) -> None:
    asked: dict[str, Any] = {"adapters": {"polite": 1.0}, "session": "a", **GREEDY}
    client.infer(PROMPT, "tiny", **asked)
    client.unload("tiny")
    assert client.infer(PROMPT + " and", "tiny", **asked).usage.cached_tokens > 16
    assert client.infer(PROMPT + " and", "tiny", session="a", **GREEDY).usage.cached_tokens == 0


def test_show_and_plan_tell_of_them(client: Client, daemon: DaemonProcess) -> None:
    rows = client.show("tiny").adapters
    assert [row.name for row in rows] == ["polite", "rude"]
    sizes = [Path(row.path).stat().st_size for row in rows]
    assert [row.size_bytes for row in rows] == sizes
    with_them, without = client.plan("tiny"), client.plan("plain")
    (part,) = [part.size_bytes for part in with_them.parts if part.part == "adapters"]
    assert (
        sum(sizes)
        < part
        == sum(one.size_bytes for one in with_them.parts) - sum(one.size_bytes for one in without.parts)
    )
    assert client.show("plain").adapters == []
    assert {entry["adapter"] for entry in daemon.log("adapter.unavailable")} == {"polite"}


@pytest.mark.parametrize(
    ("model", "adapters", "why"),
    [
        ("tiny", {"kind": 1.0}, "cannot use the adapter kind with tiny: it has polite, rude"),
        ("tiny", {"polite": 1.0, "kind": 0.0}, "cannot use the adapter kind with tiny"),
        ("plain", {"polite": 1.0}, "cannot use the adapter polite with plain: it has none"),
        ("other", {"polite": 1.0}, "cannot use the adapter polite with other: it has none"),
        ("tiny", {"polite": 10.5}, "<= 10"),
        ("tiny", {"polite": float("nan")}, ">= -10"),
        ("tiny", {f"a{number}": 1.0 for number in range(5)}, "<= 4"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    client: Client, model: str, adapters: dict[str, float], why: str
) -> None:
    for ask in ways(client):
        with pytest.raises(H2qError, match=why) as raised:
            ask(PROMPT, model, adapters=adapters)
        assert raised.value.code == "invalid_request"


def test_an_adapter_is_named_once(client: Client) -> None:
    twice = [AdapterUse("polite"), AdapterUse("polite", 0.5)]
    for ask in ways(client):
        with pytest.raises(H2qError, match="twice"):
            ask(PROMPT, "tiny", adapters=twice)


@pytest.mark.parametrize(("model", "code"), [("broken", "invalid_model_file"), ("lost", "file_not_found")])
def test_a_file_that_does_not_fit_costs_its_model_only(client: Client, model: str, code: str) -> None:
    with pytest.raises(H2qError, match="the adapter") as raised:
        client.load(model)
    assert raised.value.code == code
    assert client.infer(PROMPT, "tiny", **GREEDY).usage.completion_tokens == 8


def test_only_a_model_that_has_them_takes_the_place_of_another(client: Client) -> None:
    assert client.infer(PROMPT, "broken", **GREEDY).model == "tiny"
    assert client.score(PROMPT, "broken").model == "tiny"
    for ask in ways(client):
        with pytest.raises(H2qError, match="broken"):
            ask(PROMPT, "broken", adapters={"broken": 1.0})
