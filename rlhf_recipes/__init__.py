"""The RLHF loop as thin recipes: preference data, reward model, PPO, GRPO, DPO, evaluation.

The names below are loaded when they are first used: importing the package imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_recipes.errors import RecipeError
    from rlhf_recipes.evaluation.analysis import analyze
    from rlhf_recipes.generation.sampling import sample
    from rlhf_recipes.ppo.config import PPOConfig
    from rlhf_recipes.ppo.trainer import PPOTrainer
    from rlhf_recipes.preferences import load_prepared
    from rlhf_recipes.prefix_sharing.forward import share_prefixes
    from rlhf_recipes.rewards import RewardModel, open_reward_model

__version__ = "0.2.0"

__all__ = [
    "PPOConfig",
    "PPOTrainer",
    "RecipeError",
    "RewardModel",
    "analyze",
    "load_prepared",
    "open_reward_model",
    "sample",
    "share_prefixes",
]

_MODULES = {
    "PPOConfig": "ppo.config",
    "PPOTrainer": "ppo.trainer",
    "RecipeError": "errors",
    "RewardModel": "rewards",
    "analyze": "evaluation.analysis",
    "load_prepared": "preferences",
    "open_reward_model": "rewards",
    "sample": "generation.sampling",
    "share_prefixes": "prefix_sharing.forward",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
