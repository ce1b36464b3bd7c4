"""What a model folder says of itself, checked: the facts that the plan and `h2qctl show` rest on.

Called by workers, before a folder is registered. Invariant: every number fits the wire, and the sizes are such that a
model of them can be built at little cost: no more layers than tensors, no wider than what the tensors hold.
"""

from collections import Counter

from h2qd.safetensors.errors import SafetensorsError
from h2qd.safetensors.folder import TEMPLATE, Folder
from h2qd.safetensors.header import DTYPE_BYTES
from h2qd.safetensors.sentences import read_sentences
from h2qd.wire.limits import LAYERS_MAX
from h2qd.wire.messages import ModelFacts
from h2qd.wire.names import shown

CONTEXT_MAX = 2**31 - 1
WIDTH_MAX = 2**20
HEADS_MAX = 65_536
VOCABULARY_MAX = 2**23

FLOATS = frozenset({"F16", "BF16", "F32"})
"""What weights may be made of."""


def facts(folder: Folder) -> ModelFacts:
    """The facts of a whole, runnable model. Raises `SafetensorsError` when it is none, OSError."""
    config, family = folder.config, folder.family
    tensors = list(folder.tensors)
    weights = [tensor for tensor in tensors if not tensor.name.startswith(family.ignored)]
    layers = config.integer(family.layers, 1, min(LAYERS_MAX, len(tensors)))
    embedding = config.integer(family.embedding, 1, WIDTH_MAX)
    heads = config.integer(family.heads, 1, HEADS_MAX)
    kv_heads = config.integer("num_key_value_heads", 1, heads, heads)
    context = config.integer(family.context, 1, CONTEXT_MAX) - family.positions_kept
    head_length = config.integer("head_dim", 1, WIDTH_MAX, max(1, embedding // heads))
    said = read_sentences(folder)
    if not family.generates:
        context = min(context, said.length_max or context)
        kv_heads = 0  # nothing is kept of a text that has become a vector
    if context < 1:
        raise config.fault(family.context, "no token would have a position")
    size = sum(tensor.size_bytes for tensor in weights)
    widest = max(tensor.elements for tensor in tensors)
    vocabulary = config.integer("vocab_size", 1, VOCABULARY_MAX)
    if vocabulary * embedding > widest:
        raise config.fault("vocab_size", f"no tensor holds {vocabulary} x {embedding} numbers")
    return ModelFacts(
        format="safetensors",
        architecture=folder.kind,
        quantization=_dtype(folder),
        parameters=sum(tensor.elements for tensor in weights),
        file_bytes=sum(part.header.file_bytes for part in folder.parts),
        tensor_bytes=size,
        context_length=context,
        layers=layers,
        embedding=embedding,
        feed_forward=config.integer(family.feed_forward, 1, WIDTH_MAX),
        vocabulary=vocabulary,
        heads=[heads],
        kv_heads=[kv_heads],
        key_length=head_length,
        value_length=head_length,
        chat_template=TEMPLATE in folder.files or bool(folder.tokenizer.chat_template),
    )


def _dtype(folder: Folder) -> str:
    """What most of the weights are made of."""
    sizes: Counter[str] = Counter()
    for tensor in folder.tensors:
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += tensor.size_bytes
        elif not tensor.name.startswith(folder.family.ignored) and DTYPE_BYTES[tensor.dtype] < 8:
            known = ", ".join(sorted(FLOATS))
            raise SafetensorsError(f"cannot use tensor {shown(tensor.name)} of {tensor.dtype}: weights are {known}")
    if not sizes:
        raise SafetensorsError("cannot run a model without weights")
    return sizes.most_common(1)[0][0]
