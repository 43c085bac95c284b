"""Whether training helped: samples are collected with the models, then analyzed without them.

The names below are loaded when first used, and none of them imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_recipes.evaluation.analysis import analyze
    from rlhf_recipes.evaluation.metrics.reward_model import reward_model_errors
    from rlhf_recipes.evaluation.report.rendering import closing_table

__all__ = ["analyze", "closing_table", "reward_model_errors"]

_MODULES = {
    "analyze": "analysis",
    "closing_table": "report.rendering",
    "reward_model_errors": "metrics.reward_model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
