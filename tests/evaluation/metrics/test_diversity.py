import math
import random

import pytest

from rlhf_recipes.evaluation.metrics.diversity import (
    distinct,
    diversity,
    self_bleu,
)
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples

MAT = "the cat sat on the mat".split()


def test_distinct_known_answers():
    assert distinct(["a a a a".split()], 1) == 0.25
    assert distinct([["a", "b"], ["a", "b"]], 2) == 0.5
    # No bigram spans two responses.
    assert distinct([["a"], ["b"]], 2) is None


def test_equal_texts_have_self_bleu_100_and_disjoint_ones_0():
    assert self_bleu([MAT, MAT, MAT]) == pytest.approx([100] * 3)
    assert self_bleu([MAT, "a quick brown fox".split()]) == [0, 0]


def test_self_bleu_known_answer():
    # "the cat is on the mat" against MAT: 5/6, 3/5, 1/4, and no 4-gram of 3: 1/(2*3).
    # (5/6 * 3/5 * 1/4 * 1/6)^(1/4) = 0.3799; the lengths are equal.
    found = self_bleu(["the cat is on the mat".split(), MAT])
    assert found == pytest.approx([37.99, 37.99], abs=0.005)


def test_a_short_text_pays_the_brevity_penalty_to_the_nearest_length():
    # "the cat" has all its 1- and 2-grams in MAT; r = 6, c = 2: exp(1 - 6/2) = 13.53%.
    assert self_bleu([["the", "cat"], MAT])[0] == pytest.approx(13.53, abs=0.005)
    # With a third text of two words the nearest length is its own.
    assert self_bleu([["the", "cat"], MAT, ["a", "b"]])[0] == pytest.approx(100)


def brute_self_bleu(texts, i):
    """Self-BLEU by its definition: clipped counts against each other text in turn."""
    own = texts[i]
    others = [t for j, t in enumerate(texts) if j != i]
    logs, smooth = [], 1
    for n in (1, 2, 3, 4):
        grams = [tuple(own[k : k + n]) for k in range(len(own) - n + 1)]
        if not grams:
            break
        matched = 0
        for gram in set(grams):
            most = max(
                sum(tuple(o[k : k + n]) == gram for k in range(len(o) - n + 1)) for o in others
            )
            matched += min(grams.count(gram), most)
        if n == 1 and not matched:
            return 0.0
        if not matched:
            smooth *= 2
        logs.append(math.log(matched / len(grams) if matched else 1 / (smooth * len(grams))))
    nearest = min((abs(len(o) - len(own)), len(o)) for o in others)[1]
    return 100 * math.exp(min(0, 1 - nearest / len(own)) + sum(logs) / len(logs))


def test_self_bleu_equals_the_definition():
    draw = random.Random(0)
    texts = [draw.choices("abcdef", k=draw.randint(1, 14)) for _ in range(12)]
    expected = [brute_self_bleu(texts, i) for i in range(12)]
    assert self_bleu(texts) == pytest.approx(expected)


def model(name, texts):
    rows = [[{"response": text, "entropy": 1.0} for text in row] for row in texts]
    return ModelSamples(name, rows)


def test_collapse_shows_within_a_prompt_and_in_fewer_bigrams():
    subjects = ["tea", "rivers", "clocks", "bread", "trains", "gardens"]
    varied = [[f"{s} one {i}", f"two {i} of {s} here"] for i, s in enumerate(subjects)]
    collapsed = [[f"all that {s} can be to you"] * 2 for s in subjects]
    models = {"base": model("base", varied), "ppo": model("ppo", collapsed)}
    found = diversity(Collection({}, models, None, ("proxy",)))
    assert found["ppo"].self_bleu_within.value == pytest.approx(100)
    assert found["ppo"].self_bleu_within.difference_ci[0] > 0
    # Six differences of one sign: 2 / 2^6, the one policy of its family.
    assert found["ppo"].self_bleu_within.p_holm == pytest.approx(2 / 64)
    assert found["base"].self_bleu_within.p_holm is None
    assert found["ppo"].distinct["2"] < found["base"].distinct["2"]
    assert found["ppo"].entropy.difference == 0
    # Both are cut to the shorter: six first samples of three words.
    assert found["ppo"].budget_words == found["base"].budget_words == 18


def test_one_sample_a_prompt_has_no_variety_within_it():
    models = {"base": model("base", [["a b"], ["c d"]])}
    found = diversity(Collection({}, models, None, ("proxy",)))["base"]
    assert found.self_bleu_within is None


def test_empty_responses_have_no_diversity_to_measure():
    models = {"base": model("base", [[""], [""]])}
    found = diversity(Collection({}, models, None, ("proxy",)))["base"]
    assert found.distinct == {"1": None, "2": None, "3": None}
