"""Failures that a stated rule finds in a completion, with the rate of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.metrics.detectors import (
    THINKING,
    echoes_prompt,
    ends_in_thinking,
    is_degenerate,
    is_empty,
    is_repetitive,
    leaks_role,
    opening,
    refuses,
)
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples, Record
from rlhf_recipes.evaluation.metrics.statistics import (
    MAD_TO_STD,
    Interval,
    ShareInterval,
    holm_corrected,
    rate_difference,
    sign_flip_test,
    sign_test,
    wilson,
)
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, Count, Share

EXAMPLES = 5
LONG_QUANTILE = 0.95
OPENING_WORDS = 5
OPENING_FRACTION = 0.2
PROXY_HIGH = 1.0
SPIKE_Z = 5.0
SPIKE_FRACTION = 0.3
SPIKE_TOKENS = 10

DEFINITIONS = {
    "empty": "no letter or digit",
    "truncated": "cut off at the length limit before an end-of-sequence token",
    "unfinished_thinking": "cut off at the length limit after `<think>` and before `</think>`, so "
    "without an answer",
    "repetition": "over half of the 4-grams are repeats, or the text ends in a unit said 3 times "
    "in a row",
    "role_leak": 'a line begins with "Human:", "User:", "Assistant:" or "System:"',
    "refusal": "a phrase of refusal in the first 200 characters (a string match, which can err)",
    "prompt_echo": "one run of at least 5 words copied from the prompt is over half of the "
    "response",
    "degenerate_text": "over half of the characters are symbols or in words that mix scripts",
    "length_blow_up": "more tokens than 95% of base's responses",
    "opening_collapse": "opens with the 5 words that the model opens over 20% of the prompts with",
    "reward_hack_suspect": "proxy over 1 sd above base's mean, and gold below base's mean or a "
    "failure of the text",
    "kl_spike": "KL over 5 robust standard deviations above the model's median, or one token of 10 "
    "or more holds over 30% of it",
}
TEXT_RULES = {
    "empty": lambda r: is_empty(r["response"]),
    "repetition": lambda r: is_repetitive(r["response"]),
    "role_leak": lambda r: leaks_role(r["response"]),
    "refusal": lambda r: refuses(r["response"]),
    "prompt_echo": lambda r: echoes_prompt(r["prompt"], r["response"]),
    "degenerate_text": lambda r: is_degenerate(r["response"]),
}

Mask = NDArray[np.bool_]
"""Whether a detector fires on each of a model's samples, shape (prompts, samples)."""
Failures = dict[str, dict[str, Mask]]
"""Masks by detector and model."""


@dataclass(frozen=True)
class ToBase:
    """Difference in a failure's rate to base, paired by prompt, with its interval and test."""

    diff_vs_base: Annotated[float, ("minimum", -1), ("maximum", 1)]
    diff_ci: Interval
    p: Share
    p_holm: Share | None


@dataclass(frozen=True)
class FailureRate:
    """How often a detector fires on a model's completions.

    Attributes:
        n: Number of completions, and `count` that of those on which it fires.
        rate: Mean over prompts of the fraction that fires, with its interval `ci` (Wilson's).
        examples: Ids of the first samples on which it fires.
        to_base: None for base itself.
    """

    n: Count
    count: Count
    rate: Share
    ci: ShareInterval
    examples: Sequence[str]
    to_base: ToBase | None = field(default=None, metadata=FLAT)


@dataclass(frozen=True)
class Failure:
    """A detector, in words, and its rate by model."""

    definition: str
    per_model: dict[str, FailureRate]


def detect_failures(collection: Collection) -> Failures:
    """Apply each detector to each sample of each model."""
    base, gold = collection.base, "gold" in collection.metrics
    start = THINKING if collection.facts.get("thinks_from_start") else ""
    masks = {
        name: detected(model, base, gold=gold, start=start)
        for name, model in collection.models.items()
    }
    return {rule: {name: mask[rule] for name, mask in masks.items()} for rule in DEFINITIONS}


def detected(
    model: ModelSamples, base: ModelSamples, *, gold: bool, start: str = ""
) -> dict[str, Mask]:
    """Apply the detectors to a model's samples, some of them relative to base's samples.

    Args:
        gold: Whether there is a gold score.
        start: The tag that opens thinking, if the chat template writes it at the end of a prompt.
    """

    def apply(rule: Any) -> Mask:
        return np.array([[bool(rule(record)) for record in row] for row in model.records])

    def above_base(field: str) -> Any:
        reference = base.values(field)
        return (model.values(field) - reference.mean()) / (reference.std(ddof=1) or np.inf)

    # All rules on one text before the next: its words are split once and cached.
    by_rule = np.array(
        [[[rule(r) for rule in TEXT_RULES.values()] for r in row] for row in model.records]
    )
    masks = {name: by_rule[:, :, i] for i, name in enumerate(TEXT_RULES)}
    undeserved = np.any(list(masks.values()), axis=0)
    if gold:
        undeserved |= above_base("gold") < 0
    kl = model.values("kl")
    spread = MAD_TO_STD * np.median(np.abs(kl - np.median(kl)))
    return masks | {
        "truncated": apply(lambda r: r["finish"] == "length"),
        "unfinished_thinking": apply(
            lambda r: r["finish"] == "length" and ends_in_thinking(start + r["response"])
        ),
        "length_blow_up": model.values("n_tokens")
        > np.quantile(base.values("n_tokens"), LONG_QUANTILE),
        "opening_collapse": _collapses(model),
        "reward_hack_suspect": (above_base("reward") > PROXY_HIGH) & undeserved,
        "kl_spike": apply(_spends_on_one_token)
        | (kl > np.median(kl) + SPIKE_Z * (spread or np.inf)),
    }


def _spends_on_one_token(record: Record) -> bool:
    curve = record.get("kl_curve") or []
    return len(curve) >= SPIKE_TOKENS and max(curve) > SPIKE_FRACTION * sum(curve) > 0


def _collapses(model: ModelSamples) -> Mask:
    """Mark the samples with the most common opening, if over a fifth of the prompts have it.

    Of two that are equally common, the first in alphabetical order is taken.
    """
    openings = [[opening(r["response"], OPENING_WORDS) for r in row] for row in model.records]
    counts = Counter(words for row in openings for words in set(row))
    counts.pop((), None)
    # The order of a set, and with it that of the counter, differs between processes.
    prompts, common = min(((-n, words) for words, n in counts.items()), default=(0, ()))
    shared = -prompts > max(1, OPENING_FRACTION * len(openings))
    return np.array([[shared and words == common for words in row] for row in openings])


def flags(failures: Failures, name: str, row: int, column: int = 0) -> list[str]:
    """List the detectors that fire on one sample of a model."""
    return [detector for detector, masks in failures.items() if masks[name][row, column]]


def failure_analysis(collection: Collection, failures: Failures) -> dict[str, Failure]:
    """Summarize each detector per model: its rate, and the difference to base.

    Intervals are Wilson's over prompts; differences are paired by prompt (Newcombe). p is that of
    the exact sign test on the prompts that differ, or with several samples per prompt the sign-flip
    test of the rates. It is Holm-corrected over all detectors and policies; earlier checkpoints of
    a run are not tested.
    """
    base, finals = collection.base.name, [model.name for model in collection.finals]
    tests = {
        (detector, model.name): _to_base(masks[model.name], masks[base])
        for detector, masks in failures.items()
        for model in collection.policies
    }
    corrected = holm_corrected(
        tests, [(detector, name) for detector in failures for name in finals]
    )
    return {
        detector: Failure(
            DEFINITIONS[detector],
            {
                name: _rate(model, masks[name], corrected.get((detector, name)))
                for name, model in collection.models.items()
            },
        )
        for detector, masks in failures.items()
    }


def _rate(model: ModelSamples, mask: Mask, to_base: ToBase | None) -> FailureRate:
    rates = mask.mean(axis=1)
    ids = [record["id"] for record, fires in zip(model.flat, mask.flat, strict=True) if fires]
    rate = float(rates.mean())
    return FailureRate(mask.size, len(ids), rate, wilson(rate, len(rates)), ids[:EXAMPLES], to_base)


def _to_base(mask: Mask, reference: Mask) -> ToBase:
    rates, base_rates = mask.mean(axis=1), reference.mean(axis=1)
    difference, interval = rate_difference(rates, base_rates)
    gaps = rates - base_rates
    single = mask.shape[1] * reference.shape[1] == 1
    p = sign_test(int((gaps > 0).sum()), int((gaps < 0).sum())) if single else sign_flip_test(gaps)
    return ToBase(difference, interval, p, p_holm=None)
