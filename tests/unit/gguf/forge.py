"""Makes GGUF files byte by byte, so that a test can lie in any field."""

import io
import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
ALIGNMENT = 32


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def number(kind: int, value: float) -> bytes:
    return u32(kind) + struct.pack("<" + CODES[kind], value)


def string(value: str | bytes) -> bytes:
    return u32(STRING) + text(value)


def numbers(kind: int, values: list[int]) -> bytes:
    return u32(ARRAY) + u32(kind) + u64(len(values)) + struct.pack(f"<{len(values)}{CODES[kind]}", *values)


def strings(values: list[str]) -> bytes:
    return u32(ARRAY) + u32(STRING) + u64(len(values)) + b"".join(map(text, values))


def pair(key: str | bytes, value: bytes) -> bytes:
    return text(key) + value


def tensor(name: str | bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def llama(layers: int = 2) -> list[bytes]:
    """The metadata of a small model."""
    return [
        pair("general.architecture", string("llama")),
        pair("llama.block_count", number(U32, layers)),
        pair("llama.embedding_length", number(U32, 64)),
        pair("llama.context_length", number(U32, 2048)),
        pair("llama.feed_forward_length", number(U32, 128)),
        pair("llama.attention.head_count", number(U32, 4)),
        pair("tokenizer.ggml.tokens", strings([f"token{n}" for n in range(40)])),
    ]


@dataclass
class Forge:
    """A file in the making; `tensor_count` and `pair_count` lie when they are given."""

    pairs: list[bytes] = field(default_factory=llama)
    tensors: list[bytes] = field(default_factory=lambda: [tensor("token_embd.weight", [64, 40])])
    data_bytes: int = 64 * 40 * 4
    magic: bytes = b"GGUF"
    version: bytes = struct.pack("<I", 3)
    tensor_count: int | None = None
    pair_count: int | None = None

    def bytes(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pair_count = len(self.pairs) if self.pair_count is None else self.pair_count
        head = self.magic + self.version + u64(tensor_count) + u64(pair_count)
        head += b"".join(self.pairs) + b"".join(self.tensors)
        return head + bytes(-len(head) % ALIGNMENT) + bytes(self.data_bytes)

    def file(self) -> io.BytesIO:
        return io.BytesIO(self.bytes())
