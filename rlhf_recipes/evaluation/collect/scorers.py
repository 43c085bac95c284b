"""The judges of an evaluation: those that score a response, and chat models that compare two.

A scoring judge is a reward adapter or a Python function; `judges` has the comparing ones.
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
"""Scores of `completions` to `prompts`, one each; higher is better."""


@dataclass(frozen=True)
class Scorer:
    """A scoring judge under its name; `identity` changes when its scores may."""

    name: str
    what: str
    identity: dict[str, Any]
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return one finite score per completion."""
        try:
            return checked(self.function)(prompts=prompts, completions=completions)
        except RecipeError as error:
            raise RecipeError(
                f"The judge `{self.name}` ({self.what}) cannot score. {error} The samples are "
                "kept: repair it and give the same command again."
            ) from error


def adapter_scorer(
    name: str, adapter: Adapter, roles: Roles, shared: Adapters, batch_size: int
) -> Scorer:
    """A reward adapter: one more role where its base is the shared one, else loaded apart.

    A base of its own is held as that adapter was trained, where its folder says how.
    """
    adapter.check_head()
    role = f"judge:{name}"  # no policy can have that name
    if adapter.base.is_same(shared.proxy.base):
        roles.attach_saved(role, adapter, trainable=False)
        model = RewardModel(roles, adapter.tokenizer, role, batch_size)
        precision = shared.precision
    else:
        precision = adapter.precision or shared.precision
        model = RewardModel.load(adapter, **precision.kwargs()).to(roles.base.device)
        model.batch_size = batch_size
    identity = {"adapter": adapter.fingerprint, "dtype": str(precision)}
    return Scorer(name, f"reward model {adapter.folder}", identity, model)


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
        return extra | {name: judge.description for name, judge in self.judges.items()}


def check_judges(arguments: EvaluationArguments, adapters: Adapters) -> None:
    """Raise RecipeError where a judge cannot be what it is named as; no weights are loaded."""
    if arguments.gold_func:
        function_scorer(GOLD, arguments.gold_func)
    for name, adapter in adapters.judges.items():
        adapter.check_head()
        _ = adapter.tokenizer  # opened here: a broken one is refused before any weights
        if name in (GOLD, GOLD_MODEL) and adapter.fingerprint == adapters.proxy.fingerprint:
            raise RecipeError(
                f"`gold_model_path` is {adapter.folder}, whose weights are those of the proxy "
                f"{adapters.proxy.folder}. A proxy that judges itself finds no over-optimisation. "
                "Train a judge on other data with `make judge JUDGE=0.5`."
            )
    parameters = _parameters(arguments.judge_parameters)
    for entry in arguments.judges or []:
        name, _, what = entry.partition("=")
        if what.startswith(CHAT):
            chat_judge(name, what, arguments.judge_criterion, parameters)
        elif ".py:" in what:
            function_scorer(name, what)


def open_panel(arguments: EvaluationArguments, roles: Roles, adapters: Adapters) -> Panel:
    """The judges that a recipe names; RecipeError where one cannot be what it is named as."""

    def scorer(name: str, adapter: Adapter) -> Scorer:
        return adapter_scorer(name, adapter, roles, adapters, arguments.batch_size)

    scorers = [scorer(REWARD, adapters.proxy)]
    if arguments.gold_func:
        scorers.append(function_scorer(GOLD, arguments.gold_func))
    if arguments.gold_model_path:
        name, gold = next(iter(adapters.judges.items()))
        scorers.append(scorer(name, gold))
    judges = {}
    parameters = _parameters(arguments.judge_parameters)
    for entry in arguments.judges or []:
        name, _, what = entry.partition("=")
        if what.startswith(CHAT):
            judges[name] = chat_judge(name, what, arguments.judge_criterion, parameters)
        elif ".py:" in what:
            scorers.append(function_scorer(name, what))
        else:
            scorers.append(scorer(name, adapters.judges[name]))
    return Panel(scorers, judges)


def _parameters(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            read: dict[str, Any] = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"`judge_parameters` is {given}, which cannot be read as a JSON file ({error}). "
                "Give a mapping, or the path of a file that holds one."
            ) from error
        return read
    return {"temperature": 0} if given is None else given
