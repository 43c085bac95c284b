"""Group relative policy optimization, ours or TRL's: `python -m benchmarks.grpo CASE.json`."""

import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from benchmarks.cases import COMPLETION_LENGTH, TRAINING, Setting, settle
from benchmarks.measure import Case, measured_steps, read_case, report
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from rlhf_recipes.prompts import prompt_ids

PEER = f"trl {version('trl')} GRPOTrainer"
UNIT = "completion"
EQUAL = "losses and gradient norms on the same completions"

COMPLETIONS = 16  # per batch
GROUP = 4


def cases(setting: Setting) -> list[Case]:
    """Return one case. At 4.5 s per completion a run of the peer takes 2.4 min, all six 12 min."""
    steps = 1
    return [
        setting.case(
            f"groups of {GROUP}",
            units=COMPLETIONS * steps,
            prompts=setting.prompts(COMPLETIONS // GROUP * (steps + 1)),
            fixed=False,
            # Sampled completions differ between the sides, so these are compared on fixed ones.
            equality={"fixed": True},
            training={
                **TRAINING,
                "per_device_train_batch_size": COMPLETIONS,
                "num_generations": GROUP,
                "max_completion_length": COMPLETION_LENGTH,
                "beta": 0.02,  # TRL's 0 would leave no KL to the reference
                "max_steps": steps + 1,
            },
        )
    ]


def build(case: Case) -> GRPOTrainer:
    """Make the trainer of the case's side."""
    set_seed(case["training"]["seed"])
    ours = case["side"] == "ours"
    args = GRPOConfig(
        output_dir=str(Path(case["folder"], case["side"])),
        model_init_kwargs={"dtype": case["dtype"]},
        bf16=case["dtype"] == "bfloat16",
        **case["training"],
    )
    rollout_func = rollout_func_for(args) if ours else None
    trainer = GRPOTrainer(
        model=case["base"],
        # A list of floats is none of floats or None to a type checker.
        reward_funcs=variety,  # type: ignore[arg-type]
        args=args,
        train_dataset=Dataset.from_dict({"prompt": case["prompts"]}),
        processing_class=open_tokenizer(case["base"]),
        peft_config=LoraConfig(**case["lora"], task_type="CAUSAL_LM"),
        rollout_func=fixed_completions if case["fixed"] else rollout_func,
    )
    if ours:
        model: Any = trainer.model
        share_prefixes(model)
    return trainer


def variety(completions: list[Any], **_: Any) -> list[float]:
    """Count the distinct characters of each completion: a reward that costs no time."""
    return [float(len(set(str(completion)))) for completion in completions]


def fixed_completions(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
    """Draw completions of random tokens, the same on both sides, in GRPOTrainer's form."""
    tokenizer: Any = trainer.processing_class
    generator = random.Random(len(prompts))
    completions = [
        generator.choices(range(len(tokenizer)), k=generator.randint(2, COMPLETION_LENGTH))
        for _ in prompts
    ]
    return {
        "prompt_ids": [prompt_ids(tokenizer, prompt) for prompt in prompts],
        "completion_ids": completions,
        "logprobs": None,
    }


def main() -> None:
    """Train on the case's prompts."""
    case = read_case(sys.argv[1])
    settle(case)
    trainer = build(case)
    measurement = measured_steps(trainer, case["count_flops"])
    logs = [log for log in trainer.state.log_history if "completions/mean_length" in log]
    report(**measurement, mean_length=logs[-1]["completions/mean_length"])


if __name__ == "__main__":
    main()
