import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.verdicts import cohens_kappa, judge_quality, judged_win_rate
from rlhf_recipes.evaluation.metrics.win_rate import Counts, Readable


def verdict(prompt, first, second, sample=0, model="dpo"):
    """As a judge leaves it: what it said of the model's answer shown first and shown second."""
    read = first is not None and second is not None
    outcome = None if not read else first if first == second else 0.5
    return {
        "prompt_id": prompt,
        "sample_index": sample,
        "model": model,
        "against": "base",
        "outcome": outcome,
        "readable": read,
        "first": first,
        "second": second,
    }


def collection_of(golds, metrics=("proxy", "gold")):
    """Base has gold 0 on every prompt, dpo what is given."""

    def model(name, values):
        rows = [
            [{"prompt_id": i, "sample_index": 0, "gold": value}] for i, value in enumerate(values)
        ]
        return ModelSamples(name, rows)

    models = {"base": model("base", [0.0] * len(golds)), "dpo": model("dpo", golds)}
    return Collection({}, models, None, metrics)


def test_a_judge_that_always_says_first_wins_half_and_is_found_out():
    verdicts = [verdict(i, 1.0, 0.0) for i in range(20)]
    collection = collection_of([1.0] * 20)
    rate = judged_win_rate(verdicts, collection.models["dpo"])
    assert rate.value == 0.5 and rate.ties == 20 and rate.p == 1
    quality = judge_quality(verdicts, collection)
    assert (quality.first, quality.consistent, quality.readable) == (1, 0, 1)


def test_a_judge_that_sees_what_gold_sees_agrees_with_it():
    golds = [1.0] * 6 + [-1.0] * 3 + [0.0]
    verdicts = [verdict(i, (g + 1) / 2, (g + 1) / 2) for i, g in enumerate(golds)]
    found = judge_quality(verdicts, collection_of(golds))
    assert found.kappa == pytest.approx(1) and found.consistent == 1
    assert found.first == 0.5
    assert judge_quality(verdicts, collection_of(golds, ("proxy",))).kappa is None


def test_a_difference_in_the_last_bits_is_a_tie_for_gold_too():
    golds = [1.0, -1.0, 1e-7]
    verdicts = [verdict(0, 1, 1), verdict(1, 0, 0), verdict(2, 1, 0)]
    assert judge_quality(verdicts, collection_of(golds), 1e-5).kappa == pytest.approx(1)
    assert judge_quality(verdicts, collection_of(golds), 0.0).kappa < 1


def test_what_cannot_be_read_is_missing_and_no_tie():
    verdicts = [verdict(0, 1.0, 1.0), verdict(1, None, 1.0), verdict(2, 1.0, 1.0), verdict(3, 0, 0)]
    collection = collection_of([1.0] * 4)
    assert judge_quality(verdicts, collection).readable == 0.75
    rate = judged_win_rate(verdicts, collection.models["dpo"])
    assert (rate.wins, rate.ties, rate.losses, rate.n) == (2, 0, 1, 3)
    assert rate.value == pytest.approx(2 / 3)
    assert rate.readable == Readable(n=3, of=4, fraction=0.75)


def test_the_rate_is_over_the_readable_verdicts_of_all_prompts():
    verdicts = [
        verdict(0, 1, 1),
        verdict(0, 1, 1, sample=1),
        verdict(1, 0, 0),
        verdict(1, None, 0, 1),
    ]
    rate = judged_win_rate(verdicts, collection_of([1.0, 1.0]).models["dpo"])
    assert rate.value == pytest.approx(2 / 3)
    assert rate.pairs == Counts(n=3, wins=2, ties=0, losses=1)
    assert 0 <= rate.ci[0] <= rate.ci[1] <= 1


def test_a_judge_that_cannot_be_read_has_no_win_rate_and_no_passing_control():
    verdicts = [verdict(i, None, None) for i in range(20)]
    collection = collection_of([1.0] * 20)
    assert judged_win_rate(verdicts, collection.models["dpo"]) is None
    quality = judge_quality(verdicts, collection)
    assert quality.readable == 0 and quality.kappa is None and quality.first is None


def test_verdicts_are_means_by_prompt():
    verdicts = [verdict(0, 1, 1), verdict(0, 1, 0, sample=1), verdict(1, 0, 0), verdict(1, 0, 0, 1)]
    rate = judged_win_rate(verdicts, collection_of([1.0, 1.0]).models["dpo"])
    assert rate.value == pytest.approx(0.375) and rate.test == "sign flip"


def test_a_judge_that_has_not_finished_has_no_win_rate():
    assert judged_win_rate([verdict(0, 1, 1)], collection_of([1.0, 1.0]).models["dpo"]) is None


def test_kappa_equals_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    first, second = np.random.default_rng(0).choice([0.0, 0.5, 1.0], (2, 60))
    second[:30] = first[:30]
    expected = cohen_kappa_score((2 * first).astype(int), (2 * second).astype(int))
    assert cohens_kappa(first, second) == pytest.approx(expected)
    assert cohens_kappa(np.ones(4), np.ones(4)) is None
