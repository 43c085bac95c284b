"""Saved samples of an evaluation, read and checked."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import BASE, CONTROL
from rlhf_recipes.evaluation.metrics.statistics import Array
from rlhf_recipes.records import differences

Record = dict[str, Any]

FIRST = (BASE, "ppo", "grpo", "dpo")
SETTINGS = ("generation", "base", "reference", "dataset")
NUMBERS = ("reward", "kl", "kl_k1", "n_tokens")
CURVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ModelSamples:
    """Samples of one model: records[i][k] is sample k to prompt i, in the same order of prompts.

    Seeds of one method, or a sweep, share a family; the checkpoints of a run share the run.
    """

    name: str
    records: list[list[Record]]
    family: str = ""
    checkpoint: int | None = None
    run: str = ""
    columns: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)
        object.__setattr__(self, "run", self.run or self.name)

    def values(self, field: str) -> Array:
        """Return a field of every record as a read-only array, shape (prompts, samples)."""
        if field not in self.columns:
            column = np.array([[r[field] for r in row] for row in self.records], dtype=np.float64)
            column.setflags(write=False)
            self.columns[field] = column
        return self.columns[field]

    def scores(self, metric: str) -> Array:
        """Return the scores of every record by a metric, shape (prompts, samples)."""
        if metric in FIELD:
            return self.values(FIELD[metric])
        return np.array([[r["scores"][metric] for r in row] for row in self.records])

    @property
    def flat(self) -> list[Record]:
        return [record for row in self.records for record in row]


@dataclass(frozen=True)
class Collection:
    """Samples of all models on one prompt set, and the facts written when they were collected.

    Attributes:
        facts: Content of `collection.json`.
        models: Base first, then the policies, each family together in the order of its steps.
        control: Base sampled again, if it was.
        metrics: The proxy, extra judges, and gold last, as far as all samples have them.
        verdicts: By judge, its comparisons of completions with base's.
        repeated: Number of prompts left out because another differs only in case and spaces.
    """

    facts: dict[str, Any]
    models: dict[str, ModelSamples]
    control: ModelSamples | None
    metrics: tuple[str, ...]
    verdicts: dict[str, list[Record]] = field(default_factory=dict)
    repeated: int = 0

    @property
    def base(self) -> ModelSamples:
        return self.models[BASE]

    @property
    def policies(self) -> list[ModelSamples]:
        return [model for name, model in self.models.items() if name != BASE]

    @property
    def finals(self) -> list[ModelSamples]:
        """The policies that claims are made on: the last of each run."""
        return [path[-1] for path in self.runs.values()]

    @property
    def runs(self) -> dict[str, list[ModelSamples]]:
        """The policies by run, each in the order of its steps."""
        runs: dict[str, list[ModelSamples]] = {}
        for model in self.policies:
            runs.setdefault(model.run, []).append(model)
        return runs

    @property
    def primary(self) -> str:
        """The metric claims are made on: gold where there is one, then an extra judge."""
        return self.metrics[-1]


FIELD = {"proxy": "reward", "gold": "gold"}


def ordered(names: Iterable[str], families: dict[str, str], steps: dict[str, int]) -> list[str]:
    """Sort model names by family (base, ppo, grpo, dpo, then others), then by step, finals last."""

    def key(name: str) -> tuple[int, str, float, str]:
        family = families.get(name, name)
        rank = FIRST.index(family) if family in FIRST else len(FIRST)
        return rank, family, steps.get(name, math.inf), name

    return sorted(names, key=key)


def read_samples(folder: Path) -> Collection:
    """Read the collection saved in folder; raise RecipeError if it cannot be compared."""
    facts = _read(folder / "collection.json")
    families: dict[str, str] = facts.get("families") or {}
    steps: dict[str, int] = facts.get("checkpoints") or {}
    names = ordered(facts["models"], families, steps)
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
    _check_settings(facts)
    models = {
        name: ModelSamples(
            name,
            _by_prompt(name, _read(folder / f"{name}_samples.json")),
            families.get(name, name),
            steps.get(name),
            _run_of(name, steps.get(name), names, families),
        )
        for name in names
    }
    _check_prompts(models)
    prompt_ids = _different_prompts(models[BASE])
    repeated = len(models[BASE].records) - len(prompt_ids)
    models = {
        name: replace(model, records=[r for r in model.records if r[0]["prompt_id"] in prompt_ids])
        for name, model in models.items()
    }
    verdicts = {
        path.stem.removeprefix("verdicts_"): [
            v for v in _read(path) if v["prompt_id"] in prompt_ids
        ]
        for path in sorted(folder.glob("verdicts_*.json"))
    }
    metrics = _metrics(models)
    return Collection(facts, models, models.pop(CONTROL, None), metrics, verdicts, repeated)


def _different_prompts(base: ModelSamples) -> set[int]:
    """Return the ids of the prompts, the first of those that differ only in case and spaces.

    Intervals assume independent prompts, so a prompt that counts twice makes them too narrow.
    """
    first: dict[str, int] = {}
    for row in base.records:
        first.setdefault(" ".join(row[0]["prompt"].casefold().split()), row[0]["prompt_id"])
    if len(first) == 1:
        raise RecipeError(
            "There are samples for one prompt only. Intervals and tests are over prompts and need "
            "at least two, better 100. Raise `eval_prompts`."
        )
    return set(first.values())


def _run_of(name: str, step: int | None, names: list[str], families: dict[str, str]) -> str:
    """Return the run of a model: `ppo` for `ppo-50`, or the family without a finished run."""
    if step is None:
        return name
    finished = name.removesuffix(f"-{step}")
    return finished if finished in names else families.get(name, name)


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
            f"{path} is not JSON ({error}). It cannot be analyzed. "
            "Remove it and collect again with `make evaluate`."
        ) from error


def _by_prompt(name: str, records: list[Record]) -> list[list[Record]]:
    if not records:
        raise RecipeError(
            f"`{name}` has no samples. A model without completions cannot be compared. "
            "Collect again with `make evaluate`, or take it out of the recipe."
        )
    by_prompt: dict[int, list[Record]] = {}
    for record in records:
        _check_numbers(name, record)
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    if len({len(row) for row in by_prompt.values()}) > 1:
        raise RecipeError(
            f"`{name}` has between {min(map(len, by_prompt.values()))} and "
            f"{max(map(len, by_prompt.values()))} samples per prompt. Prompts would "
            "weigh differently. Collect again with `make evaluate`."
        )
    return [sorted(by_prompt[i], key=lambda r: int(r["sample_index"])) for i in sorted(by_prompt)]


def _check_numbers(name: str, record: Record) -> None:
    for field_ in NUMBERS:
        value = record.get(field_)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(
                f"Sample {record.get('id')} of `{name}` has {field_} = {value}. Every "
                "completion needs a finite number there. Collect again with `make evaluate`."
            )
    curve = record.get("kl_curve")
    if curve and not math.isclose(sum(curve), record["kl"], rel_tol=CURVE_TOLERANCE, abs_tol=1e-4):
        raise RecipeError(
            f"Sample {record.get('id')} of `{name}` has a `kl_curve` that sums to {sum(curve):.6g} "
            f"and kl = {record['kl']:.6g}. They are one quantity, so one of them is wrong. Collect "
            "again with `make evaluate`."
        )


def _check_settings(facts: dict[str, Any]) -> None:
    """Check that each setting which a model's facts state is that of base."""
    base = facts | facts["models"][BASE]
    for name, model in facts["models"].items():
        stated = [key for key in SETTINGS if model.get(key) and base.get(key)]
        changed = [line for key in stated for line in differences(base[key], model[key], key)]
        if changed:
            raise RecipeError(
                f"`{name}` was collected with other settings than `{BASE}`: {', '.join(changed)}. "
                "Completions of different settings cannot be compared. Collect both again with "
                "`make evaluate`."
            )


def _check_prompts(models: dict[str, ModelSamples]) -> None:
    base, *others = (
        {row[0]["prompt_id"]: row[0]["prompt"] for row in model.records}
        for model in models.values()
    )
    for name, prompts in zip(list(models)[1:], others, strict=True):
        different = sum(prompts.get(i) != base.get(i) for i in prompts.keys() | base.keys())
        if different:
            raise RecipeError(
                f"`{name}` and `{BASE}` differ in {different} prompts ({len(prompts)} and "
                f"{len(base)} in all). Only completions of the same prompts can be compared. "
                "Collect all models again with `make evaluate`."
            )


def _metrics(models: dict[str, ModelSamples]) -> tuple[str, ...]:
    """List the proxy, the extra judges by name, and gold, as far as all samples have them."""
    metrics = ["proxy"]
    by_sample = [
        (record.get("scores") or {}) | {"gold": record.get("gold")}
        for model in models.values()
        for record in model.flat
    ]
    for metric in [*sorted({judge for scores in by_sample for judge in scores} - {"gold"}), "gold"]:
        scored = [scores[metric] for scores in by_sample if scores.get(metric) is not None]
        usable = sum(map(math.isfinite, scored))
        if scored and usable < len(by_sample):
            raise RecipeError(
                f"{len(by_sample) - usable} of {len(by_sample)} samples have no {metric} score. A "
                "comparison on some of them would be biased. Score all of them or none, and "
                "collect again with `make evaluate`."
            )
        metrics += [metric] * bool(scored)
    return tuple(metrics)
