"""What prepared preference pairs look like: the numbers of dataset_stats.json."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_recipes.preferences.shapes import Pair, prompt_key
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
    """Statistics of each split; histograms have the same bins in all of them.

    Lengths are those of the pairs (`prompt`, `chosen`, `rejected`, and `longest`: the prompt with
    its longer answer). `length_gap` is chosen minus rejected.
    """
    measured = {split: _measurements(members) for split, members in pairs.items()}
    edges = {
        name: _bin_edges(np.concatenate([values[name] for values in measured.values()]))
        for name in next(iter(measured.values()))
    }
    return {
        split: {
            "pairs": len(members),
            "sources": _counts(pair.source for pair in members),
            "turns": _counts(pair.turns for pair in members),
            "lengths": {
                name: _summary(values, edges[name])
                for name, values in measured[split].items()
                if name != "length_gap"
            },
            "length_gap": _summary(measured[split]["length_gap"], edges["length_gap"])
            | _longer_side(measured[split]["length_gap"]),
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
    """How many different first user turns each part has, and how many of them another part has too.

    Turns that differ in case, spaces or Unicode form alone are the same.
    """
    turns = {part: {p.first_turn_key for p in members} for part, members in pairs.items()}
    return {
        "different": {part: len(keys) for part, keys in turns.items()},
        "shared": {
            f"{one} and {other}": len(turns[one] & turns[other])
            for one, other in combinations(turns, 2)
        },
    }


def _measurements(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    prompt, chosen, rejected = np.array([pair.lengths for pair in pairs]).T
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "longest": prompt + np.maximum(chosen, rejected),
        "length_gap": chosen - rejected,
    }


def _bin_edges(values: np.ndarray) -> list[int]:
    """At most BINS round bins that hold all but the outermost percent of each side."""
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
            "edges": edges,  # a bin holds its lower edge; the outermost values are counted apart
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
    """How many prompts occur more than once, in how many pairs, and how often the first of them."""
    counts = Counter(prompt_key(pair.prompt) for pair in pairs)
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
