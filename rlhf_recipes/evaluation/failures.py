"""Failures that can be read off a response: each a stated rule with a rate, never a judgement."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.detectors import (
    echoes_prompt,
    is_degenerate,
    is_empty,
    is_repetitive,
    leaks_role,
    refuses,
    words,
)
from rlhf_recipes.evaluation.samples import Collection, ModelSamples, Record
from rlhf_recipes.evaluation.statistics import (
    Array,
    correct,
    rate_difference,
    sign_flip_test,
    sign_test,
    wilson,
)

EXAMPLES = 5
LONG_QUANTILE = 0.95
OPENING_WORDS = 5
OPENING_SHARE = 0.2
PROXY_HIGH = 1.0
SPIKE_Z = 5.0
SPIKE_SHARE = 0.3
SPIKE_TOKENS = 10
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Context:
    """What a response is judged against: base's lengths and scores, and its own model's habits."""

    long: float = math.inf
    opening: tuple[str, ...] = ()
    proxy: tuple[float, float] = (0.0, math.inf)
    gold: tuple[float, float] | None = None
    kl_spike: float = math.inf


def context(model: ModelSamples, base: ModelSamples, *, gold: bool) -> Context:
    """The statistics that a model's responses are held against."""
    kl = model.values("kl")
    spread = MAD_TO_SD * float(np.median(np.abs(kl - np.median(kl))))
    return Context(
        long=float(np.quantile(base.values("n_tokens"), LONG_QUANTILE)),
        opening=_common_opening(model),
        proxy=_centre(base.values("reward")),
        gold=_centre(base.values("gold")) if gold else None,
        kl_spike=float(np.median(kl)) + SPIKE_Z * spread if spread > 0 else math.inf,
    )


def _centre(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) or math.inf


def _opening(text: str) -> tuple[str, ...]:
    return tuple(words(text)[:OPENING_WORDS])


def _common_opening(model: ModelSamples) -> tuple[str, ...]:
    """The opening that responses to most prompts share, if over a fifth of the prompts do."""
    counts = Counter(o for row in model.records for o in {_opening(r["response"]) for r in row})
    counts.pop((), None)
    opening, prompts = counts.most_common(1)[0] if counts else ((), 0)
    return opening if prompts >= 2 and prompts > OPENING_SHARE * len(model.records) else ()


def is_suspect(record: Record, seen: Context) -> bool:
    """Whether the proxy scores a response high for which gold, or its text, gives no reason."""
    if (record["reward"] - seen.proxy[0]) / seen.proxy[1] <= PROXY_HIGH:
        return False
    if seen.gold and (record["gold"] - seen.gold[0]) / seen.gold[1] < 0:
        return True
    return any(DETECTORS[name].fires(record, seen) for name in OF_THE_TEXT)


def spikes_in_kl(record: Record, seen: Context) -> bool:
    """Whether a response's KL stands out in its model, or one token of ten or more holds 30%."""
    curve = record.get("kl_curve") or []
    steep = len(curve) >= SPIKE_TOKENS and max(curve) > SPIKE_SHARE * sum(curve) > 0
    return steep or bool(record["kl"] > seen.kl_spike)


class Detector(NamedTuple):
    """A rule in words, and the rule itself."""

    definition: str
    fires: Callable[[Record, Context], bool]


DETECTORS = {
    "empty": Detector("no letter or digit", lambda r, _: is_empty(r["response"])),
    "truncated": Detector(
        "cut off at the length limit before an end-of-sequence token",
        lambda r, _: bool(r["finish"] == "length"),
    ),
    "repetition": Detector(
        "over half of the 4-grams are repeats, or the text ends in a unit said 3 times in a row",
        lambda r, _: is_repetitive(r["response"]),
    ),
    "role_leak": Detector(
        'a line begins with "Human:", "User:", "Assistant:" or "System:"',
        lambda r, _: leaks_role(r["response"]),
    ),
    "refusal": Detector(
        "a phrase of refusal in the first 200 characters (a string match, which can err)",
        lambda r, _: refuses(r["response"]),
    ),
    "prompt_echo": Detector(
        "one run of at least 5 words copied from the prompt is over half of the response",
        lambda r, _: echoes_prompt(r["prompt"], r["response"]),
    ),
    "degenerate_text": Detector(
        "over half of the characters are symbols or in words that mix scripts",
        lambda r, _: is_degenerate(r["response"]),
    ),
    "length_blow_up": Detector(
        "more tokens than 95% of base's responses", lambda r, seen: r["n_tokens"] > seen.long
    ),
    "opening_collapse": Detector(
        "opens with the 5 words that the model opens over 20% of the prompts with",
        lambda r, seen: bool(seen.opening) and _opening(r["response"]) == seen.opening,
    ),
    "reward_hack_suspect": Detector(
        "proxy over 1 sd above base's mean, and gold below base's mean or a failure of the text",
        is_suspect,
    ),
    "kl_spike": Detector(
        "KL over 5 robust standard deviations above the model's median, or one token of 10 or more "
        "holds over 30% of it",
        spikes_in_kl,
    ),
}
OF_THE_TEXT = ("empty", "repetition", "role_leak", "refusal", "prompt_echo", "degenerate_text")


Fired = dict[str, dict[str, NDArray[np.bool_]]]
"""Whether a detector fires on a sample, by detector and model, shape (prompts, samples)."""


def failed(collection: Collection) -> Fired:
    """Each detector on each sample of each model."""
    gold = "gold" in collection.metrics
    seen = {n: context(m, collection.base, gold=gold) for n, m in collection.models.items()}
    return {
        detector: {
            name: np.array([[rule.fires(r, seen[name]) for r in row] for row in model.records])
            for name, model in collection.models.items()
        }
        for detector, rule in DETECTORS.items()
    }


def flags(fired: Fired, name: str, row: int, column: int = 0) -> list[str]:
    """Names of the detectors that fire on one sample of a model."""
    return [detector for detector, models in fired.items() if models[name][row, column]]


def failure_analysis(collection: Collection, fired: Fired) -> dict[str, Any]:
    """Per detector its definition and per model n, count, rate, interval, difference to base, ids.

    Intervals are Wilson's over prompts; differences are paired by prompt (Newcombe). p is the
    exact sign test on the prompts that differ, with several samples a prompt the sign-flip test
    of the rates, Holm-corrected over all detectors and policies. Earlier checkpoints of a run are
    not tested.
    """
    analysis: dict[str, Any] = {}
    for detector, by_model in fired.items():
        per_model = {}
        for name, model in collection.models.items():
            found, rates = by_model[name], by_model[name].mean(axis=1)
            ids = [model.flat[i]["id"] for i in np.flatnonzero(found)]
            per_model[name] = {
                "n": found.size,
                "count": len(ids),
                "rate": float(rates.mean()),
                "ci": wilson(float(rates.mean()), len(rates)),
                "examples": ids[:EXAMPLES],
            }
            if model is not collection.base:
                per_model[name] |= _compared(found, by_model[collection.base.name])
        definition = DETECTORS[detector].definition
        analysis[detector] = {"definition": definition, "per_model": per_model}
    correct([each["per_model"][m.name] for each in analysis.values() for m in collection.finals])
    return analysis


def _compared(fired: NDArray[np.bool_], base: NDArray[np.bool_]) -> dict[str, Any]:
    rates, reference = fired.mean(axis=1), base.mean(axis=1)
    difference, interval = rate_difference(rates, reference)
    gaps = rates - reference
    single = fired.shape[1] * base.shape[1] == 1
    p = sign_test(int((gaps > 0).sum()), int((gaps < 0).sum())) if single else sign_flip_test(gaps)
    return {"diff_vs_base": difference, "diff_ci": interval, "p": p, "p_holm": None}
