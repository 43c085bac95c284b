"""Log-probabilities of sampled tokens, entropy, and estimators of the KL divergence (pure)."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogps(NamedTuple):
    """Log-probability and entropy of each token, shape (batch, completion), in nats."""

    logps: Tensor
    entropy: Tensor


def token_logps(
    logits: Tensor, ids: Tensor, temperature: float = 1.0, *, entropy_grad: bool = False
) -> TokenLogps:
    """Compute log p(id) and the entropy of the distribution that each id was drawn from.

    p = softmax(logits / temperature),   H = -Σ_v p_v log p_v = logΣexp(z) - Σ_v p_v z_v

    Computed in float32 whatever the logits are. A uniform distribution over V has H = log V.

    Args:
        logits: Shape (batch, completion, vocabulary); position t holds the logits of id t.
        ids: Shape (batch, completion).
        temperature: The sampler's, so that the distribution is the one that was sampled from.
        entropy_grad: Whether the entropy has a gradient, which keeps the probabilities of the whole
            vocabulary in memory.
    """
    assert logits.shape[:-1] == ids.shape
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    normalizer = torch.logsumexp(scaled, dim=-1)
    logps = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normalizer
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = normalizer - (torch.softmax(scaled, dim=-1) * scaled).sum(-1)
    return TokenLogps(logps, entropy)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Compute KL(policy || reference) of the next token at each position, over the vocabulary.

    KL_t = Σ_v π(v) [log π(v) - log ref(v)]   (nats; shape: that of the logits without the last)

    Averaged over sampled prefixes and summed over t this is the Rao-Blackwellized estimator of
    the sequence KL: unbiased, never negative, of lower variance than k1
    (https://huggingface.co/papers/2504.10637). Equal logits give exactly 0. The direction
    matters: π = (1/2, 1/2) against ref = (1/4, 3/4) gives 0.143841, the other way 0.130812.
    """
    assert logits.shape == ref_logits.shape
    logps = torch.log_softmax(logits.float(), dim=-1)
    ref_logps = torch.log_softmax(ref_logits.float(), dim=-1)
    # Rounding can give a sum of -1e-9 where the two agree; a divergence is never negative.
    return (logps.exp() * (logps - ref_logps)).sum(-1).clamp(min=0.0)


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token from the sampled token alone (nats).

    With d = log π(y) - log ref(y) and y ~ π, http://joschu.net/blog/kl-approx.html:
        k1 = d                   unbiased, either sign
        k3 = exp(-d) - 1 + d     unbiased, never negative
    """
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    assert estimator == "k3", estimator
    return torch.expm1(-difference) + difference
