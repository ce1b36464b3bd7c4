"""What each layer keeps for a sequence: keys and values of the whole context, of a sliding window, or a state.

The file does not always say it: for some architectures the engine has the pattern built in. The tables here follow
llama.cpp's src/models/*.cpp (the hparams of each) and src/llama-hparams.cpp as of llama-cpp-python 0.3.36. Where an
architecture is not listed, its layers count as attending to the whole context, the dearest case. Called by `facts`.
"""

from dataclasses import dataclass

from h2qd.gguf.errors import GgufError
from h2qd.gguf.keys import Keys

WINDOW_MAX = 2**31 - 1
STATE_BYTES_MAX = 2**44
_WIDTH_MAX = 2**20
_FLOAT_BYTES = 4
_PATTERN_KEY = "attention.sliding_window_pattern"
_WINDOW_KEY = "attention.sliding_window"


@dataclass(frozen=True, slots=True)
class _Slide:
    """One layer of `period` does not slide: the last, or the first with `dense_first`. 0: the file must list them.

    `window` is the one where the file names none; with `fixed`, the engine takes it whatever the file says but 0.
    """

    period: int
    dense_first: bool = False
    window: int = 0
    fixed: bool = False


_SLIDES = {
    "afmoe": _Slide(4),
    "cohere2": _Slide(4),
    "cohere2moe": _Slide(4, dense_first=True),
    "dots3note": _Slide(0),
    "exaone-moe": _Slide(4),
    "exaone4": _Slide(4, window=4096),
    "gemma2": _Slide(2, window=4096),
    "gemma3": _Slide(6),
    "gemma3n": _Slide(5),
    "gemma4": _Slide(0),
    "gpt-oss": _Slide(2),
    "granite_swa": _Slide(0),
    "laguna": _Slide(4, dense_first=True),
    "llama4": _Slide(4, window=8192, fixed=True),
    "maple": _Slide(0),
    "mellum": _Slide(4),
    "mimo2": _Slide(0),
    "muse-glimmer": _Slide(4),
    "olmo2": _Slide(4),
    "plamo3": _Slide(8),
    "smallthinker": _Slide(4, dense_first=True),
    "spark2_5": _Slide(0),
    "step35": _Slide(0),
}
_EXAONE4_SLIDING_LAYERS = 64
"""Only the 32B model of this family slides; the engine tells it by its number of layers."""

_SMALLTHINKER_WINDOW = 4096
_GEMMA3N_OWN_CACHES = 20
_OWN_CACHES_MIN = 2
"""Layers that share use the last two with caches of their own, one sliding and one not; fewer abort the engine."""

_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
"""All layers keep a state, and none attends."""

_RECURRENT_BESIDE_ATTENTION = frozenset({"falcon-h1"})
_RECURRENT_WITHOUT_KV_HEADS = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
    }
)
_RECURRENT_BUT_EVERY_NTH = frozenset({"minimax-01", "qwen35", "qwen35moe", "qwen3next", "qwen4exp"})


@dataclass(frozen=True, slots=True)
class Layers:
    """What the layers keep. `kv_heads` is 0 where a layer caches nothing; `recurrent_bytes` is for one sequence.

    `recurrent_width` is how many elements of a token a recurrent layer works on at once, 0 where none of them says.
    """

    kv_heads: list[int]
    sliding_window: int
    sliding: list[bool]
    recurrent_bytes: int
    recurrent_width: int


def read_layers(
    keys: Keys, count: int, heads: list[int], kv_heads: list[int], embedding: int, key_length: int
) -> Layers:
    """What each of `count` layers keeps, from the metadata and the architecture's habits. Raises `GgufError`."""
    recurrent = _recurrent(keys, count, kv_heads)
    cached = [
        0 if not attends else own for attends, own in zip(_attending(keys, count, recurrent), kv_heads, strict=True)
    ]
    window, sliding = _sliding(keys, count, cached)
    states = recurrent.count(True)
    recurrent_bytes = states * _state_elements(keys, heads, embedding, key_length) * _FLOAT_BYTES if states else 0
    if recurrent_bytes > STATE_BYTES_MAX:
        raise GgufError(f"cannot use a recurrent state of {recurrent_bytes} bytes: at most {STATE_BYTES_MAX}")
    width = keys.integer("ssm.inner_size", 0, _WIDTH_MAX, 0) if states else 0
    return Layers(cached, window, sliding, recurrent_bytes, width)


def _recurrent(keys: Keys, count: int, kv_heads: list[int]) -> list[bool]:
    """Which layers keep a state. Those that predict further tokens, the last ones, do not run and keep nothing."""
    name = keys.architecture
    running = count - keys.integer("nextn_predict_layers", 0, count, 0)
    if name in _RECURRENT or name in _RECURRENT_BESIDE_ATTENTION:
        return [index < running for index in range(count)]
    if name in _RECURRENT_WITHOUT_KV_HEADS:
        idle = [0] * count
        # Layers of these two with a feed-forward part are nothing but that.
        widths = keys.each_layer("feed_forward_length", count, _WIDTH_MAX, idle) if "nemotron" in name else idle
        return [index < running and not kv_heads[index] and not widths[index] for index in range(count)]
    if name in _RECURRENT_BUT_EVERY_NTH:
        interval = keys.integer("full_attention_interval", 1, WINDOW_MAX, 4)
        usual = [int((index + 1) % interval != 0) for index in range(count)]
        told = keys.each_layer("attention.recurrent_layers", count, 1, usual)
        return [index < running and bool(told[index]) for index in range(count)]
    return [False] * count


def _attending(keys: Keys, count: int, recurrent: list[bool]) -> list[bool]:
    """Which layers have a cache of their own: some share an earlier layer's."""
    name = keys.architecture
    own = count - keys.integer("nextn_predict_layers", 0, count, 0)
    if name == "gemma3n":
        own = min(own, _GEMMA3N_OWN_CACHES)
    elif name == "gemma4":
        shared = keys.integer("attention.shared_kv_layers", 0, count, 0)
        if count - shared < _OWN_CACHES_MIN:
            raise keys.fault(
                "attention.shared_kv_layers", f"{_OWN_CACHES_MIN} of {count} layers need their own cache"
            )
        own = min(own, count - shared)
    beside = name in _RECURRENT_BESIDE_ATTENTION
    return [index < own and (beside or not recurrent[index]) for index in range(count)]


def _sliding(keys: Keys, count: int, cached: list[int]) -> tuple[int, list[bool]]:
    """The window in tokens (0: nothing slides) and which layers slide."""
    name = keys.architecture
    if name in {"lfm2", "lfm2moe"}:
        window = keys.integer(_WINDOW_KEY, 0, WINDOW_MAX, 0)
        return window, [window > 0 and heads > 0 for heads in cached]
    slide = _SLIDES.get(name)
    if slide is None or (name == "exaone4" and count != _EXAONE4_SLIDING_LAYERS):
        return 0, [False] * count
    window = keys.integer(_WINDOW_KEY, 0, WINDOW_MAX, slide.window)
    if window and slide.fixed:
        window = slide.window
    elif window and name == "smallthinker":
        window = _SMALLTHINKER_WINDOW
    if not window:
        return 0, [False] * count
    sliding = _pattern(keys, count, slide)
    if not any(sliding):
        raise keys.fault(_PATTERN_KEY, f"none of {count} layers slides, though there is a window of {window} tokens")
    return window, sliding


def _pattern(keys: Keys, count: int, slide: _Slide) -> list[bool]:
    """Which layers slide: as the file lists them, or by the file's period, or by the architecture's."""
    if isinstance(keys.value(_PATTERN_KEY), tuple):
        return [bool(flag) for flag in keys.each_layer(_PATTERN_KEY, count, 1, [])]
    period = keys.integer(_PATTERN_KEY, 0, WINDOW_MAX, slide.period or None)
    if period == 0:
        return [True] * count
    dense = 0 if slide.dense_first else period - 1
    return [index % period != dense for index in range(count)]


def _state_elements(keys: Keys, heads: list[int], embedding: int, key_length: int) -> int:
    """Elements of one recurrent layer's state: what its convolution remembers, and the state proper.

    As llama_hparams::n_embd_r and n_embd_s compute them.
    """
    if wkv := keys.integer("wkv.head_size", 0, _WIDTH_MAX, 0):
        return keys.integer("token_shift_count", 0, 16, 2) * embedding + embedding * wkv
    if taps := keys.integer("shortconv.l_cache", 0, 1024, 0):
        return embedding * (taps - 1)
    kernel = keys.integer("ssm.conv_kernel", 0, 1024, 0)
    if head := keys.integer("kda.head_dim", 0, 4096, 0):
        return 3 * (kernel - 1 if kernel else 3) * max(heads) * head + head * head * max(heads)
    if keys.architecture == "minimax-01":
        return key_length * key_length * max(heads)
    inner = keys.integer("ssm.inner_size", 0, _WIDTH_MAX, 0)
    state = keys.integer("ssm.state_size", 0, _WIDTH_MAX, 0)
    groups = keys.integer("ssm.group_count", 0, 1024, 0)
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
