"""Score completions with a reward model: an adapter on a base, or a whole classifier of its own.

An adapter scores exactly as in its training: TRL's RewardTrainer renders a conversation with the
chat template, appends the end-of-sequence token to plain text, and pools at the last token that is
not padding. A whole classifier scores exactly as AutoModelForSequenceClassification does on one
text that its own tokenizer encodes. Otherwise a reward model would give other scores than it was
trained to.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.classifiers import (
    Classifier,
    RewardSource,
    open_weights,
    read_reward_model,
)
from rlhf_recipes.models.dropout import evaluation_mode
from rlhf_recipes.models.loading import Precision, open_base
from rlhf_recipes.models.starting import save_active_adapter_alone
from rlhf_recipes.prompts import Prompt, completion_text, pad, template_ids
from rlhf_recipes.reward_functions import REWARD_MODEL
from rlhf_recipes.roles import Roles

Encoded = Mapping[str, list[int]]
"""A model's inputs for one text, without padding: `input_ids` and what else its tokenizer makes."""


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


class Scorer(ABC):
    """Scoring function of a reward model: one float per completion, higher is better.

    It is also a reward function for TRL's GRPOTrainer: completions may be texts or the messages of
    one assistant turn.

    Args:
        tokenizer: The reward model's.
        batch_size: Texts that are scored at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.__name__ = REWARD_MODEL

    @abstractmethod
    def encode(self, prompt: Prompt, completion: str) -> Encoded:
        """Return the model's inputs for a completion, without padding."""

    @abstractmethod
    def sort_key(self, encoded: Encoded) -> Any:
        """Return what texts are sorted by, so that those scored at once cost little."""

    @abstractmethod
    def ready(self) -> AbstractContextManager[Any]:
        """Make the model ready to score, and leave it as it was."""

    @abstractmethod
    def score(self, rows: Sequence[Encoded]) -> list[float]:
        """Score a batch of encoded texts."""

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
            self.encode(prompt, completion_text(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        ordered = sorted(range(len(encoded)), key=lambda i: self.sort_key(encoded[i]))
        scores = [0.0] * len(encoded)
        starts = range(0, len(ordered), self.batch_size)
        with self.ready():
            for start in tqdm(starts, desc=progress, disable=progress is None):
                rows = ordered[start : start + self.batch_size]
                for row, score in zip(rows, self.score([encoded[i] for i in rows]), strict=True):
                    scores[row] = score
        return scores


class RewardModel(Scorer):
    """Scoring function of a role with a scalar head.

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
        super().__init__(tokenizer, batch_size)
        self.roles = roles
        self.role = role

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

    def encode(self, prompt: Prompt, completion: str) -> Encoded:
        """Return the token ids that the adapter was trained on."""
        return {"input_ids": scored_ids(self.tokenizer, prompt, completion)}

    def sort_key(self, encoded: Encoded) -> list[int]:
        """Return the ids: sorted, texts with a common prefix are adjacent and share it."""
        return encoded["input_ids"]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Merge the adapter meanwhile, without dropout: the base may be a policy's in training."""
        with evaluation_mode(self.roles.base), self.roles.merged(self.role):
            yield

    def score(self, rows: Sequence[Encoded]) -> list[float]:
        """Score a batch with the scalar head at the pooled position of each text."""
        sequences = [row["input_ids"] for row in rows]
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


class WholeRewardModel(Scorer):
    """Scoring function of a whole classifier, with weights, tokenizer and dtype of its own.

    Args:
        classifier: The model as `read_reward_model` reads it.
        kwargs: For `from_pretrained`, in place of the classifier's own precision.

    Attributes:
        num_scored: Texts scored so far.
        num_cut: Those of them that were longer than the classifier takes, and were cut.
    """

    def __init__(self, classifier: Classifier, batch_size: int = 16, **kwargs: Any) -> None:
        super().__init__(classifier.tokenizer, batch_size)
        self.classifier = classifier
        self.model = open_weights(classifier, **kwargs)
        self.num_scored = self.num_cut = 0

    def encode(self, prompt: Prompt, completion: str) -> Encoded:
        """Return what the classifier's own tokenizer makes of a completion; see `Classifier`."""
        encoded, cut = self.classifier.encode(prompt, completion)
        self.num_scored += 1
        self.num_cut += cut
        if cut and self.num_cut.bit_count() == 1:  # the 1st, 2nd, 4th, 8th and so on
            logging.getLogger(__name__).warning(
                "%d of %d texts so far were longer than the %d tokens that the reward model `%s` "
                "takes, and were cut at the %s. Lower `max_completion_length`, or give a reward "
                "model with a longer context.",
                self.num_cut,
                self.num_scored,
                self.classifier.max_tokens,
                self.classifier.source,
                self.tokenizer.truncation_side,
            )
        return encoded

    def sort_key(self, encoded: Encoded) -> int:
        """Return the length: texts of similar lengths need little padding."""
        return len(encoded["input_ids"])

    def ready(self) -> AbstractContextManager[None]:
        """Do nothing: the model is in evaluation mode and has no other use."""
        return nullcontext()

    def score(self, rows: Sequence[Encoded]) -> list[float]:
        """Score a batch padded on the right; each score is that of the text alone.

        A decoder's classifier finds the last token of a text by the `pad_token_id` of its
        configuration, and refuses a batch if there is none. A token that ends none of the texts
        then pads, so that each is read at its end, as it is alone.
        """
        config: Any = self.model.config.get_text_config()
        configured, size = config.pad_token_id, config.vocab_size
        pad_token_id = configured
        if configured is None or not 0 <= configured < size:
            last = {row["input_ids"][-1] for row in rows}
            pad_token_id = next(token for token in range(size) if token not in last)
        padding = {"token_type_ids": self.tokenizer.pad_token_type_id}
        inputs = {
            name: pad([row[name] for row in rows], padding.get(name, pad_token_id), left=False)
            for name in rows[0]
        }
        batch = {name: ids.to(self.model.device) for name, (ids, _) in inputs.items()}
        mask = inputs["input_ids"][1].long().to(self.model.device)
        config.pad_token_id = pad_token_id
        try:
            logits: Tensor = self.model(**batch, attention_mask=mask).logits
        finally:
            config.pad_token_id = configured
        return logits[:, 0].float().tolist()


def open_reward_model(
    source: str | Path | RewardSource, *, prefix_sharing: bool = True, **kwargs: Any
) -> Scorer:
    """Open a reward model apart: an adapter on a base of its own, or a whole classifier.

    Args:
        source: A reward adapter or its folder, or a whole model's folder or Hub id
            (`owner/name` or `owner/name@revision`).
        prefix_sharing: Whether an adapter computes a prefix that completions share once.
        kwargs: For `from_pretrained`, in place of the reward model's own precision.

    >>> from rlhf_recipes import open_reward_model
    >>> scores = open_reward_model(reward_folder)(["Why?"], ["Because it rains."])
    >>> len(scores)
    1
    """
    read = read_reward_model(source)
    if isinstance(read, Classifier):
        return WholeRewardModel(read, **kwargs)
    return RewardModel.load(read, prefix_sharing=prefix_sharing, **kwargs)


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
    reward functions before it makes the policy, so `attach` is called once it has. A whole
    classifier is loaded apart then.

    Args:
        source: A reward adapter or its folder, or a whole model's folder or Hub id.
        prefix_sharing: Whether a prefix that completions share is computed once.
    """

    def __init__(self, source: str | Path | RewardSource, *, prefix_sharing: bool = True) -> None:
        self.source = read_reward_model(source)
        self.prefix_sharing = prefix_sharing
        self.reward_model: Scorer | None = None
        self.__name__ = REWARD_MODEL

    def attach(self, policy: nn.Module, own_base: Precision | None = None) -> None:
        """Attach the reward adapter to a policy's base, frozen, or to a base of its own.

        The policy's `save_pretrained` writes the policy's adapter alone from then on.

        Args:
            policy: A trainer's `model` once the trainer is made.
            own_base: Precision of a base to open where the policy's is another or is sharded; of a
                whole classifier, in place of its own.
        """
        if isinstance(self.source, Classifier):
            self.reward_model = WholeRewardModel(
                self.source, **own_base.kwargs() if own_base else {}
            )
            return
        if own_base is not None:
            attention = policy.config._attn_implementation  # type: ignore[union-attr]  # the base's
            kwargs = own_base.kwargs() | {"attn_implementation": attention}
            sharing = self.prefix_sharing
            self.reward_model = RewardModel.load(self.source, prefix_sharing=sharing, **kwargs)
            return
        assert isinstance(policy, PeftModel), "a trainer makes one of its `peft_config`"
        save_active_adapter_alone(policy)
        roles = Roles(policy, prefix_sharing=self.prefix_sharing)
        roles.attach_saved("reward", self.source, trainable=False)
        self.reward_model = RewardModel(roles, self.source.tokenizer)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | list[Mapping[str, str]]],
        **_: object,
    ) -> list[float]:
        """Score each completion, in order, as `RewardModel` does."""
        assert self.reward_model is not None, "`attach` comes before the first score"
        return self.reward_model(prompts, completions)
