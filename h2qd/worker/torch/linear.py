"""Linear layers whose weights are kept in 8 or 4 bits, while activations stay bfloat16. Called by `weights`.

8 bits: a scale for each row. 4 bits: a scale and a zero for each 32 weights of a row. Both run on kernels of PyTorch
for CPUs; in bfloat16, because the same kernels are some hundred times slower in float32 (measured, torch 2.13).
"""

from typing import Any

from h2qd.worker.torch.libraries import torch

GROUP = 32
_ROWS = 1024
"""Rows that are quantized at a time: what is needed besides stays small."""


class QuantizedLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into
    """Stands in for a linear layer of `inputs` and `outputs`, once `take` has seen its weight."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_parameter("bias", torch.nn.Parameter(torch.empty(outputs, device="meta")) if bias else None)

    def take(self, weight: Any) -> None:
        """Quantize `weight`, of shape (outputs, inputs)."""
        raise NotImplementedError

    def forward(self, values: Any) -> Any:
        """`values` times the weight, transposed, and the bias added."""
        flat = values.reshape(-1, self.in_features)
        product = self.product(flat).reshape(*values.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias

    def product(self, values: Any) -> Any:
        """The product alone, of values in two dimensions."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """8 bits a weight."""

    def take(self, weight: Any) -> None:
        """See `QuantizedLinear`."""
        whole = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        scales = torch.empty(self.out_features, dtype=torch.bfloat16)
        for start in range(0, self.out_features, _ROWS):
            rows = weight[start : start + _ROWS].float()
            scale = (rows.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
            whole[start : start + _ROWS] = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            scales[start : start + _ROWS] = scale
        self.register_buffer("weight", whole, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def product(self, values: Any) -> Any:
        """See `QuantizedLinear`."""
        return torch._weight_int8pack_mm(values, self.weight, self.scales)  # noqa: SLF001 - the only name it has


class Int4Linear(QuantizedLinear):
    """4 bits a weight, for `inputs` in whole groups and `outputs` in sixteens."""

    def take(self, weight: Any) -> None:
        """See `QuantizedLinear`."""
        groups = self.in_features // GROUP
        whole = torch.empty(self.out_features, self.in_features, dtype=torch.int32)
        scales = torch.empty(groups, self.out_features, 2, dtype=torch.bfloat16)
        for start in range(0, self.out_features, _ROWS):
            rows = weight[start : start + _ROWS].float().reshape(-1, groups, GROUP)
            low, high = rows.amin(-1), rows.amax(-1)
            scale = ((high - low) / 15).clamp(min=1e-12).bfloat16()
            zero = (low + scale.float() * 8).bfloat16()  # what the number 8 stands for
            numbers = (rows - zero.float()[..., None]) / scale.float()[..., None] + 8
            whole[start : start + _ROWS] = numbers.round().clamp(0, 15).to(torch.int32).flatten(1)
            scales[:, start : start + _ROWS] = torch.stack([scale, zero], -1).transpose(0, 1)
        packed = torch._convert_weight_to_int4pack_for_cpu(whole, 1)  # noqa: SLF001 - the only name it has
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def product(self, values: Any) -> Any:
        """See `QuantizedLinear`."""
        return torch._weight_int4pack_mm_for_cpu(values, self.weight, GROUP, self.scales)  # noqa: SLF001 - the same


def fits_int4(inputs: int, outputs: int) -> bool:
    """Whether a layer of this size can be kept in 4 bits."""
    return inputs % GROUP == 0 and outputs % 16 == 0
