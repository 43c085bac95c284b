import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.kl import kl_by_position, kl_summary
from rlhf_recipes.evaluation.metrics.samples import ModelSamples


def model(kl, k1=None, tokens=None):
    kl = np.asarray(kl, dtype=float)
    k1 = kl if k1 is None else np.asarray(k1, dtype=float)
    tokens = np.full(kl.shape, 10) if tokens is None else np.asarray(tokens)
    rows = [
        [{"kl": kl[i, j], "kl_k1": k1[i, j], "n_tokens": tokens[i, j]} for j in range(kl.shape[1])]
        for i in range(kl.shape[0])
    ]
    return ModelSamples("ppo", rows)


def test_kl_per_token_is_a_ratio_of_sums():
    # (1 + 3) / (10 + 2) = 1/3; the mean of ratios would be (0.1 + 1.5) / 2 = 0.8.
    found = kl_summary(model([[1.0], [3.0]], tokens=[[10], [2]]))
    assert found.token == pytest.approx(1 / 3)
    assert found.seq == pytest.approx(2)


def test_a_model_that_did_not_move_has_exactly_no_kl():
    found = kl_summary(model(np.zeros((8, 2))))
    assert found.seq == 0 and found.ci == (0, 0) and found.token == 0
    assert found.k1_agrees


def test_the_interval_is_over_prompts_not_samples():
    # Two samples of a prompt that agree tell no more than one.
    values = np.random.default_rng(0).gamma(3, 1, (30, 1))
    once, twice = kl_summary(model(values)), kl_summary(model(np.repeat(values, 2, axis=1)))
    assert once.ci == pytest.approx(twice.ci)


def test_k1_of_the_sampled_distribution_agrees():
    rng = np.random.default_rng(1)
    kl = rng.gamma(6, 0.5, (200, 1))
    assert kl_summary(model(kl, kl + rng.normal(0, 2, kl.shape))).k1_agrees


def test_k1_of_another_distribution_is_noticed():
    """Samples of a truncated policy have a log-ratio that its logits do not explain."""
    rng = np.random.default_rng(2)
    kl = rng.gamma(6, 0.5, (200, 1))
    assert not kl_summary(model(kl, kl + 1 + rng.normal(0, 2, kl.shape))).k1_agrees


def test_the_two_estimates_are_compared_by_prompt():
    """What prompts differ in, both have: it hid a log-ratio that is off by half a nat."""
    rng = np.random.default_rng(4)
    kl = rng.uniform(0, 40, (60, 1))
    off = kl + 0.5 + rng.normal(0, 0.5, kl.shape)
    found = kl_summary(model(kl, off))
    assert found.k1_joint_se == pytest.approx((off - kl).std(ddof=1) / 60**0.5)
    assert not found.k1_agrees


def test_fixed_steps_give_the_known_divergence():
    # .5/.5 against .25/.75: .5 ln 2 + .5 ln(2/3) = .143841 per token, 1.438410 in ten.
    found = kl_summary(model(np.full((4, 1), 1.438410)))
    assert found.token == pytest.approx(0.143841)
    assert found.sqrt == pytest.approx(1.438410**0.5)


def curved(*curves):
    rows = [
        [{"kl": sum(c), "kl_k1": sum(c), "n_tokens": len(c), "kl_curve": list(c), "finish": "eos"}]
        for c in curves
    ]
    return ModelSamples("ppo", rows)


def test_kl_by_position_is_over_the_responses_that_reach_it():
    found = kl_by_position(curved([1.0, 2.0, 4.0], [3.0, 2.0], [2.0]))
    assert found.kl == pytest.approx([2, 2, 4])
    assert found.n == [3, 2, 1]
    # sd 1 over three: t_{0.975, 2} / √3 = 4.3027 / 1.7321; equal values: a point; one value: none.
    assert found.ci[0] == pytest.approx([2 - 2.48414, 2 + 2.48414], rel=1e-5)
    assert found.ci[1] == (2, 2) and found.ci[2] is None


def test_the_interval_of_a_position_is_over_prompts_not_responses():
    # Two responses of a prompt that agree tell no more than one.
    once = curved([1.0, 2.0, 4.0], [3.0, 2.0], [2.0])
    twice = ModelSamples("ppo", [row * 2 for row in once.records])
    found = kl_by_position(twice)
    assert found.n == [6, 4, 2]
    assert found.ci[0] == pytest.approx(kl_by_position(once).ci[0])
    assert found.ci[2] is None


def test_the_positions_add_up_to_all_of_the_kl():
    rng = np.random.default_rng(3)
    model = curved(*[rng.gamma(1, 1, size) for size in rng.integers(1, 9, 20)])
    found = kl_by_position(model)
    total = sum(kl * n for kl, n in zip(found.kl, found.n, strict=True))
    assert total == pytest.approx(model.values("kl").sum())


def test_without_saved_curves_there_are_no_positions():
    assert kl_summary(model([[1.0], [2.0]])).by_position is None
