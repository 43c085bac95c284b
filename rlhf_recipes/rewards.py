"""Score completions with a reward adapter exactly as in its training.

TRL's RewardTrainer renders a conversation with the chat template, appends the end-of-sequence token
to plain text, and pools at the last token that is not padding. Scoring does the same. Otherwise a
reward model would give other scores than it was trained to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.loading import open_base
from rlhf_recipes.prompts import Prompt, completion_text, pad, template_ids
from rlhf_recipes.reward_functions import REWARD_MODEL
from rlhf_recipes.roles import Roles


def scored_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> list[int]:
    """Return the token ids that a reward model scores, the same as in TRL's RewardTrainer."""
    if not isinstance(prompt, str):
        messages = [*prompt, {"role": "assistant", "content": completion}]
        return template_ids(tokenizer, messages, add_generation_prompt=False)
    text = prompt + completion
    if not completion.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    return list(tokenizer(text=text)["input_ids"])


def pooled_position(ids: Sequence[int], pad_token_id: int) -> int:
    """Return the position whose score a sequence classifier of transformers returns.

    It is the last token that is not padding. If the end-of-sequence token pads, that is the token
    before it, in training and in scoring. A sequence of padding alone is read at its first token.
    """
    return max((i for i, token in enumerate(ids) if token != pad_token_id), default=0)


class RewardModel:
    """Scoring function of a role with a scalar head: one float per completion, higher is better.

    It is also a reward function for TRL's GRPOTrainer: completions may be texts or the messages of
    one assistant turn.

    >>> from rlhf_recipes import RewardModel
    >>> reward_model = RewardModel.load(reward_folder)
    >>> scores = reward_model(["Why?", "Why?"], ["Because it rains.", "No."])
    >>> len(scores)
    2
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        role: str = "reward",
        batch_size: int = 16,
    ) -> None:
        self.roles = roles
        self.tokenizer = tokenizer
        self.role = role
        self.batch_size = batch_size
        self.__name__ = REWARD_MODEL

    @classmethod
    def load(
        cls, source: str | Path | Adapter, *, prefix_sharing: bool = True, **kwargs: Any
    ) -> "RewardModel":
        """Load the reward model of a run folder, on a base of its own.

        The base has the precision that it had in training, where the folder records it, unless
        `kwargs` for `from_pretrained` say otherwise.
        """
        adapter = read_adapter(source)
        adapter.check_head()
        precision = adapter.precision.kwargs() if adapter.precision else {}
        settings = {"revision": adapter.base.revision or "main", **precision, **kwargs}
        roles = Roles(open_base(adapter.base.name, **settings), prefix_sharing=prefix_sharing)
        roles.attach_saved("reward", adapter, trainable=False)
        roles.eval()
        return cls(roles, adapter.tokenizer)

    def to(self, device: torch.device | str) -> "RewardModel":
        """Move the weights to a device and return the reward model."""
        self.roles.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | list[Mapping[str, str]]],
        progress: str | None = None,
        **_: object,
    ) -> list[float]:
        """Score each completion, in order; padding and batch size do not change the scores.

        `progress` is the title of a progress bar. GRPO also passes a dataset's other columns, which
        are ignored.
        """
        encoded = [
            scored_ids(self.tokenizer, prompt, completion_text(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        # Sorted, texts with a common prefix are adjacent and share its computation.
        ordered = sorted(range(len(encoded)), key=encoded.__getitem__)
        scores = [0.0] * len(encoded)
        starts = range(0, len(ordered), self.batch_size)
        with self.roles.merged(self.role):
            for start in tqdm(starts, desc=progress, disable=progress is None):
                rows = ordered[start : start + self.batch_size]
                for row, score in zip(rows, self._score([encoded[i] for i in rows]), strict=True):
                    scores[row] = score
        return scores

    def _score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        pad_token_id = self.tokenizer.pad_token_id
        input_ids, attention_mask = pad(sequences, pad_token_id, left=False)
        device = self.roles.base.device
        pooled = torch.tensor([pooled_position(s, pad_token_id) for s in sequences])
        hidden_states = self.roles.last_hidden_states(
            self.role, input_ids.to(device), attention_mask.to(device)
        )
        last = hidden_states[torch.arange(len(sequences)), pooled.to(device)]
        scores: Tensor = self.roles.head(self.role)(last.float()).squeeze(-1)
        return scores.tolist()
