"""Train stages of recipes/tiny one after another: `-m tests.launching.stages OUT DATA REWARD`.

Under `accelerate launch` the processes shard what its configuration says; alone, one process trains
on the same batches. Importing the libraries takes most of the time, so all stages share a launch.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState

from rlhf_recipes.ending import end_process
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.sharding import sharding_launched
from tests.launching.shard_on_cpu import shard_on_cpu

BATCH = 4
"""Rows of an optimizer step, over all processes."""


def train(stage: str, out: Path, data: str, *flags: str) -> None:
    """Run a stage's script in this process, with plain SGD: its steps are its gradients."""
    rows = BATCH // int(os.getenv("WORLD_SIZE", "1"))
    sys.argv = [
        *(f"recipes/{stage}.py", "--config", f"recipes/tiny/{stage}.yaml", "--use_cpu"),
        *("--dataset_name", data, "--output_dir", str(out)),
        *("--per_device_train_batch_size", str(rows), "--optim", "sgd", "--learning_rate", "0.5"),
        *("--save_strategy", "steps", "--save_steps", "1", *flags),
    ]
    runpy.run_path(sys.argv[0])["main"]()
    PartialState().wait_for_everyone()  # until the first process has written the run folder
    AcceleratorState._reset_state()  # of the next stage's trainer, in another precision


def resume(stage: str, out: Path, data: str, *flags: str) -> None:
    """Train a stage again from the first checkpoint of its run, in a folder of its own."""
    begun = out.with_name(f"{out.name}_resumed")
    if PartialState().is_main_process:
        begun.mkdir()
        shutil.copytree(out / "checkpoint-1", begun / "checkpoint-1")
        for name in ("recipe.yaml", "inputs.json"):
            shutil.copy(out / name, begun)
    PartialState().wait_for_everyone()
    train(stage, begun, data, *flags)


def train_on_lower_bases(out: Path, data: str, scored: tuple[str, str]) -> None:
    """Take one step of each stage on a base in bfloat16, and on one in 4 bits."""
    bf16 = ("--bf16", "true", "--max_steps", "1", "--dtype", "bfloat16")
    for name, flags in (("bf16_base", bf16), ("qlora", (*bf16, "--load_in_4bit", "true"))):
        train("reward", out / f"reward_{name}", data, *flags)
        train("dpo", out / f"dpo_{name}", data, *flags)
        if not sharding_launched():
            train("grpo", out / f"grpo_{name}", data, *flags, *scored)
            train("ppo", out / f"ppo_{name}", data, *flags, *scored)


def main(out: Path, data: str, reward: str) -> None:
    """Train every stage, DPO again from a checkpoint, and in lower precision where it matters."""
    shard_on_cpu()
    scored = ("--reward_model_path", reward)
    train("reward", out / "reward", data)
    train("dpo", out / "dpo", data)
    uneven = ("--max_steps", "-1", "--num_train_epochs", "1", "--max_train_samples", "11")
    adamw = ("--optim", "adamw_torch", "--learning_rate", "0.01", *uneven)
    train("dpo", out / "dpo_adamw", data, *adamw)
    resume("dpo", out / "dpo_adamw", data, *adamw)
    train("grpo", out / "grpo", data, *scored)
    lower = ("--bf16", "true", "--max_steps", "1")
    train("dpo", out / "dpo_bf16", data, *lower)
    try:
        train("ppo", out / "ppo", data, *scored)
    except RecipeError as error:
        (out / "refused").write_text(str(error))
    if PartialState().num_processes == 1:
        train("grpo", out / "grpo_bf16", data, *lower, *scored)
        train("ppo", out / "ppo_bf16", data, *lower, *scored)
    if os.getenv("ACCELERATE_USE_DEEPSPEED") != "true":
        train_on_lower_bases(out, data, scored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    end_process()
