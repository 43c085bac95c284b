"""Data, adapters and training arguments that the cases of all stages share."""

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
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 42,
}
"""Arguments of both sides. TRL turns activation checkpointing on; off, the peer is faster."""

COMPLETION_LENGTH = 64
PAIRS = 8  # per batch


def settle(case: Case) -> None:
    """Use all cores; for our side also set up the process as the recipes do."""
    use_all_cores()
    if case["side"] == "ours":
        keep_freed_memory()


@dataclass(frozen=True)
class Setting:
    """Model, data and working folder of a benchmark.

    Attributes:
        folder: Where it writes its files.
        max_length: Longest pair in tokens; longer ones are left out.
        dtype: Type of the base's weights; with bfloat16 the steps are autocast to it as well.
    """

    folder: Path
    dataset_name: str
    base: str = "demo"
    max_length: int = 256
    dtype: str = "float32"

    def case(self, name: str, **facts: Any) -> Case:
        """Make a case with the entries that every script reads."""
        return {
            "name": name,
            "folder": str(self.folder),
            "base": base_path(self.base),
            "lora": LORA,
            "dtype": self.dtype,
            "count_flops": False,
            **facts,
        }

    def pairs(self, count: int) -> list[Pair]:
        """Return the first training pairs of at most `max_length` tokens, so nothing is cut."""
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
        """Return the first distinct training prompts that leave room for a completion."""
        longest = self.max_length - COMPLETION_LENGTH
        tokenizer = open_tokenizer(self.base)
        prompts: list[Any] = []
        for pair in prepare(DataArguments(dataset_name=self.dataset_name)).pairs["train"]:
            prompt = pair.prompt
            if prompt not in prompts and len(prompt_ids(tokenizer, prompt)) <= longest:
                prompts.append(prompt)
            if len(prompts) == count:
                return prompts
        raise RecipeError(
            f"`{self.dataset_name}` has {len(prompts)} prompts of at most "
            f"{longest} tokens, and this benchmark needs {count}. Give another dataset."
        )

    def adapter(self, role: str, *, head: bool = False) -> str:
        """Write an adapter with random weights and the tokenizer, and return its folder."""
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
    """Make a case of training on pairs: two steps of warm-up, then `steps` that are timed."""
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
