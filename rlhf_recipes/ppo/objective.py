"""PPO's mathematics as pure functions of tensors. Nothing here knows a model.

All per-token tensors have shape (batch, completion). `completion_mask` is True where a token
counts; what stands elsewhere never changes a result. `total` sums a tensor over all processes: it
is the identity where there is one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def _alone(value: Tensor) -> Tensor:
    return value


def masked_mean(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Mean over the tokens that count; 0 where none does."""
    return torch.where(completion_mask, values, 0.0).sum() / completion_mask.sum().clamp(min=1)


def masked_moments(
    values: Tensor, completion_mask: Tensor, total: Total = _alone
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the tokens of all processes.

    One token has no variance: 0 is given for it.
    """
    count = total(completion_mask.sum().to(values.dtype))
    mean = total(torch.where(completion_mask, values, 0.0).sum()) / count.clamp(min=1)
    squares = torch.where(completion_mask, (values - mean) ** 2, 0.0).sum()
    return mean, total(squares) / (count - 1).clamp(min=1)


def whiten(
    values: Tensor, completion_mask: Tensor, total: Total = _alone, epsilon: float = 1e-8
) -> Tensor:
    """Values shifted to mean 0 and scaled to variance 1 over the tokens of all processes."""
    mean, variance = masked_moments(values, completion_mask, total)
    return torch.where(completion_mask, (values - mean) * torch.rsqrt(variance + epsilon), 0.0)


def scale_to_unit_variance(
    values: Tensor, completion_mask: Tensor, total: Total = _alone, epsilon: float = 1e-8
) -> Tensor:
    """Values divided by their deviation, so that the variance is 1; they are not centred.

    For rewards: shifting them would change what an episode's length is worth.
    """
    _, variance = masked_moments(values, completion_mask, total)
    return torch.where(completion_mask, values * torch.rsqrt(variance + epsilon), 0.0)


def token_rewards(scores: Tensor, kl: Tensor, completion_mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards: the KL penalty at each token, the score on the last real one.

    r_t = -kl_coef · kl_t + score · [t is the last token]

    Equation 2 of https://huggingface.co/papers/1909.08593 with the penalty spread over tokens. The
    last token is the end-of-sequence token where there is one, and the cut-off token otherwise.

    Args:
        scores: Shape (batch,).
        kl: Per-token KL estimate.
        completion_mask: True on a prefix of each row.
    """
    rewards = torch.where(completion_mask, -kl_coef * kl, 0.0)
    last = completion_mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last.clamp(min=0), scores.unsqueeze(-1).to(rewards.dtype))


class Advantages(NamedTuple):
    """Advantages and the value targets made from them, zero where no token counts."""

    advantages: Tensor
    returns: Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation; an episode ends at its last token.

    δ_t = r_t + γ V_{t+1} - V_t,   A_t = Σ_l (γλ)^l δ_{t+l},   V after the last token = 0

    Equations 11 and 12 of https://huggingface.co/papers/1506.02438. Returns are A_t + V_t, before
    any whitening. With λ = 1 and γ = 1, A_t is the sum of rewards to come minus V_t.
    """
    values = torch.where(completion_mask, values, 0.0)
    rewards = torch.where(completion_mask, rewards, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return Advantages(advantages, advantages + values)


class PolicyLoss(NamedTuple):
    """The loss to minimise and what it says about the step (detached)."""

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
    """PPO's clipped surrogate, averaged over tokens.

    loss = -(1/N) Σ min(ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t),   ρ_t = exp(logp_t - old_logp_t)

    Equation 7 of https://huggingface.co/papers/1707.06347. At ρ = 1 it is minus the mean advantage,
    and its gradient that of -mean(A logp). `approxkl` is mean((logp - old_logp)²)/2 and `clipfrac`
    the share of tokens at which the clipped term is the smaller one.

    Args:
        num_tokens: N, the tokens of the whole minibatch. A part of a minibatch gives its share of
            the loss, so that parts add up to what the whole would give. None: the tokens here.
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
    """The loss to minimise and the share of tokens at which it was clipped (detached)."""

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
    """Half the squared error of the value, clipped around the old prediction, averaged over tokens.

    loss = (1/2N) Σ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)

    The value clipping of the original PPO code; `num_tokens` as in `clipped_policy_loss`.
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
    """Mean entropy of the next-token distributions, in nats; `num_tokens` as above."""
    count = completion_mask.sum() if num_tokens is None else num_tokens
    return torch.where(completion_mask, entropy, 0.0).sum() / count


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The penalty's weight after a rollout of that many episodes whose mean KL was `kl`.

    e = clip(kl / target - 1, -0.2, 0.2),   kl_coef' = kl_coef (1 + e · min(episodes / horizon, 1))

    The log-space proportional controller of https://huggingface.co/papers/1909.08593, section 2.2,
    whose gain is per batch: here it is episodes / horizon, so that it does not depend on the batch.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * min(episodes / horizon, 1.0))
