"""What goes wrong between a worker and a server, each alone: one public code, no task, no connection left behind."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from h2qd.wire.workers import Generated, GenerationFailed, Text
from h2qd.worker.engine import EngineError
from tests.harness import await_true
from tests.peers.certificates import Certificates
from tests.peers.desk import Desk, chat, prompt
from tests.peers.http_server import Handler, Request, Response
from tests.peers.ollama_server import Model, OllamaServer
from tests.peers.openai_server import OpenAIServer

Server: TypeAlias = OllamaServer | OpenAIServer
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
MIB = 1024 * 1024


@pytest.fixture(params=["ollama", "openai"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str) -> Iterator[Server]:
    with OllamaServer(Model("small:latest")) if kind == "ollama" else OpenAIServer() as peer:
        yield peer


@pytest.fixture
def desk(server: Server) -> Iterator[Desk]:
    with Desk() as at:
        yield at
    assert server.wait_connections(0)


def left_clean(desk: Desk) -> bool:
    """No request's task, and no connection but idle ones."""

    async def look(_: object) -> tuple[int, int]:
        await asyncio.gather(*desk.engine._tasks.values())  # what said its last word may still be closing
        return desk.engine._speaker.server.transport.connections

    there, idle = desk.engine._talk.run(look, lambda _: None)
    return there == idle


# --- before the first word -------------------------------------------------------------------------------


def status(code: int, body: object = "", **headers: str) -> Handler:
    async def answer(_: Request, response: Response) -> None:
        await response.whole(code, body, **{name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def raw(data: bytes) -> Handler:
    async def answer(_: Request, response: Response) -> None:
        await response.raw(data)

    return answer


async def reset(_: Request, response: Response) -> None:
    response.reset()


async def close(_: Request, response: Response) -> None:
    """Closed without a word."""


async def silent(_: Request, response: Response) -> None:
    await response.silence()


async def dripping_head(_: Request, response: Response) -> None:
    await response.raw(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await response.raw(b"a")
        await asyncio.sleep(0.02)


async def endless_head(_: Request, response: Response) -> None:
    await response.raw(b"HTTP/1.1 200 OK\r\n")
    for n in range(10_000):
        await response.raw(b"X-%d: %s\r\n" % (n, b"a" * 1000))


async def endless_early_hints(_: Request, response: Response) -> None:
    while True:
        await response.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


FIRST = {
    "reset": (reset, "remote_unreachable"),
    "closed": (close, "remote_unreachable"),
    "silent": (silent, "remote_unreachable"),
    "dripping head": (dripping_head, "remote_unreachable"),
    "early hints": (endless_early_hints, "remote_unreachable"),
    "endless head": (endless_head, "remote_failed"),
    "no http": (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "remote_failed"),
    "401": (status(401, {"error": "no"}), "remote_failed"),
    "403": (status(403, {"error": {"message": "no"}}), "remote_failed"),
    "404": (status(404, {"error": "no"}), "remote_failed"),
    "408": (status(408, {"error": "slow"}), "generation_failed"),
    "429": (status(429, {"error": "enough"}, Retry_After="0"), "queue_full"),
    "500": (status(500, {"error": "broken"}), "generation_failed"),
    "503": (status(503, b"<html>busy</html>"), "queue_full"),
    "elsewhere": (status(307, b"", Location="http://127.0.0.1:1/steal"), "remote_failed"),
    "compressed": (status(200, b"\x1f\x8b", Content_Encoding="gzip"), "remote_failed"),
    "deep": (status(500, b"[" * 60_000), "generation_failed"),
}


@pytest.mark.parametrize("fault", FIRST)
def test_before_the_first_word(server: Server, kind: str, desk: Desk, fault: str) -> None:
    handler, code = FIRST[fault]
    desk.load(kind, server.url, read_s=0.4)
    server.fail(PATHS[kind], handler, 10)
    failed = desk.fails(chat())
    assert failed.code == code, failed
    assert failed.message.isprintable()
    assert left_clean(desk)
    server.faults.clear()
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 ", "the next request is none the worse"


@pytest.mark.parametrize("fault", ["reset", "closed", "429", "503"])
def test_what_passes_is_tried_again(server: Server, kind: str, desk: Desk, fault: str) -> None:
    desk.load(kind, server.url)
    server.fail(PATHS[kind], FIRST[fault][0], 2)
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "
    assert len(server.asked(PATHS[kind])) == 3


@pytest.mark.parametrize("fault", ["401", "404", "500", "silent", "elsewhere"])
def test_what_does_not_pass_is_not(server: Server, kind: str, desk: Desk, fault: str) -> None:
    desk.load(kind, server.url, read_s=0.3)
    server.fail(PATHS[kind], FIRST[fault][0], 2)
    desk.fails(chat())
    assert len(server.asked(PATHS[kind])) == 1


def test_a_server_that_stays_down_is_not_worn_out_by_retries(server: Server, kind: str, desk: Desk) -> None:
    desk.load(kind, server.url)
    server.fail(PATHS[kind], FIRST["closed"][0], 1000)
    for _ in range(20):
        desk.fails(chat())
    assert len(server.asked(PATHS[kind])) <= 20 + 4 + 2


def test_a_server_that_wants_to_be_left_alone_for_long_is(server: Server, kind: str, desk: Desk) -> None:
    desk.load(kind, server.url)
    server.fail(PATHS[kind], status(429, {"error": "enough"}, Retry_After="3600"))
    assert desk.fails(chat()).code == "queue_full"
    failed = desk.fails(chat(2))
    assert (failed.code, "it may be asked again in 3" in failed.message) == ("queue_full", True)
    assert len(server.asked(PATHS[kind])) == 1


# --- in the middle of an answer --------------------------------------------------------------------------


async def mid_reset(_: dict[str, Any], response: Response) -> None:
    await asyncio.sleep(0.05)
    response.reset()


async def mid_close(_: dict[str, Any], response: Response) -> None:
    """Closed without the last chunk."""


async def mid_end(_: dict[str, Any], response: Response) -> None:
    await response.end()


async def mid_silence(_: dict[str, Any], response: Response) -> None:
    await response.silence()


async def mid_drip(_: dict[str, Any], response: Response) -> None:
    await response.chunk(b'data: {"')
    while True:
        await response.chunk(b"a")
        await asyncio.sleep(0.02)


async def mid_nothing(_: dict[str, Any], response: Response) -> None:
    while True:
        await response.chunk(b"\n")
        await asyncio.sleep(0.02)


async def mid_garbage(_: dict[str, Any], response: Response) -> None:
    await response.chunk(b"data: {]\n\ndata: {]\n\n")


async def mid_long(_: dict[str, Any], response: Response) -> None:
    await response.chunk(b"data: ")
    for _n in range(1024):  # a gigabyte, for who takes it
        await response.chunk(b"a" * MIB)


async def mid_flood(body: dict[str, Any], response: Response) -> None:
    word = b"a" * 100_000
    line = (
        b'{"message":{"content":"%b"}}\n'
        if "options" in body
        else b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
    )
    for _ in range(1000):
        await response.chunk(line % word)


async def mid_thoughts(body: dict[str, Any], response: Response) -> None:
    thought = b'{"message":{"thinking":"hmm"}}\n' if "options" in body else b'data: {"choices":[{"delta":{}}]}\n\n'
    while True:
        await response.chunk(thought * 100)


async def mid_error(body: dict[str, Any], response: Response) -> None:
    line = b'{"error":"out of memory"}\n' if "options" in body else b'data: {"error":{"message":"out of memory"}}\n\n'
    await response.chunk(line)
    await response.end()


async def mid_bad_chunk(_: dict[str, Any], response: Response) -> None:
    await response.raw(b"zz\r\n")


MIDWAY = {
    "reset": (mid_reset, "remote_unreachable"),
    "closed": (mid_close, "remote_unreachable"),
    "ended": (mid_end, "remote_unreachable"),
    "silence": (mid_silence, "remote_unreachable"),
    "drip": (mid_drip, "remote_unreachable"),
    "nothing": (mid_nothing, "remote_unreachable"),
    "garbage": (mid_garbage, "remote_failed"),
    "a gigabyte": (mid_long, "remote_failed"),
    "flood": (mid_flood, "remote_failed"),
    "thoughts": (mid_thoughts, "remote_failed"),
    "bad chunk": (mid_bad_chunk, "remote_failed"),
    "error": (mid_error, "generation_failed"),
}


@pytest.mark.parametrize("fault", MIDWAY)
def test_in_the_middle(server: Server, kind: str, desk: Desk, fault: str) -> None:
    handler, code = MIDWAY[fault]
    desk.load(kind, server.url, read_s=0.5)
    server.midway = (2, handler)
    said = desk.run(chat())[1]
    failed = said[-1]
    assert isinstance(failed, GenerationFailed)
    assert failed.code == code, failed
    text = "".join(message.text for message in said if isinstance(message, Text))
    assert text.startswith("tok0 tok1 ")
    assert len(server.asked(PATHS[kind])) == 1, "what was begun is not begun again"
    assert left_clean(desk)
    server.midway = None
    assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "


def test_a_depth_that_no_answer_has(server: Server, kind: str, desk: Desk) -> None:
    async def deep(_: dict[str, Any], response: Response) -> None:
        nested = b'{"x":' * 50_000
        await response.chunk(nested + b"\n" if kind == "ollama" else b"data: " + nested + b"\n\n")

    desk.load(kind, server.url)
    server.midway = (2, deep)
    assert desk.fails(chat()).code == "remote_failed"


def test_the_others_go_on(server: Server, kind: str, desk: Desk) -> None:
    desk.load(kind, server.url, read_s=0.5)
    server.fail(PATHS[kind], silent)
    server.word_s = 0.02
    said = desk.run(chat(1), chat(2), chat(3))
    ends = [messages[-1] for messages in said.values()]
    assert sum(isinstance(end, Generated) for end in ends) == 2
    assert sum(isinstance(end, GenerationFailed) and end.code == "remote_unreachable" for end in ends) == 1


def test_answers_in_turn_share_a_connection(server: Server, kind: str, desk: Desk) -> None:
    desk.load(kind, server.url)
    before = server.accepted
    for request in range(5):
        desk.ask(chat(request))
    assert server.accepted <= before + 1


def test_a_load_that_fails_after_the_server_did_it_leaves_nothing_there() -> None:
    with OllamaServer(Model("small:latest")) as server, Desk() as desk:
        server.fail("/api/ps", status(500, {"error": "broken"}))
        with pytest.raises(EngineError, match="broken"):
            desk.load("ollama", server.url, shares_memory="true")
        assert server.loads == 1
        assert server.wait_asked("/api/generate", 2), "it is told to unload"
        await_true(lambda: server.loaded == {}, "it unloads")


# --- no connection ---------------------------------------------------------------------------------------


def test_nobody_listens(kind: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with Desk() as desk, pytest.raises(EngineError, match="Connection refused") as caught:
            desk.load(kind, url)
        assert caught.value.code == "remote_unreachable"


def test_nobody_accepts(kind: str) -> None:
    with socket.socket() as sock, socket.socket() as first, socket.socket() as second:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        with Desk() as desk, pytest.raises(EngineError) as caught:
            desk.load(kind, f"http://127.0.0.1:{sock.getsockname()[1]}", connect_s=0.2, read_s=0.3)
        assert caught.value.code == "remote_unreachable"


def test_a_name_that_does_not_resolve(kind: str) -> None:
    with Desk() as desk, pytest.raises(EngineError, match=r"cannot connect to nowhere\.invalid:80") as caught:
        desk.load(kind, "http://nowhere.invalid")
    assert caught.value.code == "remote_unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
    ],
)
def test_addresses_of_metadata_services(kind: str, url: str) -> None:
    with Desk() as desk, pytest.raises(EngineError, match="link-local or a metadata service's") as caught:
        desk.load(kind, url)
    assert caught.value.code == "load_failed"


def test_a_name_that_turns_into_a_metadata_service(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with Desk() as desk, pytest.raises(EngineError, match="link-local or a metadata service's") as caught:
        desk.load(kind, "http://models.example")
    assert caught.value.code == "remote_failed"


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://user:pw@host", "http://host/?q", "http://ho st", "http://host:99999"]
)
def test_urls_that_are_none(kind: str, url: str) -> None:
    with Desk() as desk, pytest.raises(EngineError, match="cannot use the server's url") as caught:
        desk.load(kind, url)
    assert caught.value.code == "load_failed"
    assert "pw" not in caught.value.message


# --- TLS and proxies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_by_an_authority_of_ones_own(certificates: Certificates) -> None:
    with OpenAIServer(tls=certificates.context()) as server, Desk() as desk:
        desk.load("openai", server.url, ca_file=certificates.ca)
        assert desk.ask(chat())[0] == "tok0 tok1 tok2 tok3 "


def test_a_certificate_of_a_stranger(certificates: Certificates) -> None:
    with OpenAIServer(tls=certificates.context()) as server, Desk() as desk:
        with pytest.raises(EngineError, match=r"cannot trust 127\.0\.0\.1") as caught:
            desk.load("openai", server.url)
        assert caught.value.code == "remote_failed"
        assert server.requests == []


def test_a_certificate_of_another_name(certificates: Certificates) -> None:
    with OpenAIServer(tls=certificates.context()) as server, Desk() as desk:
        with pytest.raises(EngineError, match="cannot trust localhost") as caught:
            desk.load("openai", server.url.replace("127.0.0.1", "localhost"), ca_file=certificates.ca)
        assert caught.value.code == "remote_failed"


def test_a_stranger_may_be_trusted_on_request(certificates: Certificates) -> None:
    with OpenAIServer(tls=certificates.context()) as server, Desk() as desk:
        desk.load("openai", server.url, verify=False)
        assert desk.ask(prompt())[0] == "tok0 tok1 tok2 tok3 "


def test_a_client_certificate(certificates: Certificates) -> None:
    with OpenAIServer(tls=certificates.context(ask_client=True)) as server:
        with Desk() as desk:
            desk.load(
                "openai",
                server.url,
                ca_file=certificates.ca,
                client_cert=certificates.cert,
                client_key=certificates.key,
            )
        with Desk() as desk, pytest.raises(EngineError):
            desk.load("openai", server.url, ca_file=certificates.ca)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for field in ("ca_file", "client_cert"):
        for path in (nothing, tmp_path / "absent"):
            with Desk() as desk, pytest.raises(EngineError, match=f"cannot use the server's {field}") as caught:
                desk.load("openai", "https://127.0.0.1:1", "small", ctx=64, **dict.fromkeys([field], str(path)))
            assert caught.value.code == "load_failed"


def test_plain_http_where_tls_is_expected() -> None:
    with OpenAIServer() as server, Desk() as desk, pytest.raises(EngineError, match="cannot speak TLS") as caught:
        desk.load("openai", server.url.replace("http:", "https:"))
    assert caught.value.code == "remote_failed"


def test_a_proxy_is_asked_and_its_password_kept() -> None:
    password = "hunter2hunter2"  # noqa: S105 - of nobody
    with OpenAIServer() as proxy, Desk() as desk:

        async def forward(request: Request, response: Response) -> None:
            assert request.headers["proxy-authorization"].startswith("Basic ")
            await response.whole(200, {"data": [{"id": "small"}]})

        proxy.fail("http://models.example:80/v1/models", forward)
        desk.load("openai", "http://models.example/v1", proxy=f"http://user:{password}@127.0.0.1:{proxy.port}")
        assert password not in desk.fails(chat()).message
        assert not desk.engine._speaker.server.transport.is_this_device


def test_a_proxy_that_is_asked_for_tls_and_does_not_give_it() -> None:
    async def refuse(_: Request, response: Response) -> None:
        await response.whole(403, b"")

    with OpenAIServer() as proxy, Desk() as desk:
        proxy.fail("models.example:443", refuse, 10)
        with pytest.raises(EngineError, match=r"the proxy did not connect to models\.example:443") as caught:
            desk.load("openai", "https://models.example/v1", proxy=f"http://127.0.0.1:{proxy.port}")
        assert caught.value.code == "remote_unreachable"
