"""Whole reward models with random weights, as people publish them: other bases and tokenizers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rlhf_recipes.models.loading import open_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
DECODER = {**SIZES, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "qwen2": DECODER,
    "gemma2": {**DECODER, "head_dim": 8, "sliding_window": 16},
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 2,
    },
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s>{% endfor %}"
)
"""A chat template that is not the policy's."""


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of letters that puts [CLS] and [SEP] around texts, as DeBERTa's does."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def whole_reward_model(
    folder: Path,
    shape: str = "llama",
    pad: str = "own",
    template: str | None = TEMPLATE,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> str:
    """Save a classifier with random weights, and a tokenizer that is not the policy's.

    Args:
        pad: `own` for a padding token of its own, `eos` for the end-of-sequence token, `absent` for
            none in the tokenizer and the configuration.
        changes: Further entries of the configuration.
    """
    if shape == "deberta-v2":
        tokenizer = encoder_tokenizer()
    else:
        tokenizer = open_tokenizer("tiny")
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
        tokenizer.pad_token = {"own": tokenizer.pad_token, "eos": "</s>", "absent": None}[pad]
        tokenizer.chat_template = template
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    settings = {"vocab_size": len(tokenizer), "num_labels": 1, **SHAPES[shape], **ids, **changes}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[shape](**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
