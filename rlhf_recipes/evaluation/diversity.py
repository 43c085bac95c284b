"""How varied a model's responses are: to one prompt, and from prompt to prompt."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_recipes.evaluation.detectors import words
from rlhf_recipes.evaluation.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.statistics import (
    Array,
    correct,
    estimate,
    mean_interval,
    sign_flip_test,
)

Gram = tuple[str, ...]

ORDER = 4


def diversity(collection: Collection) -> dict[str, dict[str, Any]]:
    """Per model: distinct-n, self-BLEU within and across prompts, compression ratio, entropy.

    distinct-n and compression depend on how much text there is, so every model is cut to the text
    of the shortest: `budget_words` words of first samples, `budget_bytes` bytes. Each prompt's
    self-BLEU and entropy has its interval over prompts, and its paired difference to base with the
    sign-flip test's p, Holm-corrected over the policies.
    """
    models = list(collection.models.values())
    said = {m.name: [words(row[0]["response"]) for row in m.records] for m in models}
    texts = {m.name: "\n".join(row[0]["response"] for row in m.records).encode() for m in models}
    budget = min(sum(map(len, tokens)) for tokens in said.values())
    size = min(map(len, texts.values()))
    # Against more texts a BLEU is higher, so every model has as many as the one with fewest.
    samples = min(len(model.records[0]) for model in models)
    measured = {model.name: _by_prompt(model, samples) for model in models}
    base = measured[collection.base.name]
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        kept = _first(said[model.name], budget)
        across = self_bleu(said[model.name])
        found[model.name] = {
            "budget_words": budget,
            "budget_bytes": size,
            "distinct": {str(n): distinct(kept, n) for n in (1, 2, 3)},
            "self_bleu_across": float(np.mean(across)) if across else None,
            "compression_ratio": compression_ratio(texts[model.name][:size]),
        }
        for measure, own in measured[model.name].items():
            reference = None if model is collection.base else base[measure]
            found[model.name][measure] = _against(own, reference)
    for measure in base:
        correct([test for m in collection.finals if (test := found[m.name][measure])])
    return found


def _by_prompt(model: ModelSamples, samples: int) -> dict[str, Array | None]:
    """What has a value for each prompt: None where there is one sample, or no entropy saved."""
    texts = [[words(r["response"]) for r in row[:samples]] for row in model.records]
    within = [np.mean(self_bleu(row)) for row in texts] if samples > 1 else None
    measured = all("entropy" in record for record in model.flat)
    return {
        "self_bleu_within": None if within is None else np.array(within),
        "entropy": model.values("entropy").mean(axis=1) if measured else None,
    }


def _against(own: Array | None, reference: Array | None) -> dict[str, Any] | None:
    if own is None:
        return None
    gap = None if reference is None else own - reference
    return {
        **estimate(own),
        "difference": None if gap is None else float(gap.mean()),
        "difference_ci": None if gap is None else mean_interval(gap),
        "p": None if gap is None else sign_flip_test(gap),
        "p_holm": None,
    }


def distinct(responses: Sequence[Sequence[str]], n: int) -> float | None:
    """distinct-n: different n-grams over all n-grams, none across two responses. "a a a a": 0.25.

    https://arxiv.org/abs/1510.03055. None without any n-gram.
    """
    grams = [gram for tokens in responses for gram in _grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def compression_ratio(text: bytes) -> float | None:
    """Bytes over bytes after zlib; more is more repetitive. "the cat sat. " fifty times: 23.2.

    Shaib et al. (https://arxiv.org/abs/2403.00553).
    """
    return len(text) / len(zlib.compress(text)) if text else None


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-4 of each text against all the others, 0 to 100; empty for fewer than two texts.

    BLEU = BP exp(mean_n log p_n) over n up to min(4, words), p_n the share of n-grams found in some
    other text, clipped to how often the one with the most has it; a p_n of 0 becomes 1/(2^k N_n) at
    the k-th such n, and BLEU is 0 where no word is shared. BP = exp(min(0, 1 - r/c)), r the length
    of the other text nearest in length. As sacrebleu's sentence_bleu. Equal texts: 100.
    https://arxiv.org/abs/1802.01886
    """
    if len(texts) < 2:
        return []
    counts = [[Counter(_grams(tokens, n)) for n in range(1, ORDER + 1)] for tokens in texts]
    # What the other texts have of an n-gram matters up to what a text has itself, and that is the
    # second largest count of all texts: of a text with less, some other has as much.
    most: dict[Gram, int] = {}
    clip: dict[Gram, int] = {}
    for by_n in counts:
        for gram, count in (pair for grams in by_n for pair in grams.items()):
            best = most.get(gram, 0)
            if count > best:
                most[gram], clip[gram] = count, best
            elif count > clip[gram]:
                clip[gram] = count
    lengths = [len(tokens) for tokens in texts]
    return [
        _bleu(
            [(sum(min(n, clip[g]) for g, n in grams.items()), grams.total()) for grams in by_n],
            lengths[i],
            lengths[:i] + lengths[i + 1 :],
        )
        for i, by_n in enumerate(counts)
    ]


def _bleu(matches: Sequence[tuple[int, int]], length: int, others: Sequence[int]) -> float:
    if not matches[0][0]:
        return 0.0
    logs, smooth = [], 1
    for found, total in matches[: min(ORDER, length)]:
        if found == 0:
            smooth *= 2
        logs.append(math.log(found / total if found else 1 / (smooth * total)))
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 100 * math.exp(min(0.0, 1 - nearest / length) + sum(logs) / len(logs))


def _grams(tokens: Sequence[str], n: int) -> list[Gram]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _first(responses: Sequence[Sequence[str]], budget: int) -> list[Sequence[str]]:
    kept = []
    for tokens in responses:
        kept.append(tokens[:budget])
        budget -= len(kept[-1])
    return kept
