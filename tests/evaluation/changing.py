"""Results that differ from real ones in a few numbers, for what is said of results."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.win_rate import WinRate, win_rate
from rlhf_recipes.evaluation.results import EvaluationResults, evaluation_results
from tests.evaluation.conftest import EFFECTS, make_records, write_collection


def changed(whole, path, **fields):
    """The results with fields of the part at `path` replaced: names and keys, dots between."""
    name, _, rest = path.partition(".")
    if not name:
        return replace(whole, **fields)
    if isinstance(whole, Mapping):
        return {**whole, name: changed(whole[name], rest, **fields)}
    return replace(whole, **{name: changed(getattr(whole, name), rest, **fields)})


def rate_like(**fields) -> WinRate:
    """A win rate of four prompts, two won and two lost, with other numbers in their place."""
    scores = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    return replace(win_rate(scores, np.zeros_like(scores)), **fields)


@lru_cache
def small_results() -> EvaluationResults:
    """Results of four prompts and three policies."""
    names = ("base", "ppo", "grpo", "dpo")
    models = {name: make_records(name, EFFECTS[name], 4, 1) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        output = write_collection(Path(folder) / "out", models)
        return evaluation_results(read_samples(output / "samples"))[0]
