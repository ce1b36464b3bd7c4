"""A model's modules as its configuration describes them, with parameters that have shapes and no numbers yet.

Transformers builds them from our own reading of config.json, within the families of `h2qd.safetensors`; no file is
read here. Called by `model`. Buffers that are computed (rotary frequencies) have their numbers; parameters have no
memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from h2qd.safetensors.folder import Folder
from h2qd.wire.names import shown
from h2qd.worker.engine import EngineError
from h2qd.worker.torch.attention import name
from h2qd.worker.torch.libraries import lean, torch, transformers

_OURS = frozenset({"architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version"})
"""Keys that are decided here, or that nobody needs."""


def build(folder: Folder, dtype: Any) -> Any:
    """The modules, to compute in `dtype`. Raises `EngineError` (load_failed) when they cannot be made."""
    values = {
        key: value
        for key, value in folder.config.values.items()
        if key not in _OURS and not key.startswith("_") and "implementation" not in key
    }
    auto = transformers.AutoModelForCausalLM if folder.family.generates else transformers.AutoModel
    attention = name(folder.family.attention) if folder.family.generates else folder.family.attention
    extra = {"add_pooling_layer": False} if folder.family.pooler else {}
    try:
        with lean(), _without_numbers():
            config = transformers.AutoConfig.for_model(folder.kind, **values)
            config.return_dict = True
            config.output_hidden_states = config.output_attentions = False
            module = auto.from_config(config, attn_implementation=attention, dtype=dtype, **extra)
    except Exception as error:  # the library raises whatever an odd configuration makes fail
        why = shown(f"{type(error).__name__}: {error}", 300)
        raise EngineError("load_failed", f"cannot build the model that config.json describes: {why}") from error
    return module.eval()


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Make every parameter that a module is given in the block one of the same shape without memory.

    What a module allocates for it before is never written to, so it takes no memory either.
    """
    keep = torch.nn.Module.register_parameter

    def register(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        keep(module, name, parameter)

    torch.nn.Module.register_parameter = register
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = keep
