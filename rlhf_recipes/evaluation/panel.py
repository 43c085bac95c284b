"""The judges of an evaluation: those that score a response, and chat models that compare two.

A scoring judge is a reward adapter or a Python function; `judges` has the comparing ones.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_recipes.adapters import adapter_base, adapter_fingerprint, require_head, same_base
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import REWARD, EvaluationArguments
from rlhf_recipes.evaluation.judges import ChatJudge, chat_judge
from rlhf_recipes.models import open_tokenizer
from rlhf_recipes.rewards import RewardModel, load_reward_func
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import Prompt

GOLD = "gold"


ScoreFunction = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
"""One score a completion, higher is better."""


@dataclass(frozen=True)
class Scorer:
    """A scoring judge under its name; `identity` changes when its scores may."""

    name: str
    what: str
    identity: dict[str, Any]
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Checked scores: as many as completions, all of them finite."""
        scores = [float(score) for score in self.function(prompts, completions)]
        if len(scores) != len(completions):
            raise RecipeError(
                f"The judge `{self.name}` ({self.what}) gave {len(scores)} scores for "
                f"{len(completions)} responses. It must give one to each, in their order. The "
                "samples are kept: mend it and give the same command again."
            )
        for score, text in zip(scores, completions, strict=True):
            if not math.isfinite(score):
                raise RecipeError(
                    f"The judge `{self.name}` ({self.what}) scores the response {text[:60]!r} as "
                    f"{score}, which cannot be compared. It must give finite numbers. The samples "
                    "are kept: mend it and give the same command again."
                )
        return scores


def adapter_scorer(name: str, folder: str, roles: Roles, *, batch_size: int, dtype: str) -> Scorer:
    """A reward adapter: one more role where its base is that of `roles`, else loaded apart."""
    require_head(folder)
    role = f"judge:{name}"  # no policy can have that name
    if same_base(adapter_base(folder), str(roles.base.name_or_path)):
        roles.attach_saved(role, folder, trainable=False)
        tokenizer: PreTrainedTokenizerBase = open_tokenizer(folder)
        model = RewardModel(roles, tokenizer, role, batch_size)
    else:
        model = RewardModel.load(folder, dtype=dtype).to(roles.base.device)
        model.batch_size = batch_size
    identity = {"adapter": adapter_fingerprint(folder), "dtype": dtype}
    return Scorer(name, f"reward model {folder}", identity, model)


def function_scorer(name: str, path: str) -> Scorer:
    """A Python function `path/to/file.py:name` of the texts of prompts and completions.

    Its identity is the text of its file; files that this one imports are not looked at.
    """
    function = load_reward_func(path)
    source = Path(path.rpartition(":")[0]).read_bytes()
    identity = {"function": path, "source": hashlib.sha256(source).hexdigest()}
    return Scorer(name, f"function {path}", identity, function)


@dataclass(frozen=True)
class Panel:
    """Scoring judges, the proxy first, and comparing judges by name."""

    scorers: list[Scorer]
    judges: dict[str, ChatJudge]

    def described(self) -> dict[str, str]:
        """What each judge is, but for proxy and gold."""
        extra = {s.name: s.what for s in self.scorers if s.name not in (REWARD, GOLD)}
        return extra | {name: judge.what for name, judge in self.judges.items()}


def open_panel(arguments: EvaluationArguments, roles: Roles) -> Panel:
    """The judges that a recipe names; RecipeError where one cannot be what it is named as."""
    options: Any = {"batch_size": arguments.batch_size, "dtype": arguments.dtype}

    def adapter(name: str, folder: str) -> Scorer:
        return adapter_scorer(name, folder, roles, **options)

    scorers = [adapter(REWARD, arguments.reward_model_path)]
    if arguments.gold_func:
        scorers.append(function_scorer(GOLD, arguments.gold_func))
    if arguments.gold_model_path:
        gold, proxy = arguments.gold_model_path, arguments.reward_model_path
        if adapter_fingerprint(gold) == adapter_fingerprint(proxy):
            raise RecipeError(
                f"`gold_model_path` is {gold}, whose weights are those of the proxy {proxy}. A "
                "proxy that judges itself finds no over-optimisation. Train a judge on other data "
                "with `make judge JUDGE=0.5`."
            )
        name = "gold_model" if arguments.gold_func else GOLD
        scorers.append(adapter(name, arguments.gold_model_path))
    judges = {}
    parameters = _parameters(arguments.judge_parameters)
    for entry in arguments.judges or []:
        name, _, what = entry.partition("=")
        if what.startswith(("http://", "https://", "hub:")):
            judges[name] = chat_judge(name, what, arguments.judge_criterion, parameters)
        elif ".py:" in what:
            scorers.append(function_scorer(name, what))
        else:
            scorers.append(adapter(name, what))
    return Panel(scorers, judges)


def _parameters(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        read: dict[str, Any] = json.loads(Path(given).read_text(encoding="utf-8"))
        return read
    return {"temperature": 0} if given is None else given
