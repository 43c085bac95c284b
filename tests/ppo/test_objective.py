import math

import pytest
import torch

from rlhf_recipes.ppo.objective import (
    clipped_policy_loss,
    clipped_value_loss,
    entropy_bonus,
    generalized_advantages,
    masked_mean,
    masked_moments,
    scale_to_unit_variance,
    token_rewards,
    whiten,
)

TWO_ROWS = torch.tensor([[True, True, True], [True, False, False]])


def random_episodes(seed: int, batch: int = 5, length: int = 7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    rewards, values = torch.randn(2, batch, length, generator=generator)
    return rewards, values, mask


def test_a_mean_is_over_the_tokens_that_count():
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    assert masked_mean(values, TWO_ROWS) == 3.0  # (1 + 2 + 3 + 6) / 4


def test_a_mean_of_no_tokens_is_zero():
    assert masked_mean(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)) == 0.0


def test_moments_are_those_of_the_counted_tokens_alone():
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    mean, variance = masked_moments(values, TWO_ROWS)
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, over 4 - 1.
    assert mean == 3.0
    assert variance == pytest.approx(14 / 3)


def test_one_token_has_no_variance_and_whitens_to_zero():
    mask = torch.tensor([[True, False]])
    assert masked_moments(torch.tensor([[5.0, 1.0]]), mask)[1] == 0.0
    assert whiten(torch.tensor([[5.0, 1.0]]), mask).tolist() == [[0.0, 0.0]]


def test_whitened_values_have_mean_0_and_variance_1_and_nothing_elsewhere():
    values, _, mask = random_episodes(0)
    white = whiten(3 + 2 * values, mask)
    mean, variance = masked_moments(white, mask)
    assert mean == pytest.approx(0, abs=1e-6)
    assert variance == pytest.approx(1, rel=1e-4)
    assert not white[~mask].any()


def test_whitening_over_two_processes_is_whitening_of_all_their_tokens():
    values, _, mask = random_episodes(1)
    together = whiten(values, mask)
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    # What each process would sum, in the order in which `whiten` asks for it.
    mean = values[mask].sum() / mask.sum()
    sums = [mask.sum().float(), values[mask].sum(), ((values[mask] - mean) ** 2).sum()]
    parts = []
    for half, half_mask in halves:
        asked = iter(sums)
        parts.append(whiten(half, half_mask, all_reduce=lambda _, asked=asked: next(asked)))
    torch.testing.assert_close(torch.cat(parts), together)


def test_scaling_to_unit_variance_keeps_signs_and_does_not_centre():
    scaled = scale_to_unit_variance(torch.tensor([[1.0, 2.0, 3.0], [6.0, 9.0, 9.0]]), TWO_ROWS)
    std = math.sqrt(14 / 3)
    expected = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]]) / std
    torch.testing.assert_close(scaled, expected)


def test_the_score_stands_on_the_last_real_token_and_the_penalty_on_every_one():
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 7.0, 7.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, TWO_ROWS, kl_coef=0.5)
    expected = torch.tensor([[-0.05, -0.1, 10 - 0.15], [20 - 0.2, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_advantages_by_hand():
    # gamma 0.9, lambda 0.5; rewards 1, 2; values 0.5, 0.25.
    # delta_1 = 2 - 0.25 = 1.75; delta_0 = 1 + 0.9 * 0.25 - 0.5 = 0.725
    # A_1 = 1.75; A_0 = 0.725 + 0.45 * 1.75 = 1.5125; returns A + V.
    found = generalized_advantages(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.5, 0.25]]),
        torch.ones(1, 2, dtype=torch.bool),
        gamma=0.9,
        lam=0.5,
    )
    torch.testing.assert_close(found.advantages, torch.tensor([[1.5125, 1.75]]))
    torch.testing.assert_close(found.returns, torch.tensor([[2.0125, 2.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_equal_the_definition(gamma: float, lam: float):
    rewards, values, mask = random_episodes(2)
    found = generalized_advantages(rewards, values, mask, gamma, lam)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            deltas = [r[k] + gamma * v[k + 1] - v[k] for k in range(t, length)]
            advantage = sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas))
            assert found.advantages[row, t] == pytest.approx(advantage, abs=1e-5)
            assert found.returns[row, t] == pytest.approx(advantage + v[t], abs=1e-5)


def test_without_discount_the_advantage_is_what_is_still_to_come_less_the_value():
    rewards, values, mask = random_episodes(3)
    found = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(found.advantages[mask], (to_come - values)[mask])


def test_what_stands_after_the_last_token_changes_nothing():
    rewards, values, mask = random_episodes(4)
    other_rewards = torch.where(mask, rewards, 1e6)
    other_values = torch.where(mask, values, -1e6)
    assert_equal = torch.testing.assert_close
    assert_equal(
        generalized_advantages(rewards, values, mask, 0.99, 0.95),
        generalized_advantages(other_rewards, other_values, mask, 0.99, 0.95),
    )
    logps, old_logps = rewards / 10, values / 10
    other = torch.where(mask, logps, float("nan"))
    assert_equal(
        clipped_policy_loss(logps, old_logps, values, mask, 0.2),
        clipped_policy_loss(other, old_logps, values, mask, 0.2),
    )
    assert_equal(
        clipped_value_loss(values, values + 0.1, rewards, mask, 0.2),
        clipped_value_loss(torch.where(mask, values, 9.0), values + 0.1, rewards, mask, 0.2),
    )
    assert_equal(entropy_bonus(rewards, mask), entropy_bonus(other_rewards, mask))


def test_at_ratio_1_the_loss_is_minus_the_mean_advantage_and_nothing_is_clipped():
    logps, advantages, mask = random_episodes(5)
    found = clipped_policy_loss(logps, logps, advantages, mask, 0.2)
    assert found.loss == pytest.approx(-float(advantages[mask].mean()), abs=1e-6)
    assert (found.ratio, found.clipfrac, found.approxkl) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [
        (1.5, 1.0, 1.2, True),  # min(1.5, 1.2): no more to gain from a good action
        (1.5, -1.0, -1.5, False),  # min(-1.5, -1.2): a bad action is pushed back in full
        (0.5, 1.0, 0.5, False),
        (0.5, -1.0, -0.8, True),
        (1.1, 1.0, 1.1, False),
    ],
)
def test_the_clipped_surrogate_in_its_four_corners(ratio, advantage, objective, clipped):
    logps = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = clipped_policy_loss(
        logps,
        torch.zeros(1, 1),
        torch.tensor([[advantage]]),
        torch.ones(1, 1, dtype=torch.bool),
        0.2,
    )
    found.loss.backward()
    assert found.loss.item() == pytest.approx(-objective, abs=1e-6)
    assert found.clipfrac == float(clipped)
    assert found.approxkl == pytest.approx(math.log(ratio) ** 2 / 2, abs=1e-6)
    assert (logps.grad == 0).all() == clipped


@pytest.mark.parametrize(
    ("value", "loss"),
    [
        (0.1, 0.5 * 0.9**2),  # within the range: the plain error
        (0.5, 0.5 * 0.8**2),  # 0.5 is clipped to 0.2, whose error 0.8 is the larger
        (-0.5, 0.5 * 1.5**2),  # clipped to -0.2, whose error 1.2 is the smaller
    ],
)
def test_the_value_loss_takes_the_worse_of_clipped_and_plain(value, loss):
    found = clipped_value_loss(
        torch.tensor([[value]]),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        0.2,
    )
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.clipfrac == float(value == 0.5)


def test_the_parts_of_a_minibatch_add_up_to_the_whole():
    logps, advantages, mask = random_episodes(6)
    old_logps = logps + 0.1 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))
    whole = clipped_policy_loss(logps, old_logps, advantages, mask, 0.2).loss
    value_whole = clipped_value_loss(logps, old_logps, advantages, mask, 0.2).loss
    entropy_whole = entropy_bonus(logps, mask)
    tokens = int(mask.sum())
    policy = value = entropy = torch.tensor(0.0)
    for rows in (slice(0, 1), slice(1, 5)):
        part = logps[rows], old_logps[rows], advantages[rows], mask[rows]
        policy = policy + clipped_policy_loss(*part, 0.2, tokens).loss
        value = value + clipped_value_loss(*part, 0.2, tokens).loss
        entropy = entropy + entropy_bonus(logps[rows], mask[rows], tokens)
    torch.testing.assert_close(policy, whole)
    torch.testing.assert_close(value, value_whole)
    torch.testing.assert_close(entropy, entropy_whole)
