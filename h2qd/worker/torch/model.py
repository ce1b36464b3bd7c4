"""Loads a model folder: checks it, builds the modules, fills them in. Called by `engine`, once in a process.

What is computed in is what most of the weights are made of, unless the order says otherwise. Every layer that runs
ticks the beat and asks whether anyone in the pass is still wanted. What fits into memory is the supervisor's plan.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.facts import facts
from h2qd.safetensors.folder import read_folder
from h2qd.safetensors.sentences import Sentences, read_sentences
from h2qd.wire.messages import ModelFacts
from h2qd.wire.workers import LoadModel
from h2qd.worker import journal
from h2qd.worker.crew import Crew
from h2qd.worker.engine import Beat, EngineError, Progress
from h2qd.worker.heap import trim_heap
from h2qd.worker.threads import thread_count
from h2qd.worker.torch import structure, weights
from h2qd.worker.torch.attention import join_caches
from h2qd.worker.torch.cache import Cells
from h2qd.worker.torch.grammar import Grammars
from h2qd.worker.torch.libraries import torch
from h2qd.worker.torch.vocabulary import Vocabulary

PIECE_TOKENS = 128
"""Of one text, computed in a pass while nobody decodes: larger ones are hardly faster on a CPU, and others wait
longer."""

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

_QUANTIZED = ("int8", "int4")

_SCALED_BY_LONGEST = frozenset({"dynamic", "longrope"})
"""Ways to scale positions (RoPE) that go by the longest sequence of a pass: others in it would change the text."""

_SCALED_BY_HISTORY = "dynamic"
"""This one also goes by how long sequences were before, until one begins anew."""


class InterruptedPassError(Exception):
    """All requests under way were cancelled in the middle of a pass."""


@dataclass(slots=True, eq=False)
class Wanted:
    """Whether a request is still wanted; set from any thread."""

    cancelled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A request's part in a pass of several: a token, after what its cells hold."""

    token: int
    cells: Cells
    wanted: Wanted


@dataclass(slots=True, eq=False)
class Model:
    """A loaded model. `batch` tokens are computed at once at most, `ctx` are what one request may use.

    `rows_max` requests may have a token each in one pass. `numbers` are what keys and values are made of, and
    `weights` what weights are quantized to, if they are. `lasting`: a text may go on from what another one computed.
    """

    module: Any
    facts: ModelFacts
    sentences: Sentences
    vocabulary: Vocabulary
    grammars: Grammars
    device: str
    generates: bool
    beat: Beat
    crew: Crew
    numbers: Any
    weights: str
    batch: int = 0
    ctx: int = 0
    rows_max: int = sys.maxsize
    lasting: bool = True
    under_way: Sequence[Wanted] = field(default_factory=tuple)

    @property
    def piece(self) -> int:
        """How many tokens of one text are computed in a pass at most."""
        return min(PIECE_TOKENS, self.batch)

    def cells(self) -> Cells:
        """Empty ones, for one slot."""
        return Cells(self.module.config, self.ctx, self.piece, lasting=self.lasting)

    def logits(self, tokens: list[int], cells: Cells, rows: int, wanted: Wanted) -> Any:
        """Compute `tokens` after what `cells` hold; logits of the last `rows` of them, shape (rows, vocabulary).

        Raises `InterruptedPassError` when `wanted` says so meanwhile: the cells are as they were then.
        """
        with self._pass([cells], [wanted]):
            said = self.module(
                input_ids=self._tensor([tokens]), past_key_values=cells.cache, use_cache=True, logits_to_keep=rows
            )
            cells.computed(tokens, alone=True)
            return said.logits.reshape(len(tokens[-rows:]), -1).float().cpu()

    def next_logits(self, rows: Sequence[Row]) -> Any:
        """Compute a token for each of up to `rows_max` requests; the logits after it, shape (rows, vocabulary).

        Raises `InterruptedPassError` when none is wanted any more: their cells are as they were then.
        """
        with self._pass([row.cells for row in rows], [row.wanted for row in rows]):
            said = self.module(
                input_ids=self._tensor([[row.token] for row in rows]),
                position_ids=self._tensor([[len(row.cells.tokens)] for row in rows]),
                past_key_values=join_caches([row.cells.cache for row in rows]),
                use_cache=True,
            )
            for row in rows:
                row.cells.computed([row.token], alone=False)
            return said.logits.reshape(len(rows), -1).float().cpu()

    def fill(self, tokens: list[int], cells: Cells, wanted: Wanted) -> None:
        """Compute `tokens` after what `cells` hold, for what comes after them. Raises as `logits`."""
        self.states(tokens, cells, wanted)

    def states(self, tokens: list[int], cells: Cells, wanted: Wanted) -> Any:
        """The last layer's states of `tokens`, shape (tokens, embedding), of a model that generates."""
        with self._pass([cells], [wanted]):
            inner = self.module.base_model
            said = inner(input_ids=self._tensor([tokens]), past_key_values=cells.cache, use_cache=True)
            cells.computed(tokens, alone=True)
            return said.last_hidden_state[0].float().cpu()

    def encoded(self, rows: list[list[int]], mask: list[list[int]], wanted: Wanted) -> Any:
        """The last layer's states of texts of one length, shape (texts, tokens, embedding), of an encoder."""
        with self._pass([], [wanted]):
            said = self.module(input_ids=self._tensor(rows), attention_mask=self._tensor(mask))
            return said.last_hidden_state.float().cpu()

    @contextmanager
    def _pass(self, cells: Sequence[Cells], wanted: Sequence[Wanted]) -> Iterator[None]:
        self.under_way = wanted
        try:
            with torch.inference_mode():
                yield
        except InterruptedPassError:
            for one in cells:
                one.interrupted()
            raise

    def _tensor(self, rows: list[list[int]]) -> Any:
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def watch_layers(self) -> None:
        """Have each layer tick the beat, and stop a pass that is no longer wanted.

        The output layer is given rows in two dimensions: for a slice in three, PyTorch copies the whole matrix.
        """

        def before(_module: Any, _values: Any) -> None:
            self.beat.tick()
            if all(wanted.cancelled for wanted in self.under_way):
                raise InterruptedPassError

        for layers in self.module.modules():
            if isinstance(layers, torch.nn.ModuleList):
                for layer in layers:
                    layer.register_forward_pre_hook(before)
        if self.generates and (output := self.module.get_output_embeddings()) is not None:
            output.register_forward_pre_hook(_in_two_dimensions)


def _in_two_dimensions(_module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return (values[0].flatten(0, -2), *values[1:])


def load(order: LoadModel, progress: Progress, beat: Beat) -> Model:
    """The model in the folder `order.path`. Raises `EngineError`: file_not_found, invalid_model_file, load_failed."""
    try:
        folder = read_folder(order.path)
        known, sentences = facts(folder), read_sentences(folder)
    except SafetensorsError as error:
        raise EngineError("invalid_model_file", str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
        raise EngineError("file_not_found", f"cannot read the model folder: {reason}") from error
    beat.tick()
    threads = thread_count(order.threads)
    torch.set_num_threads(threads)
    dtype = _dtype(order.quantize, known)
    device = _device(order)
    vocabulary = Vocabulary(folder, sentences)
    beat.tick()
    module = structure.build(folder, dtype)
    beat.tick()
    crew = Crew(threads, torch.set_num_threads, adapts=device == "cpu" and order.threads == 0)
    weights.load(module, folder, order.quantize, dtype, crew, progress, beat)
    if device != "cpu":
        module.to(device)
    trim_heap()
    model = Model(
        module=module,
        facts=known,
        sentences=sentences,
        vocabulary=vocabulary,
        grammars=Grammars(vocabulary),
        device=device,
        generates=folder.family.generates,
        beat=beat,
        crew=crew,
        numbers=dtype,
        weights=order.quantize if order.quantize in _QUANTIZED else "",
    )
    model.watch_layers()
    scaled = _scaled_by_longest(module.config)
    if scaled and model.generates:
        model.rows_max = 1
        model.lasting = scaled != _SCALED_BY_HISTORY
        journal.record("torch.decodes_by_turns", rope_type=scaled)
    return model


def _scaled_by_longest(config: Any) -> str:
    """The way in which positions are scaled, if that goes by the longest sequence of a pass; else empty."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(one for one in parameters.values() if isinstance(one, dict))]  # of all layers, or by kinds
    kinds = {str(one.get("rope_type")) for one in sets}
    return next(iter(sorted(kinds & _SCALED_BY_LONGEST)), "")


def _dtype(quantize: str, known: ModelFacts) -> Any:
    if quantize in ("", "float32"):
        return torch.float32 if quantize else _DTYPES[known.quantization]
    if quantize in ("bfloat16", "int8", "int4"):
        return torch.bfloat16
    raise EngineError("load_failed", f"cannot quantize to {quantize}: it must be float32, bfloat16, int8 or int4")


def _device(order: LoadModel) -> str:
    if order.gpu_layers <= 0 or not torch.cuda.is_available():
        return "cpu"
    if order.quantize in _QUANTIZED:
        raise EngineError("load_failed", f"cannot use {order.quantize} on a GPU: its kernels here are for CPUs")
    return "cuda"
