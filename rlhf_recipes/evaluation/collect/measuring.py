"""Sample completions of a policy and measure its KL from the reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.generation.sampling import Completion, sample
from rlhf_recipes.logprobs import exact_kl, token_logps
from rlhf_recipes.models.logits import logits_of
from rlhf_recipes.prompts import Prompt, pad, prompt_ids
from rlhf_recipes.roles import Roles

DIGITS = 6
"""Significant digits of a divergence at one token: what float32 holds."""

TOKENS_AT_ONCE = 256
"""Tokens whose logits over the whole vocabulary are held at once, of both models."""


@dataclass(frozen=True)
class KLSampler:
    """Sampler of the roles of one base that measures their KL from the role `reference`."""

    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    reference: str | None
    max_completion_length: int
    temperature: float
    batch_size: int

    def sample(
        self, role: str | None, prompts: Sequence[Prompt], count: int, seed: int
    ) -> list[dict[str, Any]]:
        """Sample `count` completions per prompt, each with its text, length and divergences."""
        with self.roles.merged(role) as model:
            sampled = sample(
                model,
                self.tokenizer,
                prompts,
                max_completion_length=self.max_completion_length,
                num_completions=count,
                temperature=self.temperature,
                batch_size=self.batch_size,
                seed=seed,
                # In lower precision a cached step and a whole pass differ by more than rounding.
                keep_hidden_states=role != self.reference
                and self.roles.base.dtype == torch.float32,
            )
        flat = [
            (prompt, completion)
            for prompt, row in zip(prompts, sampled, strict=True)
            for completion in row
        ]
        return [
            {
                "response": completion.text,
                "n_tokens": len(completion.ids),
                "finish": "eos" if completion.finished else "length",
                **measured,
            }
            for (_, completion), measured in zip(flat, self.divergences(role, flat), strict=True)
        ]

    @torch.no_grad()
    def divergences(
        self, role: str | None, samples: Sequence[tuple[Prompt, Completion]]
    ) -> list[dict[str, Any]]:
        """Measure the divergence of each completion's distribution from the reference's, in nats.

        kl = Σ_t kl_curve_t,   kl_curve_t = Σ_v π(v|h_t) [log π(v|h_t) - log ref(v|h_t)]

        kl_k1 = log π(y) - log ref(y) is the sampled estimate of the same; entropy is the mean over
        tokens. All are over the token ids as they were sampled, without the prompt. The reference's
        own divergences are 0 by definition, and its log-probabilities are those of its sampler.
        Where the sampler kept its hidden states, only the reference is computed.
        """
        if role == self.reference:
            return [_undiverged(completion) for _, completion in samples]
        # Completions of one prompt are adjacent, so that a batch computes it once.
        size = self.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [facts for batch in batches for facts in self._measure(role, batch)]

    def _measure(
        self, role: str | None, samples: Sequence[tuple[Prompt, Completion]]
    ) -> list[dict[str, Any]]:
        pad_token_id = self.tokenizer.pad_token_id
        encoded = [prompt_ids(self.tokenizer, prompt) for prompt, _ in samples]
        left, left_mask = pad(encoded, pad_token_id, left=True)
        right, right_mask = pad([c.ids for _, c in samples], pad_token_id, left=False)
        device = self.roles.base.device
        inputs = (
            torch.cat([left, right], 1).to(device),
            torch.cat([left_mask, right_mask], 1).to(device),
        )
        saved = [c.hidden_states for _, c in samples if c.hidden_states is not None]
        has_states = len(saved) == len(samples)
        # Both passes below share the layers under the lowest adapter.
        shared = None if has_states else self.roles.shared_hidden_states(*inputs)

        def hidden_states_of(name: str | None) -> Tensor:
            with self.roles.merged(name):
                return self.roles.completion_hidden_states(name, *inputs, right.shape[1], shared)

        hidden_states = torch.cat(saved) if has_states else hidden_states_of(role)
        columns = (right[right_mask].to(device), hidden_states, hidden_states_of(self.reference))
        chunks = zip(*(column.split(TOKENS_AT_ONCE) for column in columns), strict=True)
        facts = torch.cat([self._measure_tokens(role, *chunk) for chunk in chunks], 1)
        by_completion = facts.split([len(c.ids) for _, c in samples], dim=1)
        return [_summed(*completion.tolist()) for completion in by_completion]

    def _measure_tokens(
        self, role: str | None, ids: Tensor, hidden_states: Tensor, ref_hidden_states: Tensor
    ) -> Tensor:
        """Compute KL, both log-probabilities and entropy of each token, shape (4, tokens)."""
        logits = self._logits(role, hidden_states)
        ref_logits = self._logits(self.reference, ref_hidden_states)
        policy = token_logps(logits, ids)
        ref_logps = token_logps(ref_logits, ids).logps
        return torch.stack([exact_kl(logits, ref_logits), policy.logps, ref_logps, policy.entropy])

    def _logits(self, role: str | None, hidden_states: Tensor) -> Tensor:
        with self.roles.use(role):  # an adapter may reach the head
            return logits_of(self.roles.base, hidden_states).float() / self.temperature


def _summed(
    curve: list[float], logps: list[float], ref_logps: list[float], entropy: list[float]
) -> dict[str, Any]:
    """Sum the measurements of a completion's tokens."""
    kl, logp_policy, logp_ref = (math.fsum(column) for column in (curve, logps, ref_logps))
    return {
        "kl": kl,
        "kl_k1": logp_policy - logp_ref,
        "kl_per_token": kl / len(curve),
        "logp_policy": logp_policy,
        "logp_ref": logp_ref,
        "entropy": math.fsum(entropy) / len(curve),
        "kl_curve": [float(f"{v:.{DIGITS}g}") for v in curve],
    }


def _undiverged(completion: Completion) -> dict[str, Any]:
    logps = list(completion.logps)
    return _summed([0.0] * len(completion.ids), logps, logps, list(completion.entropy))
