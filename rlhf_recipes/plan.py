"""What a stage would do, cost and produce, told before it does it. No weights are loaded.

Counts of rows, steps and parameters are exact; memory is estimated by the formulas in `memory`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
)
from trl import ModelConfig, get_peft_config

from rlhf_recipes.arguments import RecipeArguments, RecipeError
from rlhf_recipes.memory import (
    FLOAT32,
    Memory,
    activation_bytes,
    architecture,
    item_bytes,
    kv_cache_bytes,
    logits_bytes,
    optimiser_bytes,
    weight_bytes,
)
from rlhf_recipes.models import adapter_base, base_path, open_tokenizer
from rlhf_recipes.preference_lengths import TokenRuler
from rlhf_recipes.preference_shapes import Pair
from rlhf_recipes.preferences import load_prepared, unique_prompts
from rlhf_recipes.roles import read_adapter
from rlhf_recipes.sampling import prompt_ids

if TYPE_CHECKING:
    from rlhf_recipes.evaluation.collect import EvaluationArguments

RUN_OUTPUTS = (
    "adapter, tokenizer, recipe.yaml, run.json, README.md",
    "trainer_state.json, all_results.json, training_curves.png",
)
EVALUATION_OUTPUTS = ("samples/*_samples.json", "results/, with report.html", "ANALYSIS.md")


@dataclass(frozen=True)
class Rows:
    """Rows of a split in use, those left out as too long, and the tokens of the longest in use.

    The longest counts what the model sees at most: prompt and answer, cut where the trainer cuts.
    """

    used: int
    left_out: int
    longest: int


@dataclass(frozen=True)
class Steps:
    """`batch` is device x accumulation x processes; `completions` are all that are sampled."""

    batch: tuple[int, int, int]
    optimiser: int
    completions: int


@dataclass(frozen=True)
class Parameters:
    """`trainable` of the adapters (and heads) of all roles, out of `total`, base included."""

    base: int
    adapters: int
    trainable: int

    @property
    def total(self) -> int:
        """Base and adapters."""
        return self.base + self.adapters


@dataclass(frozen=True)
class Plan:
    """What a stage comes to; `steps` is None for evaluation."""

    stage: str
    base_model: str
    rows: Mapping[str, Rows]
    steps: Steps | None
    completions: int
    max_completion_length: int
    parameters: Parameters
    memory: Memory
    output_dir: str
    outputs: tuple[str, ...]
    pushed_to: str | None

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled if no completion ends early."""
        return self.completions * self.max_completion_length

    def __str__(self) -> str:
        return format_plan(self)
