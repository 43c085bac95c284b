"""The saved samples of an evaluation, read and checked. Everything else here works on these."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_recipes.arguments import RecipeError
from rlhf_recipes.evaluation.statistics import Array

Record = dict[str, Any]

BASE = "base"
CONTROL = "control"
FIRST = (BASE, "ppo", "grpo", "dpo")
NUMBERS = ("reward", "kl", "kl_k1", "n_tokens")


@dataclass(frozen=True)
class ModelSamples:
    """One model's responses: records[i][k] is sample k to prompt i, prompts in the same order."""

    name: str
    records: list[list[Record]]

    def values(self, field: str) -> Array:
        """A field of every record, shape (prompts, samples)."""
        return np.array([[r[field] for r in row] for row in self.records], dtype=np.float64)


@dataclass(frozen=True)
class Collection:
    """All models' samples on one prompt set, and the facts written when they were collected."""

    facts: dict[str, Any]
    models: dict[str, ModelSamples]
    control: ModelSamples | None
    metrics: tuple[str, ...]

    @property
    def base(self) -> ModelSamples:
        return self.models[BASE]

    @property
    def policies(self) -> list[ModelSamples]:
        return [model for name, model in self.models.items() if name != BASE]

    @property
    def primary(self) -> str:
        """The metric claims are made on: gold where there is one."""
        return self.metrics[-1]


FIELD = {"proxy": "reward", "gold": "gold"}


def ordered(names: list[str]) -> list[str]:
    """Model names in the order used everywhere: base, ppo, grpo, dpo, then the alphabet."""
    return [n for n in FIRST if n in names] + sorted(n for n in names if n not in FIRST)


def read_samples(folder: Path) -> Collection:
    """The collection saved in folder, or RecipeError saying what keeps it from being compared."""
    facts = _read(folder / "collection.json")
    names = ordered(list(facts["models"]))
    if BASE not in names:
        raise RecipeError(
            f"{folder / 'collection.json'} lists the models {', '.join(names)} and no `{BASE}`. "
            "Everything is compared with the base model. Collect again with `make evaluate`."
        )
    if not set(names) - {BASE, CONTROL}:
        raise RecipeError(
            f"{folder / 'collection.json'} lists no model besides {', '.join(names)}. There is "
            "nothing to compare. Train a policy first, for instance with `make dpo`."
        )
    models = {name: _arrange(name, _read(folder / f"{name}_samples.json")) for name in names}
    _require_one_prompt_set(models)
    metrics = ("proxy", "gold") if _has_gold(models) else ("proxy",)
    control = models.pop(CONTROL, None)
    return Collection(facts, models, control, metrics)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path} does not exist. The analysis reads saved samples. "
            "Collect them first with `make evaluate`."
        ) from error
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{path} is not JSON ({error}). It cannot be analysed. "
            "Remove it and collect again with `make evaluate`."
        ) from error


def _arrange(name: str, records: list[Record]) -> ModelSamples:
    if not records:
        raise RecipeError(
            f"`{name}` has no samples. A model without responses cannot be compared. "
            "Collect again with `make evaluate`, or take it out of the recipe."
        )
    by_prompt: dict[int, list[Record]] = {}
    for record in records:
        for field in NUMBERS:
            value = record.get(field)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise RecipeError(
                    f"Sample {record.get('id')} of `{name}` has {field} = {value}. Every response "
                    "needs a finite number there. Collect again with `make evaluate`."
                )
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    if len({len(row) for row in by_prompt.values()}) > 1:
        raise RecipeError(
            f"`{name}` has between {min(map(len, by_prompt.values()))} and "
            f"{max(map(len, by_prompt.values()))} samples a prompt. Prompts would weigh "
            "differently. Collect again with `make evaluate`."
        )
    rows = [sorted(by_prompt[i], key=lambda r: int(r["sample_index"])) for i in sorted(by_prompt)]
    return ModelSamples(name, rows)


def _require_one_prompt_set(models: dict[str, ModelSamples]) -> None:
    prompts = {
        name: {row[0]["prompt_id"]: row[0]["prompt"] for row in model.records}
        for name, model in models.items()
    }
    for name, own in prompts.items():
        different = sum(own.get(i) != text for i, text in prompts[BASE].items())
        different += len(own.keys() - prompts[BASE].keys())
        if different:
            raise RecipeError(
                f"`{name}` and `{BASE}` differ in {different} prompts ({len(own)} and "
                f"{len(prompts[BASE])} in all). Only answers to the same prompts can be compared. "
                "Collect all models again with `make evaluate`."
            )
    if len(prompts[BASE]) == 1:
        raise RecipeError(
            "There are samples for one prompt only. Intervals and tests are over prompts and need "
            "at least two, better 100. Raise the number of evaluation prompts."
        )


def _has_gold(models: dict[str, ModelSamples]) -> bool:
    golds = [r.get("gold") for m in models.values() for row in m.records for r in row]
    missing = sum(g is None or not math.isfinite(g) for g in golds)
    if 0 < missing < len(golds):
        raise RecipeError(
            f"{missing} of {len(golds)} samples have no gold reward. A comparison on some of them "
            "would be biased. Score all of them or none, and collect again with `make evaluate`."
        )
    return missing == 0
