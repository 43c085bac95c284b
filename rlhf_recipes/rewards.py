"""Score completions with a reward adapter exactly as in its training.

TRL's RewardTrainer renders a conversation with the chat template, appends the end-of-sequence token
to plain text, and pools at the last token that is not padding. Scoring does the same. Otherwise a
reward model would give other scores than it was trained to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.dropout import evaluation_mode
from rlhf_recipes.models.loading import Precision, open_base
from rlhf_recipes.models.starting import save_active_adapter_alone
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
        # The base may be in training mode: that of a policy that is trained beside this role.
        with evaluation_mode(self.roles.base), self.roles.merged(self.role):
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


def trained_reward_model(
    folder: str | Path, classifier: nn.Module, *, prefix_sharing: bool = True
) -> RewardModel:
    """Return the scoring function of a reward adapter on the classifier that it was trained on.

    It gives the scores of `RewardModel.load(folder)` without a second base in memory: a sequence
    classifier has the decoder of the language model.

    Args:
        folder: Where the trained adapter was saved; tokenizer and head are read from there.
    """
    adapter = read_adapter(folder)
    adapter.check_head()
    assert isinstance(classifier, PeftModel), "a trainer makes one of its `peft_config`"
    roles, role = Roles(classifier, prefix_sharing=prefix_sharing), classifier.active_adapter
    roles.attach_head(role, adapter.head["weight"], adapter.head.get("bias"), trainable=False)
    return RewardModel(roles, adapter.tokenizer, role)


class RewardRole:
    """Reward function of a trainer that scores with a reward adapter on the policy's own base.

    It gives the scores of `RewardModel.load` without a second base in memory. A trainer takes its
    reward functions before it makes the policy, so `attach` is called once it has.

    Args:
        source: A reward adapter, or its folder.
        prefix_sharing: Whether a prefix that completions share is computed once.
    """

    def __init__(self, source: str | Path | Adapter, *, prefix_sharing: bool = True) -> None:
        self.adapter = read_adapter(source)
        self.adapter.check_head()
        self.prefix_sharing = prefix_sharing
        self.reward_model: RewardModel | None = None
        self.__name__ = REWARD_MODEL

    def attach(self, policy: nn.Module, own_base: Precision | None = None) -> None:
        """Attach the reward adapter to a policy's base, frozen, or to a base of its own.

        The policy's `save_pretrained` writes the policy's adapter alone from then on.

        Args:
            policy: A trainer's `model` once the trainer is made.
            own_base: Precision of a base to open where the policy's is another or is sharded.
        """
        if own_base is not None:
            attention = policy.config._attn_implementation  # type: ignore[union-attr]  # the base's
            kwargs = own_base.kwargs() | {"attn_implementation": attention}
            sharing = self.prefix_sharing
            self.reward_model = RewardModel.load(self.adapter, prefix_sharing=sharing, **kwargs)
            return
        assert isinstance(policy, PeftModel), "a trainer makes one of its `peft_config`"
        save_active_adapter_alone(policy)
        roles = Roles(policy, prefix_sharing=self.prefix_sharing)
        roles.attach_saved("reward", self.adapter, trainable=False)
        self.reward_model = RewardModel(roles, self.adapter.tokenizer)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | list[Mapping[str, str]]],
        **_: object,
    ) -> list[float]:
        """Score each completion, in order, as `RewardModel` does."""
        assert self.reward_model is not None, "`attach` comes before the first score"
        return self.reward_model(prompts, completions)
