"""What the engine copies into a layout that suits this CPU: anonymous memory on top of what stays mapped of the file.

Follows ggml_repack_get_optimal_repack_type in ggml-cpu/repack.cpp and how llama.cpp places tensors, as of
llama-cpp-python 0.3.36 built for the machine it runs on. It reads nothing itself: the caller hands in the text of
/proc/cpuinfo. Other CPUs than x86-64 and ARM count as not repacking.
"""

from collections.abc import Mapping

from h2qd.gguf.header import Header, Tensor

_X86 = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8}
_X86_AVX512 = {**_X86, "Q2_K": 8}
_ARM = {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4}
"""Rows are taken so many at a time; a matrix whose rows do not divide by it is left alone."""

_TOKEN_TABLE = "token_embd.weight"  # noqa: S105 - no password
_LOOKED_UP = ("token_embd.", "token_types.", "position_embd.", "per_layer_token_embd.")
"""Tables that rows are looked up in: multiplied by nothing, so not repacked."""


def repacked_bytes(header: Header, cpuinfo: str) -> int:
    """What the copies that a load makes, on the CPU that `cpuinfo` describes, add to the tensors of the file.

    The file stays mapped from the first tensor that is used where it lies to the last (llama-model-loader.cpp,
    mmaps_used), so what was copied from its two ends counts once, and what was copied from between counts twice.
    """
    rows = _rows_by_type(cpuinfo)
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    taken = [_is_taken(tensor, rows, tied=tied) for tensor in header.tensors]
    # A tied token table is also looked up in, where it lies.
    left = [tensor.name == _TOKEN_TABLE or not copied for tensor, copied in zip(header.tensors, taken, strict=True)]
    sizes = [tensor.size_bytes for tensor in header.tensors]
    first = left.index(True) if True in left else len(left)
    last = len(left) - left[::-1].index(True) if True in left else first
    copied_bytes = sum(size for size, copied in zip(sizes, taken, strict=True) if copied)
    return copied_bytes - sum(sizes[:first]) - sum(sizes[last:])


def _is_taken(tensor: Tensor, rows: Mapping[str, int], *, tied: bool) -> bool:
    """Whether this is a matrix (or one an expert) that is multiplied with, of a type that has a better layout."""
    if len(tensor.shape) not in {2, 3} or not tensor.name.endswith(".weight"):
        return False
    # A model without an output matrix multiplies with its token table: that is loaded a second time, as a matrix.
    if tensor.name.startswith(_LOOKED_UP) and not (tied and tensor.name == _TOKEN_TABLE):
        return False
    step = rows.get(tensor.type.name)
    return step is not None and tensor.shape[1] % step == 0


def _rows_by_type(cpuinfo: str) -> Mapping[str, int]:
    features: set[str] = set()
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            features.update(value.split())
    if "avx512f" in features:
        return _X86_AVX512
    if "avx2" in features:
        return _X86
    return _ARM if features & {"asimddp", "i8mm"} else {}
