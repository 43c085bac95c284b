"""The mathematics of PPO as pure functions of tensors; no model, no configuration, no state.

Every per-token tensor has shape (batch, completion). `completion_mask` is True at the tokens that
count, and values elsewhere never change a result. `all_reduce` sums a tensor over all processes;
the default is the identity, which is right for a single process.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def _identity(value: Tensor) -> Tensor:
    return value


def masked_mean(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Compute the mean over the masked tokens of this process; 0 if there are none."""
    return torch.where(completion_mask, values, 0.0).sum() / completion_mask.sum().clamp(min=1)


def masked_moments(
    values: Tensor, completion_mask: Tensor, all_reduce: AllReduce = _identity
) -> tuple[Tensor, Tensor]:
    """Compute mean and unbiased variance over the masked tokens of all processes.

    The variance of a single token is 0.
    """
    count = all_reduce(completion_mask.sum().to(values.dtype))
    mean = all_reduce(torch.where(completion_mask, values, 0.0).sum()) / count.clamp(min=1)
    squares = torch.where(completion_mask, (values - mean) ** 2, 0.0).sum()
    return mean, all_reduce(squares) / (count - 1).clamp(min=1)


def whiten(
    values: Tensor, completion_mask: Tensor, all_reduce: AllReduce = _identity, eps: float = 1e-8
) -> Tensor:
    """Shift values to mean 0 and scale them to variance 1 over the tokens of all processes.

    x'_t = (x_t - mean) / √(variance + eps), and 0 outside the mask.
    """
    mean, variance = masked_moments(values, completion_mask, all_reduce)
    return torch.where(completion_mask, (values - mean) * torch.rsqrt(variance + eps), 0.0)


def scale_to_unit_variance(
    values: Tensor, completion_mask: Tensor, all_reduce: AllReduce = _identity, eps: float = 1e-8
) -> Tensor:
    """Divide values by their std over the tokens of all processes, without centering them.

    x'_t = x_t / √(variance + eps), and 0 outside the mask. This is for rewards: subtracting their
    mean would add a constant to every token, and so reward or punish length.
    """
    _, variance = masked_moments(values, completion_mask, all_reduce)
    return torch.where(completion_mask, values * torch.rsqrt(variance + eps), 0.0)


def token_rewards(scores: Tensor, kl: Tensor, completion_mask: Tensor, kl_coef: float) -> Tensor:
    """Combine the KL penalty of every token with the score of the completion.

    r_t = -kl_coef · kl_t + score · 1[t is the last token]

    Equation 2 of https://huggingface.co/papers/1909.08593, with the penalty paid at each token
    instead of once. The last token is the end-of-sequence token, or the token at which the
    completion was cut off.

    Args:
        scores: One score per completion, shape (batch,).
        kl: Per-token estimate of KL(policy ‖ reference) in nats.
        completion_mask: True on a prefix of each row.
    """
    rewards = torch.where(completion_mask, -kl_coef * kl, 0.0)
    last = completion_mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last.clamp(min=0), scores.unsqueeze(-1).to(rewards.dtype))


class Advantages(NamedTuple):
    """Advantages and the value targets computed from them; both 0 outside the mask."""

    advantages: Tensor
    returns: Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, lam: float
) -> Advantages:
    """Estimate advantages by GAE; the episode terminates at its last token.

    δ_t = r_t + γ V_{t+1} - V_t,   A_t = Σ_l (γλ)^l δ_{t+l},   V = 0 after the last token

    Equation 16 of https://huggingface.co/papers/1506.02438, and equations 11 and 12 of the PPO
    paper, https://huggingface.co/papers/1707.06347. The value targets are R_t = A_t + V_t, before
    any whitening of A. With γ = λ = 1, A_t is the sum of the rewards from t on minus V_t.

    Args:
        rewards: r_t, the reward for choosing token t.
        values: V_t, predicted before token t is chosen.
    """
    values = torch.where(completion_mask, values, 0.0)
    rewards = torch.where(completion_mask, rewards, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    advantage = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    return Advantages(advantages, advantages + values)


class PolicyLoss(NamedTuple):
    """The policy loss to minimize, and statistics of the update (scalars without gradient).

    Attributes:
        ratio: Mean of ρ_t over the tokens.
        ratio_var: Unbiased variance of ρ_t.
        clipfrac: Fraction of tokens at which the clipped term is the smaller one.
        approxkl: Mean of (logp_t - old_logp_t)² / 2, the k2 estimate of KL(old ‖ new) in nats per
            token (http://joschu.net/blog/kl-approx.html).
    """

    loss: Tensor
    ratio: Tensor
    ratio_var: Tensor
    clipfrac: Tensor
    approxkl: Tensor


def clipped_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    cliprange: float,
    num_tokens: float | Tensor | None = None,
) -> PolicyLoss:
    """Compute PPO's clipped surrogate objective, negated and averaged over tokens.

    loss = -1/N Σ_t min(ρ_t A_t, clip(ρ_t, 1 - ε, 1 + ε) A_t),   ρ_t = exp(logp_t - old_logp_t)

    Equation 7 of https://huggingface.co/papers/1707.06347. At ρ = 1 the loss is minus the mean
    advantage, and its gradient is that of -1/N Σ_t A_t logp_t.

    Args:
        logps: Log-probabilities of the tokens under the policy being trained, in nats.
        old_logps: The same under the policy that sampled them.
        advantages: A_t, constant in the gradient.
        cliprange: ε.
        num_tokens: N, the number of tokens in the whole minibatch. The losses of its
            micro-batches then sum to the loss of the minibatch. By default the tokens given here.
    """
    log_ratio = torch.where(completion_mask, logps - old_logps, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.where(completion_mask, torch.maximum(unclipped, clipped), 0.0)
    count = completion_mask.sum() if num_tokens is None else num_tokens
    mean_ratio, ratio_var = masked_moments(ratio.detach(), completion_mask)
    return PolicyLoss(
        loss=losses.sum() / count,
        ratio=mean_ratio,
        ratio_var=ratio_var,
        clipfrac=masked_mean((clipped > unclipped).float(), completion_mask),
        approxkl=masked_mean(0.5 * log_ratio.detach() ** 2, completion_mask),
    )


class ValueLoss(NamedTuple):
    """The value loss to minimize, and the fraction of tokens at which it was clipped."""

    loss: Tensor
    clipfrac: Tensor


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    completion_mask: Tensor,
    cliprange_value: float,
    num_tokens: float | Tensor | None = None,
) -> ValueLoss:
    """Compute half the squared error of the values, clipped around the old predictions.

    loss = 1/(2N) Σ_t max((V_t - R_t)², (clip(V_t, V_t^old - ε, V_t^old + ε) - R_t)²)

    The value clipping of OpenAI Baselines' PPO2, described in section 3 of
    https://huggingface.co/papers/2005.12729; the PPO paper has none.

    Args:
        values: V_t of the value model being trained.
        old_values: V_t^old, predicted when the completions were sampled.
        returns: R_t, the value targets.
        cliprange_value: ε, in units of the (normalized) score.
        num_tokens: N, as in `clipped_policy_loss`.
    """
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    unclipped = (values - returns) ** 2
    clipped = (near - returns) ** 2
    losses = torch.where(completion_mask, 0.5 * torch.maximum(unclipped, clipped), 0.0)
    count = completion_mask.sum() if num_tokens is None else num_tokens
    return ValueLoss(
        loss=losses.sum() / count,
        clipfrac=masked_mean((clipped > unclipped).float(), completion_mask),
    )


def entropy_bonus(
    entropy: Tensor, completion_mask: Tensor, num_tokens: float | Tensor | None = None
) -> Tensor:
    """Compute the mean entropy 1/N Σ_t H_t of the next-token distributions, in nats per token.

    The term S of equation 9 of https://huggingface.co/papers/1707.06347, to be maximized.

    Args:
        entropy: H_t of the distribution that token t was drawn from.
        num_tokens: N, as in `clipped_policy_loss`.
    """
    count = completion_mask.sum() if num_tokens is None else num_tokens
    return torch.where(completion_mask, entropy, 0.0).sum() / count


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """Compute the KL coefficient to use after a rollout.

    e = clip(kl / target - 1, -0.2, 0.2)
    kl_coef' = kl_coef · (1 + e · min(episodes / horizon, 1))

    The log-space proportional controller of section 2.2 of
    https://huggingface.co/papers/1909.08593. Its gain there is 0.1 per batch; here it is
    episodes / horizon, so that the batch size does not change how fast the coefficient moves.

    Args:
        kl: Mean KL(policy ‖ reference) of the rollout, in nats per episode.
        target: The KL to reach, in the same unit.
        episodes: Number of episodes in the rollout, over all processes.
        horizon: Number of episodes over which the coefficient may change by a fifth.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * min(episodes / horizon, 1.0))
