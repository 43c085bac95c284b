"""Diversity of a model's completions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_recipes.evaluation.metrics.detectors import ngrams, words
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Interval,
    holm_corrected,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.typed_json import Count, Share

ORDER = 4


@dataclass(frozen=True)
class Variety:
    """Mean over prompts of a measure of variety, and its difference to base.

    Attributes:
        value: The mean, with its interval `ci`.
        difference: Paired by prompt, with `difference_ci`, the sign-flip test's `p` and the
            corrected `p_holm`; all None for base itself.
    """

    value: float
    ci: Interval
    difference: float | None
    difference_ci: Interval | None
    p: Share | None
    p_holm: Share | None


@dataclass(frozen=True)
class Diversity:
    """Diversity of a model's completions.

    Attributes:
        budget_words: Words that distinct-n is over, of first samples, the same for every model.
        distinct: distinct-n by n; None without any n-gram.
        self_bleu_within: Self-BLEU within a prompt; None with one sample.
        entropy: Per token in nats; None where it was not saved.
    """

    budget_words: Count
    distinct: Mapping[str, Share | None]
    self_bleu_within: Variety | None
    entropy: Variety | None


def diversity(collection: Collection) -> dict[str, Diversity]:
    """Measure distinct-n, self-BLEU within a prompt, and entropy of every model.

    distinct-n depends on the amount of text, so every model is cut to the text of the shortest:
    `budget_words` words of first samples. Self-BLEU within a prompt and entropy have intervals over
    prompts and a paired difference to base with the sign-flip test's p, Holm-corrected over the
    policies.
    """
    models = list(collection.models.values())
    texts = {m.name: [words(row[0]["response"]) for row in m.records] for m in models}
    budget = min(sum(map(len, tokens)) for tokens in texts.values())
    # Against more texts a BLEU is higher, so every model has as many as the one with fewest.
    samples = min(len(model.records[0]) for model in models)
    values = {model.name: _by_prompt(model, samples) for model in models}
    base, finals = collection.base.name, [model.name for model in collection.finals]
    tests = {}
    for measure, reference in values[base].items():
        compared = {
            name: _compare(by_prompt[measure], None if name == base else reference)
            for name, by_prompt in values.items()
        }
        tests[measure] = holm_corrected(compared, finals)
    return {
        name: Diversity(
            budget_words=budget,
            distinct={str(n): distinct(_first(tokens, budget), n) for n in (1, 2, 3)},
            self_bleu_within=tests["self_bleu_within"][name],
            entropy=tests["entropy"][name],
        )
        for name, tokens in texts.items()
    }


def _by_prompt(model: ModelSamples, samples: int) -> dict[str, Array | None]:
    """Measure self-BLEU and entropy per prompt; None with one sample, or without saved entropy."""
    within = None
    if samples > 1:
        texts = [[words(r["response"]) for r in row[:samples]] for row in model.records]
        within = np.array([np.mean(self_bleu(row)) for row in texts])
    has_entropy = all("entropy" in record for record in model.flat)
    return {
        "self_bleu_within": within,
        "entropy": model.values("entropy").mean(axis=1) if has_entropy else None,
    }


def _compare(values: Array | None, reference: Array | None) -> Variety | None:
    if values is None:
        return None
    mean, ci = float(values.mean()), mean_interval(values)
    if reference is None:
        return Variety(mean, ci, None, None, None, None)
    gap = values - reference
    return Variety(mean, ci, float(gap.mean()), mean_interval(gap), sign_flip_test(gap), None)


def distinct(completions: Sequence[Sequence[str]], n: int) -> float | None:
    """Divide the number of different n-grams by that of all n-grams. "a a a a" has distinct-1 0.25.

    No n-gram spans two completions. https://arxiv.org/abs/1510.03055. None without any n-gram.
    """
    grams = [gram for tokens in completions for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float]:
    """Compute BLEU-4 of each of two or more texts against all the others, 0 to 100.

    BLEU = BP exp(mean_n log p_n) over n up to min(4, words), p_n the fraction of n-grams found in
    some other text, clipped to how often the one with the most has it; a p_n of 0 becomes
    1/(2^k N_n) at the k-th such n, and BLEU is 0 where no word is shared.
    BP = exp(min(0, 1 - r/c)), r the length of the other text nearest in length. As in
    sacrebleu's sentence_bleu. Equal texts have 100. https://arxiv.org/abs/1802.01886
    """
    counts = [[Counter(ngrams(tokens, n)) for n in range(1, ORDER + 1)] for tokens in texts]
    scores = []
    for i, own in enumerate(counts):
        others = counts[:i] + counts[i + 1 :]
        logs, zeros = [], 0
        for n, grams in enumerate(own[: len(texts[i])]):
            found = sum(min(c, max(o[n][gram] for o in others)) for gram, c in grams.items())
            zeros += not found
            logs.append(math.log((found or 0.5**zeros) / grams.total()))
        lengths = [len(tokens) for tokens in (*texts[:i], *texts[i + 1 :])]
        nearest = min((abs(length - len(texts[i])), length) for length in lengths)[1]
        shared = any(own[0].keys() & other[0].keys() for other in others)
        brevity = min(0.0, 1 - nearest / max(1, len(texts[i])))
        scores.append(100 * math.exp(brevity + sum(logs) / len(logs)) if shared else 0.0)
    return scores


def _first(completions: Sequence[Sequence[str]], budget: int) -> list[Sequence[str]]:
    cut = []
    for tokens in completions:
        cut.append(tokens[:budget])
        budget -= len(cut[-1])
    return cut
