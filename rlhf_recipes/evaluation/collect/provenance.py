"""Provenance of collected samples: adapters, fingerprints and settings."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import (
    BARE_BASE,
    BASE,
    CONTROL,
    REFERENCE,
    EvaluationArguments,
    Policy,
)
from rlhf_recipes.evaluation.metrics.detectors import THINKING
from rlhf_recipes.evaluation.metrics.samples import Record
from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.chat_templates import template_kwargs
from rlhf_recipes.models.loading import Precision
from rlhf_recipes.models.vocabulary import check_same_tokenizer
from rlhf_recipes.preferences import dataset_fingerprint, load_prepared
from rlhf_recipes.preferences.shapes import first_turn_key
from rlhf_recipes.prompts import Prompt, prompt_ids

VALUES = 1024


@dataclass
class SampledModel:
    """A role of the shared base to sample under a name, with its seed and samples per prompt."""

    name: str
    role: str | None
    seed: int
    count: int
    policy: Policy | None
    adapter: Adapter | None
    records: list[Record] = field(default_factory=list)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of its adapter, or None for the bare base."""
        return None if self.adapter is None else self.adapter.fingerprint

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that its samples depend on, beside those that all models share."""
        return {
            "adapter": self.fingerprint,
            "seed": self.seed,
            "samples_per_prompt": self.count,
        }

    @property
    def finished(self) -> bool:
        """Whether this is the end of a run, not an earlier checkpoint."""
        return self.policy is None or self.policy.name == self.policy.run


@dataclass(frozen=True)
class Adapters:
    """Adapters of an evaluation, each read once, all on one base and with one reference.

    Attributes:
        proxy: The reward model.
        start: Adapter that the policies were trained from; None is the base itself.
        evaluated: Policies to evaluate, in the order of the report.
        policies: Their adapters, by name.
        judges: Adapters of the scoring judges, gold first, by name. Their bases may differ.
        precision: Precision in which the base is loaded.
    """

    proxy: Adapter
    start: Adapter | None
    evaluated: tuple[Policy, ...]
    policies: dict[str, Adapter]
    judges: dict[str, Adapter]
    precision: Precision

    def by_name(self) -> dict[str, Adapter]:
        """Return every adapter except the judges', by its name in messages."""
        start = {"sft_model_path": self.start} if self.start else {}
        return {"reward_model_path": self.proxy, **start, **self.policies}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that all of them were trained with; raises RecipeError if they differ."""
        tokenizer = self.proxy.tokenizer
        for name, adapter in self.by_name().items():
            if adapter is not self.proxy and adapter.has_tokenizer:
                check_same_tokenizer(
                    tokenizer,
                    adapter.tokenizer,
                    (f"the reward model ({self.proxy.folder})", f"`{name}` ({adapter.folder})"),
                    "Every model is sampled on the same token ids, so one of them would see other "
                    "text than in training.",
                )
        return tokenizer


def read_adapters(arguments: EvaluationArguments) -> Adapters:
    """Read the adapters of an evaluation; raise RecipeError unless they are comparable."""
    policies = arguments.policies()
    proxy = read_adapter(arguments.reward_model_path)
    proxy.check_head()
    start = read_adapter(arguments.sft_model_path) if arguments.sft_model_path else None
    trained = {policy.name: read_adapter(policy.folder) for policy in policies}
    for adapter in filter(None, (start, *trained.values())):
        adapter.check_policy()
    judges = {name: read_adapter(folder) for name, folder in arguments.judge_folders().items()}
    adapters = Adapters(proxy, start, tuple(policies), trained, judges, Precision())
    _check_bases(adapters)
    _check_references(arguments, policies, start)
    _check_template_kwargs(arguments, adapters)
    return replace(adapters, precision=_chosen_precision(arguments, adapters))


def sampled_models(arguments: EvaluationArguments, adapters: Adapters) -> list[SampledModel]:
    """List base, policies and control in the order in which they are sampled.

    If training started from an adapter, that adapter takes the place of base, and the base below
    it is one more model.
    """
    start = adapters.start
    role = REFERENCE if start else None
    seed, count = arguments.seed, arguments.samples_per_prompt
    models = [SampledModel(BASE, role, seed, arguments.base_samples, None, start)]
    models += [
        SampledModel(p.name, p.run, seed, count, p, adapters.policies[p.name])
        for p in adapters.evaluated
    ]
    if start:
        models.append(SampledModel(BARE_BASE, None, seed, count, None, None))
    if arguments.control:
        models.append(SampledModel(CONTROL, role, seed + 1, count, None, start))
    return models


def digest(data: Any) -> str:
    """Compute the SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def weights_fingerprint(base: PreTrainedModel) -> str:
    """Compute the SHA-256 over the name, shape and about 1,024 values of every weight.

    Training changes nearly all values of a weight, so this tells bases apart as well as all of
    their gigabytes would.
    """
    sha = hashlib.sha256()
    for name, weight in base.state_dict().items():
        flat = weight.detach().flatten()
        sha.update(f"{name} {tuple(weight.shape)}".encode())
        sha.update(flat[:: max(1, flat.numel() // VALUES)].float().cpu().numpy().tobytes())
    return sha.hexdigest()


def _check_bases(adapters: Adapters) -> None:
    proxy = adapters.proxy
    for name, adapter in adapters.by_name().items():
        if not adapter.base.is_same(proxy.base):
            raise RecipeError(
                f"`{name}` ({adapter.folder}) was trained on {adapter.base}, and the reward model "
                f"({proxy.folder}) on {proxy.base}. All models are measured against one reference "
                "on one base. Leave it out, or give a reward model of its base."
            )


def _check_references(
    arguments: EvaluationArguments, policies: Sequence[Policy], start: Adapter | None
) -> None:
    """Check that all policies were trained from the base, or from `sft_model_path`."""
    reference = arguments.sft_model_path
    for policy in policies:
        record = policy.folder / "run.json"
        if not record.is_file():
            continue
        trained_from = json.loads(record.read_text(encoding="utf-8"))["recipe"].get(
            "sft_model_path"
        )
        if not _is_adapter(trained_from, start):
            setting = f"sft_model_path: {trained_from}"
            raise RecipeError(
                f"`{policy.name}` ({policy.folder}) was trained from "
                f"{trained_from or 'the bare base'}, and this evaluation measures from "
                f"{reference or 'the base'}. A KL is from the reference that training started at: "
                f"{f'set `{setting}`' if trained_from else 'leave `sft_model_path` out'}, "
                "or leave this policy out of `models`."
            )


def _check_template_kwargs(arguments: EvaluationArguments, adapters: Adapters) -> None:
    """Check that the adapters were trained with the chat template's arguments of the recipe."""
    asked = arguments.chat_template_kwargs
    if asked is None:
        return
    trained = template_kwargs(adapters.tokenizer)
    if trained != asked:
        raise RecipeError(
            f"`chat_template_kwargs` is {asked}, and the adapters were trained with "
            f"{trained or 'none'}: the reward model ({adapters.proxy.folder}) and the policies "
            "would see other text than in training. Leave it out, which takes those of training, "
            "or train the adapters with it."
        )


def _is_adapter(folder: str | None, adapter: Adapter | None) -> bool:
    """Whether a folder that a run names contains the adapter, or a copy of it."""
    if folder is None or adapter is None:
        return folder is None and adapter is None
    if Path(folder).resolve() == adapter.folder.resolve():
        return True
    exists = (Path(folder) / "adapter_config.json").is_file()
    return exists and read_adapter(folder).fingerprint == adapter.fingerprint


def _chosen_precision(arguments: EvaluationArguments, adapters: Adapters) -> Precision:
    """Return the base's precision: that of the adapters' training, as the recipe changes it.

    Raises RecipeError if the adapters were trained in several and the recipe leaves a difference.
    """
    trained = {
        name: adapter.precision for name, adapter in adapters.by_name().items() if adapter.precision
    }
    requested = {
        name: getattr(arguments, name)
        for name in ("dtype", "load_in_8bit", "load_in_4bit")
        if getattr(arguments, name) is not None
    }
    if requested.get("load_in_8bit") or requested.get("load_in_4bit"):
        requested = {"load_in_8bit": False, "load_in_4bit": False, **requested}
    changed = {
        Precision.read({**vars(precision), **requested})
        for precision in trained.values() or [Precision()]
    }
    if len(changed) > 1:
        raise RecipeError(
            "The adapters were trained on a base in different precisions: "
            + ", ".join(f"`{name}` {precision}" for name, precision in trained.items())
            + ". Rewards and KL depend on it, so set the precision of this evaluation, all that "
            "differs of it: `dtype`, and `load_in_4bit` or `load_in_8bit`."
        )
    (chosen,) = changed
    for name, precision in trained.items():
        if precision != chosen:
            logging.getLogger(__name__).warning(
                "The base is held in %s, and `%s` was trained on one in %s: its rewards and KL "
                "are those of a slightly different model.",
                chosen,
                name,
                precision,
            )
    return chosen


def collection_facts(
    arguments: EvaluationArguments,
    settings: Mapping[str, Any],
    adapters: Adapters,
    models: Sequence[SampledModel],
    judges: Mapping[str, str],
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """Describe the collected samples for collection.json."""
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
        "base_revision": adapters.proxy.base.revision,
        "dtype": adapters.precision.dtype,
        "precision": {
            "base": str(adapters.precision),
            "trained": {
                name: str(adapter.precision) if adapter.precision else None
                for name, adapter in adapters.by_name().items()
            },
        },
        "reference": arguments.sft_model_path,
        "reward_model": arguments.reward_model_path,
        "reward_model_fingerprint": adapters.proxy.fingerprint,
        "gold": arguments.gold_func or arguments.gold_model_path,
        "generation": arguments.generation(),
        "chat_template_kwargs": template_kwargs(adapters.tokenizer),
        "thinks_from_start": _thinks_from_start(adapters.tokenizer, prompts[0]),
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
            "processes": PartialState().num_processes,
        },
    }


def _thinks_from_start(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> bool:
    """Whether the chat template opens thinking itself, so that completions lack the first tag."""
    return str(tokenizer.decode(prompt_ids(tokenizer, prompt))).rstrip().endswith(THINKING)


def _in_training(folder: str, prompts: Sequence[Prompt]) -> int:
    """Count the prompts whose first user turn is in training too, by the rule of the split."""
    train = load_prepared(folder, max_eval_samples=1)["train"]
    keys = {first_turn_key(prompt) for prompt in train["prompt"]}
    return sum(first_turn_key(prompt) in keys for prompt in prompts)
