"""The plan of a stage: what it will do, cost and write. No weights are loaded.

The numbers of rows, steps and parameters are exact; memory is estimated in `memory`.
"""

import math
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_recipes.checks import check_training
from rlhf_recipes.evaluation.collect.collection import held_out_prompts
from rlhf_recipes.evaluation.collect.provenance import Adapters
from rlhf_recipes.evaluation.collect.scorers import check_judges
from rlhf_recipes.evaluation.output_files import check_replaceable
from rlhf_recipes.hub.push import repo_name
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import DeviceMemory, device_memory
from rlhf_recipes.models.loading import check_generation_config
from rlhf_recipes.models.weight_files import check_weight_files
from rlhf_recipes.planning.memory import Memory, evaluation_memory, training_memory
from rlhf_recipes.planning.parameters import Parameters, evaluation_parameters, stage_parameters
from rlhf_recipes.preferences.truncation import (
    Rows,
    check_context,
    plain_text_notes,
    prompt_rows,
    rows_text,
    special_token_notes,
)
from rlhf_recipes.runs.locks import check_free
from rlhf_recipes.steps import completion_count

if TYPE_CHECKING:
    from rlhf_recipes.evaluation.arguments import EvaluationArguments

RUN_OUTPUTS = (
    "adapter, tokenizer, recipe.yaml, run.json, README.md",
    "trainer_state.json, all_results.json, training_curves.png",
)
STAGE_OUTPUTS = {
    "reward": ("results/reward_model_errors.json next to models/",),
    "grpo": ("completions/*.parquet",),
    "ppo": ("completions/*.parquet, value/ (the value model's adapter)",),
}
EVALUATION_OUTPUTS = ("samples/*_samples.json", "results/ with report.html", "ANALYSIS.md")


@dataclass(frozen=True)
class Plan:
    """Work, cost and output of a stage. An evaluation has no `batch` and no steps."""

    stage: str
    base_model: str
    rows: Mapping[str, Rows]
    batch: tuple[int, int, int] | None  # per device, accumulation steps, processes
    steps: int
    completions: int
    generated_tokens: int  # at most: if no completion ends early
    parameters: Parameters
    memory: Memory
    output_dir: str
    outputs: tuple[str, ...]
    pushed_to: str | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_plan(self)

    def announce(self) -> None:
        """Print, on the first process, how many rows are used, cut and left out."""
        if os.getenv("RANK", "0") == "0":
            sys.stdout.write(f"{rows_text(self.rows, self.notes)}\n")
            sys.stdout.flush()


def training_plan(inputs: Inputs) -> Plan:
    """Check a training stage's inputs and return its plan.

    A run calls this too, so it refuses what `--plan` refuses, in the same words.
    """
    check_training(inputs)
    stage, training, model, rows = inputs.stage, inputs.training, inputs.model, inputs.rows
    completions = completion_count(stage, inputs.epoch, inputs.steps, training)
    named = inputs.reward is not None and inputs.reward.reward_model_path is not None
    classifier = inputs.reward_classifier
    meta, parameters = stage_parameters(
        stage,
        model,
        inputs.reward_adapter,
        has_reference=inputs.has_reference_adapter,
        scored=named and classifier is None,
    )
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
        steps=inputs.steps,
        completions=completions,
        generated_tokens=completions * getattr(training, "max_completion_length", 0),
        parameters=parameters,
        memory=training_memory(inputs, meta, parameters),
        output_dir=str(training.output_dir),
        outputs=RUN_OUTPUTS + STAGE_OUTPUTS.get(stage, ()),
        pushed_to=pushed_to if training.push_to_hub else None,
        notes=(
            *plain_text_notes(inputs.dataset["train"], inputs.tokenizer),
            *special_token_notes(rows),
            *([] if classifier is None else [classifier.note]),
        ),
    )


def evaluation_plan(arguments: "EvaluationArguments", adapters: Adapters) -> Plan:
    """Check an evaluation's inputs and return its plan; the run calls this too."""
    check_replaceable(Path(arguments.output_dir), arguments.overwrite)
    if arguments.plan:
        check_free(Path(arguments.output_dir) / "samples")
    check_judges(arguments, adapters)
    prompts = held_out_prompts(arguments)
    rows = prompt_rows(prompts, adapters.tokenizer, arguments.max_completion_length)
    others = arguments.control + (adapters.start is not None)  # the base below the start
    samples = (len(adapters.evaluated) + others) * arguments.samples_per_prompt
    completions = rows.used * (arguments.base_samples + samples)
    # A checkpoint is evaluated in the slot of the finished adapter of its run.
    policies = [
        adapters.policies[policy.name] for policy in adapters.evaluated if policy.name == policy.run
    ]
    frozen = (adapters.start, *adapters.judges.values())
    meta, parameters = evaluation_parameters([adapters.proxy, *policies, *filter(None, frozen)])
    check_weight_files(meta, adapters.proxy.base)
    check_generation_config(adapters.proxy.base)
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
        memory=evaluation_memory(meta, parameters, adapters, arguments, rows.longest),
        output_dir=arguments.output_dir,
        outputs=EVALUATION_OUTPUTS,
        pushed_to=None,
        notes=special_token_notes({"validation": rows}),
    )


def format_plan(plan: Plan) -> str:
    """Return the plan as a table of two columns, at most 80 characters wide."""
    lines = [("stage", plan.stage), ("base model", plan.base_model)]
    for split, rows in plan.rows.items():
        first, *others = rows.lines()
        lines += [(f"{split} rows", first), *(("", line) for line in others)]
    if plan.stage in ("grpo", "ppo"):
        lines.append(("", "no prompt is truncated or dropped"))
    if plan.batch is not None:
        device, accumulation, processes = plan.batch
        lines += [
            (
                "effective batch",
                f"{math.prod(plan.batch):,} = {device} per device x {accumulation} accumulated "
                f"x {processes} process" + "es" * (processes > 1),
            ),
            ("optimizer steps", f"{plan.steps:,}"),
        ]
    if plan.completions:
        lines += [
            ("completions", f"{plan.completions:,}"),
            ("generated tokens", f"at most {plan.generated_tokens:,}"),
        ]
    counts = plan.parameters
    fraction = counts.trainable / counts.total
    lines.append(("parameters", f"{counts.total:,}, base {counts.base:,}"))
    if plan.batch is not None:
        lines.append(("trainable", f"{counts.trainable:,} ({fraction:.2%})"))
    lines.append(("memory", "estimate per process, without sharding"))
    lines += [(f"  {name}", _bytes(size)) for name, size in plan.memory.by_component().items()]
    lines.append(("", fits_text(plan.memory.peak, device_memory())))
    lines.append(("outputs in", plan.output_dir))
    lines += [("", output) for output in plan.outputs]
    lines.append(("pushed", f"to {plan.pushed_to}" if plan.pushed_to else "nothing"))
    table = [f"{name:<17} {_end_of(value, 62)}".rstrip() for name, value in lines]
    return "\n".join([*table, *(textwrap.fill(note, 80) for note in plan.notes)])


def fits_text(peak: int, device: DeviceMemory) -> str:
    """Say in one line whether a process's peak fits the memory that it has."""
    verdict = "fits" if peak <= device.size else "does not fit"
    return f"{verdict} into the {device.size / 1e9:.1f} GB of {device.owner}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:8.2f} GB" if size >= 1e9 else f"{size / 1e6:8.2f} MB"


def _end_of(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]
