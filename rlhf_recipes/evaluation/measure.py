"""Sample responses of a model and measure how its distribution differs from the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.logprobs import exact_kl, token_logps
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import Completion, Prompt, pad, prompt_ids, sample

DIGITS = 6
"""Significant digits of a divergence at one token: what float32 holds."""


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
        reference does not differ from itself: 0 by definition, and nothing is computed for it.
        """
        # Logits of both models over the whole vocabulary are held at once. A prompt's responses
        # stand side by side, and share it.
        size = max(1, self.batch_size // 4)
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
        ids, real = right.to(device), right_mask.to(device)
        inputs = (
            torch.cat([left, right], 1).to(device),
            torch.cat([left_mask, right_mask], 1).to(device),
            right.shape[1],
        )
        logits = self.roles.completion_logits(role, *inputs).float() / self.temperature
        policy = token_logps(logits, ids)
        curve, ref_logps = torch.zeros_like(policy.logps), policy.logps
        if role != self.reference:
            ref_logits = self.roles.completion_logits(self.reference, *inputs).float()
            ref_logits = ref_logits / self.temperature
            curve, ref_logps = exact_kl(logits, ref_logits), token_logps(ref_logits, ids).logps

        def total(values: torch.Tensor) -> torch.Tensor:
            return torch.where(real, values, 0.0).sum(-1)

        length = real.sum(-1)
        columns = {
            "kl": total(curve),
            "kl_k1": total(policy.logps - ref_logps),
            "kl_per_token": total(curve) / length,
            "logp_policy": total(policy.logps),
            "logp_ref": total(ref_logps),
            "entropy": total(policy.entropy) / length,
        }
        rows = torch.stack(list(columns.values()), 1).tolist()
        return [
            dict(zip(columns, row, strict=True))
            | {"kl_curve": [float(f"{v:.{DIGITS}g}") for v in values[:n]]}
            for row, values, n in zip(rows, curve.tolist(), length.tolist(), strict=True)
        ]
