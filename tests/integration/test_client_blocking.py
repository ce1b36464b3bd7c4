import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from h2qctl import Client, H2qError, address
from h2qd.wire import messages as m
from h2qd.wire.catalogue import CATALOGUE
from h2qd.wire.frames import Kind, response_frames
from tests.integration.scripted_daemon import (
    LOGPROBS,
    NOTICES,
    RESIDENCY,
    SAMPLES,
    WAIT_S,
    Asked,
    ScriptedDaemon,
    answer,
    held,
    scripted,
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with scripted(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[Client]:
    with Client(daemon.path) as client:
        yield client


CALLS: dict[str, Callable[[Client], object]] = {
    "hello": lambda c: c.hello("test"),
    "status": lambda c: c.status(),
    "version": lambda c: c.version(),
    "config": lambda c: c.config(),
    "doctor": lambda c: c.doctor(),
    "ps": lambda c: c.ps(),
    "top": lambda c: c.top(),
    "models": lambda c: c.models(),
    "show": lambda c: c.show("gemma3"),
    "explain": lambda c: c.explain("gemma3"),
    "plan": lambda c: c.plan("gemma3", ctx=128, slots=2, kv_type="q8_0"),
    "import_model": lambda c: c.import_model("x.gguf", "gemma3"),
    "pull": lambda c: c.pull("box/Gemma3"),
    "remove": lambda c: c.remove("gemma3"),
    "load": lambda c: c.load("gemma3", ctx=4096, kv_type="q4_0", exact=True, force=True, reset=True),
    "unload": lambda c: c.unload(),
    "switch": lambda c: c.switch("gemma3"),
    "pin": lambda c: c.pin("gemma3"),
    "unpin": lambda c: c.unpin("gemma3"),
    "infer": lambda c: c.infer("p"),
    "chat": lambda c: c.chat([{"role": "user", "content": "hi"}]),
    "embed": lambda c: c.embed(["a", "b"]),
    "score": lambda c: c.score("p", context="c", window=128, logprobs=True),
    "swarm": lambda c: c.swarm("p", ["a", "b"]),
    "tokenize": lambda c: c.tokenize("p", pieces=True, special=True),
    "detokenize": lambda c: c.detokenize([1, 2]),
    "sessions": lambda c: c.sessions(),
    "remove_session": lambda c: c.remove_session("trip", "gemma3"),
    "cancel": lambda c: c.cancel("r7"),
    "stream": lambda c: list(c.stream("p", window=2)),
    "events": lambda c: list(c.events(0, follow=False)),
}


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(H2qError) as error:
        call()
    return error.value.code


def test_every_operation_is_reached_by_a_method_and_every_method_answers(
    daemon: ScriptedDaemon, client: Client
) -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert methods == set(CALLS) | {"close"}
    shapes = set(SAMPLES) | {list}
    for call in CALLS.values():
        assert type(call(client)) in shapes
    assert {asked.op for asked in daemon.log} == set(CATALOGUE)


def test_a_reply_comes_as_it_was_sent(client: Client) -> None:
    assert client.ps() == SAMPLES[m.Ps]
    assert client.load("gemma3") == RESIDENCY


def test_what_was_not_chosen_stays_off_the_wire(daemon: ScriptedDaemon, client: Client) -> None:
    client.infer("p", temperature=None, seed=None)
    assert daemon.heard("infer.text").body == m.Infer(prompt="p")
    client.infer("p", "gemma3", temperature=0, stop="END", logit_bias={5: -1.0}, max_tokens=3, timeout=2)
    asked = daemon.heard("infer.text")
    assert asked.body == m.Infer(
        prompt="p", model="gemma3", temperature=0, stop=["END"], logit_bias={"5": -1.0}, max_tokens=3
    )
    assert asked.envelope.deadline_ms == 2000


def test_what_was_chosen_arrives_in_its_field(daemon: ScriptedDaemon, client: Client) -> None:
    client.load("gemma3", ctx=4096, kv_type="q4_0", exact=True)
    assert daemon.heard("model.load").body == m.Load("gemma3", ctx=4096, kv_type="q4_0", exact=True)
    client.switch("gemma3", force=True, reset=True)
    assert daemon.heard("model.switch").body == m.Load("gemma3", force=True, reset=True)
    client.plan("gemma3", slots=4, kv_type="q8_0")
    assert daemon.heard("model.plan").body == m.PlanAsk("gemma3", slots=4, kv_type="q8_0")
    client.chat([m.ChatMessage("user", "hi")], priority="low")
    assert daemon.heard("infer.chat").body.priority == "low"
    client.infer("p", session="trip", overflow="shift", logprobs=2, speculate=False)
    assert daemon.heard("infer.text").body == m.Infer(
        prompt="p", session="trip", overflow="shift", logprobs=2, speculate=False
    )
    client.infer("p", adapters={"polite": 0.5})
    assert daemon.heard("infer.text").body == m.Infer(prompt="p", adapters=[m.AdapterUse("polite", 0.5)])
    client.infer("p", adapters=[m.AdapterUse("polite")])
    assert daemon.heard("infer.text").body == m.Infer(prompt="p", adapters=[m.AdapterUse("polite")])
    client.embed("one", normalize=False, overflow="truncate", priority="high", adapters={"polite": 0.5})
    assert daemon.heard("infer.embed").body == m.Embed(
        texts=["one"],
        normalize=False,
        overflow="truncate",
        priority="high",
        adapters=[m.AdapterUse("polite", 0.5)],
    )
    client.swarm("p", ("a", "b"), judge="c", deadline_s=0.5, stop="\n", priority="low")
    assert daemon.heard("infer.swarm").body == m.Swarm(
        models=["a", "b"], prompt="p", judge="c", method="judge", deadline_ms=500, stop=["\n"], priority="low"
    )
    client.swarm([{"role": "user", "content": "hi"}], ["a"], embedder="c", max_tokens=3)
    assert daemon.heard("infer.swarm").body == m.Swarm(
        models=["a"], messages=[m.ChatMessage("user", "hi")], embedder="c", method="medoid", max_tokens=3
    )
    client.swarm("p", ["a"], method="none")
    assert daemon.heard("infer.swarm").body == m.Swarm(models=["a"], prompt="p", method="none")
    client.score("p", "gemma3", window=128)
    assert daemon.heard("infer.score").body == m.Score(text="p", model="gemma3", window=128, priority="low")
    client.score("p", adapters=[m.AdapterUse("polite")])
    assert daemon.heard("infer.score").body == m.Score(text="p", adapters=[m.AdapterUse("polite")])
    for pin in ("pin", "unpin"):
        getattr(client, pin)("gemma3")
        assert daemon.heard(f"model.{pin}").body == m.OfModel("gemma3")


def test_a_stream_collects_how_likely_its_tokens_were(daemon: ScriptedDaemon, client: Client) -> None:
    pieces = [m.Delta(one.text, 1, [one]) for one in LOGPROBS]
    daemon.on["infer.text"] = lambda asked: asked.stream(pieces, answer(""))
    stream = client.stream("p", logprobs=2)
    assert "".join(stream) == "Once upon"
    assert stream.answer is not None
    assert stream.answer.logprobs == stream.logprobs == LOGPROBS


def test_a_stream_keeps_what_was_thought_apart(daemon: ScriptedDaemon, client: Client) -> None:
    pieces = [m.Delta("", 1, thinking="let me "), m.Delta("Y", 1, thinking="see"), m.Delta("es", 1)]
    end = msgspec.structs.replace(answer(""), thinking="!")
    daemon.on["infer.text"] = lambda asked: asked.stream(pieces, end)
    stream = client.stream("p")
    assert list(stream) == ["Y", "es"]
    assert stream.answer is not None
    assert (stream.answer.text, stream.answer.thinking) == ("Yes", "let me see!")
    assert [delta.thinking for delta in client.stream("p").deltas()] == ["let me ", "see", "", "!"]


def test_a_value_that_the_daemon_does_not_take_is_refused_in_words(daemon: ScriptedDaemon, client: Client) -> None:
    with pytest.raises(H2qError, match="kv_type") as error:
        client.load("gemma3", kv_type="q3_0")  # type: ignore[arg-type]  # the mistake under test
    assert (error.value.code, error.value.exit_status) == ("invalid_request", 2)
    assert daemon.log == []


def test_an_option_that_does_not_exist_is_a_mistake_of_the_caller(client: Client) -> None:
    with pytest.raises(TypeError, match="temprature"):
        client.infer("p", temprature=1)  # type: ignore[call-arg]  # the mistake under test


def test_a_relative_path_counts_from_here(daemon: ScriptedDaemon, client: Client, tmp_path: Path) -> None:
    client.import_model(Path("models") / "x.gguf")
    assert daemon.heard("model.import").body == m.Import(str(Path.cwd() / "models/x.gguf"))
    client.import_model(tmp_path / "y.gguf", "y")
    assert daemon.heard("model.import").body == m.Import(str(tmp_path / "y.gguf"), "y")


def test_an_error_arrives_whole(daemon: ScriptedDaemon, client: Client) -> None:
    facts = ["gemma3 (3.0 GiB) is pinned", "safety buffer 0.5 GiB"]
    daemon.on["model.load"] = lambda asked: asked.error(
        "no_fit", "cannot load q: it needs 6.1 GiB", because=facts, request="r9", retry_after_ms=50
    )
    with pytest.raises(H2qError) as caught:
        client.load("q")
    error = caught.value
    assert (error.code, error.exit_status, error.because, error.request) == ("no_fit", 5, tuple(facts), "r9")
    assert (error.retryable, error.retry_after_ms, error.hint) == (False, 50, "h2qctl plan MODEL --ctx N")


def test_progress_is_told(daemon: ScriptedDaemon, client: Client) -> None:
    def slowly(asked: Asked) -> None:
        asked.progress("loading", fraction=0.5)
        asked.reply()

    daemon.on["model.load"] = slowly
    seen: list[m.Progress] = []
    client.load("gemma3", on_progress=seen.append)
    assert seen == [m.Progress("loading", "r7", fraction=0.5)]


def endless(asked: Asked) -> None:
    asked.stream(iter(lambda: m.Delta("x", 1), None), answer(""))


def test_a_stream_gives_its_pieces_then_the_whole_answer(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["infer.text"] = lambda asked: asked.stream([m.Delta("a ", 1), m.Delta("b", 1)], answer(" end"))
    stream = client.stream("p")
    assert list(stream) == ["a ", "b", " end"]
    assert stream.answer == answer("a b end")
    assert list(stream) == []


def test_a_stream_is_never_more_than_its_window_ahead(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["infer.text"] = endless
    with client.stream("p", window=8) as stream:
        asked = daemon.heard("infer.text")
        for taken in range(1, 101):
            next(stream)
            assert asked.sent <= taken + 8
    assert len([one for one in daemon.log if one.op == "stream.credit"]) >= 100 // 8


def test_leaving_a_stream_cancels_it(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["infer.text"] = endless
    for _ in client.stream("p"):
        break
    asked = daemon.heard("infer.text")
    assert daemon.heard("request.cancel").body == m.Cancel(id=asked.id)
    assert client.ps() == SAMPLES[m.Ps]


def test_closing_the_client_cancels_what_is_open_and_waits_for_it(daemon: ScriptedDaemon) -> None:
    daemon.on["infer.text"] = endless
    with Client(daemon.path) as client:
        stream = client.stream("p")
        next(stream)
    daemon.heard("request.cancel")
    assert not daemon.streams
    with pytest.raises(H2qError):
        client.ps()


def test_a_stream_can_be_cancelled_from_another_thread(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["infer.text"] = held(daemon)
    stream = client.stream("p")
    asked = daemon.heard("infer.text")
    threading.Timer(0.05, stream.cancel).start()
    assert code_of(lambda: next(stream)) == "cancelled"
    assert daemon.heard("request.cancel").body == m.Cancel(id=asked.id)


def test_a_paused_stream_can_be_cancelled_from_another_thread(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["infer.text"] = endless
    stream = client.stream("p", window=4)
    next(stream)
    canceller = threading.Thread(target=stream.cancel)
    canceller.start()
    canceller.join(WAIT_S)
    daemon.heard("request.cancel")
    assert list(stream) == []


def test_closing_from_another_thread_wakes_the_one_that_waits(daemon: ScriptedDaemon) -> None:
    daemon.on["model.load"] = held(daemon)
    client = Client(daemon.path)
    codes: list[str] = []
    waiter = threading.Thread(target=lambda: codes.append(code_of(lambda: client.load("gemma3"))))
    waiter.start()
    daemon.heard("model.load")
    client.close()
    waiter.join(WAIT_S)
    assert codes in (["unreachable"], ["cancelled"])


def test_eight_threads_share_a_client(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["model.show"] = lambda asked: asked.error("no_such_model", asked.body.model)
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(50):
            name = f"m{number}-{turn}"
            with pytest.raises(H2qError) as error:
                client.show(name)
            if error.value.message != name or list(client.stream("p", window=1)) != ["a ", "b ", "c"]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len({asked.key[0] for asked in daemon.log}) == 8


def test_events_come_in_order_with_their_end(client: Client) -> None:
    watch = client.events(0, follow=False)
    assert list(watch) == NOTICES
    assert watch.end == m.EventsEnd(3)


def test_no_socket_file_is_told_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with Client(str(tmp_path / "none.sock")) as client, pytest.raises(H2qError, match="there is no socket") as error:
        client.ps()
    assert (error.value.code, error.value.exit_status) == ("unreachable", 69)
    assert time.monotonic() - began < 1


def test_a_socket_that_nobody_listens_on_is_told_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    with Client(path) as client, pytest.raises(H2qError, match="nothing listens") as error:
        client.ps()
    assert error.value.code == "unreachable"


@pytest.mark.parametrize("path", ["x" * 200, "nul\0byte", "."])
def test_a_path_that_is_no_socket_is_told_at_once(path: str) -> None:
    with Client(path) as client:
        assert code_of(client.ps) == "unreachable"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user id")
def test_a_socket_of_others_is_told_with_the_fix(tmp_path: Path) -> None:
    path = str(tmp_path / "h2qd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        Path(path).chmod(0o600)
        child = os.fork()  # not a new interpreter: another user may not be able to read this one's files
        if child == 0:
            os.setuid(65534)
            with Client(path) as client:
                try:
                    client.ps()
                except H2qError as error:
                    os._exit(error.exit_status)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 77


def test_a_daemon_that_dies_is_noticed_at_once_and_its_successor_is_found(tmp_path: Path) -> None:
    with scripted(tmp_path) as daemon, Client(daemon.path) as client:
        daemon.on["model.load"] = held(daemon)
        threading.Timer(0.1, daemon.stop).start()
        began = time.monotonic()
        with pytest.raises(H2qError, match="closed the connection") as error:
            client.load("gemma3")
        assert (error.value.code, error.value.retryable) == ("unreachable", True)
        assert time.monotonic() - began < 2
        assert code_of(client.ps) == "unreachable"
        with scripted(tmp_path) as successor:
            assert client.ps() == SAMPLES[m.Ps]
            assert [asked.op for asked in successor.log] == ["model.ps"]


def test_a_daemon_that_never_says_anything_is_given_up(daemon: ScriptedDaemon) -> None:
    daemon.on["model.ps"] = lambda _: None
    with Client(daemon.path, silence_s=0.2) as client:
        assert code_of(client.ps) == "unreachable"


def test_a_daemon_that_falls_silent_is_given_up(daemon: ScriptedDaemon) -> None:
    daemon.on["infer.text"] = held(daemon)
    with Client(daemon.path, silence_s=0.2) as client:
        assert code_of(lambda: client.infer("p")) == "timeout"
        daemon.heard("request.cancel")


def test_what_is_alive_is_waited_for(daemon: ScriptedDaemon) -> None:
    """Reports of progress, each within the silence allowed, carry a request past many times that silence."""
    beats = iter(range(13))

    def beat(asked: Asked) -> None:
        load = next(one for one in daemon.log if one.op == "model.load")
        load.progress("loading") if next(beats, None) is not None else load.reply()
        asked.reply()

    daemon.on["model.load"] = lambda asked: asked.progress("queued")
    daemon.on["model.ps"] = beat
    with Client(daemon.path, silence_s=1.0) as client, Client(daemon.path) as drummer:
        seen: list[m.Progress] = []
        done: list[m.Residency] = []
        waiter = threading.Thread(target=lambda: done.append(client.load("gemma3", on_progress=seen.append)))
        waiter.start()
        daemon.heard("model.load")
        pause = threading.Event()
        for _ in range(14):
            pause.wait(0.2)  # a busy machine may add much to that, and still be within the silence
            drummer.ps()
        waiter.join(WAIT_S)
    assert done == [RESIDENCY]
    assert len(seen) == 14


def test_a_request_that_outlives_its_time_is_cancelled(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.on["model.load"] = held(daemon)
    assert code_of(lambda: client.load("gemma3", timeout=0.1)) == "timeout"
    assert daemon.heard("model.load").envelope.deadline_ms == 100
    daemon.heard("request.cancel")


def garbled(*parts: bytes) -> Callable[[Asked], None]:
    return lambda asked: asked.raw(*parts)


@pytest.mark.parametrize(
    "handler",
    [
        garbled(b"\xc1\xc1", b"\x80"),
        garbled(b""),
        garbled(b"a", b"b", b"c"),
        lambda asked: asked.raw(response_frames(asked.id, Kind.REPLY, m.Removed("a", "b"))[0], b"\x93\x01"),
        lambda asked: asked.raw(response_frames(asked.id, Kind.REPLY, m.Removed("a", "b"))[0], b"\x91" * 5000),
        lambda asked: asked.say(Kind.REPLY, m.Removed("a", "b")),
        lambda asked: asked.say(Kind.CHUNK, m.Delta("x", 1)),
        lambda asked: asked.say(Kind.ERROR, m.Delta("x", 1)),
    ],
)
def test_garbage_is_an_error_like_any_other(
    daemon: ScriptedDaemon, client: Client, handler: Callable[[Asked], None]
) -> None:
    daemon.on["model.ps"] = handler
    assert code_of(client.ps) == "malformed"
    assert client.status() == SAMPLES[m.Status]


def test_a_peer_that_speaks_no_zeromq_is_told_from_a_daemon(tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def speak() -> None:
            listener.accept()[0].close()  # the probe
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with Client(path, silence_s=2) as client:
            # What is no greeting at all, libzmq reads as that of its oldest version, and then as messages.
            assert code_of(client.ps) in {"unreachable", "malformed"}
        speaker.join(WAIT_S)


def test_a_user_who_is_not_admitted_is_told_so(tmp_path: Path) -> None:
    """A real ZAP handler that refuses, as the daemon's does."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ZAP_DOMAIN, b"h2qd")
    router.bind(f"ipc://{tmp_path}/h2qd.sock")

    def refuse() -> None:
        while zap.poll(3000):
            asked = zap.recv_multipart()
            zap.send_multipart([b"1.0", asked[1], b"400", b"no", b"", b""])
            if stopped.is_set():
                return

    stopped = threading.Event()
    porter = threading.Thread(target=refuse)
    porter.start()
    try:
        with Client(f"{tmp_path}/h2qd.sock") as client:
            stopped.set()
            assert code_of(client.ps) == "not_permitted"
    finally:
        porter.join(WAIT_S)
        zap.close(0)
        router.close(0)
        context.term()


def test_the_address_is_found_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("h2qctl.address.SYSTEM_SOCKET", str(tmp_path / "system.sock"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("H2Q_SOCKET", raising=False)
    assert address.find()[0].endswith(f"/h2qd-{os.getuid()}/h2qd.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/9")
    assert address.find()[0] == "/run/user/9/h2qd/h2qd.sock"
    (tmp_path / "system.sock").touch()
    assert address.find()[0] == str(tmp_path / "system.sock")
    monkeypatch.setenv("H2Q_SOCKET", "ipc:///elsewhere.sock")
    assert address.find()[0] == "/elsewhere.sock"
    assert address.find("/given.sock") == ("/given.sock", "--socket")
