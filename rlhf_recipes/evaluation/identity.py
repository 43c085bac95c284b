"""What a collection of samples was made of, so that others are told apart from it."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_recipes.adapters import adapter_base, adapter_fingerprint, same_base
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import (
    BASE,
    CONTROL,
    REFERENCE,
    EvaluationArguments,
    Policy,
)
from rlhf_recipes.models import base_path
from rlhf_recipes.preferences import dataset_fingerprint, load_prepared, prompt_text

Record = dict[str, Any]

VALUES = 1024


@dataclass
class Model:
    """What is sampled under a name: a role of the shared base, its seed and samples a prompt."""

    name: str
    role: str | None
    seed: int
    count: int
    policy: Policy | None
    fingerprint: str | None
    records: list[Record] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """What its samples depend on beside what all models' do."""
        own = {"adapter": self.fingerprint, "seed": self.seed}
        return own | {"samples_per_prompt": self.count}

    @property
    def finished(self) -> bool:
        """Whether this is no checkpoint on the way to another model."""
        return self.policy is None or self.policy.name == self.policy.run


def sampled_models(arguments: EvaluationArguments, policies: Sequence[Policy]) -> list[Model]:
    """Base, policies and control, in the order they are sampled in.

    Where training started from an adapter, that is the role of base.
    """
    role = REFERENCE if arguments.sft_model_path else None
    own = fingerprint(arguments.sft_model_path)
    seed, count = arguments.seed, arguments.samples_per_prompt
    models = [Model(BASE, role, seed, arguments.base_samples, None, own)]
    models += [Model(p.name, p.run, seed, count, p, fingerprint(p.folder)) for p in policies]
    if arguments.control:
        models.append(Model(CONTROL, role, seed + 1, count, None, own))
    return models


def digest(data: Any) -> str:
    """SHA-256 of data that JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def base_fingerprint(base: PreTrainedModel) -> str:
    """SHA-256 over every weight's name and shape and about 1,024 of its values, evenly spaced.

    Training changes nearly all values of a weight, so this tells bases apart as well as all of
    their gigabytes would.
    """
    found = hashlib.sha256()
    for name, weight in base.state_dict().items():
        flat = weight.detach().flatten()
        found.update(f"{name} {tuple(weight.shape)}".encode())
        found.update(flat[:: max(1, flat.numel() // VALUES)].float().cpu().numpy().tobytes())
    return found.hexdigest()


def fingerprint(folder: str | Path | None) -> str | None:
    """An adapter's, or None where there is none."""
    return None if folder is None else adapter_fingerprint(folder)


def require_one_reference(
    policies: Sequence[Policy], base: str, arguments: EvaluationArguments
) -> None:
    """Raise RecipeError unless all policies are adapters on `base`, trained from one reference.

    The reference is the base itself or, for all of them, the adapter `sft_model_path`.
    """
    given = arguments.sft_model_path
    named = [("sft_model_path", given)] if given else []
    for name, folder in [*named, *((policy.name, str(policy.folder)) for policy in policies)]:
        found = adapter_base(folder)
        if not same_base(base_path(found), base_path(base)):
            raise RecipeError(
                f"`{name}` ({folder}) was trained on `{found}`, and the reward model "
                f"({arguments.reward_model_path}) on `{base}`. All models are measured against "
                "one reference on one base. Leave it out, or give a reward model of its base."
            )
    for policy in policies:
        record = policy.folder / "run.json"
        if not record.is_file():
            continue
        start = json.loads(record.read_text(encoding="utf-8"))["recipe"].get("sft_model_path")
        if not _same_adapter(start, given):
            raise RecipeError(
                f"`{policy.name}` ({policy.folder}) was trained from "
                f"{start or f'the base `{base}`'}, and this evaluation measures from "
                f"{given or 'the base'}. A KL is from the reference that training started at: "
                f"{f'set `sft_model_path: {start}`' if start else 'leave `sft_model_path` out'}, "
                "or leave this policy out of `models`."
            )


def _same_adapter(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return first == second
    paths = {Path(first).resolve(), Path(second).resolve()}
    here = all((path / "adapter_config.json").is_file() for path in paths)
    return len(paths) == 1 or (here and fingerprint(first) == fingerprint(second))


def collection_facts(
    arguments: EvaluationArguments,
    settings: Mapping[str, Any],
    models: Sequence[Model],
    judges: Mapping[str, str],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """What collection.json says of the samples beside it."""
    policies = [model.policy for model in models if model.policy is not None]
    return {
        "models": {
            model.name: {
                **model.settings,
                "adapter": str(model.policy.folder) if model.policy else None,
                "fingerprint": model.fingerprint,
            }
            for model in models
        },
        "families": {policy.name: policy.family for policy in policies},
        "checkpoints": {p.name: p.step for p in policies if p.step is not None},
        "judges": dict(judges),
        "base": settings["base"]["name"],
        "base_fingerprint": settings["base"]["fingerprint"],
        "dtype": arguments.dtype,
        "reference": arguments.sft_model_path,
        "reward_model": arguments.reward_model_path,
        "reward_model_fingerprint": fingerprint(arguments.reward_model_path),
        "gold": arguments.gold_func or arguments.gold_model_path,
        "generation": arguments.generation(),
        "seed": arguments.seed,
        "n_prompts": len(prompts),
        "prompts_in_training": _in_training(arguments.dataset_name, prompts),
        "samples_per_prompt": arguments.samples_per_prompt,
        "best_of_n": arguments.best_of_n,
        "dataset": arguments.dataset_name,
        "dataset_fingerprint": dataset_fingerprint(arguments.dataset_name),
        "hardware": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _in_training(folder: str, prompts: Sequence[str]) -> int:
    """How many of the prompts are training prompts too, spaces at their ends aside."""
    train = load_prepared(folder, max_eval_samples=1)["train"]
    seen = {prompt_text(prompt).strip() for prompt in train["prompt"]}
    return sum(text.strip() in seen for text in prompts)
