import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from h2qctl import AsyncClient, Client, H2qError
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE
from tests.integration.scripted_daemon import LOGPROBS, NOTICES, SAMPLES, ScriptedDaemon, answer, held, scripted


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


def using(daemon: ScriptedDaemon, work: Callable[[AsyncClient], Awaitable[None]], silence_s: float = 5) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.path, silence_s=silence_s) as client:
            await work(client)

    asyncio.run(main())


async def code_of(call: Awaitable[object]) -> str:
    with pytest.raises(H2qError) as error:
        await call
    return error.value.code


def test_both_clients_offer_the_same() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            theirs = inspect.signature(getattr(AsyncClient, name)).parameters.values()
            ours = inspect.signature(method).parameters.values()
            assert [(one.name, one.kind, one.default) for one in theirs] == [
                (one.name, one.kind, one.default) for one in ours
            ], name
    public = [{name for name in vars(one) if not name.startswith("_")} for one in (Client, AsyncClient)]
    assert public[0] == public[1]


def test_every_operation_is_reached(daemon: ScriptedDaemon) -> None:
    async def work(client: AsyncClient) -> None:
        answers = await asyncio.gather(
            client.hello(), client.status(), client.version(), client.config(), client.doctor(), client.ps(),
            client.models(), client.show("a"), client.explain("a"), client.plan("a"), client.import_model("a"),
            client.remove("a"), client.pull("r/a"), client.load("a"), client.unload(), client.switch("a"),
            client.infer("p"), client.chat([m.ChatMessage("user", "hi")]), client.cancel("r7"),
            client.top(), client.pin("a"), client.unpin("a"), client.embed("a"), client.score("a"),
            client.swarm("p", ["a"]),
            client.tokenize("a"), client.detokenize([1]), client.sessions(), client.remove_session("trip"),
        )  # fmt: skip
        assert {type(one) for one in answers} <= set(SAMPLES)
        stream = client.stream("p", window=2)
        assert [piece async for piece in stream] == ["a ", "b ", "c"]
        assert stream.answer == answer("a b c")
        chat = await client.chat([{"role": "user", "content": "hi"}], stream=True)
        assert [piece async for piece in chat] == ["a ", "b ", "c"]
        watch = client.events(0, follow=False)
        assert [notice async for notice in watch] == NOTICES
        assert watch.end == m.EventsEnd(3)

    using(daemon, work)
    assert {asked.op for asked in daemon.log} == set(CATALOGUE)


def test_a_stream_collects_how_likely_its_tokens_were(daemon: ScriptedDaemon) -> None:
    pieces = [m.Delta(LOGPROBS[0].text, 1, LOGPROBS[:1])]
    end = structs.replace(answer(LOGPROBS[1].text), logprobs=LOGPROBS[1:])
    daemon.on["infer.text"] = lambda asked: asked.stream(pieces, end)

    async def work(client: AsyncClient) -> None:
        stream = client.stream("p", logprobs=2)
        assert [piece async for piece in stream] == ["Once", " upon"]
        assert stream.answer is not None
        assert stream.answer.logprobs == stream.logprobs == LOGPROBS

    using(daemon, work)


def test_a_stream_keeps_what_was_thought_apart(daemon: ScriptedDaemon) -> None:
    pieces = [m.Delta("", 1, thinking="let me "), m.Delta("Y", 1, thinking="see"), m.Delta("e", 1)]
    end = structs.replace(answer("s"), thinking="!")
    daemon.on["infer.text"] = lambda asked: asked.stream(pieces, end)

    async def work(client: AsyncClient) -> None:
        stream = client.stream("p")
        assert [piece async for piece in stream] == ["Y", "e", "s"]
        assert stream.answer is not None
        assert (stream.answer.text, stream.answer.thinking) == ("Yes", "let me see!")
        again = client.stream("p")
        assert [(delta.text, delta.thinking) async for delta in again.deltas()] == [
            ("", "let me "),
            ("Y", "see"),
            ("e", ""),
            ("s", "!"),
        ]

    using(daemon, work)


def test_two_hundred_requests_share_one_connection(daemon: ScriptedDaemon) -> None:
    daemon.on["model.show"] = lambda asked: asked.error("no_such_model", asked.body.model)

    async def one(client: AsyncClient, number: int) -> bool:
        with pytest.raises(H2qError) as error:
            await client.show(f"m{number}")
        return error.value.message == f"m{number}"

    async def work(client: AsyncClient) -> None:
        assert all(await asyncio.gather(*(one(client, number) for number in range(200))))

    using(daemon, work)
    assert len({asked.key[0] for asked in daemon.log}) == 1


def test_a_stream_is_never_more_than_its_window_ahead(daemon: ScriptedDaemon) -> None:
    daemon.on["infer.text"] = lambda asked: asked.stream(iter(lambda: m.Delta("x", 1), None), answer(""))

    async def work(client: AsyncClient) -> None:
        async with client.stream("p", window=8) as stream:
            for taken in range(1, 51):
                assert await anext(stream) == "x"
                assert next(one for one in daemon.log if one.op == "infer.text").sent <= taken + 8

    using(daemon, work)
    daemon.heard("request.cancel")
    assert not daemon.streams


def test_a_task_that_is_cancelled_cancels_its_request(daemon: ScriptedDaemon) -> None:
    daemon.on["model.load"] = held(daemon)

    async def work(client: AsyncClient) -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(client.load("gemma3", on_progress=lambda _: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.ps() == SAMPLES[m.Ps]

    using(daemon, work)
    assert daemon.heard("request.cancel").body == m.Cancel(id=daemon.heard("model.load").id)


def test_closing_ends_what_waits(daemon: ScriptedDaemon) -> None:
    daemon.on["model.load"] = held(daemon)

    async def main() -> str:
        client = AsyncClient(daemon.path)
        begun = asyncio.Event()
        task = asyncio.create_task(code_of(client.load("gemma3", on_progress=lambda _: begun.set())))
        await begun.wait()
        await client.close()
        assert await code_of(client.ps()) == "unreachable"
        return await task

    assert asyncio.run(main()) == "cancelled"


def test_silence_and_deadlines_end_a_request(daemon: ScriptedDaemon) -> None:
    daemon.on["model.ps"] = lambda _: None
    daemon.on["model.load"] = held(daemon)

    async def work(client: AsyncClient) -> None:
        assert await code_of(client.ps()) == "unreachable"
        assert await code_of(client.load("gemma3")) == "timeout"

    using(daemon, work, silence_s=0.2)
    assert daemon.heard("model.load").envelope.deadline_ms is None

    async def hurried(client: AsyncClient) -> None:
        assert await code_of(client.load("gemma3", timeout=0.1)) == "timeout"

    using(daemon, hurried)
    assert daemon.heard("model.load").envelope.deadline_ms == 100


def test_a_daemon_that_dies_is_noticed_and_its_successor_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted(tmp_path) as daemon:
            daemon.on["model.load"] = held(daemon)
            async with AsyncClient(daemon.path) as client:
                threading.Timer(0.1, daemon.stop).start()
                codes = await asyncio.gather(*(code_of(client.load("gemma3")) for _ in range(3)))
                assert codes == ["unreachable"] * 3
                assert await code_of(client.ps()) == "unreachable"
                with scripted(tmp_path):
                    assert await client.ps() == SAMPLES[m.Ps]

    asyncio.run(main())


def test_garbage_is_an_error_like_any_other(daemon: ScriptedDaemon) -> None:
    daemon.on["model.ps"] = lambda asked: asked.raw(b"\xc1", b"\xc1")

    async def work(client: AsyncClient) -> None:
        assert await code_of(client.ps()) == "malformed"
        assert await client.status() == SAMPLES[m.Status]

    using(daemon, work)
