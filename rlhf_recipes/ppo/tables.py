"""What a rollout leaves to read: a table of its episodes, and the metrics made from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from rlhf_recipes.prompts import prompt_text

Table = dict[str, list[Any]]
"""Columns of one length: an episode's prompt, completion, scores, KL and the like."""


def rollout_metrics(table: Mapping[str, Sequence[Any]], kl_coef: float) -> dict[str, float]:
    """What is logged of a rollout, in the names of TRL's PPO; sums over an episode are averaged."""
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
    parts = {name: value for name, value in mean.items() if name.startswith("rewards/")}
    return metrics | (parts if len(parts) > 1 else {})


def sample_table(table: Mapping[str, Sequence[Any]], rows: int = 3, width: int = 72) -> str:
    """The first rows of a table for a terminal: prompt, completion, score and KL."""
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
    """Write a table as parquet, one row an episode."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(file)
