"""What a stage would do, cost and produce, told before it does it. No weights are loaded.

Counts of rows, steps and parameters are exact; memory is estimated by the formulas in `memory`.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_recipes.adapters import read_adapter
from rlhf_recipes.checks import Inputs, check_training
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.collect import held_out_prompts
from rlhf_recipes.evaluation.identity import read_adapters
from rlhf_recipes.evaluation.panel import check_judges
from rlhf_recipes.hub import repo_name
from rlhf_recipes.memory import Memory, evaluation_memory, training_memory
from rlhf_recipes.optimizers import check_warmup
from rlhf_recipes.parameter_counts import Parameters, evaluation_parameters, stage_parameters
from rlhf_recipes.preferences import split_off, unique_prompts
from rlhf_recipes.sampling import Prompt, ids_to_complete
from rlhf_recipes.truncation import Rows, fit_pairs, plain_text_notes
from rlhf_recipes.weight_files import check_weight_files

if TYPE_CHECKING:
    from datasets import Dataset

    from rlhf_recipes.evaluation.arguments import EvaluationArguments

RUN_OUTPUTS = (
    "adapter, tokenizer, recipe.yaml, run.json, README.md",
    "trainer_state.json, all_results.json, training_curves.png",
)
STAGE_OUTPUTS = {
    "reward": ("results/reward_model_errors.json beside models/",),
    "grpo": ("completions/*.parquet",),
    "ppo": ("completions/*.parquet, value/ (the value role's adapter)",),
}
EVALUATION_OUTPUTS = ("samples/*_samples.json", "results/ with report.html", "ANALYSIS.md")


@dataclass(frozen=True)
class Plan:
    """What a stage comes to. Evaluation has no `batch` and no steps."""

    stage: str
    base_model: str
    rows: Mapping[str, Rows]
    batch: tuple[int, int, int] | None  # device, accumulation, processes
    steps: int
    completions: int
    generated_tokens: int  # if no completion ends early
    parameters: Parameters
    memory: Memory
    output_dir: str
    outputs: tuple[str, ...]
    pushed_to: str | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_plan(self)


def training_plan(inputs: Inputs) -> Plan:
    """Check what a training stage is given, and count what it comes to.

    A run calls this too: what `--plan` refuses, the run refuses in the same words.
    """
    check_training(inputs)
    stage, training, model, dataset = inputs.stage, inputs.training, inputs.model, inputs.dataset
    if stage in ("grpo", "ppo"):
        prompts = training_prompts(stage, dataset["train"], training)["prompt"]
        rows = {"train": prompt_rows(prompts, inputs.tokenizer, training.max_completion_length)}
    else:
        rows = {
            split: fit_pairs(stage, split, dataset[split], inputs.tokenizer, training)
            for split in ("train", "validation")
        }
    check_context(inputs.language_model.config, rows)
    epoch = micro_batches(stage, rows["train"].used, training)
    steps = optimiser_steps(stage, epoch, training)
    check_warmup(training, steps)
    completions = completion_count(stage, epoch, steps, training)
    meta, parameters = stage_parameters(stage, model, inputs.reward_model)
    pushed_to = training.hub_model_id or repo_name(Path(training.output_dir))
    return Plan(
        stage=stage,
        base_model=str(model.model_name_or_path),
        rows=rows,
        batch=(
            training.train_batch_size,
            training.gradient_accumulation_steps,
            training.world_size,
        ),
        steps=steps,
        completions=completions,
        generated_tokens=completions * getattr(training, "max_completion_length", 0),
        parameters=parameters,
        memory=training_memory(
            stage,
            meta,
            parameters,
            model,
            training,
            rows["train"].longest,
            inputs.reward_precision,
        ),
        output_dir=str(training.output_dir),
        outputs=RUN_OUTPUTS + STAGE_OUTPUTS.get(stage, ()),
        pushed_to=pushed_to if training.push_to_hub else None,
        notes=plain_text_notes(dataset["train"], inputs.tokenizer),
    )


def evaluation_plan(arguments: "EvaluationArguments") -> Plan:
    """Check what an evaluation is given, and count what it comes to; the run calls this too."""
    policies = arguments.policies()
    adapters = read_adapters(arguments, policies)
    check_judges(arguments, adapters.proxy)
    prompts = held_out_prompts(arguments)
    rows = prompt_rows(prompts, adapters.tokenizer(), arguments.max_completion_length)
    samples = (len(policies) + arguments.control) * arguments.samples_per_prompt
    completions = rows.used * (arguments.base_samples + samples)
    # A checkpoint takes the place of the adapter it became.
    held = [adapters.policies[policy.name] for policy in policies if policy.name == policy.run]
    gold = arguments.gold_model_path
    others = (adapters.start, read_adapter(gold) if gold else None)
    meta, parameters = evaluation_parameters([adapters.proxy, *held, *filter(None, others)])
    check_weight_files(meta, adapters.proxy.base)
    check_context(meta.config, {"validation": rows})
    return Plan(
        stage="evaluate",
        base_model=adapters.proxy.base.name,
        rows={"validation": rows},
        batch=None,
        steps=0,
        completions=completions,
        generated_tokens=completions * arguments.max_completion_length,
        parameters=parameters,
        memory=evaluation_memory(meta, parameters, adapters.precision, arguments, rows.longest),
        output_dir=arguments.output_dir,
        outputs=EVALUATION_OUTPUTS,
        pushed_to=None,
    )


def check_context(config: PretrainedConfig, rows: Mapping[str, Rows]) -> None:
    """Raise RecipeError where a row has more tokens than the base has positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    for split, counts in rows.items():
        if positions is not None and counts.longest > positions:
            raise RecipeError(
                f"The longest {split} row has {counts.longest} tokens with its completion, and the "
                f"base takes {positions}. Lower `max_length` or `max_completion_length`, or leave "
                "long rows out with `max_length` of prepare_data.py."
            )


def training_prompts(stage: str, split: "Dataset", training: Any) -> "Dataset":
    """What a stage samples on: every prompt, but for those PPO holds out for its evaluations."""
    prompts = unique_prompts(split)
    if stage == "ppo" and training.eval_strategy != "no":
        prompts, _ = split_off(prompts, training.num_eval_prompts)
    return prompts


def prompt_rows(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_completion_length: int
) -> Rows:
    """The prompts, none of which is left out, and the longest with a whole completion."""
    longest = max(len(ids_to_complete(tokenizer, prompt)) for prompt in prompts)
    return Rows(len(prompts), longest + max_completion_length)


def micro_batches(stage: str, rows: int, training: Any) -> int:
    """Forward-backward passes of one process in one epoch.

    Pairs: ceil(rows / (device batch x processes)). Prompts are used in whole generation batches
    of GRPO, whole rollouts of PPO; each serves a fixed number of passes.
    """
    needed: int
    passes: int
    if stage == "grpo":
        needed = training.generation_batch_size // training.num_generations
        passes = training.steps_per_generation * training.num_iterations
    elif stage == "ppo":
        needed = training.prompts_per_rollout * training.world_size
        passes = training.micro_steps_per_rollout
    else:
        needed, passes = training.train_batch_size * training.world_size, 1
        if not training.dataloader_drop_last:
            return math.ceil(rows / needed)
    if rows < needed:
        raise RecipeError(
            f"There are {rows} training rows, and one batch of them takes {needed} over all "
            "processes, so there is nothing to train on. Lower `per_device_train_batch_size` or "
            "`gradient_accumulation_steps`, or give more rows."
        )
    return rows // needed * passes


def optimiser_steps(stage: str, epoch: int, training: Any) -> int:
    """Optimiser steps of a run whose epochs have so many passes, as transformers' Trainer counts.

    The last step of an epoch may have fewer passes than the others.
    """
    if stage == "ppo" and training.total_episodes is not None:
        rollouts = math.ceil(
            training.total_episodes / (training.rollout_size * training.world_size)
        )
        return int(rollouts * training.steps_per_rollout)
    if training.max_steps > 0:
        return int(training.max_steps)
    epochs: float = training.num_train_epochs
    return math.ceil(epochs * _steps_in_epoch(epoch, training))


def completion_count(stage: str, epoch: int, steps: int, training: Any) -> int:
    """Completions sampled while training, over all processes."""
    epochs, rest = divmod(steps, _steps_in_epoch(epoch, training))
    passes = epochs * epoch + rest * training.gradient_accumulation_steps
    if stage == "grpo":
        served = training.steps_per_generation * training.num_iterations
        return int(math.ceil(passes / served) * training.generation_batch_size)
    if stage == "ppo":
        rollouts = math.ceil(passes / training.micro_steps_per_rollout)
        return int(rollouts * training.rollout_size * training.world_size)
    return 0


def _steps_in_epoch(epoch: int, training: Any) -> int:
    accumulation: int = training.gradient_accumulation_steps
    return math.ceil(epoch / accumulation)


def format_plan(plan: Plan) -> str:
    """The plan as a table of two columns, at most 80 characters wide."""
    lines = [("stage", plan.stage), ("base model", plan.base_model)]
    for split, rows in plan.rows.items():
        first, *others = rows.lines()
        lines += [(f"{split} rows", first), *(("", line) for line in others)]
    if plan.stage in ("grpo", "ppo"):
        lines.append(("", "no prompt is cut or left out"))
    if plan.batch is not None:
        device, accumulation, processes = plan.batch
        lines += [
            (
                "effective batch",
                f"{math.prod(plan.batch):,} = {device} a device x {accumulation} accumulated "
                f"x {processes} process" + "es" * (processes > 1),
            ),
            ("optimiser steps", f"{plan.steps:,}"),
        ]
    if plan.completions:
        lines += [
            ("completions", f"{plan.completions:,}"),
            ("generated tokens", f"at most {plan.generated_tokens:,}"),
        ]
    counts = plan.parameters
    share = counts.trainable / counts.total
    lines.append(("parameters", f"{counts.total:,}, base {counts.base:,}"))
    if plan.batch is not None:
        lines.append(("trainable", f"{counts.trainable:,} ({share:.2%})"))
    lines.append(("memory", "an estimate, for each process, without sharding"))
    lines += [(f"  {name}", _bytes(size)) for name, size in plan.memory.parts().items()]
    lines.append(("outputs in", plan.output_dir))
    lines += [("", output) for output in plan.outputs]
    lines.append(("pushed", f"to {plan.pushed_to}" if plan.pushed_to else "nothing"))
    table = [f"{name:<17} {_shortened(value, 62)}".rstrip() for name, value in lines]
    return "\n".join([*table, *(textwrap.fill(note, 80) for note in plan.notes)])


def _bytes(size: int) -> str:
    return f"{size / 1e9:8.2f} GB" if size >= 1e9 else f"{size / 1e6:8.2f} MB"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]
