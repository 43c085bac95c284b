"""A reward adapter as a scoring function, scored exactly as it was trained.

TRL's RewardTrainer reads a conversation through the chat template and a plain text with the
end-of-sequence token appended, and pools at the last token that is not padding. Scoring repeats
both, or a reward model gives other scores in use than in training.
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
    """The token ids the reward model sees, as TRL's RewardTrainer makes them."""
    if not isinstance(prompt, str):
        messages = [*prompt, {"role": "assistant", "content": completion}]
        return template_ids(tokenizer, messages, add_generation_prompt=False)
    text = prompt + completion
    if not completion.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    return list(tokenizer(text=text)["input_ids"])


def pooled_position(ids: Sequence[int], pad_token_id: int) -> int:
    """Where a sequence classifier of transformers reads its score: the last token not padding.

    With pad = eos that is the token before a final eos, in training as in scoring; a sequence of
    padding alone is read at its first token.
    """
    return max((i for i, token in enumerate(ids) if token != pad_token_id), default=0)


class RewardModel:
    """Scores of completions by a role with a scalar head: one float each, higher is better.

    Works as a reward function of TRL's GRPOTrainer as well: completions may be texts or the
    messages of one assistant turn.

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
        """The reward model of a run folder, on a base of its own.

        The base is held as it was in training, where the folder says how, unless `kwargs` for
        `from_pretrained` say otherwise.
        """
        adapter = read_adapter(source)
        adapter.check_head()
        precision = adapter.precision.kwargs() if adapter.precision else {}
        opened = {"revision": adapter.base.revision or "main", **precision, **kwargs}
        roles = Roles(open_base(adapter.base.name, **opened), prefix_sharing=prefix_sharing)
        roles.attach_saved("reward", adapter, trainable=False)
        roles.eval()
        return cls(roles, adapter.tokenizer)

    def to(self, device: torch.device | str) -> "RewardModel":
        """Move the weights; returns itself."""
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
        """Scores in the order given; padding and batch size do not change them.

        `progress` is the title of a progress bar. GRPO passes a dataset's other columns as well,
        which a reward model does not look at.
        """
        encoded = [
            scored_ids(self.tokenizer, prompt, completion_text(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        # Side by side, texts that begin alike share that beginning.
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
        ids, mask = pad(sequences, pad_token_id, left=False)
        device = self.roles.base.device
        pooled = torch.tensor([pooled_position(s, pad_token_id) for s in sequences])
        hidden = self.roles.last_hidden_states(self.role, ids.to(device), mask.to(device))
        last = hidden[torch.arange(len(sequences)), pooled.to(device)]
        scores: Tensor = self.roles.head(self.role)(last.float()).squeeze(-1)
        return scores.tolist()
