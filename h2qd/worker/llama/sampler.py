"""Chooses the next token from logits: the highest, or by a chain of llama.cpp's samplers, within a grammar.

Called by `slot`, one object a request. Biases are added here, in place, so they cost nothing to who has none.
Invariant: native samplers see no NaN and no empty choice, and a grammar accepts no token that it did not allow: each
would end the process.
"""

import ctypes
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from llama_cpp import llama_cpp as native
from numpy.typing import NDArray

from h2qd.wire.workers import Sampler
from h2qd.worker.engine import EngineError
from h2qd.worker.llama.candidates import Candidates
from h2qd.worker.llama.grammar import grammar_text
from h2qd.worker.llama.vocabulary import Vocabulary

GRAMMAR_STEP_S_MAX = 2.0
"""A grammar's work for one token. An ambiguous one doubles its states with each character; a sound one takes ms."""


class NoTokenLeftError(Exception):
    """No token may follow: the grammar is at its end or allows none, or all are banned."""


class BrokenLogitsError(Exception):
    """The model computed no finite numbers."""


class GrammarTooSlowError(Exception):
    """The grammar took over GRAMMAR_STEP_S_MAX for one token."""


class Chooser(Protocol):
    """What a slot asks for tokens."""

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token; may change `logits`.

        Raises `NoTokenLeftError`, `BrokenLogitsError`, `GrammarTooSlowError`.
        """
        ...

    def close(self) -> None:
        """Free what is native; once."""
        ...


def open_chooser(
    sampler: Sampler, vocabulary: Vocabulary, prompt: Sequence[int], *, banned: Sequence[int]
) -> Chooser:
    """What chooses as `sampler` says, never one of `banned`; `prompt` is what its penalty looks back on.

    Raises `EngineError`: invalid_request, invalid_grammar.
    """
    if any(token >= vocabulary.size for token in sampler.logit_bias):
        raise EngineError(
            "invalid_request", f"cannot bias token {max(sampler.logit_bias)}: there are {vocabulary.size}"
        )
    bias = _Bias(sampler.logit_bias, banned)
    grammar = _open_grammar(sampler, vocabulary)
    penalty = sampler.repeat_penalty != 1.0 and sampler.repeat_last_n > 0
    if sampler.temperature == 0 and grammar is None and not penalty:
        return Greedy(bias)
    chain = _open_chain(sampler, vocabulary)
    if penalty:
        for token in prompt[-sampler.repeat_last_n :]:
            native.llama_sampler_accept(chain, token)
    likeliest = sampler.top_k if sampler.temperature > 0 and not penalty else 0
    return Chain(bias, chain, grammar, Candidates(vocabulary.size, likeliest))


class _Bias:
    """Added to logits before anything else."""

    def __init__(self, biases: dict[int, float], banned: Sequence[int]) -> None:
        merged = biases | dict.fromkeys(banned, -np.inf)
        self._tokens = np.fromiter(merged.keys(), dtype=np.int64, count=len(merged))
        self._values = np.fromiter(merged.values(), dtype=np.float32, count=len(merged))

    def apply(self, logits: NDArray[np.float32]) -> None:
        if self._tokens.size:
            logits[self._tokens] += self._values


class Greedy:
    """The token of the highest logit."""

    def __init__(self, bias: _Bias) -> None:
        self._bias = bias

    def choose(self, logits: NDArray[np.float32]) -> int:
        """See `Chooser`."""
        self._bias.apply(logits)
        token = int(logits.argmax())  # of a NaN, if there is one
        _check(float(logits[token]))
        return token

    def close(self) -> None:
        """Nothing to free."""


class Chain:
    """A native chain, and a grammar beside it.

    The grammar is slow on a whole vocabulary, so the chain chooses first; only when the grammar refuses that token
    are all of them tried and the choice is made again among those left. llama.cpp's own tools do it this way.
    """

    def __init__(self, bias: _Bias, chain: int, grammar: int | None, candidates: Candidates) -> None:
        self._bias = bias
        self._chain = chain
        self._grammar = grammar
        self._candidates = candidates
        self._one = native.llama_token_data()

    def choose(self, logits: NDArray[np.float32]) -> int:
        """See `Chooser`."""
        self._bias.apply(logits)
        highest = float(logits.max())
        _check(highest)
        self._candidates.fill(logits, highest)
        token = self._sample()
        if self._grammar is None:
            native.llama_sampler_accept(self._chain, token)
            return token
        start_s = time.monotonic()
        if not self._allowed(token):
            self._candidates.fill_all(logits)
            native.llama_sampler_apply(self._grammar, ctypes.byref(self._candidates.array))
            _check(self._candidates.highest())
            token = self._sample()
        native.llama_sampler_accept(self._chain, token)
        native.llama_sampler_accept(self._grammar, token)
        if time.monotonic() - start_s > GRAMMAR_STEP_S_MAX:
            raise GrammarTooSlowError
        return token

    def close(self) -> None:
        """See `Chooser`."""
        native.llama_sampler_free(self._chain)
        if self._grammar is not None:
            native.llama_sampler_free(self._grammar)

    def _sample(self) -> int:
        among = self._candidates.array
        native.llama_sampler_apply(self._chain, ctypes.byref(among))
        if not 0 <= among.selected < among.size:
            raise NoTokenLeftError
        chosen = among.data[among.selected]
        _check(float(chosen.logit))
        return int(chosen.id)

    def _allowed(self, token: int) -> bool:
        self._one.id = token
        self._one.logit = 1.0
        one = native.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        native.llama_sampler_apply(self._grammar, ctypes.byref(one))
        return bool(self._one.logit == 1.0)


def _check(logit: float) -> None:
    if logit == -np.inf:
        raise NoTokenLeftError
    if not np.isfinite(logit):
        raise BrokenLogitsError


def _open_grammar(sampler: Sampler, vocabulary: Vocabulary) -> int | None:
    text = grammar_text(sampler)
    if text is None:
        return None
    grammar: int | None = native.llama_sampler_init_grammar(vocabulary.native, text, b"root")
    if not grammar:
        raise EngineError("invalid_grammar", "cannot use the grammar: the library refused it")
    return grammar


def _open_chain(sampler: Sampler, vocabulary: Vocabulary) -> int:
    """The samplers in the order in which llama.cpp's tools apply them; those that would do nothing are left out."""
    chain: int = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    stages = []
    if sampler.repeat_penalty != 1.0 and sampler.repeat_last_n > 0:
        stages.append(
            native.llama_sampler_init_penalties(
                vocabulary.size, sampler.repeat_last_n, sampler.repeat_penalty, 0.0, 0.0
            )
        )
    if sampler.temperature == 0:
        stages.append(native.llama_sampler_init_greedy())
    else:
        if sampler.top_k > 0:
            stages.append(native.llama_sampler_init_top_k(sampler.top_k))
        if sampler.top_p < 1:
            stages.append(native.llama_sampler_init_top_p(sampler.top_p, 1))
        if sampler.min_p > 0:
            stages.append(native.llama_sampler_init_min_p(sampler.min_p, 1))
        stages.append(native.llama_sampler_init_temp(sampler.temperature))
        stages.append(native.llama_sampler_init_dist(sampler.seed))
    for stage in stages:
        native.llama_sampler_chain_add(chain, stage)
    return chain
