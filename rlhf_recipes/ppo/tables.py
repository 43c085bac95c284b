"""Tables of sampled episodes: the metrics computed from one, its preview and its Parquet file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from rlhf_recipes.prompts import prompt_text

Table = dict[str, list[Any]]
"""Columns of equal length, one row per episode: prompt, completion, scores, KL and so on."""


def rollout_metrics(table: Mapping[str, Sequence[Any]], kl_coef: float) -> dict[str, float]:
    """Compute a rollout's metrics, under the names of TRL's PPOTrainer.

    KL and entropy are sums over an episode's tokens in nats, averaged over episodes.
    """
    mean = {
        name: fmean(column)
        for name, column in table.items()
        if name not in ("prompt", "completion", "finished")
    }
    metrics = {
        "objective/kl": mean["kl"],
        "objective/entropy": mean["entropy"],
        "objective/non_score_reward": -kl_coef * mean["kl"],
        "objective/rlhf_reward": mean["effective_score"] - kl_coef * mean["kl"],
        "objective/scores": mean["score"],
        "objective/kl_coef": kl_coef,
        "policy/entropy_avg": mean["entropy"] / mean["length"],
        "val/num_eos_tokens": float(sum(table["finished"])),
        "completions/mean_length": mean["length"],
    }
    by_function = {name: value for name, value in mean.items() if name.startswith("rewards/")}
    return metrics | (by_function if len(by_function) > 1 else {})


def format_samples(table: Mapping[str, Sequence[Any]], rows: int = 3, width: int = 72) -> str:
    """Format the first rows of a table for a terminal: prompt, completion, score and KL."""
    lines = []
    for row in range(min(rows, len(table["completion"]))):
        prompt, completion = (
            " ".join(text.split())
            for text in (prompt_text(table["prompt"][row]), table["completion"][row])
        )
        numbers = f"score {table['score'][row]:.2f}, KL {table['kl'][row]:.2f}"
        lines += [f"  {prompt[-width:]}", f"    -> {completion[:width]}", f"       {numbers}"]
    return "\n".join(lines)


def write_table(table: Table, file: Path) -> None:
    """Write a table as a Parquet file, one row per episode; its folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(file)
