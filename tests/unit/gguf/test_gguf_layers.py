import pytest

from h2qd.gguf.errors import GgufError
from h2qd.gguf.keys import Keys
from h2qd.gguf.layers import Layers, read_layers
from h2qd.gguf.reader import read_header
from tests.unit.gguf import forge
from tests.unit.gguf.forge import Forge, number, numbers, pair, string


def layers(architecture: str, layout: int | list[int], **values: int | list[int]) -> Layers:
    """What so many layers keep, or layers with these KV heads; `__` in a key stands for a dot."""
    kv_heads = [2] * layout if isinstance(layout, int) else layout
    count = len(kv_heads)
    pairs = [pair("general.architecture", string(architecture))]
    for key, value in values.items():
        told = numbers(forge.U32, value) if isinstance(value, list) else number(forge.U32, value)
        pairs.append(pair(f"{architecture}.{key.replace('__', '.')}", told))
    keys = Keys(read_header(Forge(pairs=pairs).file()))
    return read_layers(keys, count, [8] * count, kv_heads, 64, 16)


def slides(architecture: str, count: int, **values: int | list[int]) -> tuple[int, str]:
    """The window, and a letter a layer: s slides, f attends to the full context."""
    found = layers(architecture, count, **values)
    return found.sliding_window, "".join("s" if slide else "f" for slide in found.sliding)


def test_the_architectures_own_patterns() -> None:
    window = 100
    assert slides("llama", 4, attention__sliding_window=window) == (0, "ffff")
    assert slides("gemma2", 4) == (4096, "sfsf")
    assert slides("gemma3", 7, attention__sliding_window=window) == (100, "sssssfs")
    assert slides("gemma3", 7) == (0, "fffffff")
    assert slides("gpt-oss", 4, attention__sliding_window=window) == (100, "sfsf")
    assert slides("cohere2moe", 5, attention__sliding_window=window) == (100, "fsssf")
    assert slides("smallthinker", 5, attention__sliding_window=window) == (4096, "fsssf")
    assert slides("llama4", 5, attention__sliding_window=window) == (8192, "sssfs")
    assert slides("llama4", 5) == (8192, "sssfs")
    assert slides("llama4", 5, attention__sliding_window=0) == (0, "fffff")
    assert slides("exaone4", 30, attention__sliding_window=window) == (0, "f" * 30)
    assert slides("exaone4", 64) == (4096, "sssf" * 16)


def test_the_files_pattern_wins() -> None:
    assert slides("gemma3", 4, attention__sliding_window=100, attention__sliding_window_pattern=[0, 1, 1, 0]) == (
        100,
        "fssf",
    )
    assert slides("gemma3", 4, attention__sliding_window=100, attention__sliding_window_pattern=2) == (100, "sfsf")
    assert slides("gemma3", 4, attention__sliding_window=100, attention__sliding_window_pattern=0) == (100, "ssss")


def test_a_window_that_no_layer_uses_is_refused() -> None:
    # The engine asserts it, and would abort.
    for pattern in (1, [0, 0, 0, 0]):
        with pytest.raises(GgufError, match="none of 4 layers slides"):
            layers("gemma3", 4, attention__sliding_window=9, attention__sliding_window_pattern=pattern)
    with pytest.raises(GgufError, match=r"cannot find mimo2\.attention\.sliding_window_pattern"):
        layers("mimo2", 4, attention__sliding_window=9)


def test_layers_that_share_a_cache_have_none() -> None:
    assert layers("gemma3n", 30, attention__sliding_window=9).kv_heads == [2] * 20 + [0] * 10
    pattern = [1, 0, 1, 0]
    shared = layers(
        "gemma4",
        4,
        attention__sliding_window=9,
        attention__sliding_window_pattern=pattern,
        attention__shared_kv_layers=2,
    )
    assert shared.kv_heads == [2, 2, 0, 0]
    with pytest.raises(GgufError, match=r"gemma4\.attention\.shared_kv_layers = 3"):
        layers(
            "gemma4",
            4,
            attention__sliding_window=9,
            attention__sliding_window_pattern=pattern,
            attention__shared_kv_layers=3,
        )


def test_layers_that_predict_further_tokens_keep_nothing() -> None:
    assert layers("llama", 4, nextn_predict_layers=1).kv_heads == [2, 2, 2, 0]


def test_recurrent_layers_keep_a_state_instead_of_a_cache() -> None:
    inner = 32
    one = (3 * (inner + 2 * 1 * 8) + 8 * inner) * 4
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": inner, "ssm__state_size": 8, "ssm__group_count": 1}
    assert layers("mamba2", 3, **ssm) == Layers([0, 0, 0], 0, [False] * 3, 3 * one, inner)
    assert layers("jamba", [0, 2, 0], **ssm) == Layers([0, 2, 0], 0, [False] * 3, 2 * one, inner)
    assert layers("falcon-h1", 3, **ssm) == Layers([2, 2, 2], 0, [False] * 3, 3 * one, inner)
    assert layers("qwen3next", 5, **ssm) == Layers([0, 0, 0, 2, 0], 0, [False] * 5, 4 * one, inner)
    assert layers("qwen3next", 4, full_attention_interval=2, **ssm).kv_heads == [0, 2, 0, 2]
    assert layers("qwen3next", 4, attention__recurrent_layers=[1, 1, 0, 0], **ssm).kv_heads == [0, 0, 2, 2]
    assert layers("nemotron_h", [0, 2, 0], feed_forward_length=[0, 0, 99], **ssm).recurrent_bytes == one


def test_the_states_of_other_families() -> None:
    assert layers("rwkv7", 2, wkv__head_size=16).recurrent_bytes == 2 * (2 * 64 + 64 * 16) * 4
    assert layers("lfm2", [0, 2], shortconv__l_cache=3) == Layers([0, 2], 0, [False] * 2, 64 * 2 * 4, 0)
    kimi = layers("kimi-linear", [0, 2], kda__head_dim=16, ssm__conv_kernel=4)
    assert kimi.recurrent_bytes == (3 * 3 * 8 * 16 + 16 * 16 * 8) * 4
    assert layers("minimax-01", 2, full_attention_interval=2).recurrent_bytes == 16 * 16 * 8 * 4
    assert slides("lfm2", 2, attention__sliding_window=9) == (9, "ss")


def test_a_state_larger_than_any_memory_is_refused() -> None:
    with pytest.raises(GgufError, match="cannot use a recurrent state of"):
        layers("mamba", 2, ssm__inner_size=2**20, ssm__state_size=2**20, ssm__conv_kernel=1024, ssm__group_count=1024)
