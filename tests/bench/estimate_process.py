"""Measures what one load really takes: a small zygote, whose forked child runs the engine until its memory is full.

As the daemon does it, the imports are done before the fork, and what counts is by how much both processes together
grew. The daemon takes that from their PSS, which other processes that map the same files would move here; so pages of
files that either has mapped in are counted one by one. The child fills the context of every slot but for a few
tokens, computes a batch on top with all the logits that there may be, answers a request, and is measured while that
is at work. Contexts longer than `COMPUTED_TOKENS_MAX` are filled from a state made up of a short one, because a
prefill of them takes minutes: the pages touched are the same (within 0.1 % for 4,096 tokens). Reads a JSON object a
line, the fields of `Load`; writes one a line, {"held_bytes": …}.
"""

import ctypes
import json
import os
import struct
import sys
import traceback
from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from h2qd.core.drafting import DRAFT_CTX_MAX
from h2qd.core.plan import batch_tokens, outputs
from h2qd.gguf.reader import identity
from h2qd.runtime.meter import parse_sizes
from h2qd.wire.messages import KvType
from h2qd.wire.workers import DraftFile, Generate, LoadModel, Sampler
from h2qd.worker import libraries
from h2qd.worker.engine import Beat

COMPUTED_TOKENS_MAX = 1024
_ANSWER_TOKENS = 8
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PRESENT_FILE = 1 << 63 | 1 << 61
"""A page that is mapped in and still the file's, not a copy written to."""

_FIRST_TOKEN = 300
"""Before it are special tokens and bytes."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load to measure; `repack` false: the engine may not copy tensors into other layouts.

    `draft`: the file of its draft model, if any.
    """

    path: str
    ctx: int
    slots: int = 1
    kv_type: KvType = "f16"
    repack: bool = True
    draft: str = ""


def main() -> None:
    """Answer each line of stdin."""
    libraries.preload()
    for line in sys.stdin:
        print(json.dumps({"held_bytes": held_bytes(Load(**json.loads(line)))}), flush=True)


def held_bytes(load: Load) -> int:
    """What `load` took once it was full; 0 when it failed, which stderr tells of."""
    full_read, full_write = os.pipe()
    end_read, end_write = os.pipe()
    before = _anonymous_bytes(os.getpid())
    pages_before = _file_pages(os.getpid())
    child = os.fork()
    if child == 0:
        os.close(end_write)
        _fill_and_wait(load, full_write, end_read)
    os.close(full_write)
    os.close(end_read)
    full = os.read(full_read, 1)
    held = _anonymous_bytes(os.getpid()) + _anonymous_bytes(child) - before
    held += len((_file_pages(os.getpid()) | _file_pages(child)) - pages_before) * _PAGE_BYTES
    os.close(end_write)
    os.close(full_read)
    os.waitpid(child, 0)
    return held if full else 0


def _anonymous_bytes(pid: int) -> int:
    """The memory of `pid` that no file backs, divided among the processes that share it."""
    return parse_sizes(Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8"))["Pss_Anon"]


def _file_pages(pid: int) -> set[tuple[str, int]]:
    """The pages of files that `pid` has mapped in, each as the file and its place there (proc_pid_pagemap(5))."""
    pages: set[tuple[str, int]] = set()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as map_file:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines():
            words = line.split(maxsplit=5)
            if len(words) < 6 or not words[5].startswith("/"):
                continue
            start, _, end = words[0].partition("-")
            first, count = int(start, 16) // _PAGE_BYTES, (int(end, 16) - int(start, 16)) // _PAGE_BYTES
            place = int(words[2], 16) // _PAGE_BYTES
            map_file.seek(first * 8)
            entries = array("Q", map_file.read(count * 8))
            pages |= {
                (words[5], place + at) for at, entry in enumerate(entries) if entry & _PRESENT_FILE == _PRESENT_FILE
            }
    return pages


def _fill_and_wait(load: Load, full: int, end: int) -> None:
    """In the child, which ends here."""
    try:
        filled = Filled(load)
        os.write(full, b"1")
        os.read(end, 1)
        del filled
    except BaseException:  # noqa: BLE001 - the parent's code must not run here
        traceback.print_exc()
    finally:
        os._exit(0)


class Filled:
    """An engine with all its slots full and a request at work."""

    def __init__(self, load: Load) -> None:
        from llama_cpp import llama_cpp as native  # noqa: PLC0415 - the parent has it from `libraries`, in its way

        from h2qd.worker.llama.context import Piece  # noqa: PLC0415 - after the library
        from h2qd.worker.llama.engine import LlamaEngine  # noqa: PLC0415 - after the library

        self._native, self._piece = native, Piece
        if not load.repack:
            _forbid_repacking(native)
        self.engine = LlamaEngine(Beat())
        order = LoadModel(
            "llama",
            load.path,
            load.ctx,
            slots=load.slots,
            kv_type=load.kv_type,
            batch=batch_tokens(load.slots),
            outputs=outputs(load.slots),
            draft=DraftFile("draft", load.draft, list(identity(os.stat(load.draft)))) if load.draft else None,  # noqa: PTH116
            draft_ctx=min(load.ctx, DRAFT_CTX_MAX) if load.draft else 0,
        )
        self._tokens, self._outputs = order.batch, order.outputs // load.slots
        self.engine.load(order, lambda _: None)
        loaded = self.engine._loaded
        assert loaded is not None
        assert loaded.batch is not None
        self._context = loaded.model.context
        self._recurrent = native.llama_model_is_recurrent(loaded.model.model)
        self._computed_only = self._recurrent or native.llama_model_is_hybrid(loaded.model.model)
        self._batch = native.llama_batch_init(self._tokens, 0, 1)
        room = loaded.batch.context.size - _ANSWER_TOKENS
        if self._recurrent:
            room = min(room, COMPUTED_TOKENS_MAX)  # a state does not grow
        span = loaded.vocabulary.size - _FIRST_TOKEN
        prompt = [_FIRST_TOKEN + index * 7919 % span for index in range(room)]
        share = min(self._tokens // load.slots, room)
        self._fill(range(load.slots), prompt[: room - share])
        done = room - share
        if load.slots > 1:  # one batch of all slots, in order; the last token of slot 0 is for its request
            self._decode({0: prompt[done:-1], **dict.fromkeys(range(1, load.slots), prompt[done:])}, done)
            done = room - 1
        self._answer(loaded, prompt, done)
        if load.draft:
            self._fill_draft(loaded.batch.draft_model, prompt)

    def _fill(self, slots: range, tokens: list[int]) -> None:
        if len(tokens) > COMPUTED_TOKENS_MAX and not self._computed_only:
            self._decode({0: tokens[: self._tokens]}, 0)
            self._stretch(slots, len(tokens))
            return
        for slot in slots:
            for start in range(0, len(tokens), self._tokens):
                self._decode({slot: tokens[start : start + self._tokens]}, start)

    def _decode(self, tokens: dict[int, list[int]], start: int) -> None:
        batch, at = self._batch, 0
        for slot, its in tokens.items():
            for index, token in enumerate(its):
                batch.token[at] = token
                batch.pos[at] = start + index
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = slot
                batch.logits[at] = index >= len(its) - self._outputs
                at += 1
        batch.n_tokens = at
        if at and (status := self._native.llama_decode(self._context, batch)):
            raise RuntimeError(f"llama_decode returned {status}")

    def _fill_draft(self, draft: Any, tokens: list[int]) -> None:
        """Have the draft model's context full, by the code that fills it otherwise."""
        context, cache = draft._context, draft._cache
        context.clear(cache)
        while rest := tokens[len(cache.tokens) : context.size - _ANSWER_TOKENS]:
            context.decode([self._piece(cache, rest[: context.batch], 0)])
        draft._guess(tokens[:1], _ANSWER_TOKENS)

    def _stretch(self, slots: range, count: int) -> None:
        """Have the cache of each of `slots` hold `count` tokens, made up of those of the first."""
        native = self._native
        size = native.llama_state_seq_get_size(self._context, slots[0])
        raw = (ctypes.c_uint8 * size)()
        size = native.llama_state_seq_get_data(self._context, raw, size, slots[0])
        state = stretched(bytes(raw[:size]), count)
        long = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        for slot in slots:
            if not native.llama_state_seq_set_data(self._context, long, len(state), slot):
                raise RuntimeError("the library refused the state")
        del raw, long, state
        ctypes.CDLL(None).malloc_trim(0)

    def _answer(self, loaded: Any, prompt: list[int], done: int) -> None:
        """A request at work: its prompt computed, its answer all but complete."""
        loaded.prompt = lambda _order, _room: prompt
        context = loaded.batch.context
        context.caches[0].tokens[:] = prompt[:done]
        context.reusable = lambda cache, *_, **__: 0 if cache.sequence else done
        self.engine.submit(Generate(1, _ANSWER_TOKENS, Sampler(seed=1), prompt="", ignore_eos=True))
        for said in islice(iter(self.engine.step, None), _ANSWER_TOKENS - 1):
            assert self.engine.busy, said


def _forbid_repacking(native: Any) -> None:
    usual = native.llama_model_default_params

    def plain() -> Any:
        params = usual()
        params.use_extra_bufts = False
        return params

    native.llama_model_default_params = plain


def stretched(state: bytes, count: int) -> bytes:
    """The state of a sequence as if it had `count` tokens.

    Rows of the cache are taken over and over; those of a sliding cache, which comes second, once, as the last ones.
    The format is that of llama_kv_cache::state_write in llama-kv-cache.cpp, with flash attention.
    """
    pieces = [state[:8]]  # magic, sequence
    at, grows = 8, True
    while at < len(state):
        (streams,) = struct.unpack_from("<I", state, at)
        pieces.append(state[at : at + 4])
        at += 4
        for _ in range(streams):
            (cells,) = struct.unpack_from("<I", state, at)
            at += 4
            wanted = count if grows and cells else cells
            pieces.append(struct.pack("<I", wanted))
            if not cells:
                continue
            at += cells * 12
            pieces += [struct.pack("<iIi", position, 1, 0) for position in range(count - wanted, count)]
            transposed, layers = struct.unpack_from("<II", state, at)
            assert not transposed
            pieces.append(state[at : at + 8])
            at += 8
            for _ in range(2 * layers):  # all keys, then all values
                _, row = struct.unpack_from("<iQ", state, at)
                pieces.append(state[at : at + 12])
                at += 12
                pieces.append((state[at : at + cells * row] * -(-wanted // cells))[: wanted * row])
                at += cells * row
        grows = False
    return b"".join(pieces)


if __name__ == "__main__":
    main()
