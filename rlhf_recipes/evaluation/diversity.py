"""How varied a model's responses are: to one prompt, and from prompt to prompt."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_recipes.evaluation.detectors import words
from rlhf_recipes.evaluation.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.statistics import holm, mean_interval, sign_flip_test

Gram = tuple[str, ...]

ORDER = 4


def diversity(collection: Collection) -> dict[str, dict[str, Any]]:
    """Per model: distinct-n, self-BLEU within and across prompts, compression ratio, entropy.

    distinct-n and compression depend on how much text there is, so every model is cut to the text
    of the shortest: `budget_words` words of first samples, `budget_bytes` bytes. Each prompt's
    self-BLEU and entropy has its interval over prompts, and its paired difference to base with the
    sign-flip test's p, Holm-corrected over the policies.
    """
    said = {m.name: [words(row[0]["response"]) for row in m.records] for m in _all(collection)}
    texts = {
        m.name: "\n".join(str(row[0]["response"]) for row in m.records).encode()
        for m in _all(collection)
    }
    budget = min(sum(map(len, tokens)) for tokens in said.values())
    size = min(map(len, texts.values()))
    # Against more texts a BLEU is higher, so every model has as many as the one with fewest.
    samples = min(len(model.records[0]) for model in _all(collection))
    within = {model.name: _within(model, samples) for model in _all(collection)}
    entropy = {model.name: _entropy(model) for model in _all(collection)}
    found: dict[str, dict[str, Any]] = {}
    for model in _all(collection):
        kept = _first(said[model.name], budget)
        found[model.name] = {
            "budget_words": budget,
            "budget_bytes": size,
            "distinct": {str(n): distinct(kept, n) for n in (1, 2, 3)},
            "self_bleu_across": _mean(self_bleu(said[model.name])),
            "compression_ratio": compression_ratio(texts[model.name][:size]),
            "self_bleu_within": _over_prompts(within, model.name, collection.base.name),
            "entropy": _over_prompts(entropy, model.name, collection.base.name),
        }
    for measure in ("self_bleu_within", "entropy"):
        tested = [found[model.name][measure] for model in collection.finals]
        tested = [entry for entry in tested if entry and entry["p"] is not None]
        for entry, p_holm in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = p_holm
    return found


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
    counts = [[Counter(_grams(tokens, n)) for tokens in texts] for n in range(1, ORDER + 1)]
    most = [_two_largest(by_text) for by_text in counts]
    return [
        _bleu(
            [_matches(by_text[i], i, top) for by_text, top in zip(counts, most, strict=True)],
            len(tokens),
            [len(other) for j, other in enumerate(texts) if j != i],
        )
        for i, tokens in enumerate(texts)
    ]


def _two_largest(by_text: Sequence[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """Per n-gram its largest count in a text, which text that is, and the largest in another."""
    top: dict[Gram, tuple[int, int, int]] = {}
    for i, grams in enumerate(by_text):
        for gram, count in grams.items():
            best, owner, second = top.get(gram, (0, -1, 0))
            top[gram] = (count, i, best) if count > best else (best, owner, max(second, count))
    return top


def _matches(
    grams: Counter[Gram], text: int, top: dict[Gram, tuple[int, int, int]]
) -> tuple[int, int]:
    """How many of a text's n-grams some other text has, and how many it has in all."""
    found = 0
    for gram, count in grams.items():
        best, owner, second = top[gram]
        found += min(count, second if owner == text else best)
    return found, grams.total()


def _bleu(matches: Sequence[tuple[int, int]], length: int, others: Sequence[int]) -> float:
    if not matches[0][0]:
        return 0.0
    logs, smooth = [], 1
    for found, total in matches:
        if total == 0:
            break
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


def _all(collection: Collection) -> list[ModelSamples]:
    return list(collection.models.values())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _within(model: ModelSamples, samples: int) -> list[float] | None:
    if samples < 2:
        return None
    rows = ([words(r["response"]) for r in row[:samples]] for row in model.records)
    return [float(np.mean(self_bleu(row))) for row in rows]


def _entropy(model: ModelSamples) -> list[float] | None:
    if not all("entropy" in record for record in model.flat):
        return None
    return [float(np.mean([record["entropy"] for record in row])) for row in model.records]


def _over_prompts(
    measured: dict[str, list[float] | None], name: str, base: str
) -> dict[str, Any] | None:
    own, reference = measured[name], measured[base]
    if own is None:
        return None
    gap = None if name == base or reference is None else np.subtract(own, reference)
    return {
        "value": float(np.mean(own)),
        "ci": list(mean_interval(np.array(own))),
        "difference": None if gap is None else float(gap.mean()),
        "difference_ci": None if gap is None else list(mean_interval(gap)),
        "p": None if gap is None else sign_flip_test(gap),
        "p_holm": None,
    }
