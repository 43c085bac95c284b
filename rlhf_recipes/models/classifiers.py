"""Read a whole sequence-classification model that scores completions, without its weights.

Reward models are published like that: a base of any architecture with a trained scalar head, and
with a tokenizer and often a chat template of their own. Everything that can be refused is refused
when one is read; `rewards.py` opens its weights.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import CONFIG, Adapter, read_adapter
from rlhf_recipes.models.fingerprints import model_fingerprint
from rlhf_recipes.models.loading import Base, Precision, on_device
from rlhf_recipes.models.vocabulary import check_vocabulary
from rlhf_recipes.prompts import Prompt, prompt_text, template_ids
from rlhf_recipes.sharding import unsharded

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""A model of the Hub, `owner/name` or `owner/name@revision`."""

UNLIMITED = 10**9
"""Tokenizers without a maximum length have a number above this as `model_max_length`."""

OTHER_POOLING = ("xlnet",)
"""Model types whose classifier reads the last position, padding or not: right padding fails."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A sequence-classification model with one score, read without its weights.

    Attributes:
        source: What the recipe names: a folder, `owner/name` or `owner/name@revision`.
        checkpoint: Its folder or Hub id, and on the Hub the commit.
        config: Its configuration.
    """

    source: str
    checkpoint: Base
    config: PretrainedConfig

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own tokenizer, as AutoTokenizer opens it; raises RecipeError if it has none."""
        name, revision = self.checkpoint.name, self.checkpoint.revision
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=revision or "main", trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            raise RecipeError(
                f"The tokenizer of the reward model `{self.source}` cannot be opened: "
                f"{str(error).strip().splitlines()[0]} Copy the files of its tokenizer there, or "
                "give a model that has them."
            ) from error
        # For some architectures transformers makes an empty tokenizer where there is no file.
        names = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
        folder = self._folder
        if folder is not None and not any((folder / file).is_file() for file in names):
            raise RecipeError(
                f"The reward model `{self.source}` has no tokenizer: there is none of "
                f"{', '.join(sorted(names))}. Copy the files of the tokenizer there that it was "
                "trained with."
            )
        check_vocabulary(tokenizer, self.config, self.source)
        return tokenizer

    @property
    def fingerprint(self) -> str:
        """The commit of a model of the Hub, else the SHA-256 of the folder's files."""
        if Path(self.checkpoint.name).is_dir():
            return str(model_fingerprint(self.checkpoint.name))
        return str(self.checkpoint.revision)

    @property
    def precision(self) -> Precision:
        """Precision of the weights that its configuration names."""
        dtype = self.config.dtype
        return Precision(dtype="auto" if dtype is None else str(dtype).removeprefix("torch."))

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that model and tokenizer take; None where neither names a number."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        sizes = (positions, self.tokenizer.model_max_length)
        return min((size for size in sizes if size and 0 < size < UNLIMITED), default=None)

    @property
    def rendering(self) -> str:
        """Say in a few words how a prompt and a completion become one text."""
        if self.tokenizer.chat_template is not None:
            return "its own chat template"
        if self.tokenizer.sep_token is not None:
            return "a text pair, prompt and completion"
        return "plain text, the prompt, the completion and the end-of-sequence token"

    @property
    def note(self) -> str:
        """Say in a sentence of a plan which model scores, and what it reads."""
        limit = "any number of" if self.max_tokens is None else f"up to {self.max_tokens:,}"
        at = f" at {self.checkpoint.revision}" if self.checkpoint.revision else ""
        return (
            f"The reward model `{self.source}`{at} ({self.config.model_type}, {self.precision}) "
            f"is loaded apart. It reads {self.rendering}, {limit} tokens of it. A completion that "
            "is cut at `max_completion_length` looks to it as if it had ended there."
        )

    def meta_model(self) -> PreTrainedModel:
        """Build the model without weights, from its configuration."""
        with unsharded(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(self.config)
        model.name_or_path = self.checkpoint.name
        return model

    def encode(self, prompt: Prompt, completion: str) -> tuple[dict[str, list[int]], bool]:
        """Return the model's inputs for a completion without padding, and whether they were cut.

        With a chat template of its own, the messages of the prompt and one of the assistant are
        rendered by it; plain text is one turn of the user. Without one, a tokenizer with a
        separator gets prompt and completion as a text pair, any other the plain text that
        `RewardTrainer` trains on. Longer inputs than `max_tokens` are cut as the tokenizer cuts.
        """
        tokenizer, limit = self.tokenizer, self.max_tokens
        if tokenizer.chat_template is not None:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            messages = [*turns, {"role": "assistant", "content": completion}]
            ids = template_ids(tokenizer, messages, add_generation_prompt=False)
            if limit is None or len(ids) <= limit:
                return {"input_ids": ids}, False
            left = tokenizer.truncation_side == "left"
            return {"input_ids": ids[-limit:] if left else ids[:limit]}, True
        texts = self._plain_texts(prompt, completion)
        encoded = tokenizer(*texts, return_attention_mask=False)
        cut = limit is not None and len(encoded["input_ids"]) > limit
        if cut:
            encoded = tokenizer(
                *texts, return_attention_mask=False, truncation=True, max_length=limit
            )
        return {name: list(values) for name, values in encoded.items()}, cut

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise RecipeError for a prompt that the model cannot read, or that fills its context."""
        _, cut = self.encode(prompt, "")
        if cut:
            raise RecipeError(
                f"The prompt {prompt_text(prompt)[:80]!r} alone has more than the "
                f"{self.max_tokens:,} tokens that the reward model `{self.source}` takes, so no "
                "completion of it would be read. Drop long prompts with `max_length` of "
                "prepare_data.py, or give a reward model with a longer context."
            )

    def _plain_texts(self, prompt: Prompt, completion: str) -> tuple[str, ...]:
        if self.tokenizer.sep_token is not None:
            return prompt_text(prompt), completion
        if not isinstance(prompt, str):
            raise RecipeError(
                f"The data is conversations, and the tokenizer of the reward model "
                f"`{self.source}` has neither a chat template nor a separator for text pairs, so "
                "nothing says how it was shown a conversation. Put the template that it was "
                "trained with as chat_template.jinja beside its tokenizer, in a local copy."
            )
        eos = self.tokenizer.eos_token or ""
        return (prompt + completion.removesuffix(eos) + eos,)

    @property
    def _folder(self) -> Path | None:
        """Its folder, or the cached one of a model of the Hub."""
        name, revision = self.checkpoint.name, self.checkpoint.revision
        if Path(name).is_dir():
            return Path(name)
        file = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(file).parent if isinstance(file, str) else None


RewardSource = Adapter | Classifier
"""A reward model as it is read: an adapter on a base, or a whole model."""


def is_hub_id(source: str | Path) -> bool:
    """Return whether a name is a model of the Hub: `owner/name`, and no such folder is here."""
    matched = HUB_ID.fullmatch(str(source))
    return matched is not None and not Path(str(source)).parent.is_dir()


def read_reward_model(source: str | Path | RewardSource) -> RewardSource:
    """Read a reward adapter's folder, or a whole model's folder or Hub id.

    Raises RecipeError if it cannot score completions.
    """
    if isinstance(source, Adapter | Classifier):
        return source
    folder = Path(source)
    whole = (folder / "config.json").is_file() and not (folder / CONFIG).is_file()
    if whole or is_hub_id(source):
        return _read_classifier(str(source))
    adapter = read_adapter(folder)
    adapter.check_head()
    return adapter


def open_weights(classifier: Classifier, **kwargs: Any) -> PreTrainedModel:
    """Open a classifier's weights in evaluation mode, whole on this process's device.

    Args:
        kwargs: For `from_pretrained`, in place of its own precision.

    Raises RecipeError if its files lack a weight, which transformers would draw at random.
    """
    name, revision = classifier.checkpoint.name, classifier.checkpoint.revision
    settings = {"revision": revision or "main", **classifier.precision.kwargs(), **on_device()}
    try:
        with unsharded():
            opened: Any = AutoModelForSequenceClassification.from_pretrained(
                name, output_loading_info=True, **settings | kwargs
            )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"The weights of the reward model `{classifier.source}` cannot be opened: "
            f"{str(error).strip().splitlines()[0]} Download or copy the model again."
        ) from error
    model, loaded = opened
    if missing := sorted(loaded["missing_keys"]):
        raise RecipeError(
            f"The weights of the reward model `{classifier.source}` lack {len(missing)} tensors, "
            f"such as `{missing[0]}`, which would be initialized at random. Download or copy the "
            "model again."
        )
    model.config.use_cache = False  # nothing is generated: keys and values would be kept in vain
    return model.eval()  # type: ignore[no-any-return]  # from_pretrained's type is not known


def _read_classifier(source: str) -> Classifier:
    matched = None if Path(source).is_dir() else HUB_ID.fullmatch(source)
    name, revision = (matched["name"], matched["revision"]) if matched else (source, None)
    if matched and find_adapter_config_file(name, revision=revision) is not None:
        raise RecipeError(
            f"`{source}` is an adapter on the Hub, and reward adapters are read from folders. "
            "Download it first with `hf download`, and give the folder."
        )
    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The reward model `{source}` cannot be opened: "
            f"{str(error).strip().splitlines()[0]} Give the folder of a reward adapter or of a "
            "whole sequence-classification model, or the Hub id of such a model; without a "
            "network it must be in the Hugging Face cache already."
        ) from error
    _check_one_score(source, config)
    classifier = Classifier(source, Base(name, revision).pinned(), config)
    _ = classifier.tokenizer  # opened here: a broken one is refused before any weights
    return classifier


def _check_one_score(source: str, config: PretrainedConfig) -> None:
    """Raise RecipeError unless a configuration is of a classifier with one score."""
    names, kind = config.architectures or [], type(config)
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(kind, None)
    if known is None or known.__name__ not in names:
        raise RecipeError(
            f"`{source}` is {', '.join(names) or 'of no stated architecture'} in its config.json, "
            "which is no sequence classifier of transformers, so its head would be drawn at "
            "random or not be used. Give a model whose architecture ends in "
            "ForSequenceClassification, with code of transformers' own."
        )
    if config.num_labels != 1:
        labels = ", ".join(map(str, list((config.id2label or {}).values())[:5]))
        raise RecipeError(
            f"`{source}` gives {config.num_labels} numbers per text ({labels}), and a reward is "
            "one number. Give a model with `num_labels` 1, or write a reward function "
            "`path/to/file.py:name` that says which of them is the reward."
        )
    if config.is_encoder_decoder or config.model_type in OTHER_POOLING:
        raise RecipeError(
            f"`{source}` is a classifier of the type {config.model_type}, whose score depends on "
            "the padding of a batch. Give one that reads its first or its last token, such as "
            "DeBERTa, Llama, Qwen or Gemma."
        )
