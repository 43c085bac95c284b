"""Sample responses of a model and measure how its distribution differs from the reference's."""

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
class Meter:
    """Samples roles of one base and measures their divergence from the role `reference`."""

    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    reference: str | None
    max_completion_length: int
    temperature: float
    batch_size: int

    def respond(
        self, role: str | None, prompts: Sequence[Prompt], count: int, seed: int
    ) -> list[dict[str, Any]]:
        """`count` responses to each prompt, a prompt's together: text, length, divergences."""
        with self.roles.merged(role) as sampler:
            sampled = sample(
                sampler,
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
        """How each response's distribution differs from the reference's, in nats.

        kl = Σ_t kl_curve_t,   kl_curve_t = Σ_v π(v|h_t) [log π(v|h_t) - log ref(v|h_t)]

        kl_k1 = log π(y) - log ref(y) is the sampled estimate of the same; entropy is the mean over
        tokens. Of the sampled token ids, as they were sampled; the prompt is left out. The
        reference does not differ from itself: 0 by definition, and what its sampler knew is all.
        Where the sampler kept its states, the reference alone is computed.
        """
        if role == self.reference:
            return [_undiverged(completion) for _, completion in samples]
        # A prompt's responses stand side by side, and share it.
        size = self.batch_size
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [facts for part in parts for facts in self._measure(role, part)]

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
        known = [c.hidden_states for _, c in samples if c.hidden_states is not None]
        sampler_kept = len(known) == len(samples)
        trunk = None if sampler_kept else self.roles.shared_hidden_states(*inputs)  # of two passes

        def states(each: str | None) -> Tensor:
            with self.roles.merged(each):
                return self.roles.completion_hidden_states(each, *inputs, right.shape[1], trunk)

        policy = torch.cat(known) if sampler_kept else states(role)
        columns = (right[right_mask].to(device), policy, states(self.reference))
        parts = zip(*(column.split(TOKENS_AT_ONCE) for column in columns), strict=True)
        facts = torch.cat([self._differences(role, *part) for part in parts], 1)
        by_response = facts.split([len(c.ids) for _, c in samples], dim=1)
        return [_summed(*response.tolist()) for response in by_response]

    def _differences(
        self, role: str | None, ids: Tensor, states: Tensor, ref_states: Tensor
    ) -> Tensor:
        """KL, both log-probabilities and the entropy at each token, shape (4, tokens)."""
        found = []
        for each, drawn_from in ((role, states), (self.reference, ref_states)):
            with self.roles.use(each):  # an adapter may reach the head
                found.append(logits_of(self.roles.base, drawn_from).float() / self.temperature)
        logits, ref_logits = found
        policy = token_logps(logits, ids)
        ref_logps = token_logps(ref_logits, ids).logps
        return torch.stack([exact_kl(logits, ref_logits), policy.logps, ref_logps, policy.entropy])


def _summed(
    curve: list[float], logps: list[float], ref_logps: list[float], entropy: list[float]
) -> dict[str, Any]:
    """A response's facts from those of its tokens."""
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
