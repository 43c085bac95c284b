"""Judges of an evaluation: those that score one completion, and chat models that compare two.

A scoring judge is a reward model or a Python function; chat models are in `chat_judge.py`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import CHAT, GOLD, GOLD_MODEL, REWARD, EvaluationArguments
from rlhf_recipes.evaluation.collect.chat_judge import ChatJudge, chat_judge
from rlhf_recipes.evaluation.collect.provenance import Adapters
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.prompts import Prompt
from rlhf_recipes.reward_functions import checked, load_reward_func
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.roles import Roles

ScoreFunction = Callable[..., Sequence[float]]
"""Scores each of `completions` to `prompts`; higher is better."""


@dataclass(frozen=True)
class ScoringJudge:
    """A judge that scores one completion; `identity` changes when its scores may."""

    name: str
    description: str
    identity: dict[str, Any]
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return one finite score per completion."""
        try:
            return checked(self.function)(prompts=prompts, completions=completions)
        except RecipeError as error:
            raise RecipeError(
                f"The judge `{self.name}` ({self.description}) cannot score. {error} The samples "
                "are kept: repair it and give the same command again."
            ) from error


def adapter_judge(
    name: str, adapter: Adapter, roles: Roles, shared: Adapters, batch_size: int
) -> ScoringJudge:
    """Open a reward adapter as a role of the shared base, or on a base of its own.

    A base of its own is loaded in the precision of the adapter's training, if it is recorded.
    """
    adapter.check_head()
    role = f"judge:{name}"  # no policy can have that name
    if adapter.base.is_same(shared.proxy.base):
        roles.attach_saved(role, adapter, trainable=False)
        model = RewardModel(roles, adapter.tokenizer, role, batch_size)
        precision = shared.precision
    else:
        precision = adapter.precision or shared.precision
        model = RewardModel.load(adapter, **precision.kwargs())
        model.batch_size = batch_size
    identity = {"adapter": adapter.fingerprint, "dtype": str(precision)}
    return ScoringJudge(name, f"reward model {adapter.folder}", identity, model)


def function_judge(name: str, path: str) -> ScoringJudge:
    """Load a Python function `path/to/file.py:name` of the texts of prompts and completions.

    Its identity is the text of its file, without the files that this one imports.
    """
    function = load_reward_func(path)
    source = Path(path.rpartition(":")[0]).read_bytes()
    identity = {"function": path, "source": hashlib.sha256(source).hexdigest()}
    return ScoringJudge(name, f"function {path}", identity, function)


@dataclass(frozen=True)
class Judges:
    """Scoring judges, the proxy first, and comparing judges by name."""

    scoring: list[ScoringJudge]
    comparing: dict[str, ChatJudge]

    def described(self) -> dict[str, str]:
        """Describe each judge except proxy and gold."""
        extra = {j.name: j.description for j in self.scoring if j.name not in (REWARD, GOLD)}
        return extra | {name: judge.description for name, judge in self.comparing.items()}


def check_judges(arguments: EvaluationArguments, adapters: Adapters) -> None:
    """Raise RecipeError for a judge that cannot be opened; no weights are loaded."""
    if arguments.gold_func:
        function_judge(GOLD, arguments.gold_func)
    for name, adapter in adapters.judges.items():
        adapter.check_head()
        _ = adapter.tokenizer  # opened here: a broken one is refused before any weights
        if name in (GOLD, GOLD_MODEL) and adapter.has_weights_of(adapters.proxy):
            raise RecipeError(
                f"`gold_model_path` is {adapter.folder}, whose weights are those of the proxy "
                f"{adapters.proxy.folder}. A proxy that judges itself finds no over-optimization. "
                "Train a judge on other data with `make judge JUDGE=0.5`."
            )
    parameters = _parameters(arguments.judge_parameters)
    for entry in arguments.judges or []:
        name, _, address = entry.partition("=")
        if address.startswith(CHAT):
            chat_judge(name, address, arguments.judge_criterion, parameters)
        elif ".py:" in address:
            function_judge(name, address)


def open_judges(arguments: EvaluationArguments, roles: Roles, adapters: Adapters) -> Judges:
    """Open the judges that a recipe names; raise RecipeError for one that cannot be opened."""

    def open_adapter(name: str, adapter: Adapter) -> ScoringJudge:
        return adapter_judge(name, adapter, roles, adapters, arguments.batch_size)

    scoring = [open_adapter(REWARD, adapters.proxy)]
    if arguments.gold_func:
        scoring.append(function_judge(GOLD, arguments.gold_func))
    if arguments.gold_model_path:
        name, gold = next(iter(adapters.judges.items()))
        scoring.append(open_adapter(name, gold))
    comparing = {}
    parameters = _parameters(arguments.judge_parameters)
    for entry in arguments.judges or []:
        name, _, address = entry.partition("=")
        if address.startswith(CHAT):
            comparing[name] = chat_judge(name, address, arguments.judge_criterion, parameters)
        elif ".py:" in address:
            scoring.append(function_judge(name, address))
        else:
            scoring.append(open_adapter(name, adapters.judges[name]))
    return Judges(scoring, comparing)


def _parameters(setting: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(setting, str):
        try:
            parameters: dict[str, Any] = json.loads(Path(setting).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"`judge_parameters` is {setting}, which cannot be read as a JSON file ({error}). "
                "Give a mapping, or the path of a file that holds one."
            ) from error
        return parameters
    return {"temperature": 0} if setting is None else setting
