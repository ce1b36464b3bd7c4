"""Requests of all kinds from several clients, some cancelled, some cut off by who asked: nothing of them may stay.

Two small models of random weights take turns with whoever asks for them, so sessions are written and read all the
time. Every request must end in an answer or one of a few errors. What a fixed set of questions is answered, and how
fast, is compared at the start and at the end: a slot or cell that was lost, or a cache that lies, would show.
Called by the short test beside this module and by `python -m tests.soak`.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from h2qctl import Client, H2qError
from tests import architectures
from tests.harness import DaemonProcess, await_true, started
from tests.soak.cycles import held

MODELS = ("llama", "phi3")
SLOTS = 2
CLIENTS = 6
SLOWER_MAX = 1.25
"""The questions at the end may take so much longer than at the start, for the machine does other things too."""

_CTX = 512
_ENDS = {"cancelled", "context_overflow", "queue_full"}
_TEXT = "one small computer began to answer every question that people had on a rainy day in spring"
_WORDS = _TEXT.split()
_QUESTIONS = 12
_LOOKS_ALIKE = 200
"""A look takes some 10 ms, so this is longer than the second after which a lost client is found."""


@dataclass
class Mixture:
    """What a run found. `outcomes` counts the ends of requests by kind and end."""

    requests: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    start_s: float = 0.0
    end_s: float = 0.0
    took_s: float = 0.0

    def fault(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        if self.faults:
            return "; ".join(self.faults[:5])
        if self.before != self.after:
            return f"{self.before} became {self.after}"
        return ""

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        return (
            f"{self.requests} requests in {self.took_s:.0f} s: {ends}; the same questions took {self.start_s:.2f} s "
            f"at the start and {self.end_s:.2f} s at the end; {self.after}"
        )


@contextmanager
def small_models(folder: Path) -> Iterator[DaemonProcess]:
    """A daemon with the two models."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: architectures.write(name, folder) for name in MODELS}
    config = folder / "h2qd.yaml"
    lines = [
        f"model: {{slots: {SLOTS}, ctx: {_CTX}}}",
        "sessions: {disk_quota: 64MiB}",
        "residency: {patience: 200ms}",
    ]
    config.write_text(
        "\n".join([*lines, "models:", *(f"  {name}: {{path: {path}}}" for name, path in paths.items())])
    )
    with started(folder, config, {"H2Q_LOG_LEVEL": "warning"}) as daemon:
        yield daemon


def run(daemon: DaemonProcess, requests: int, seed: int, told: Callable[[str], None]) -> Mixture:
    """Ask so many requests, and look before and after."""
    mixture = Mixture(requests)
    client = daemon.client()
    began = time.monotonic()
    _questions(client)
    first, mixture.start_s = _questions(client)
    _rest(client)
    mixture.before = _held(daemon)
    share = requests // CLIENTS
    asking = [_Asking(daemon, random.Random(f"{seed}.{number}"), mixture, share) for number in range(CLIENTS)]
    for one in asking:
        one.start()
    while alive := [one for one in asking if one.is_alive()]:
        alive[0].join(5)
        told(f"{sum(mixture.outcomes.values())} of {requests}")
    await_true(lambda: not client.ps().requests, "nothing runs or waits")
    last, mixture.end_s = _questions(client)
    if first != last:
        mixture.faults.append("the same questions have other answers")
    _rest(client)
    mixture.after = _held(daemon)
    mixture.took_s = time.monotonic() - began
    return mixture


def _questions(client: Client) -> tuple[list[str], float]:
    client.switch(MODELS[0])
    began = time.monotonic()
    answers = [
        client.infer(f"{number} {_TEXT}", max_tokens=24, temperature=0, ignore_eos=True, speculate=False).text
        for number in range(_QUESTIONS)
    ]
    return answers, time.monotonic() - began


def _rest(client: Client) -> None:
    for name in MODELS:
        client.unload(name)
    await_true(lambda: client.ps().models == [], "nothing holds memory")


def _held(daemon: DaemonProcess) -> dict[str, int]:
    """As for cycles, but for the sessions on disk, which come and go; once it stays the same.

    A client that hung up is found within a second, and a file may be on its way to disk.
    """
    seen: list[dict[str, int]] = []

    def still() -> bool:
        counts = held(daemon)
        counts["files"] -= len(list((daemon.folder / "state" / "sessions").glob("*.session")))
        seen.append(counts)
        return len(seen) > _LOOKS_ALIKE and all(one == counts for one in seen[-_LOOKS_ALIKE:])

    await_true(still, "nothing changes any more")
    return seen[-1]


class _Asking(threading.Thread):
    """One client's requests, one after the other; now and then it hangs up and comes again."""

    def __init__(self, daemon: DaemonProcess, chance: random.Random, mixture: Mixture, requests: int) -> None:
        super().__init__(daemon=True)
        self._socket = str(daemon.socket)
        self._chance = chance
        self._mixture = mixture
        self._requests = requests
        self._client = Client(self._socket)

    def run(self) -> None:
        kinds: list[Callable[[], str]] = [self._whole, self._cancelled, self._cut_off, self._embed, self._score]
        kinds += [self._tokens, self._session, self._long, self._whole]
        try:
            for _ in range(self._requests):
                ask = self._chance.choice(kinds)
                try:
                    end = ask()
                except H2qError as error:
                    end = error.code
                    if error.code not in _ENDS:
                        self._mixture.faults.append(f"{ask.__name__.lstrip('_')}: {error.code}: {error}")
                self._mixture.outcomes[f"{ask.__name__.lstrip('_')}: {end}"] += 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, the run must end and tell
            self._mixture.faults.append(repr(error))
        self._client.close()

    @property
    def _model(self) -> str:
        return MODELS[self._chance.random() < 0.02]

    @property
    def _text(self) -> str:
        return " ".join(self._chance.choices(_WORDS, k=self._chance.randint(1, 20)))

    def _how(self) -> dict[str, object]:
        chance = self._chance
        return {
            "temperature": chance.choice([0, 0.8]),
            "priority": chance.choice(["low", "normal", "normal", "high"]),
            "logprobs": chance.choice([None, None, 0, 3]),
            "max_tokens": chance.randint(1, 24),
            "ignore_eos": chance.random() < 0.8,
        }

    def _whole(self) -> str:
        return self._client.infer(self._text, self._model, **self._how()).finish  # type: ignore[arg-type]

    def _cancelled(self) -> str:
        with self._client.stream(self._text, self._model, **self._how()) as stream:  # type: ignore[arg-type]
            for count, _ in enumerate(stream):
                if count >= self._chance.randint(0, 8):
                    return "given up"
        return "ended"

    def _cut_off(self) -> str:
        stream = self._client.stream(self._text, self._model, **self._how())  # type: ignore[arg-type]
        next(stream, None)
        self._client.close()
        self._client = Client(self._socket)
        return "gone"

    def _embed(self) -> str:
        texts = [self._text for _ in range(self._chance.randint(1, 3))]
        return f"{len(self._client.embed(texts, self._model).vectors) == len(texts)}"

    def _score(self) -> str:
        return f"{self._client.score(self._text + ' and', model=self._model).tokens > 0}"

    def _tokens(self) -> str:
        model = self._model
        tokens = self._client.tokenize(self._text, model).tokens
        return f"{len(self._client.detokenize(tokens, model).text) > 0}"

    def _session(self) -> str:
        name = f"s{self._chance.randint(1, 12)}"
        return self._client.infer(f"{name} " + self._text, self._model, session=name, **self._how()).finish  # type: ignore[arg-type]

    def _long(self) -> str:
        text, overflow = self._text * 30, self._chance.choice(["refuse", "truncate", "shift"])
        return self._client.infer(text, self._model, overflow=overflow, **self._how()).finish  # type: ignore[arg-type]
