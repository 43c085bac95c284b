"""Reward modeling, ours or TRL's: `python -m benchmarks.reward CASE.json`; one line of JSON."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from benchmarks.cases import Setting, pair_case, settle
from benchmarks.measure import Case, measured_steps, read_case, report
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.prefix_sharing.forward import share_prefixes

PEER = f"trl {version('trl')} RewardTrainer"
UNIT = "pair"
EQUAL = "losses and gradient norms"


def cases(setting: Setting) -> list[Case]:
    """Return one case. At 3 s per pair a run of the peer takes 2 min, all six runs about 9 min."""
    return [pair_case(setting, steps=3)]


def build(case: Case) -> RewardTrainer:
    """Make the trainer of the case's side."""
    set_seed(case["training"]["seed"])  # the head's weights are random
    trainer = RewardTrainer(
        model=case["base"],
        args=RewardConfig(
            output_dir=str(Path(case["folder"], case["side"])),
            max_length=case["max_length"],
            model_init_kwargs={"dtype": case["dtype"]},
            bf16=case["dtype"] == "bfloat16",
            **case["training"],
        ),
        train_dataset=Dataset.from_list(case["pairs"]),
        processing_class=open_tokenizer(case["base"]),
        peft_config=LoraConfig(**case["lora"], task_type="SEQ_CLS"),
    )
    if case["side"] == "ours":
        model: Any = trainer.model
        share_prefixes(model)
    return trainer


def main() -> None:
    """Train on the case's pairs."""
    case = read_case(sys.argv[1])
    settle(case)
    report(**measured_steps(build(case), case["count_flops"], case["warm_up"]))


if __name__ == "__main__":
    main()
