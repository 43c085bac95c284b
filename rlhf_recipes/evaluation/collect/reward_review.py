"""Review of a trained reward model on held-out pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from rlhf_recipes.evaluation.metrics.reward_model import reward_model_errors
from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.prompts import prompt_ids, prompt_text
from rlhf_recipes.records import workspace, write_json
from rlhf_recipes.rewards import RewardModel, scored_ids, trained_reward_model


def review_reward_model(
    folder: Path, pairs: Dataset, model: nn.Module | None = None, *, prefix_sharing: bool = True
) -> dict[str, float]:
    """Score held-out pairs with a trained reward model and report its errors.

    Writes `results/reward_model_errors.json` into the run's workspace and `scores.json` into its
    folder. Returns `eval_accuracy`, and as `eval_loss` the mean of -log sigmoid(chosen - rejected)
    in nats, both by the scoring code that PPO and evaluation use.

    Args:
        folder: Run folder with the saved adapter.
        model: The classifier that was trained, in memory. None opens the folder's base, which
            takes its memory again: the only way where training has sharded the weights.
        prefix_sharing: Whether a prefix that rows of a batch share is computed once.
    """
    if model is None:
        reward_model = RewardModel.load(folder, prefix_sharing=prefix_sharing)
    else:
        reward_model = trained_reward_model(folder, model, prefix_sharing=prefix_sharing)
    records = score_pairs(reward_model, pairs)
    write_json(folder / "scores.json", records)
    errors = reward_model_errors(records)
    write_json(workspace(folder) / "results" / "reward_model_errors.json", as_json(errors))
    margins = [record["chosen_reward"] - record["rejected_reward"] for record in records]
    loss = np.logaddexp(0, np.negative(margins)).mean()
    return {"eval_loss": float(loss), "eval_accuracy": errors.quality.accuracy.value}


def score_pairs(reward_model: RewardModel, pairs: Dataset) -> list[dict[str, Any]]:
    """Return one record per pair: its texts, both scores, and their lengths in tokens."""
    tokenizer = reward_model.tokenizer
    prompts = list(pairs["prompt"])
    prompt_lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in prompts]
    columns: dict[str, list[Any]] = {
        "prompt": [prompt_text(prompt) for prompt in prompts],
        "turns": list(pairs["turns"]),
        "source": list(pairs["source"]),
    }
    texts = {side: [_text(value) for value in pairs[side]] for side in ("chosen", "rejected")}
    # In one call, so that the two completions of a prompt share its computation.
    both = [*texts["chosen"], *texts["rejected"]]
    scores = iter(reward_model([*prompts, *prompts], both, progress="scoring pairs"))
    for side, completions in texts.items():
        columns[side] = completions
        columns[f"{side}_reward"] = [next(scores) for _ in completions]
        columns[f"{side}_tokens"] = [
            len(scored_ids(tokenizer, prompt, text)) - length
            for prompt, text, length in zip(prompts, completions, prompt_lengths, strict=True)
        ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _text(side: str | Sequence[Mapping[str, str]]) -> str:
    return side if isinstance(side, str) else side[-1]["content"]
