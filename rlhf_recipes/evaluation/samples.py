"""The saved samples of an evaluation, read and checked. Everything else here works on these."""

import json
import math
from dataclasses import dataclass, field
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)
        object.__setattr__(self, "run", self.run or self.name)

    def values(self, field: str) -> Array:
        """A field of every record, shape (prompts, samples)."""
        return np.array([[r[field] for r in row] for row in self.records], dtype=np.float64)

    def scores(self, metric: str) -> Array:
        """The scores of every record by a metric, shape (prompts, samples)."""
        if metric in FIELD:
            return self.values(FIELD[metric])
        return np.array([[r["scores"][metric] for r in row] for row in self.records])

    @property
    def step(self) -> float:
        """Where a model stands in its run: its checkpoint's step, infinity if it has none."""
        return math.inf if self.checkpoint is None else self.checkpoint

    @property
    def flat(self) -> list[Record]:
        return [record for row in self.records for record in row]


@dataclass(frozen=True)
class Collection:
    """All models' samples on one prompt set, and the facts written when they were collected.

    verdicts[judge] holds what a pairwise judge said of responses against base's.
    """

    facts: dict[str, Any]
    models: dict[str, ModelSamples]
    control: ModelSamples | None
    metrics: tuple[str, ...]
    verdicts: dict[str, list[Record]] = field(default_factory=dict)

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
        for model in sorted(self.policies, key=lambda model: model.step):
            found.setdefault(model.run, []).append(model)
        order = list(dict.fromkeys(model.run for model in self.policies))
        return {run: found[run] for run in order}

    @property
    def primary(self) -> str:
        """The metric claims are made on: gold where there is one, then an extra judge."""
        return self.metrics[-1]


FIELD = {"proxy": "reward", "gold": "gold"}


def reward_of(entry: dict[str, Any], metric: str) -> dict[str, Any]:
    """A model's rewards by a metric among its results: `reward`, `gold` or one of `scores`."""
    found: dict[str, Any] = entry[FIELD[metric]] if metric in FIELD else entry["scores"][metric]
    return found


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
    _require_one_setting(facts)
    families: dict[str, str] = facts.get("families") or {}
    steps: dict[str, int] = facts.get("checkpoints") or {}
    names = ordered_by_family(names, families, steps)
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
    metrics = _metrics(models)
    verdicts = {
        path.stem.removeprefix("verdicts_"): _read(path)
        for path in sorted(folder.glob("verdicts_*.json"))
    }
    control = models.pop(CONTROL, None)
    return Collection(facts, models, control, metrics, verdicts)


def _run_of(name: str, step: int | None, names: list[str], families: dict[str, str]) -> str:
    """`ppo` for its checkpoint `ppo-50`; without a finished run, the family."""
    if step is None:
        return name
    finished = name.removesuffix(f"-{step}")
    return finished if finished in names else families.get(name, name)


def ordered_by_family(
    names: list[str], families: dict[str, str], steps: dict[str, int]
) -> list[str]:
    """Names with each family together, in the order of its steps, and what has no step last."""
    family_of = {name: families.get(name, name) for name in names}
    rank = {family: i for i, family in enumerate(ordered(list(family_of.values())))}
    return sorted(names, key=lambda n: (rank[family_of[n]], steps.get(n, math.inf), n))


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
    base = {"generation": facts.get("generation"), "base": facts.get("base")}
    base |= facts["models"].get(BASE, {})
    for name, own in facts["models"].items():
        for key in ("generation", "base", "reference", "dataset"):
            if own.get(key) is None or base.get(key) is None or own[key] == base[key]:
                continue
            what, mine, other = _difference(key, own[key], base[key])
            raise RecipeError(
                f"`{name}` was collected with {what} = {mine}, and `{BASE}` with {other}. "
                "Responses of different settings cannot be compared. Collect both again with "
                "`make evaluate`."
            )


def _difference(key: str, mine: Any, other: Any) -> tuple[str, Any, Any]:
    if not (isinstance(mine, dict) and isinstance(other, dict)):
        return key, mine, other
    setting = next(k for k in {**mine, **other} if mine.get(k) != other.get(k))
    return f"{key}.{setting}", mine.get(setting), other.get(setting)


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


def _metrics(models: dict[str, ModelSamples]) -> tuple[str, ...]:
    """The proxy, the extra judges by name, and gold, as far as all samples have them."""
    records = [record for model in models.values() for record in model.flat]
    judges = sorted({judge for record in records for judge in record.get("scores") or {}})
    found = ["proxy"]
    found += [j for j in judges if _complete(j, [(r.get("scores") or {}).get(j) for r in records])]
    if _complete("gold", [record.get("gold") for record in records]):
        found.append("gold")
    return tuple(found)


def _complete(metric: str, values: list[float | None]) -> bool:
    missing = sum(value is None or not math.isfinite(value) for value in values)
    if 0 < missing < len(values):
        raise RecipeError(
            f"{missing} of {len(values)} samples have no {metric} score. A comparison on some of "
            "them would be biased. Score all of them or none, and collect again with "
            "`make evaluate`."
        )
    return missing == 0
