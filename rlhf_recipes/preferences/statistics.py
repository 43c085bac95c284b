"""Compute the statistics of prepared preference pairs for dataset_stats.json."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_recipes.preferences.shapes import Pair
from rlhf_recipes.prompts import completion_text

QUANTILES = {
    "min": 0.0,
    "p05": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "max": 1,
}
BINS = 25
OPENING_WORDS = 3
OPENINGS = 5


def pair_statistics(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, dict[str, Any]]:
    """Return the statistics of each split; a histogram has the same bins in all splits.

    Lengths are `prompt`, `chosen`, `rejected`, and `longest`: the prompt plus the longer
    completion. `length_gap` is the length of chosen minus that of rejected.
    """
    lengths = {split: _lengths(members) for split, members in pairs.items()}
    edges = {
        name: _bin_edges(np.concatenate([values[name] for values in lengths.values()]))
        for name in next(iter(lengths.values()))
    }
    return {
        split: {
            "pairs": len(members),
            "sources": _counts(pair.source for pair in members),
            "turns": _counts(pair.turns for pair in members),
            "lengths": {
                name: _summary(values, edges[name])
                for name, values in lengths[split].items()
                if name != "length_gap"
            },
            "length_gap": _summary(lengths[split]["length_gap"], edges["length_gap"])
            | _longer_side(lengths[split]["length_gap"]),
            "repeated_prompts": _repeated_prompts(members),
            "openings": {
                "prompt": _openings(_last_turn(pair) for pair in members),
                "chosen": _openings(completion_text(pair.chosen) for pair in members),
                "rejected": _openings(completion_text(pair.rejected) for pair in members),
            },
        }
        for split, members in pairs.items()
    }


def first_turn_counts(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """Count the distinct first user turns of each split, and those that two splits share.

    Turns that differ only in case, spaces or Unicode form count as one.
    """
    turns = {split: {p.first_turn_key for p in members} for split, members in pairs.items()}
    return {
        "different": {split: len(keys) for split, keys in turns.items()},
        "shared": {
            f"{one} and {other}": len(turns[one] & turns[other])
            for one, other in combinations(turns, 2)
        },
    }


def _lengths(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    prompt, chosen, rejected = np.array([pair.lengths for pair in pairs]).T
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "longest": prompt + np.maximum(chosen, rejected),
        "length_gap": chosen - rejected,
    }


def _bin_edges(values: np.ndarray) -> list[int]:
    """Return the edges of at most BINS bins with round widths, for all values but the outer 1%."""
    low, high = np.quantile(values, [0.01, 0.99])
    low = min(low, 0) if values.min() < 0 else 0
    span = max(high - low, 1)
    steps = [int(base * 10**power) for power in range(9) for base in (1, 2, 3, 5)]
    width = next(step for step in steps if span / step <= BINS - 2)
    first, last = int(np.floor(low / width)), int(np.floor(high / width)) + 1
    return [step * width for step in range(first, last + 1)]


def _summary(values: np.ndarray, edges: list[int]) -> dict[str, Any]:
    return {
        "mean": round(float(values.mean()), 2),
        **{name: round(float(np.quantile(values, q)), 2) for name, q in QUANTILES.items()},
        "histogram": {
            "edges": edges,  # a bin includes its lower edge; outer values are counted separately
            "counts": np.histogram(values[values < edges[-1]], edges)[0].tolist(),
            "below": int((values < edges[0]).sum()),
            "above": int((values >= edges[-1]).sum()),
        },
    }


def _longer_side(gap: np.ndarray) -> dict[str, float]:
    return {
        "chosen_longer": round(float((gap > 0).mean()), 4),
        "equal": round(float((gap == 0).mean()), 4),
        "rejected_longer": round(float((gap < 0).mean()), 4),
    }


def _repeated_prompts(pairs: Sequence[Pair]) -> dict[str, int]:
    """Count the distinct prompts, those in more than one pair, and the most pairs of one prompt."""
    counts = Counter(pair.prompt_key for pair in pairs)
    repeated = [count for count in counts.values() if count > 1]
    return {
        "different_prompts": len(counts),
        "repeated": len(repeated),
        "pairs_of_repeated": sum(repeated),
        "most": max(counts.values()),
    }


def _last_turn(pair: Pair) -> str:
    return pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]


def _openings(texts: Iterable[str]) -> list[dict[str, object]]:
    counts = Counter(" ".join(text.split(maxsplit=OPENING_WORDS)[:OPENING_WORDS]) for text in texts)
    return [{"words": words, "count": count} for words, count in counts.most_common(OPENINGS)]


def _counts(values: Iterable[str | int]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}
