"""The libraries of this engine, imported in the worker that needs them: offline, and without extras.

Transformers looks for dozens of optional packages and imports those that it finds; of these only tens of megabytes
would ever be seen here. Every module of this package takes `torch` and `transformers` from here.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # threads of its own, for texts that come one by one
    "TRANSFORMERS_VERBOSITY": "error",
    "USE_HUB_KERNELS": "0",  # compiled code from the internet
}

_UNWANTED = (
    "IPython",
    "PIL",
    "accelerate",
    "flash_attn",
    "kernels",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "torchaudio",
    "torchvision",
)


@contextmanager
def lean() -> Iterator[None]:
    """Let imports in the block find none of what is not wanted; what is there already stays."""
    hidden = [name for name in _UNWANTED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


os.environ.update(_ENVIRONMENT | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")})
with lean():
    import torch
    import transformers
    from safetensors import safe_open
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    try:
        import llguidance
    except ImportError:  # there is no wheel of it for every device; only grammars need it
        llguidance = None

__all__ = ["DecodeStream", "Tokenizer", "lean", "llguidance", "safe_open", "torch", "transformers"]
