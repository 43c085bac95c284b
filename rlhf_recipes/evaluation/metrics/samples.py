"""The saved samples of an evaluation, read and checked. Everything else here works on these."""

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
Results = dict[str, Any]

FIRST = (BASE, "ppo", "grpo", "dpo")
SETTINGS = ("generation", "base", "reference", "dataset")
NUMBERS = ("reward", "kl", "kl_k1", "n_tokens")
CURVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ModelSamples:
    """One model's responses: records[i][k] is sample k to prompt i, prompts in the same order.

    Seeds of one method, or a sweep, share a family; checkpoints share a run and have their step.
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
        """A field of every record, shape (prompts, samples), not to be written to."""
        if field not in self.columns:
            column = np.array([[r[field] for r in row] for row in self.records], dtype=np.float64)
            column.setflags(write=False)
            self.columns[field] = column
        return self.columns[field]

    def scores(self, metric: str) -> Array:
        """The scores of every record by a metric, shape (prompts, samples)."""
        if metric in FIELD:
            return self.values(FIELD[metric])
        return np.array([[r["scores"][metric] for r in row] for row in self.records])

    @property
    def flat(self) -> list[Record]:
        return [record for row in self.records for record in row]


@dataclass(frozen=True)
class Collection:
    """All models' samples on one prompt set, and the facts written when they were collected.

    Base comes first, then the policies, each family together in the order of its steps.
    verdicts[judge] holds what a pairwise judge said of responses against base's. `repeated` counts
    the prompts that were left out because they are another one but for case and spaces.
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
        found: dict[str, list[ModelSamples]] = {}
        for model in self.policies:
            found.setdefault(model.run, []).append(model)
        return found

    @property
    def primary(self) -> str:
        """The metric claims are made on: gold where there is one, then an extra judge."""
        return self.metrics[-1]


FIELD = {"proxy": "reward", "gold": "gold"}


def reward_of(entry: Results, metric: str) -> Results:
    """A model's rewards by a metric among its results: `reward`, `gold` or one of `scores`."""
    found: Results = entry[FIELD[metric]] if metric in FIELD else entry["scores"][metric]
    return found


def ordered(names: Iterable[str], families: dict[str, str], steps: dict[str, int]) -> list[str]:
    """Model names by family (base, ppo, grpo, dpo, then the alphabet), step, what has none last."""

    def place(name: str) -> tuple[int, str, float, str]:
        family = families.get(name, name)
        rank = FIRST.index(family) if family in FIRST else len(FIRST)
        return rank, family, steps.get(name, math.inf), name

    return sorted(names, key=place)


def read_samples(folder: Path) -> Collection:
    """The collection saved in folder, or RecipeError saying what keeps it from being compared."""
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
    _require_one_setting(facts)
    models = {
        name: ModelSamples(
            name,
            _arranged(name, _read(folder / f"{name}_samples.json")),
            families.get(name, name),
            steps.get(name),
            _run_of(name, steps.get(name), names, families),
        )
        for name in names
    }
    _require_one_prompt_set(models)
    kept = _different_prompts(models[BASE])
    repeated = len(models[BASE].records) - len(kept)
    models = {
        name: replace(model, records=[r for r in model.records if r[0]["prompt_id"] in kept])
        for name, model in models.items()
    }
    verdicts = {
        path.stem.removeprefix("verdicts_"): [v for v in _read(path) if v["prompt_id"] in kept]
        for path in sorted(folder.glob("verdicts_*.json"))
    }
    metrics = _metrics(models)
    return Collection(facts, models, models.pop(CONTROL, None), metrics, verdicts, repeated)


def _different_prompts(base: ModelSamples) -> set[int]:
    """Ids of the prompts, the first of those that differ only in case and spaces.

    Intervals take prompts as independent; a prompt that counts twice makes them too narrow.
    """
    first: dict[str, int] = {}
    for row in base.records:
        first.setdefault(" ".join(row[0]["prompt"].casefold().split()), row[0]["prompt_id"])
    if len(first) == 1:
        raise RecipeError(
            "There are samples for one prompt only. Intervals and tests are over prompts and need "
            "at least two, better 100. Raise the number of evaluation prompts."
        )
    return set(first.values())


def _run_of(name: str, step: int | None, names: list[str], families: dict[str, str]) -> str:
    """`ppo` for its checkpoint `ppo-50`; without a finished run, the family."""
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
            f"{path} is not JSON ({error}). It cannot be analysed. "
            "Remove it and collect again with `make evaluate`."
        ) from error


def _arranged(name: str, records: list[Record]) -> list[list[Record]]:
    if not records:
        raise RecipeError(
            f"`{name}` has no samples. A model without responses cannot be compared. "
            "Collect again with `make evaluate`, or take it out of the recipe."
        )
    by_prompt: dict[int, list[Record]] = {}
    for record in records:
        _require_numbers(name, record)
        by_prompt.setdefault(record["prompt_id"], []).append(record)
    if len({len(row) for row in by_prompt.values()}) > 1:
        raise RecipeError(
            f"`{name}` has between {min(map(len, by_prompt.values()))} and "
            f"{max(map(len, by_prompt.values()))} samples a prompt. Prompts would weigh "
            "differently. Collect again with `make evaluate`."
        )
    return [sorted(by_prompt[i], key=lambda r: int(r["sample_index"])) for i in sorted(by_prompt)]


def _require_numbers(name: str, record: Record) -> None:
    for field_ in NUMBERS:
        value = record.get(field_)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(
                f"Sample {record.get('id')} of `{name}` has {field_} = {value}. Every response "
                "needs a finite number there. Collect again with `make evaluate`."
            )
    curve = record.get("kl_curve")
    if curve and not math.isclose(sum(curve), record["kl"], rel_tol=CURVE_TOLERANCE, abs_tol=1e-4):
        raise RecipeError(
            f"Sample {record.get('id')} of `{name}` has a `kl_curve` that sums to {sum(curve):.6g} "
            f"and kl = {record['kl']:.6g}. They are one quantity, so one of them is wrong. Collect "
            "again with `make evaluate`."
        )


def _require_one_setting(facts: dict[str, Any]) -> None:
    """Models sampled apart say how: each fact they share with base must be base's."""
    base = facts | facts["models"][BASE]
    for name, own in facts["models"].items():
        stated = [key for key in SETTINGS if own.get(key) and base.get(key)]
        changed = [line for key in stated for line in differences(base[key], own[key], key)]
        if changed:
            raise RecipeError(
                f"`{name}` was collected with other settings than `{BASE}`: {', '.join(changed)}. "
                "Responses of different settings cannot be compared. Collect both again with "
                "`make evaluate`."
            )


def _require_one_prompt_set(models: dict[str, ModelSamples]) -> None:
    base, *others = (
        {row[0]["prompt_id"]: row[0]["prompt"] for row in model.records}
        for model in models.values()
    )
    for name, own in zip(list(models)[1:], others, strict=True):
        different = sum(own.get(i) != base.get(i) for i in own.keys() | base.keys())
        if different:
            raise RecipeError(
                f"`{name}` and `{BASE}` differ in {different} prompts ({len(own)} and {len(base)} "
                "in all). Only answers to the same prompts can be compared. Collect all models "
                "again with `make evaluate`."
            )


def _metrics(models: dict[str, ModelSamples]) -> tuple[str, ...]:
    """The proxy, the extra judges by name, and gold, as far as all samples have them."""
    found = ["proxy"]
    given = [
        (record.get("scores") or {}) | {"gold": record.get("gold")}
        for model in models.values()
        for record in model.flat
    ]
    for metric in [*sorted({judge for scores in given for judge in scores} - {"gold"}), "gold"]:
        scored = [scores[metric] for scores in given if scores.get(metric) is not None]
        usable = sum(map(math.isfinite, scored))
        if scored and usable < len(given):
            raise RecipeError(
                f"{len(given) - usable} of {len(given)} samples have no {metric} score. A "
                "comparison on some of them would be biased. Score all of them or none, and "
                "collect again with `make evaluate`."
            )
        found += [metric] * bool(scored)
    return tuple(found)
