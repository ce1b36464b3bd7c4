"""Small model folders, made at test time by transformers itself: random numbers, real files."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from h2qd.worker.torch.libraries import lean, torch, transformers

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""Of a model that is done in no time. Families that share no heads take `num_key_value_heads` for nothing."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant: {% endif %}"
)


def tiny(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard: str = "50GB",
    generates: bool = True,
    **sizes: Any,
) -> Path:
    """A folder with a model of `kind`, its weights in files of at most `shard`."""
    torch.manual_seed(seed)
    with lean():
        config = transformers.AutoConfig.for_model(kind, **{**SIZES, **sizes})
        auto = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
        model = auto.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size=shard)
    tokenizer(folder, bos=generates)
    return folder


def tokenizer(folder: Path, *, bos: bool = True) -> None:
    """A tokenizer whose tokens are bytes, beside some control tokens; and a chat template."""
    controls = ["<s>", "</s>", "<pad>", "<turn>", "<end>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(
        models.BPE({text: number for number, text in enumerate([*controls, *letters])}, [], fuse_unk=False)
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(controls)
    frame = "<s> $A" if bos else "<s> $A </s>"
    made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "model_max_length": 10**30}))
