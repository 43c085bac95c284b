"""The keys of an evaluation recipe, and the policies that they name."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError

BASE = "base"
CONTROL = "control"
REFERENCE = "reference"
BARE_BASE = "bare_base"
REWARD = "reward"
GOLD = "gold"
GOLD_MODEL = "gold_model"
"""Name of the judge in `gold_model_path` where a `gold_func` is the gold judge."""

POLICIES = ("ppo", "grpo", "dpo")
WEIGHTS = "adapter_model.safetensors"
NAME = "[A-Za-z0-9_-]+"
CHAT = ("http://", "https://", "hub:")
"""Beginnings of a chat judge's address."""


@dataclass(frozen=True)
class Policy:
    """An adapter that is evaluated under a name.

    Seeds of one method, or a sweep, share a `family`; saved checkpoints share a `run`, which is
    the name of the finished one. Where checkpoints are evaluated, `step` is the training step.
    """

    name: str
    folder: Path
    family: str
    run: str
    step: int | None = None


@dataclass
class EvaluationArguments:
    """The models to evaluate, and one way of sampling for all of them."""

    output_dir: str = field(
        default="outputs",
        metadata={"help": "Workspace: its models are evaluated, the results go beside them."},
    )
    dataset_name: str = field(
        default="outputs/data",
        metadata={
            "help": "The `dataset_name` of the training stages; prompts are those of its "
            "validation split."
        },
    )
    reward_model_path: str = field(
        default="outputs/models/reward_model",
        metadata={"help": "Reward adapter, the proxy reward."},
    )
    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Adapter that the policies were trained from. It is then the reference of the "
            "KL and takes the place of base; the base below it is evaluated as bare_base."
        },
    )
    models: list[str] | None = field(
        default=None,
        metadata={
            "help": "Policies as `name=adapter folder`, or `family/name=adapter folder` for seeds "
            "or a sweep of one method; by default the finished runs models/{ppo,grpo,dpo}_model "
            "of the workspace."
        },
    )
    checkpoints: bool = field(
        default=False,
        metadata={"help": "Evaluate the saved checkpoints of each policy too."},
    )
    gold_func: str | None = field(
        default=None,
        metadata={
            "help": "`path/to/file.py:function`, a gold score beside the reward model's, called "
            "as function(prompts, completions) -> list of floats."
        },
    )
    gold_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Reward adapter trained on other data than the proxy: the gold score, or, if "
            "there is a `gold_func`, one more judge by the name gold_model."
        },
    )
    judges: list[str] | None = field(
        default=None,
        metadata={
            "help": "More judges, each `name=what`: `path/to/file.py:function` or an adapter "
            "folder (scores), `https://host/v1#model` or `hub:model id` (compares with base)."
        },
    )
    judge_criterion: str = field(
        default="more helpful, more correct and less harmful",
        metadata={"help": "What a chat judge is told that the better answer is."},
    )
    judge_parameters: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Sent with each question to a chat judge; `{'temperature': 0}` if null."},
    )
    judge_workers: int = field(
        default=4, metadata={"help": "Questions that a chat judge is asked at once."}
    )
    eval_prompts: int = field(default=100, metadata={"help": "Held-out prompts to sample on."})
    samples_per_prompt: int = field(default=1, metadata={"help": "Responses to each prompt."})
    best_of_n: int | None = field(
        default=None,
        metadata={"help": "Responses of base to each prompt, where more are wanted: best-of-n."},
    )
    control: bool = field(
        default=True,
        metadata={"help": "Sample the base again with another seed: it must tie with itself."},
    )
    max_completion_length: int = field(
        default=64, metadata={"help": "Tokens at which a response is cut off."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    batch_size: int = field(default=64, metadata={"help": "Responses sampled at once."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the base's weights; by default as the adapters were trained."},
    )
    load_in_8bit: bool | None = field(
        default=None,
        metadata={"help": "Quantize the base to 8 bits; by default as the adapters were trained."},
    )
    load_in_4bit: bool | None = field(
        default=None,
        metadata={"help": "Quantize the base to 4 bits; by default as the adapters were trained."},
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template that the adapters must have been trained "
            "with. Their tokenizers have them, so null takes those."
        },
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sampling."})
    plan: bool = field(default=False, metadata={"help": "Print what would be done, and stop."})
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Replace finished results. Samples of the same settings are kept, others are "
            "replaced."
        },
    )

    def __post_init__(self) -> None:
        if self.eval_prompts < 2:
            raise ValueError(
                f"`eval_prompts` is {self.eval_prompts}. An interval needs at least 2 prompts."
            )
        for name in ("samples_per_prompt", "batch_size", "judge_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Give at least 1.")
        if self.best_of_n is not None and self.best_of_n < max(2, self.samples_per_prompt):
            raise ValueError(
                f"`best_of_n` is {self.best_of_n}, the responses of base to a prompt. Give at "
                f"least 2 and no fewer than `samples_per_prompt` ({self.samples_per_prompt})."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"`temperature` is {self.temperature}. The divergence from the reference is that "
                "of the sampled distribution, so sampling must be random: give a number above 0."
            )
        own = {BASE, CONTROL, REFERENCE, BARE_BASE}
        _check_entries("models", self.models, f"{NAME}(/{NAME})?", "adapter folder", own)
        target = "function, folder, URL#model or hub:model id"
        own = {"proxy", GOLD, GOLD_MODEL, REWARD}
        _check_entries("judges", self.judges, NAME, target, own)

    @property
    def base_samples(self) -> int:
        """Responses of base to each prompt."""
        return self.best_of_n or self.samples_per_prompt

    def generation(self) -> dict[str, object]:
        """Return the sampling settings, named as for `generate`."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "max_completion_length": self.max_completion_length,
        }

    def judge_folders(self) -> dict[str, str]:
        """The folder of each judge that is an adapter, the gold score's first."""
        folders = {}
        if self.gold_model_path:
            folders[GOLD_MODEL if self.gold_func else GOLD] = self.gold_model_path
        for entry in self.judges or []:
            name, _, what = entry.partition("=")
            if not what.startswith(CHAT) and ".py:" not in what:
                folders[name] = what
        return folders

    def policies(self) -> list[Policy]:
        """Return the policies to evaluate against the base, in the order of the report."""
        named = self.models
        if named is None:
            folders = {name: Path(self.output_dir, "models", f"{name}_model") for name in POLICIES}
            named = [f"{n}={path}" for n, path in folders.items() if (path / "run.json").is_file()]
        runs = [_policy(entry) for entry in named]
        if not runs:
            raise RecipeError(
                f"There is no policy to evaluate: {self.output_dir}/models has no finished run of "
                f"{', '.join(POLICIES)}. Train one first, for example with `make dpo`, or name "
                "adapters with `--models name=folder`."
            )
        if not self.checkpoints:
            return runs
        found = [policy for run in runs for policy in with_checkpoints(run)]
        if len(found) == len(runs):
            raise RecipeError(
                f"`checkpoints` is true, but {', '.join(str(run.folder) for run in runs)} hold no "
                "checkpoint besides the finished adapter. Train with `save_steps`, or leave "
                "`checkpoints` out."
            )
        return found


def with_checkpoints(run: Policy) -> list[Policy]:
    """A run's saved checkpoints in the order of their steps, and the finished adapter last.

    A checkpoint is named after its step: `ppo-50`. One whose weights are those of the finished
    adapter is left out.
    """
    final = (run.folder / WEIGHTS).read_bytes() if (run.folder / WEIGHTS).is_file() else b""
    steps = sorted(
        int(path.parent.name.removeprefix("checkpoint-"))
        for path in run.folder.glob(f"checkpoint-[0-9]*/{WEIGHTS}")
        if path.read_bytes() != final
    )
    state = run.folder / "trainer_state.json"
    last = json.loads(state.read_text())["global_step"] if state.is_file() else None
    saved = [
        replace(run, name=f"{run.name}-{s}", folder=run.folder / f"checkpoint-{s}", step=s)
        for s in steps
    ]
    return [*saved, replace(run, step=last)]


def _policy(entry: str) -> Policy:
    path, _, folder = entry.partition("=")
    family, _, _ = path.partition("/")
    name = path.replace("/", "-")
    return Policy(name, Path(folder), family, name)


def _check_entries(
    key: str, entries: list[str] | None, shape: str, target: str, taken: set[str]
) -> None:
    names = []
    for entry in entries or []:
        path, _, what = entry.partition("=")
        names.append(path.replace("/", "-"))
        if not what or not re.fullmatch(shape, path) or names[-1] in taken:
            raise ValueError(
                f"`{key}` has the entry `{entry}`. Write `name={target}`, with a name of "
                f"letters, digits, _ and - other than {', '.join(sorted(taken))}, which are taken."
            )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"`{key}` names {', '.join(sorted(twice))} more than once. Give each its own name."
        )
