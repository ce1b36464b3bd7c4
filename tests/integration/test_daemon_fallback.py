"""Models that answer in another's place: when that one is refused, fails or is given up, and when it is not."""

from collections.abc import Iterator

import pytest

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, config_text, script, started

MODELS: dict[str, dict[str, object]] = {
    "sound": {"tokens": ["sound"]},
    "broken": {"load_fail": ["load_failed", "it is broken"]},
    "huge": {"facts": {"tensor_bytes": 2**50, "file_bytes": 2**50}},
    "crashes": {"crash_at_token": 0},
    "late": {"crash_at_token": 2, "token_ms": 20},
    "fails": {"fail_at_token": 0},
    "slow": {"load_ms": 60_000},
    "mute": {"tokens": ["at last"], "token_ms": 60_000},
    "talks": {"tokens": ["a ", "b ", "c "], "token_ms": 400},
}
AFTER = {"slow": "300ms", "mute": "300ms", "talks": "600ms"}
CHAINS = {
    "broken": ["huge", "sound"],
    "huge": ["sound"],
    "crashes": ["fails", "sound"],
    "late": ["sound"],
    "fails": ["broken", "nobody"],
    "slow": ["mute", "sound"],
    "mute": ["sound"],
    "talks": ["sound"],
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("fallback")
    text = config_text({name: script(folder, name, **fields) for name, fields in MODELS.items()})
    for name, chain in CHAINS.items():
        text = text.replace(f"/{name}.json, backend: fake", f"/{name}.json, backend: fake, fallback: {chain}")
    for name, after in AFTER.items():
        text = text.replace(f"/{name}.json, backend: fake", f"/{name}.json, backend: fake, fallback_after: {after}")
    config = folder / "h2qd.yaml"
    config.write_text(text.replace("'", ""))
    with started(folder, config) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(str(daemon.socket)) as client:
        yield client
        for row in client.ps().models:
            client.unload(row.name, force=True)


@pytest.mark.parametrize("name", ["broken", "huge", "crashes"])
def test_the_next_that_can_answers_and_the_reply_says_so(client: Client, name: str) -> None:
    for _ in range(2):
        answer = client.infer("x", name)
        assert (answer.text, answer.model, answer.instead_of) == ("sound", "sound", name)
    direct = client.infer("x", "sound")
    assert (direct.model, direct.instead_of) == ("sound", "")


def test_a_stream_begins_again_only_where_nothing_was_said(client: Client) -> None:
    with client.stream("x", "crashes") as stream:
        assert "".join(stream) == "sound"
    stream = client.stream("x", "late")
    assert next(stream) == "tok0 "
    with pytest.raises(H2qError) as raised:
        list(stream)
    assert raised.value.code == "worker_crashed"


def test_the_last_of_the_chain_says_why_there_is_no_answer(client: Client) -> None:
    with pytest.raises(H2qError) as raised:
        client.infer("x", "fails")
    assert raised.value.code in {"load_failed", "model_failed"}, "of broken: nobody is not registered"


def test_what_the_request_is_to_blame_for_goes_to_nobody_else(client: Client, daemon: DaemonProcess) -> None:
    before = len(daemon.log("request.fell_back"))
    with pytest.raises(H2qError) as raised:
        client.infer("x " * 5000, "late")
    assert raised.value.code == "context_overflow"
    assert len(daemon.log("request.fell_back")) == before


@pytest.mark.parametrize("name", ["slow", "mute"])
def test_who_does_not_begin_in_time_has_its_place_taken(client: Client, name: str) -> None:
    answer = client.infer("x", name, timeout=30)
    assert (answer.text, answer.model, answer.instead_of) == ("sound", "sound", name)


def test_who_has_begun_is_left_to_it(client: Client) -> None:
    answer = client.infer("x", "talks", max_tokens=3)
    assert (answer.text, answer.instead_of) == ("a b c ", "")


def test_it_keeps_its_name(client: Client, daemon: DaemonProcess) -> None:
    answer = client.infer("x", "crashes")
    assert {entry["request"] for entry in daemon.log("request.fell_back")[-2:]} == {answer.request}


def test_a_model_whose_file_is_gone_has_its_place_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gone")
    text = config_text({"sound": script(folder, "sound", tokens=["sound"]), "gone": folder / "gone.json"})
    config = folder / "h2qd.yaml"
    config.write_text(text.replace("/gone.json, backend: fake", "/gone.json, backend: fake, fallback: [sound]"))
    with started(folder, config) as daemon:
        assert daemon.client().infer("x", "gone").instead_of == "gone"
