"""Errors of a reward model against the preference labels: rates, slices and examples."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.metrics.calibration import Calibration, calibration
from rlhf_recipes.evaluation.metrics.detectors import refuses, words
from rlhf_recipes.evaluation.metrics.statistics import (
    SEED,
    Array,
    Correlation,
    Interval,
    ShareInterval,
    rank_correlation,
    wilson,
)
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, Count, Share
from rlhf_recipes.evaluation.metrics.win_rate import win_rate

Pair = dict[str, Any]

CONFIDENT = 10
RANDOM = 10
NEAR_DUPLICATE = 0.8
MANY_TURNS = 4
FLAGGED = {
    "refusal in chosen": "refusal_in_chosen",
    "refusal in rejected": "refusal_in_rejected",
    "near-duplicate": "near_duplicate",
}


@dataclass(frozen=True)
class Accuracy:
    """Fraction of pairs that are right, a tie one half, with its interval and the counts."""

    value: Share
    ci: ShareInterval
    right: Count
    ties: Count
    wrong: Count


@dataclass(frozen=True)
class Margin:
    """Margins of the chosen over the rejected text: their mean, and quantiles by level."""

    mean: float
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class ShareOf:
    """A fraction of n pairs, with its interval."""

    value: Share
    ci: ShareInterval
    n: Count


@dataclass(frozen=True)
class LengthBias:
    """Whether the model rewards length beyond what the labels do.

    Attributes:
        spearman: Correlation of margin and length difference.
        longer_wins: How often the model prefers the longer text, of pairs of unequal length.
        longer_is_chosen: How often the labels do.
        accuracy: Where the chosen text is shorter and where it is longer.
        balanced_accuracy: Mean of the two, 0.5 for a pure length rule.
    """

    spearman: Correlation
    longer_wins: ShareOf | None
    longer_is_chosen: ShareOf | None
    accuracy: Mapping[str, Accuracy | None]
    balanced_accuracy: float | None


@dataclass(frozen=True)
class Slice:
    """Errors on the pairs that have one value of a property, named by `slice`."""

    slice: str
    value: str
    n: Count
    wrong: Count
    ties: Count
    error_rate: Share
    ci: ShareInterval


@dataclass(frozen=True)
class RewardModelQuality:
    """A reward model on n preference pairs; `rule` says which wrong pairs are shown."""

    n: Count
    accuracy: Accuracy
    margin: Margin
    calibration: Calibration
    length_bias: LengthBias
    slices: Sequence[Slice]
    n_wrong: Count
    rule: str


@dataclass(frozen=True)
class RewardModelErrors:
    """The quality of a reward model, and wrong pairs to read, as `rule` selects them."""

    quality: RewardModelQuality = field(metadata=FLAT)
    wrong_pairs: Sequence[Pair]


def reward_model_errors(pairs: Sequence[Pair]) -> RewardModelErrors:
    """Measure a reward model: accuracy, calibration, length bias, slices and 20 wrong pairs.

    A pair is right if the chosen text scores higher; equal scores count one half. The wrong pairs
    are the 10 with the largest margin against the label and 10 drawn from the others with a fixed
    seed, or all of them if there are no more than 20. Raises RecipeError without pairs and for
    scores that are not finite.

    Args:
        pairs: Records with prompt, chosen, rejected (texts), chosen_reward, rejected_reward,
            chosen_tokens, rejected_tokens, turns and source; chosen_gold and rejected_gold where
            there is a gold judge.
    """
    _check_scores(pairs)
    described = [_describe(index, pair) for index, pair in enumerate(pairs)]
    wrong = sorted((p for p in described if p["margin"] < 0), key=lambda p: float(p["margin"]))
    margins = np.array([pair["margin"] for pair in described])
    quantiles = {f"{q:.2f}": float(np.quantile(margins, q)) for q in (0.05, 0.5, 0.95)}
    quality = RewardModelQuality(
        n=len(pairs),
        accuracy=_accuracy(described),
        margin=Margin(float(margins.mean()), quantiles),
        calibration=calibration(margins),
        length_bias=length_bias(described),
        slices=_slices(described),
        n_wrong=len(wrong),
        rule=(
            f"the {CONFIDENT} wrong pairs with the largest margin against the label, then "
            f"{RANDOM} drawn from the rest with seed {SEED}; all if there are no more"
        ),
    )
    return RewardModelErrors(quality, _select(wrong))


def length_bias(pairs: Sequence[Pair]) -> LengthBias:
    """Measure whether the model rewards length beyond what the labels do.

    After Singhal et al. (https://arxiv.org/abs/2310.03716).
    """
    margin = np.array([pair["margin"] for pair in pairs])
    gap = np.array([pair["length_gap"] for pair in pairs], dtype=np.float64)
    unequal = gap != 0
    shorter = [pair for pair in pairs if pair["length_gap"] < 0]
    longer = [pair for pair in pairs if pair["length_gap"] > 0]
    sides = {"chosen_shorter": shorter, "chosen_longer": longer}
    accuracy = {name: _accuracy(side) if side else None for name, side in sides.items()}
    both = [entry.value for entry in accuracy.values() if entry]
    return LengthBias(
        spearman=rank_correlation(margin, gap),
        longer_wins=_rate((np.sign(margin * gap)[unequal] + 1) / 2),
        longer_is_chosen=_rate((gap[unequal] > 0).astype(np.float64)),
        accuracy=accuracy,
        balanced_accuracy=sum(both) / 2 if len(both) == 2 else None,
    )


def _rate(values: Array) -> ShareOf | None:
    if not len(values):
        return None
    rate = float(values.mean())
    return ShareOf(rate, wilson(rate, len(values)), len(values))


def near_duplicates(first: str, second: str) -> bool:
    """Whether two texts share 80% of their words, counted with repeats (Dice's coefficient)."""
    a, b = Counter(words(first)), Counter(words(second))
    total = a.total() + b.total()
    return total == 0 or 2 * (a & b).total() / total >= NEAR_DUPLICATE


def _check_scores(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise RecipeError(
            "There are no preference pairs to score, so the reward model cannot be measured. "
            "Prepare data with a validation split that is not empty."
        )
    for index, pair in enumerate(pairs):
        scores = pair["chosen_reward"], pair["rejected_reward"]
        if not all(map(math.isfinite, scores)):
            raise RecipeError(
                f"The reward model scores pair {index} as {scores[0]} and {scores[1]}. Its weights "
                "are broken, most likely by a diverged run. Train it with a lower learning rate."
            )


def _describe(index: int, pair: Pair) -> Pair:
    gap = pair["chosen_tokens"] - pair["rejected_tokens"]
    is_true = {
        "chosen_shorter": gap < 0,
        "refusal_in_chosen": refuses(pair["chosen"]),
        "refusal_in_rejected": refuses(pair["rejected"]),
        "near_duplicate": near_duplicates(pair["chosen"], pair["rejected"]),
        "gold_disagrees_with_label": pair.get("chosen_gold", 0) < pair.get("rejected_gold", 0),
    }
    return {
        "index": index,
        **pair,
        "margin": pair["chosen_reward"] - pair["rejected_reward"],
        "length_gap": gap,
        "flags": [name for name, holds in is_true.items() if holds],
    }


def _accuracy(pairs: Sequence[Pair]) -> Accuracy:
    rate = win_rate(
        np.array([[pair["chosen_reward"]] for pair in pairs], dtype=np.float64),
        np.array([[pair["rejected_reward"]] for pair in pairs], dtype=np.float64),
    )
    return Accuracy(rate.value, rate.ci, rate.wins, rate.ties, rate.losses)


def _slices(pairs: Sequence[Pair]) -> list[Slice]:
    table = []
    for name in ("length", "turns", *FLAGGED, "source"):
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(_slice(name, pair), []).append(pair)
        for value, group in sorted(groups.items()):
            accuracy = _accuracy(group)
            table.append(
                Slice(
                    slice=name,
                    value=value,
                    n=len(group),
                    wrong=accuracy.wrong,
                    ties=accuracy.ties,
                    error_rate=1 - accuracy.value,
                    ci=Interval(1 - accuracy.ci.high, 1 - accuracy.ci.low),
                )
            )
    return table


def _slice(name: str, pair: Pair) -> str:
    """Return the slice that a pair belongs to."""
    if name == "length":
        return ("equal length", "chosen longer", "chosen shorter")[int(np.sign(pair["length_gap"]))]
    if name == "turns":
        return str(pair["turns"]) if pair["turns"] < MANY_TURNS else f"{MANY_TURNS} or more"
    if name in FLAGGED:
        return "yes" if FLAGGED[name] in pair["flags"] else "no"
    return str(pair[name])


def _select(wrong: list[Pair]) -> list[Pair]:
    if len(wrong) <= CONFIDENT + RANDOM:
        return [pair | {"selection": "all"} for pair in wrong]
    others = wrong[CONFIDENT:]
    drawn = sorted(np.random.default_rng(SEED).choice(len(others), RANDOM, replace=False))
    return [pair | {"selection": "most confident"} for pair in wrong[:CONFIDENT]] + [
        others[i] | {"selection": "random"} for i in drawn
    ]
