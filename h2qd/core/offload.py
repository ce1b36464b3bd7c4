"""Offload: how much of a model goes onto an accelerator with memory of its own. Pure; called by `switching`.

Where all of it fits, all of it goes; else as many layers as fit, each with its part of the KV cache, beside the
buffers that a GPU needs whatever it computes. The charge on the device's main memory stays the whole plan: a driver
may map weights from there, and what it takes is not ours to know. So a plan errs to the safe side on both.
"""

from h2qd.core.plan import MemoryPlan, ModelShape

_USABLE_PERCENT = 90
"""Of the memory that is free: drivers round up, and keep a context of their own for each process."""


def gpu_layers(shape: ModelShape, plan: MemoryPlan, free_bytes: int) -> int:
    """How many layers fit into `free_bytes` of an accelerator, the output matrix counted as one; 0 for none."""
    parts = dict(plan.parts)
    layers = shape.layers + 1
    each = -(-(parts["weights"] + parts["adapters"] + parts["kv_cache"] + parts["recurrent"]) // layers)
    room = free_bytes * _USABLE_PERCENT // 100 - parts["compute"] - parts["output"]
    return max(0, min(layers, room // max(1, each)))
