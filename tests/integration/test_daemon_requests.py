"""What clients may ask, end to end: a real daemon, its real socket, the client library, scripted models."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path

import msgspec
import pytest

from h2qctl import AsyncClient, Client, H2qError
from h2qd.wire import messages as m
from h2qd.wire.frames import Kind
from h2qd.wire.limits import HEARTBEAT_MS
from tests.harness import DaemonProcess, Peer, await_true, background, code_of, running, script

MODELS: dict[str, dict[str, object]] = {
    "quick": {"tokens": 8},
    "other": {"tokens": 4, "memory_bytes": 8_000_000},
    "steady": {"tokens": 400, "token_ms": 4},
    "slow-load": {"load_ms": 2300, "tokens": 2},
    "slow-start": {"prefill_ms": 2300, "tokens": 4},
    "refuses": {"load_fail": ["load_failed", "cannot load: the script says so"]},
    "small": {"prompt_tokens": 10_000},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("daemon"), MODELS, "residency: {patience: 200ms}") as process:
        yield process


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        yield client
        client.unload(client.status().active or "quick", force=True)


def test_load_switch_infer_unload(client: Client) -> None:
    loaded = client.load("quick")
    assert (loaded.model, loaded.changed, loaded.unloaded) == ("quick", True, [])
    assert not client.load("quick").changed
    assert client.infer("a b c").usage.prompt_tokens == 3
    switched = client.switch("other")
    assert switched.was_active == "quick"
    assert [gone.model for gone in switched.unloaded] == ["quick"]
    (row,) = client.ps().models
    assert (row.name, row.state, row.active) == ("other", "ready", True)
    assert row.size_bytes is not None
    assert row.size_bytes > 8_000_000
    unloaded = client.unload()
    assert unloaded.released is not None
    assert unloaded.released.freed_bytes > 8_000_000
    assert client.ps().models == []
    assert not client.unload("other").changed


def test_an_unnamed_request_means_the_active_model(client: Client) -> None:
    assert code_of(background(lambda: client.infer("x"))) == "no_active_model"
    client.load("quick")
    assert client.infer("x").model == "quick"
    assert client.infer("x", "other").model == "other"
    assert client.infer("x").model == "other"


def test_a_stream_is_the_answer_in_pieces(client: Client) -> None:
    stream = client.stream("x", "quick")
    pieces = list(stream)
    assert len(pieces) == 8
    assert stream.answer is not None
    assert stream.answer.text == "".join(pieces) == "".join(f"tok{n} " for n in range(8))
    assert client.infer("x", max_tokens=3).finish == "length"


def test_refusals_have_their_codes(client: Client, tmp_path: Path) -> None:
    client.load("quick")
    asks: dict[str, Callable[[], object]] = {
        "no_such_model": lambda: client.load("none"),
        "load_failed": lambda: client.load("refuses"),
        "context_overflow": lambda: client.infer("x", "small"),
        "file_not_found": lambda: client.import_model(tmp_path / "none.gguf"),
        "invalid_model_file": lambda: client.import_model(Path(__file__), "me"),
        "name_taken": lambda: client.import_model(script(tmp_path, "quick"), "quick"),
        "invalid_name": lambda: client.import_model("/dev/null", "../up"),
        "in_use": lambda: client.remove("small"),
        "no_such_request": lambda: client.cancel("r999999"),
        "invalid_request": lambda: client.infer("x", temperature=-1),
    }
    for code, ask in asks.items():
        with pytest.raises(H2qError) as raised:
            ask()
        assert raised.value.code == code


def test_a_failed_switch_brings_the_old_model_back_and_says_so(client: Client) -> None:
    client.load("quick")
    with pytest.raises(H2qError) as raised:
        client.switch("refuses")
    assert raised.value.code == "load_failed"
    assert any("quick is resident again" in because for because in raised.value.because)
    assert client.status().active == "quick"
    assert client.infer("x").model == "quick"


def test_loads_of_one_model_are_joined(daemon: DaemonProcess, client: Client) -> None:
    loads = [background(lambda: daemon.client().load("slow-load")) for _ in range(6)]
    infers = [background(lambda: daemon.client().infer("x", "slow-load")) for _ in range(3)]
    assert all(load.result(20).changed for load in loads)
    assert all(infer.result(20).finish == "stop" for infer in infers)
    story = client.explain("slow-load").story
    assert [line.now for line in story] == ["loading", "ready"]


def test_progress_comes_each_second_with_phase_and_fraction(client: Client) -> None:
    def watched(model: str, phase: str) -> None:
        told: list[tuple[float, m.Progress]] = []
        began = time.monotonic()
        client.infer("x " * 40, model, on_progress=lambda progress: told.append((time.monotonic(), progress)))
        moments = [began, *(at for at, _ in told), time.monotonic()]
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        assert max(gaps) < HEARTBEAT_MS / 1000 + 0.35, gaps
        fractions = [p.fraction for _, p in told if p.phase == phase and p.fraction is not None]
        assert len(fractions) >= 2
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] < 1
        assert 0 < fractions[-1] <= 1
        assert {p.model for _, p in told if p.phase not in ("draining", "unloading")} == {model}

    watched("slow-load", "loading")
    watched("slow-start", "prefill")


def test_a_queued_request_hears_its_place(daemon: DaemonProcess, client: Client) -> None:
    first = background(lambda: daemon.client().infer("x", "steady", max_tokens=150))
    await_true(lambda: client.status().running == 1, "the first runs")
    told: list[m.Progress] = []
    second = background(lambda: daemon.client().infer("x", "steady", max_tokens=1, on_progress=told.append))
    await_true(lambda: client.status().waiting == 1, "the second waits")
    third: list[m.Progress] = []
    last = background(lambda: daemon.client().infer("x", "steady", max_tokens=1, on_progress=third.append))
    for request in (first, second, last):
        assert request.result(20).finish == "length"
    assert (told[0].phase, told[0].position) == ("queued", 1)
    places = [p.position for p in third if p.phase == "queued"]
    assert [place for place, _ in groupby(places)] == [2, 1]  # signs of life repeat a place


def test_a_slow_reader_stops_its_chunks_and_slows_nothing(daemon: DaemonProcess, client: Client) -> None:
    with Peer(daemon.socket) as peer:
        asked = peer.ask("infer.text", m.Infer(prompt="x", model="steady", max_tokens=200, stream=True, window=1))
        chunks: list[m.Delta] = []
        while True:
            response, body = peer.receive()
            if response.kind is Kind.CHUNK:
                chunks.append(msgspec.msgpack.decode(body, type=m.Delta))
            elif response.kind is Kind.REPLY:
                break
        assert response.id == asked
        answer = msgspec.msgpack.decode(body, type=m.Answer)
        assert len(chunks) == 1
        assert chunks[0].text + answer.text == "".join(f"tok{n} " for n in range(200))
        assert answer.usage.completion_tokens == 200
        assert answer.timings.decode_ms < 200 * 4 * 1.5
        # Credit that comes in the middle lets out what waited, as one chunk.
        asked = peer.ask("infer.text", m.Infer(prompt="x", model="steady", max_tokens=200, stream=True, window=1))
        await_true(lambda: any(row.tokens > 20 for row in client.ps().requests), "some tokens wait")
        peer.ask("stream.credit", m.Credit(asked, 1))
        tokens = []
        while (said := peer.receive())[0].kind is not Kind.REPLY:
            if said[0].kind is Kind.CHUNK:
                tokens.append(msgspec.msgpack.decode(said[1], type=m.Delta).tokens)
        assert len(tokens) == 2
        assert tokens[0] < 3
        assert tokens[1] > 15


def test_cancel_ends_a_request_wherever_it_is(daemon: DaemonProcess, client: Client) -> None:
    with Peer(daemon.socket) as peer:
        first = peer.ask("infer.text", m.Infer(prompt="x", model="steady"))
        await_true(lambda: client.status().running == 1, "the first runs")
        second = peer.ask("infer.text", m.Infer(prompt="x", model="steady"))
        load = peer.ask("model.load", m.Load("other"))
        await_true(lambda: client.status().waiting == 2, "two wait")
        names = [row.request for row in client.ps().requests]
        assert len(names) == 3
        for asked in (second, load, first):
            cancel = peer.ask("request.cancel", m.Cancel(id=asked))
            ends = dict([_ended(peer), _ended(peer)])
            assert ends == {cancel: "ok", asked: "cancelled"}
        await_true(lambda: client.status().running == 0, "the slot is free")
        assert client.status().active == "steady"
        # Cancelled in the load, too, and before an import has begun.
        load = peer.ask("model.load", m.Load("slow-load"))
        await_true(lambda: (switch := client.status().switch) is not None and switch.phase == "load", "it loads")
        peer.ask("request.cancel", m.Cancel(id=load))
        assert dict([_ended(peer), _ended(peer)])[load] == "cancelled"
        file = peer.ask("model.import", m.Import("/dev/zero", "zero"))
        peer.ask("request.cancel", m.Cancel(id=file))
        assert dict([_ended(peer), _ended(peer)])[file] in ("cancelled", "invalid_model_file")
        await_true(lambda: client.ps().models == [], "the given up load is gone")


def _ended(peer: Peer) -> tuple[int, str]:
    while True:
        response, body = peer.receive()
        if response.kind is Kind.REPLY:
            return response.id, "ok"
        if response.kind is Kind.ERROR:
            return response.id, msgspec.msgpack.decode(body, type=m.ErrorReply).code


def test_deadlines_end_requests_in_the_queue_the_load_and_the_answer(daemon: DaemonProcess, client: Client) -> None:
    with Peer(daemon.socket) as peer:
        began = time.monotonic()
        runs = peer.ask("infer.text", m.Infer(prompt="x", model="steady"), deadline_ms=600)
        waits = peer.ask("infer.text", m.Infer(prompt="x", model="steady"), deadline_ms=300)
        assert dict([_ended(peer), _ended(peer)]) == {runs: "deadline_exceeded", waits: "deadline_exceeded"}
        assert 0.55 < time.monotonic() - began < 1.5
        loads = peer.ask("model.load", m.Load("slow-load"), deadline_ms=200)
        assert _ended(peer) == (loads, "deadline_exceeded")
        await_true(lambda: client.status().switch is None, "nothing loads on")


def test_events_are_followed_replayed_and_counted(daemon: DaemonProcess, client: Client) -> None:
    client.load("quick")
    past = list(client.events(follow=False))
    assert [notice.seq for notice in past] == list(range(past[0].seq, past[0].seq + len(past)))
    last = past[-1].seq
    with daemon.client().events(since=last - 2) as watch:
        assert [next(watch).seq, next(watch).seq] == [last - 1, last]
        client.unload("quick")
        moved = [next(watch), next(watch)]
        assert [notice.data["now"] for notice in moved if notice.event == "model.moved"] == ["draining", "unloading"]
    assert client.ps().requests == []
    # A reader without credit misses what does not fit, and is told how much that was.
    with Peer(daemon.socket) as peer:
        watching = peer.ask("events.watch", m.Events(follow=True))
        await_true(lambda: len(client.ps().requests) == 0, "a watcher is no request")
        began = list(client.events(follow=False))[-1].seq
        while list(client.events(follow=False))[-1].seq < began + 64 + 512 + 40:
            client.load("quick")
            client.unload("quick")
        heard = [_notice(peer) for _ in range(64)]
        assert [notice.seq for notice in heard] == list(range(began + 1, began + 65))
        assert not any(notice.missed for notice in heard)
        peer.ask("stream.credit", m.Credit(watching, 2))
        after = _notice(peer)
        assert after.missed >= 40
        assert after.seq == heard[-1].seq + 1 + after.missed
        assert _notice(peer).missed == 0


def _notice(peer: Peer) -> m.Notice:
    while True:
        response, body = peer.receive()
        if response.kind is Kind.CHUNK:
            return msgspec.msgpack.decode(body, type=m.Notice)


def test_fifty_requests_on_one_connection(daemon: DaemonProcess, client: Client) -> None:
    client.load("quick")

    async def all_of_them() -> None:
        async with AsyncClient(str(daemon.socket)) as many:
            infers = [many.infer(f"x {n}", max_tokens=1 + n % 8) for n in range(50)]
            looks = [many.status() for _ in range(50)]
            answers = await asyncio.gather(*infers, *looks)
            for number, answer in enumerate(answers[:50]):
                assert isinstance(answer, m.Answer)
                assert answer.usage.completion_tokens == 1 + number % 8
            texts = []
            async for piece in many.stream("x"):
                texts.append(piece)  # noqa: PERF401 - an answer without a comprehension reads as it comes
            assert len(texts) == 8

    asyncio.run(all_of_them())


def test_one_client_may_not_have_too_many_requests(daemon: DaemonProcess, client: Client) -> None:
    client.load("steady")
    with Peer(daemon.socket) as peer:
        watches = [peer.ask("events.watch", m.Events(follow=True)) for _ in range(256)]
        over = peer.ask("daemon.status")
        assert _ended(peer) == (over, "too_many_requests")
        assert client.status().phase == "serving"
        peer.ask("request.cancel", m.Cancel(id=watches[0]))
        assert _ended(peer)[1] == "too_many_requests"


def test_a_full_queue_refuses_and_an_unload_still_gets_through(daemon: DaemonProcess, client: Client) -> None:
    with Peer(daemon.socket) as peer:
        asked = [peer.ask("infer.text", m.Infer(prompt="x", model="steady")) for _ in range(70)]
        assert [_ended(peer) for _ in range(6)] == [(number, "queue_full") for number in asked[64:]]
        await_true(lambda: client.status().running == 1, "the first runs")
        assert client.unload("steady", force=True).changed
        assert _ended(peer) == (asked[0], "unloaded")
        await_true(lambda: client.status().running == 1, "the next one had the model loaded again")
