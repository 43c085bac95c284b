import math

import pytest
import torch

from rlhf_recipes.logprobs import exact_kl, kl_estimate, token_logps


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log().expand(1, 1, -1)


def test_log_probabilities_are_those_of_the_tempered_softmax():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 4, 2], [1, 1, 3]])
    output = token_logps(logits, ids, temperature=0.7)
    plain = torch.distributions.Categorical(logits=logits / 0.7)
    torch.testing.assert_close(output.logps, plain.log_prob(ids))
    torch.testing.assert_close(output.entropy, plain.entropy())


def test_a_uniform_distribution_has_the_entropy_of_its_size():
    output = token_logps(torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.long))
    assert output.entropy.item() == pytest.approx(math.log(8))
    assert output.logps.item() == pytest.approx(-math.log(8))


def test_the_exact_kl_depends_on_its_direction():
    # .5 log(.5/.25) + .5 log(.5/.75), and .25 log(.25/.5) + .75 log(.75/.5).
    fair, skewed = logits_of(0.5, 0.5), logits_of(0.25, 0.75)
    assert exact_kl(fair, skewed).item() == pytest.approx(0.143841, abs=1e-6)
    assert exact_kl(skewed, fair).item() == pytest.approx(0.130812, abs=1e-6)


def test_the_exact_kl_of_equal_logits_is_exactly_zero():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    assert not exact_kl(logits, logits.clone()).any()


def test_the_exact_kl_is_unchanged_by_a_shift_of_all_logits():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exact_kl(logits + 5, logits * 0.5), exact_kl(logits, logits * 0.5))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_the_estimates_is_the_exact_kl(estimator: str):
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimates = kl_estimate(policy.log(), reference.log(), estimator)
    exact = exact_kl(policy.log(), reference.log())
    torch.testing.assert_close((policy * estimates).sum(), exact)


def test_k1_can_be_negative_and_k3_cannot():
    logps, ref_logps = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert kl_estimate(logps, ref_logps, "k1").tolist() == [1.0, -1.0]
    # With d = 1: e^-1 - 1 + 1. With d = -1: e - 1 - 1.
    expected = torch.tensor([math.exp(-1), math.exp(1) - 2])
    torch.testing.assert_close(kl_estimate(logps, ref_logps, "k3"), expected)


def test_equal_log_probabilities_are_estimated_at_zero():
    logps = torch.tensor([-1.0, -20.0])
    for estimator in ("k1", "k3"):
        assert not kl_estimate(logps, logps, estimator).any()
