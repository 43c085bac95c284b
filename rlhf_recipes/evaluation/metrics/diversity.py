"""Diversity of a model's completions, within a prompt and across prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.metrics.detectors import words
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Interval,
    holm_corrected,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.typed_json import Count, Share

Gram = tuple[str, ...]
Numbers = NDArray[np.int64]

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
        self_bleu_across: Mean self-BLEU of first samples; None with one prompt.
        self_bleu_within: Self-BLEU within a prompt; None with one sample.
        entropy: Per token in nats; None where it was not saved.
    """

    budget_words: Count
    distinct: Mapping[str, Share | None]
    self_bleu_across: Annotated[float, ("minimum", 0), ("maximum", 100.0001)] | None
    self_bleu_within: Variety | None
    entropy: Variety | None


def diversity(collection: Collection) -> dict[str, Diversity]:
    """Measure distinct-n, self-BLEU within and across prompts, and entropy of every model.

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
    results = {}
    for name, tokens in texts.items():
        first_words, across = _first(tokens, budget), self_bleu(tokens)
        results[name] = Diversity(
            budget_words=budget,
            distinct={str(n): distinct(first_words, n) for n in (1, 2, 3)},
            self_bleu_across=float(np.mean(across)) if across else None,
            self_bleu_within=tests["self_bleu_within"][name],
            entropy=tests["entropy"][name],
        )
    return results


def _by_prompt(model: ModelSamples, samples: int) -> dict[str, Array | None]:
    """Measure self-BLEU and entropy per prompt; None with one sample, or without saved entropy."""
    within = None
    if samples > 1:
        texts = [words(r["response"]) for row in model.records for r in row[:samples]]
        groups = np.repeat(np.arange(len(model.records)), samples)
        within = np.array(self_bleu(texts, groups)).reshape(-1, samples).mean(axis=1)
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
    grams = [gram for tokens in completions for gram in _grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]], groups: Numbers | None = None) -> list[float]:
    """Compute BLEU-4 of each text against all the others, 0 to 100; empty below two texts.

    BLEU = BP exp(mean_n log p_n) over n up to min(4, words), p_n the fraction of n-grams found in
    some other text, clipped to how often the one with the most has it; a p_n of 0 becomes
    1/(2^k N_n) at the k-th such n, and BLEU is 0 where no word is shared.
    BP = exp(min(0, 1 - r/c)), r the length of the other text nearest in length. As in
    sacrebleu's sentence_bleu. Equal texts have 100. https://arxiv.org/abs/1802.01886

    Args:
        texts: Words of each text.
        groups: Number of each text's group, of at least two texts; a text is compared with the
            others of its group. None: all texts are one group.
    """
    if len(texts) < 2:
        return []
    group = np.zeros(len(texts), dtype=np.int64) if groups is None else groups.astype(np.int64)
    length = np.array([len(tokens) for tokens in texts])
    owner = np.repeat(np.arange(len(texts)), length)
    number = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
    tokens = np.array([number[word] for word in chain.from_iterable(texts)], dtype=np.int64)
    grams, logs, smooth = tokens, np.zeros(len(texts)), np.ones(len(texts))
    alike = np.zeros(len(texts), dtype=bool)
    for n in range(1, ORDER + 1):
        total = length - n + 1
        if n > 1:  # an n-gram is the (n-1)-gram that starts where it does, and the next word
            grams = np.unique(grams[:-1] * len(number) + tokens[n - 1 :], return_inverse=True)[1]
        whole = owner[: len(grams)] == owner[n - 1 :]  # none spans two texts
        matched = _matches(grams[whole], owner[: len(grams)][whole], group)
        alike |= matched > 0
        missing = (total > 0) & (matched == 0)
        smooth[missing] *= 2
        precision = np.where(missing, 1 / smooth, matched) / np.maximum(total, 1)
        logs += np.log(precision, where=total > 0, out=np.zeros(len(texts)))
    orders, size = np.clip(length, 1, ORDER), np.maximum(length, 1)
    brevity = np.minimum(0.0, 1 - _nearest(length, group) / size)
    return [float(bleu) for bleu in np.where(alike, 100 * np.exp(brevity + logs / orders), 0.0)]


def _matches(grams: Numbers, owner: Numbers, group: Numbers) -> Array:
    """Count each text's n-grams that another text of its group has, clipped to the largest count.

    The others' counts matter up to the text's own, so clipping at the second largest count in the
    group is enough: a text below the largest has some other with at least as many.

    Args:
        grams: Number of each n-gram of all texts.
        owner: Index of the text that each n-gram is in.
    """
    keys, counts = np.unique(grams * len(group) + owner, return_counts=True)
    gram, text = np.divmod(keys, len(group))
    order = np.lexsort((-counts, group[text], gram))
    gram, text, counts = gram[order], text[order], counts[order]
    first = np.append(True, (np.diff(gram) != 0) | (np.diff(group[text]) != 0))
    start = np.flatnonzero(first[: len(gram)])
    sizes = np.diff(np.append(start, len(gram)))
    second = np.where(sizes > 1, counts[np.minimum(start + 1, len(gram) - 1)], 0)
    clipped = np.minimum(counts, np.repeat(second, sizes))
    return np.bincount(text, weights=clipped, minlength=len(group)).astype(np.float64)


def _nearest(length: Numbers, group: Numbers) -> Array:
    """Find the length nearest to each text's among the others of its group, the shorter of two."""
    order = np.lexsort((length, group))
    ordered = length[order].astype(np.float64)
    apart = np.diff(group[order]) != 0
    shorter = np.append(-np.inf, np.where(apart, -np.inf, ordered[:-1]))
    longer = np.append(np.where(apart, np.inf, ordered[1:]), np.inf)
    nearest = np.empty(len(length))
    nearest[order] = np.where(ordered - shorter <= longer - ordered, shorter, longer)
    return nearest


def _grams(tokens: Sequence[str], n: int) -> list[Gram]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _first(completions: Sequence[Sequence[str]], budget: int) -> list[Sequence[str]]:
    cut = []
    for tokens in completions:
        cut.append(tokens[:budget])
        budget -= len(cut[-1])
    return cut
