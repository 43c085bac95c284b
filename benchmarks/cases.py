"""What the cases of all stages share: data, adapters, training arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from benchmarks.measure import Case
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.machine import keep_freed_memory, use_all_cores
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import prepare
from rlhf_recipes.preferences.shapes import Pair
from rlhf_recipes.prompts import prompt_ids
from rlhf_recipes.roles import Roles

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": LINEAR}
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "activation_checkpointing": False,
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 42,
}
"""The same on both sides. Without checkpointing, which TRL has on, the peer is faster."""

MAX_PROMPT_LENGTH = 192
COMPLETION_LENGTH = 64
PAIRS = 8  # in a batch


def settle(case: Case) -> None:
    """All cores for either side; ours sets up the process further, as its recipes do."""
    use_all_cores()
    if case["side"] == "ours":
        keep_freed_memory()


@dataclass(frozen=True)
class Setting:
    """What a benchmark is run on: `folder` is for its files, `max_length` is in tokens."""

    folder: Path
    dataset_name: str
    base: str = "demo"
    max_length: int = 256

    def case(self, name: str, **facts: Any) -> Case:
        """A case with what every script reads."""
        return {
            "name": name,
            "folder": str(self.folder),
            "base": base_path(self.base),
            "lora": LORA,
            "count_flops": False,
            **facts,
        }

    def pairs(self, count: int) -> list[Pair]:
        """The first training pairs, none longer than `max_length`, so that nothing is cut."""
        arguments = DataArguments(
            dataset_name=self.dataset_name,
            model_name_or_path=self.base,
            max_length=self.max_length,
        )
        pairs = prepare(arguments).pairs["train"][:count]
        if len(pairs) < count:
            raise RecipeError(
                f"`{self.dataset_name}` has {len(pairs)} training pairs of at most "
                f"{self.max_length} tokens, and this benchmark needs {count}. Give another dataset."
            )
        return pairs

    def prompts(self, count: int) -> list[Any]:
        """The first training prompts, each once, of at most MAX_PROMPT_LENGTH tokens."""
        tokenizer = open_tokenizer(self.base)
        kept: list[Any] = []
        for pair in prepare(DataArguments(dataset_name=self.dataset_name)).pairs["train"]:
            prompt = pair.prompt
            if prompt not in kept and len(prompt_ids(tokenizer, prompt)) <= MAX_PROMPT_LENGTH:
                kept.append(prompt)
            if len(kept) == count:
                return kept
        raise RecipeError(
            f"`{self.dataset_name}` has {len(kept)} prompts of at most {MAX_PROMPT_LENGTH} tokens, "
            f"and this benchmark needs {count}. Give another dataset."
        )

    def adapter(self, role: str, *, head: bool = False) -> str:
        """The folder of an adapter with random weights and the tokenizer."""
        folder = self.folder / f"{role}_adapter"
        roles = Roles(open_base(self.base))
        roles.attach(role, LoraConfig(**LORA), trainable=True)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in roles.base.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
        if head:
            weight = 0.1 * torch.randn(1, roles.base.config.hidden_size, generator=generator)
            roles.attach_head(role, weight, None, trainable=False)
        roles.save_role(role, folder)
        open_tokenizer(self.base).save_pretrained(folder)
        return str(folder)


def pair_case(setting: Setting, steps: int) -> Case:
    """Training on pairs: two steps to warm up, then `steps` that are timed."""
    rows = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in setting.pairs(PAIRS * (steps + 2))
    ]
    return setting.case(
        f"batches of {PAIRS} pairs",
        units=PAIRS * steps,
        warm_up=2,
        pairs=rows,
        max_length=setting.max_length,
        training={
            **TRAINING,
            "per_device_train_batch_size": PAIRS,
            "max_steps": steps + 2,
        },
    )
