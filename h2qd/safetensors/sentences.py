"""How a folder says that texts become vectors: which pooling, and how long a text may be (sentence-transformers).

A folder that says nothing has its tokens' mean taken by an encoder, and the last token's state by a model that
generates. Called by `facts` and by the engine. It refuses what it cannot do: further layers, other poolings.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.folder import MODULES, POOLING, SENTENCES, Folder, read_file, typed
from h2qd.wire.names import shown

PoolingKind: TypeAlias = Literal["mean", "cls", "last"]

_LENGTH_MAX = 2**31 - 1
_KNOWN = frozenset({"Transformer", "Pooling", "Normalize"})
_Length = Annotated[int, msgspec.Meta(ge=1, le=_LENGTH_MAX)]


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""


class _Pooling(msgspec.Struct, frozen=True):
    pooling_mode: str | list[str] | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _Sentences(msgspec.Struct, frozen=True):
    max_seq_length: _Length | None = None
    do_lower_case: bool = False


class Sentences(msgspec.Struct, frozen=True):
    """`length_max` in tokens, None where nothing is said."""

    pooling: PoolingKind
    length_max: int | None
    lower: bool


def read_sentences(folder: Folder) -> Sentences:
    """What `folder` says of vectors. Raises `SafetensorsError`, OSError."""
    if MODULES in folder.files:
        try:
            modules = msgspec.json.decode(read_file(folder.path, MODULES), type=list[_Module])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SafetensorsError(f"cannot read {MODULES}: {shown(str(error), 200)}") from None
        for module in modules:
            kind = module.type.rsplit(".", 1)[-1]
            if kind not in _KNOWN:
                raise SafetensorsError(f"cannot run a module of type {shown(kind, 64)}, which {MODULES} asks for")
    said = typed(folder.path, SENTENCES, _Sentences) if SENTENCES in folder.files else _Sentences()
    pooling: PoolingKind = "last" if folder.family.generates else "mean"
    if POOLING in folder.files:
        pooling = _pooling(typed(folder.path, POOLING, _Pooling))
    return Sentences(pooling, said.max_seq_length, said.do_lower_case)


def _pooling(said: _Pooling) -> PoolingKind:
    if isinstance(said.pooling_mode, str):
        modes = [said.pooling_mode]
    elif said.pooling_mode is not None:
        modes = said.pooling_mode
    else:
        flags = {
            "cls": said.pooling_mode_cls_token,
            "mean": said.pooling_mode_mean_tokens,
            "max": said.pooling_mode_max_tokens,
            "mean_sqrt_len_tokens": said.pooling_mode_mean_sqrt_len_tokens,
            "weightedmean": said.pooling_mode_weightedmean_tokens,
            "lasttoken": said.pooling_mode_lasttoken,
        }
        modes = [mode for mode, used in flags.items() if used]
    known: dict[str, PoolingKind] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    if len(modes) != 1 or modes[0] not in known:
        raise SafetensorsError(
            f"cannot pool by {shown(', '.join(modes) or 'nothing', 80)}: it must be mean, cls or last"
        )
    return known[modes[0]]
