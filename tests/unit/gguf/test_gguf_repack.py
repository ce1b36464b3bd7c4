import pytest

from h2qd.gguf.header import Header
from h2qd.gguf.reader import read_header
from h2qd.gguf.repack import repacked_bytes
from tests.unit.gguf import forge
from tests.unit.gguf.forge import Forge, tensor

AVX2 = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n"
AVX512 = "flags\t\t: avx2 avx512f\n"
SSE = "flags\t\t: fpu sse4_2 avx\n"
PI4 = "Features\t: fp asimd evtstrm crc32 cpuid\n"
PI5 = "Features\t: fp asimd evtstrm aes asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
F32, Q4_0, Q8_0, Q2_K, Q4_K, Q6_K = 0, 2, 8, 10, 12, 14
LAST = ("blk.9.attn_norm.weight", [256], F32)
"""Used where it lies: up to here the file stays mapped."""

MATRIX = {Q4_0: 256 * 8 // 32 * 18, Q8_0: 256 * 8 // 32 * 34, Q2_K: 84 * 8, Q4_K: 144 * 8, Q6_K: 210 * 8}


def header(*tensors: tuple[str, list[int], int]) -> Header:
    described, offset = [], 0
    for name, shape, kind in tensors:
        described.append(tensor(name, shape, kind, offset))
        probe = read_header(Forge(tensors=[tensor(name, shape, kind)], data_bytes=2**20).file())
        offset += -(-probe.tensors[0].size_bytes // forge.ALIGNMENT) * forge.ALIGNMENT
    return read_header(Forge(tensors=described, data_bytes=offset).file())


@pytest.mark.parametrize(
    ("cpuinfo", "kinds"),
    [
        (AVX2, {Q4_0, Q4_K}),
        (AVX512, {Q4_0, Q4_K, Q2_K}),
        (SSE, set()),
        (PI4, set()),
        (PI5, {Q4_0, Q4_K, Q6_K, Q8_0}),
        ("", set()),
    ],
)
def test_each_cpu_has_its_layouts(cpuinfo: str, kinds: set[int]) -> None:
    for kind, size in MATRIX.items():
        found = header(("output.weight", [256], F32), ("blk.0.ffn_up.weight", [256, 8], kind), LAST)
        assert repacked_bytes(found, cpuinfo) == (size if kind in kinds else 0)


def test_only_matrices_that_are_multiplied_with_are_taken() -> None:
    output = ("output.weight", [256], F32)
    table = ("token_embd.weight", [256, 8], Q4_K)
    assert repacked_bytes(header(output, table, LAST), AVX2) == 0
    assert repacked_bytes(header(table), AVX2) == MATRIX[Q4_K], "a tied table is loaded once more as the output"
    assert repacked_bytes(header(output, ("a.weight", [256, 12], Q4_K), LAST), AVX2) == 0, "12 rows are not eights"
    assert repacked_bytes(header(output, ("a_exps.weight", [256, 8, 3], Q4_K), LAST), AVX2) == 3 * MATRIX[Q4_K]
    assert repacked_bytes(header(output, ("a.weight", [256], Q4_K), LAST), AVX2) == 0
    assert repacked_bytes(header(output, ("a.bias", [256, 8], Q4_K), LAST), AVX2) == 0


def test_what_is_copied_from_the_ends_of_the_file_does_not_stay_mapped() -> None:
    norm = ("output_norm.weight", [256], F32)
    matrices = [(f"blk.{index}.ffn_up.weight", [256, 8], Q4_K) for index in range(4)]
    between = header(norm, *matrices, LAST)
    assert repacked_bytes(between, AVX2) == 4 * MATRIX[Q4_K]
    assert repacked_bytes(header(*matrices, norm), AVX2) == 0
    assert repacked_bytes(header(norm, *matrices), AVX2) == 0
    assert repacked_bytes(header(matrices[0], norm, *matrices[1:3], LAST, matrices[3]), AVX2) == 2 * MATRIX[Q4_K]
    assert repacked_bytes(header(*matrices), AVX2) == 0
