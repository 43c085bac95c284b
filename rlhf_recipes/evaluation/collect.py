"""Collect what evaluation is about, with the models: samples, scores, divergences.

Everything that needs a model happens here and is saved; the rest of this folder reads the files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from rlhf_recipes.adapters import adapter_base, assert_same_base, require_head
from rlhf_recipes.arguments import RecipeError, resolved_recipe
from rlhf_recipes.logprobs import exact_kl, token_logps
from rlhf_recipes.model_card import public_base
from rlhf_recipes.models import open_base, open_tokenizer
from rlhf_recipes.preferences import load_prepared, prompt_text, unique_prompts
from rlhf_recipes.records import run_record, write_json
from rlhf_recipes.rewards import (
    RewardFunction,
    RewardModel,
    load_function,
)
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import Completion, Prompt, pad, prompt_ids, sample

BASE = "base"
CONTROL = "control"
REWARD = "reward"
POLICIES = ("ppo", "grpo", "dpo")


@dataclass
class EvaluationArguments:
    """What is evaluated, and how responses are sampled: the same way for every model."""

    output_dir: str = field(
        default="outputs",
        metadata={"help": "Workspace: its models are evaluated, the results go beside them."},
    )
    dataset_name: str = field(
        default="outputs/data",
        metadata={"help": "Folder of prepared data; prompts are those of its validation split."},
    )
    reward_model_path: str = field(
        default="outputs/models/reward_model",
        metadata={"help": "Reward adapter, the proxy reward."},
    )
    models: list[str] | None = field(
        default=None,
        metadata={
            "help": "Policies as `name=adapter folder`; by default the finished runs "
            "models/{ppo,grpo,dpo}_model of the workspace."
        },
    )
    gold_func: str | None = field(
        default=None,
        metadata={
            "help": "`path/to/file.py:function`, a gold score beside the reward model's, called "
            "as function(prompts, completions) -> list of floats."
        },
    )
    eval_prompts: int = field(default=100, metadata={"help": "Held-out prompts to sample on."})
    samples_per_prompt: int = field(default=1, metadata={"help": "Responses to each prompt."})
    control: bool = field(
        default=True,
        metadata={"help": "Sample the base again with another seed: it must tie with itself."},
    )
    max_completion_length: int = field(
        default=64, metadata={"help": "Tokens at which a response is cut off."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    batch_size: int = field(default=32, metadata={"help": "Responses sampled at once."})
    dtype: str = field(default="float32", metadata={"help": "Type of the base's weights."})
    seed: int = field(default=42, metadata={"help": "Seed of the sampling."})
    plan: bool = field(default=False, metadata={"help": "Print what would be done, and stop."})
    overwrite: bool = field(default=False, metadata={"help": "Replace finished results."})

    def __post_init__(self) -> None:
        if self.eval_prompts < 2:
            raise ValueError(
                f"`eval_prompts` is {self.eval_prompts}. An interval needs at least 2 prompts."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` is {self.temperature}. The divergence from the reference is that "
                "of the sampled distribution, so sampling must be random: give a number above 0."
            )

        for entry in self.models or []:
            name, equals, folder = entry.partition("=")
            if not (equals and folder) or name in ("", BASE, CONTROL, REWARD):
                raise ValueError(
                    f"`models` has the entry `{entry}`. Write `name=adapter folder`, with another "
                    f"name than {BASE}, {CONTROL} and {REWARD}, which are taken."
                )

    def generation(self) -> dict[str, object]:
        """How responses are sampled, in the terms of `generate`."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "max_completion_length": self.max_completion_length,
        }

    def policies(self) -> dict[str, Path]:
        """The adapter folder of each policy, in the order of the report."""
        if self.models is not None:
            pairs = [entry.partition("=") for entry in self.models]
            return {name: Path(folder) for name, _, folder in pairs}
        folders = {name: Path(self.output_dir, "models", f"{name}_model") for name in POLICIES}
        found = {name: path for name, path in folders.items() if (path / "run.json").is_file()}
        if not found:
            raise RecipeError(
                f"There is no policy to evaluate: {self.output_dir}/models has no finished run of "
                f"{', '.join(POLICIES)}. Train one first, for example with `make dpo`, or name "
                "adapters with `--models name=folder`."
            )
        return found


def collect(arguments: EvaluationArguments) -> None:
    """Sample every model on the same held-out prompts and save one record a response.

    Writes `samples/<model>_samples.json` and, last, `samples/collection.json`. All models share
    one base in memory; `kl` is the exact divergence from the reference over the vocabulary,
    summed over the response, in nats.
    """
    gold = load_function(arguments.gold_func) if arguments.gold_func else None
    policies = arguments.policies()
    base_name = adapter_base(arguments.reward_model_path)
    require_head(arguments.reward_model_path)
    for folder in policies.values():
        assert_same_base(folder, base_name)
    dataset = load_prepared(arguments.dataset_name)
    prompts: list[Prompt] = unique_prompts(dataset["validation"])["prompt"][
        : arguments.eval_prompts
    ]
    adapters = {REWARD: Path(arguments.reward_model_path), **policies}
    roles = Roles(open_base(base_name, dtype=arguments.dtype))
    for name, folder in adapters.items():
        roles.attach_saved(name, folder, trainable=False)
    roles.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    collector = Collector(roles, arguments, gold)
    folder = Path(arguments.output_dir) / "samples"
    # Every policy samples with the seed of the base; only the control needs another.
    seeds = {BASE: arguments.seed, **dict.fromkeys(policies, arguments.seed)}
    if arguments.control:
        seeds[CONTROL] = arguments.seed + 1
    for name, seed in seeds.items():
        role = name if name in policies else None
        write_json(folder / f"{name}_samples.json", collector.records(name, role, prompts, seed))
    models = {name: _identity(policies.get(name)) for name in seeds}
    facts = {
        "models": models,
        "base": public_base(base_name),
        "reward_model": arguments.reward_model_path,
        "gold": arguments.gold_func,
        "generation": arguments.generation(),
        "seed": arguments.seed,
        "n_prompts": len(prompts),
        "samples_per_prompt": arguments.samples_per_prompt,
        "dataset": arguments.dataset_name,
        "run": run_record("evaluate", resolved_recipe(arguments)),
    }
    write_json(folder / "collection.json", facts)


class Collector:
    """Samples and measures one model at a time on a shared base."""

    def __init__(
        self, roles: Roles, arguments: EvaluationArguments, gold: RewardFunction | None
    ) -> None:
        self.roles = roles
        self.arguments = arguments
        self.tokenizer = open_tokenizer(arguments.reward_model_path)
        self.reward_model = RewardModel(roles, self.tokenizer, batch_size=arguments.batch_size)
        self.gold = gold

    def records(
        self, name: str, role: str | None, prompts: Sequence[Prompt], seed: int
    ) -> list[dict[str, Any]]:
        """One record a response, prompts in order and a prompt's samples together."""
        arguments = self.arguments
        with self.roles.merged(role) as sampler:
            sampled = sample(
                sampler,
                self.tokenizer,
                prompts,
                max_completion_length=arguments.max_completion_length,
                num_completions=arguments.samples_per_prompt,
                temperature=arguments.temperature,
                batch_size=arguments.batch_size,
                seed=seed,
                progress=f"{name}: responses",
            )
        flat = [
            (prompt, completion)
            for prompt, row in zip(prompts, sampled, strict=True)
            for completion in row
        ]
        texts = [completion.text for _, completion in flat]
        rewards = self.reward_model([prompt for prompt, _ in flat], texts)
        readable = [prompt_text(prompt) for prompt, _ in flat]
        gold = self.gold(readable, texts) if self.gold else [None] * len(flat)
        divergences = self.divergences(role, flat, f"{name}: divergence")
        count = arguments.samples_per_prompt
        return [
            {
                "id": f"{name}-{i // count:04d}-{i % count}",
                "prompt_id": i // count,
                "prompt": readable[i],
                "response": completion.text,
                "model": name,
                "reference": BASE,
                "sample_index": i % count,
                "seed": seed,
                "n_tokens": len(completion.ids),
                "finish": "eos" if completion.finished else "length",
                "reward": rewards[i],
                "gold": gold[i],
                **divergences[i],
            }
            for i, (_, completion) in enumerate(flat)
        ]

    @torch.no_grad()
    def divergences(
        self, role: str | None, samples: Sequence[tuple[Prompt, Completion]], progress: str
    ) -> list[dict[str, float]]:
        """How each response's distribution differs from the reference's, in nats.

        Of the sampled token ids, as they were sampled; responses of like length go together.
        """
        lengths = [len(completion.ids) for _, completion in samples]
        by_length = sorted(range(len(samples)), key=lengths.__getitem__)
        found: list[dict[str, float]] = [{} for _ in samples]
        # Logits of both models over the whole vocabulary are held at once.
        size = max(1, self.arguments.batch_size // 4)
        with tqdm(total=len(samples), desc=progress) as bar:
            for start in range(0, len(samples), size):
                rows = by_length[start : start + size]
                measured = self._measure(role, [samples[i] for i in rows])
                for row, facts in zip(rows, measured, strict=True):
                    found[row] = facts
                bar.update(len(rows))
        return found

    def _measure(
        self, role: str | None, samples: Sequence[tuple[Prompt, Completion]]
    ) -> list[dict[str, float]]:
        pad_token_id = self.tokenizer.pad_token_id
        encoded = [prompt_ids(self.tokenizer, prompt) for prompt, _ in samples]
        left, left_mask = pad(encoded, pad_token_id, left=True)
        right, right_mask = pad([c.ids for _, c in samples], pad_token_id, left=False)
        device = self.roles.base.device
        ids, counts = right.to(device), right_mask.to(device)
        inputs = (
            torch.cat([left, right], 1).to(device),
            torch.cat([left_mask, right_mask], 1).to(device),
            right.shape[1],
        )
        temperature = self.arguments.temperature
        logits = self.roles.completion_logits(role, *inputs) / temperature
        ref_logits = self.roles.completion_logits(None, *inputs) / temperature
        policy, reference = token_logps(logits, ids), token_logps(ref_logits, ids)

        def total(values: torch.Tensor) -> torch.Tensor:
            return torch.where(counts, values, 0.0).sum(-1)

        length = counts.sum(-1)
        kl = total(exact_kl(logits, ref_logits))
        columns = {
            "kl": kl,
            "kl_k1": total(policy.logps - reference.logps),
            "kl_per_token": kl / length,
            "logp_policy": total(policy.logps),
            "logp_ref": total(reference.logps),
            "entropy": total(policy.entropy) / length,
        }
        return [
            dict(zip(columns, row, strict=True))
            for row in torch.stack(list(columns.values()), 1).tolist()
        ]


def _identity(adapter: Path | None) -> dict[str, str | None]:
    if adapter is None:
        return {"adapter": None, "fingerprint": None}
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    return {"adapter": str(adapter), "fingerprint": hashlib.sha256(weights).hexdigest()}
