"""Measure how cost grows: per pair with the prompt length, per completion with the group size.

A forward and backward pass of TRL's own trainers over random tokens of exact lengths, stock and
with shared prefixes in turn, in one process. No completion is sampled.
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from benchmarks import dpo, grpo
from benchmarks.cases import COMPLETION_LENGTH, PAIRS, TRAINING, Setting
from benchmarks.measure import Case

PROMPT_LENGTHS = (64, 128, 256, 512, 1024)
GROUP_SIZES = (2, 4, 8, 16)
GROUP_PROMPT = 256
REPEATS = 3
SIDES = ("ours", "theirs")
# Cost of one repeat on the stock side: the pairs have 2 (64 + ... + 1024 + 5 * 64) = 4,608 tokens,
# about 14 ms each with the reference model's pass. The groups have (2 + 4 + 8 + 16) (256 + 64) =
# 9,600 tokens, about 7 ms each. That is 130 s, and 6.6 minutes for three repeats; our side takes a
# third of it.

Inputs = dict[str, Tensor]


def record(
    setting: Setting,
    lengths: tuple[int, ...] = PROMPT_LENGTHS,
    sizes: tuple[int, ...] = GROUP_SIZES,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Measure two curves: DPO over the prompt length, GRPO's loss over the group size."""
    training = {**TRAINING, "per_device_train_batch_size": PAIRS}
    rows = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in setting.pairs(1)
    ]
    # Nothing is trained on the data: a trainer cannot be made without any.
    pairs = setting.case("", pairs=rows, max_length=None, training={**training, "max_steps": 1})
    groups = setting.case(
        "",
        prompts=setting.prompts(1),
        fixed=False,
        training={**training, "max_steps": 1, "num_generations": PAIRS},
    )
    by_length = _curve(_sides(dpo.build, pairs), _pair, lengths, repeats)
    by_size = _curve(_sides(grpo.build, groups), _group, sizes, repeats)
    for point in by_size:
        for side in SIDES:
            timing = point[side]
            timing["seconds"] /= point["size"]
            timing["seconds_by_run"] = [s / point["size"] for s in timing["seconds_by_run"]]
    curves = [
        {"name": "DPO", "unit": "pair", "over": "prompt length (tokens)", "points": by_length},
        {
            "name": "GRPO",
            "unit": "completion",
            "over": "completions per prompt",
            "points": by_size,
        },
    ]
    for curve in curves:
        print(_table(curve), flush=True)
    return {"base": setting.base, "completion_length": COMPLETION_LENGTH, "curves": curves}


def _sides(build: Callable[[Case], Trainer], case: Case) -> dict[str, Trainer]:
    return {side: build({**case, "side": side}) for side in SIDES}


def _curve(
    trainers: dict[str, Trainer],
    make: Callable[[Trainer, int], Inputs],
    sizes: tuple[int, ...],
    repeats: int,
) -> list[dict[str, Any]]:
    """Measure seconds per pass at each size, and how much the sides' gradient norms differ."""
    points = []
    for trainer in trainers.values():
        _pass(trainer, make(trainer, sizes[0]))  # warms up
    for size in sizes:
        runs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for _ in range(repeats):
            for side, trainer in trainers.items():
                runs[side].append(_pass(trainer, make(trainer, size)))
        point: dict[str, Any] = {"size": size}
        for side, passes in runs.items():
            seconds = [s for s, _ in passes]
            point[side] = {"seconds": statistics.median(seconds), "seconds_by_run": seconds}
        point["difference"] = abs(runs["ours"][0][1] / runs["theirs"][0][1] - 1)
        points.append(point)
    return points


def _pass(trainer: Trainer, inputs: Inputs) -> tuple[float, float]:
    """Return the seconds of a forward and backward pass, and the gradient norm."""
    model: Any = trainer.model
    model.zero_grad()
    started = time.perf_counter()
    loss: Any = trainer.compute_loss(model, inputs)
    loss.backward()
    seconds = time.perf_counter() - started
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return seconds, nn.utils.get_total_norm(gradients).item()


def _tokens(trainer: Trainer, count: int, seed: int) -> list[int]:
    tokenizer: Any = trainer.processing_class
    return random.Random(seed).choices(range(len(tokenizer)), k=count)


def _pair(trainer: Trainer, prompt_length: int) -> Inputs:
    """Make one pair in the form of DPOTrainer's batches."""
    trainer.model.train()  # type: ignore[union-attr]
    row = {
        "prompt_ids": _tokens(trainer, prompt_length, 0),
        "chosen_ids": _tokens(trainer, COMPLETION_LENGTH, 1),
        "rejected_ids": _tokens(trainer, COMPLETION_LENGTH, 2),
    }
    batch: Inputs = trainer.data_collator([row])
    return batch


def _group(trainer: Trainer, size: int) -> Inputs:
    """Make one group in the form of GRPOTrainer's batches."""
    # In training mode its loss depends on the accumulation step. There is no dropout either way.
    trainer.model.eval()  # type: ignore[union-attr]
    prompt = torch.tensor([_tokens(trainer, GROUP_PROMPT, 0)] * size)
    completions = torch.tensor([_tokens(trainer, COMPLETION_LENGTH, i + 1) for i in range(size)])
    advantages = torch.linspace(-1, 1, size)
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(float(completions.numel())),
    }


def _table(curve: dict[str, Any]) -> str:
    lines = [f"{curve['name']}: seconds per {curve['unit']} over {curve['over']}"]
    for point in curve["points"]:
        ours, theirs = (point[side]["seconds"] for side in SIDES)
        lines.append(
            f"  {point['size']:5d}: {ours:.3f}, stock {theirs:.3f}, {theirs / ours:.2f}x; "
            f"gradient norms differ by {point['difference']:.1e}"
        )
    return "\n".join(lines)
