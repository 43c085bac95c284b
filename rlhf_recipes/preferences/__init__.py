"""Preference data: read any usual layout into pairs, filter, split and write them, and load them.

`preparation` does the work of recipes/prepare_data.py; `prepared` is what the other stages call.
"""

from rlhf_recipes.preferences.arguments import DataArguments
from rlhf_recipes.preferences.prepared import (
    chosen_completions,
    current_fingerprint,
    dataset_fingerprint,
    load_prepared,
    split_off,
    unique_prompts,
)

__all__ = [
    "DataArguments",
    "chosen_completions",
    "current_fingerprint",
    "dataset_fingerprint",
    "load_prepared",
    "split_off",
    "unique_prompts",
]
