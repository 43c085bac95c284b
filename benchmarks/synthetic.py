"""A model of random weights in the shape of Qwen3, and pairs of random words of exact lengths.

Nothing is downloaded. Weights change neither time nor memory, and every word is one token.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from rlhf_recipes.models.embedded import CHAT_ML
from rlhf_recipes.prompts import prompt_ids

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen3, by the names of its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = True


QWEN3_06B = Shape(1024, 28, 16, 8, 128, 3072, 151_936)
TINY = Shape(64, 2, 4, 2, 16, 128, 512)


def write_model(folder: Path, shape: Shape) -> None:
    """Write a model with random bfloat16 weights and its tokenizer as `save_pretrained` does."""
    tokenizer = word_tokenizer(shape.vocab_size)
    config = Qwen3Config(
        **asdict(shape),
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of `size` words with a chat template: any token is a word of its own."""
    words = [*SPECIAL, *ROLES]
    words += [f"w{i}" for i in range(size - len(words))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[3])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    opened = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[3],
        additional_special_tokens=[SPECIAL[1]],
    )
    opened.chat_template = CHAT_ML
    return opened


def write_pairs(file: Path, vocab_size: int, count: int, prompt: int, completion: int) -> None:
    """Write preference pairs of random words as JSON lines.

    Args:
        prompt: Tokens of each prompt, with those of the chat template.
        completion: Words of each completion.
    """
    words = vocab_size - len(SPECIAL) - len(ROLES)
    template = prompt_ids(word_tokenizer(vocab_size), [{"role": "user", "content": ""}])
    rng = random.Random(0)

    def message(role: str, length: int) -> dict[str, str]:
        return {
            "role": role,
            "content": " ".join(f"w{rng.randrange(words)}" for _ in range(length)),
        }

    with file.open("w", encoding="utf-8") as rows:
        for _ in range(count):
            pair = {
                "prompt": [message("user", prompt - len(template))],
                "chosen": [message("assistant", completion)],
                "rejected": [message("assistant", completion)],
            }
            rows.write(json.dumps(pair) + "\n")
