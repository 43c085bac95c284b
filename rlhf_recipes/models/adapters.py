"""A LoRA adapter, read from its folder once and passed on as an object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.fingerprints import model_fingerprint
from rlhf_recipes.models.loading import Base, Precision, open_config, open_tokenizer
from rlhf_recipes.models.lora import DEFAULTS, HEAD_NAMES, check_lora
from rlhf_recipes.models.vocabulary import check_same_tokenizer, check_vocabulary, set_padding
from rlhf_recipes.records import read_yaml

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter and what it was trained on.

    A sequence classifier and a causal language model of one architecture share all layers but the
    head, so a reward adapter's LoRA weights fit the causal base once its head is separated.

    Attributes:
        folder: Folder that it was read from.
        base: Name and revision of the base model.
        precision: Precision of that base in training; None where the folder does not record it.
        config: LoRA configuration; copy it before changing it.
        weights: LoRA weights under PEFT's names.
        copies: Weights of the base that PEFT saved with the adapter.
        head: Weights of the scalar head, empty for a policy.
        fingerprint: SHA-256 over weights, configuration and tokenizer; see `model_fingerprint`.
    """

    folder: Path
    base: Base
    precision: Precision | None
    config: LoraConfig
    weights: Mapping[str, Tensor]
    copies: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    fingerprint: str

    def check_base(self, base: Base) -> None:
        """Raise RecipeError unless this adapter was trained on `base` at the same revision."""
        if not self.base.is_same(base):
            raise RecipeError(
                f"{self.folder} was trained on {self.base}, but the recipe's base is {base}. An "
                "adapter fits only its own base: set `model_name_or_path` (and `model_revision`) "
                "to that base, or train the adapter again on this one."
            )

    def has_weights_of(self, other: "Adapter") -> bool:
        """Return whether another adapter has the same LoRA weights and the same head."""
        pairs = ((self.weights, other.weights), (self.head, other.head))
        return all(
            mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
            for mine, theirs in pairs
        )

    def check_head(self) -> None:
        """Raise RecipeError unless this is a reward model, an adapter with a scalar head."""
        if "weight" not in self.head or self.head["weight"].shape[0] != 1:
            raise RecipeError(
                f"{self.folder} holds an adapter without a scalar head, so it cannot score "
                "completions. Give the folder of a reward model, as `make reward` writes it "
                "(`lora_task_type: SEQ_CLS`)."
            )

    def check_policy(self) -> None:
        """Raise RecipeError if this is a reward or value model, which writes no text."""
        if self.head:
            raise RecipeError(
                f"{self.folder} holds a reward or value model (an adapter with a scalar head), "
                "which writes no text. Give the adapter of a language model, as SFT, PPO, GRPO or "
                "DPO writes it."
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        """Raise RecipeError if this adapter was trained on other text than the policy's.

        An adapter without a tokenizer of its own passes.

        Args:
            tokenizer: The policy's.
            key: Key of the recipe that names this adapter.
        """
        if self.has_tokenizer:
            check_same_tokenizer(
                tokenizer,
                self.tokenizer,
                (f"`{self.base.name}`", f"`{key}` ({self.folder})"),
                "All roles on one base read the same token ids, so this adapter would read other "
                "text than it was trained on.",
            )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer saved with the adapter, chat template included, or else that of its base.

        Every access returns the same object: copy it before changing it.
        """
        name, revision = self.base.name, self.base.revision
        if not self.has_tokenizer:
            return open_tokenizer(name, revision=revision)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"The tokenizer in {self.folder} cannot be opened: "
                f"{str(error).strip().splitlines()[0]} Copy the files of the tokenizer that the "
                "adapter was trained with there, or delete them all to use the base's."
            ) from error
        set_padding(tokenizer, str(self.folder))
        check_vocabulary(tokenizer, open_config(name, revision), str(self.folder))
        return tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with the adapter."""
        return (self.folder / "tokenizer_config.json").is_file()


def read_adapter(source: "str | Path | Adapter") -> Adapter:
    """Read an adapter folder; an `Adapter` is returned as it is.

    Raises:
        RecipeError: The folder holds no LoRA adapter that can be a role on a shared base.
    """
    if isinstance(source, Adapter):
        return source
    folder = Path(source)
    text = _read_config(folder)
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise RecipeError(
            f"The adapter in {folder} cannot be read: {CONFIG} is not JSON ({error}). Give a "
            "folder that a finished training stage wrote, or copy the file again."
        ) from error
    config = _lora_config(folder, settings)
    data = _read_weights(folder)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise RecipeError(
            f"The adapter in {folder} cannot be read: {WEIGHTS} is damaged ({error}). Give a "
            "folder that a finished training stage wrote, or copy the file again."
        ) from error
    weights, copies, head = _split_weights(folder, tensors)
    name = str(settings.get("base_model_name_or_path"))
    return Adapter(
        folder=folder,
        base=Base(name, None if Path(name).is_dir() else settings.get("revision")),
        precision=_precision(folder),
        config=config,
        weights=weights,
        copies=copies,
        head=head,
        fingerprint=str(model_fingerprint(folder)),
    )


def _read_config(folder: Path) -> bytes:
    if (folder / CONFIG).is_file():
        return (folder / CONFIG).read_bytes()
    reason = "it does not exist" if not folder.exists() else f"there is no {CONFIG} in it"
    has_model = (folder / "config.json").is_file()
    raise RecipeError(
        f"{folder} holds no adapter ({reason}"
        + (", but a whole model's config.json" if has_model else "")
        + "). Give the run folder of a finished training stage, for example one made by "
        "`make reward`. Download an adapter on the Hub first, with `hf download`."
    )


def _read_weights(folder: Path) -> bytes:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS).read_bytes()
    pickle = folder / "adapter_model.bin"
    if pickle.is_file():
        raise RecipeError(
            f"{pickle} is a pickle, which can run any code when it is opened, so it is refused. "
            "Save the adapter again with a current PEFT, which writes safetensors."
        )
    raise RecipeError(
        f"{folder} has an {CONFIG} but no {WEIGHTS}, so the adapter has no weights. Give a folder "
        "that a finished training stage wrote."
    )


def _lora_config(folder: Path, settings: dict[str, Any]) -> LoraConfig:
    """Make the LoRA configuration; raise RecipeError if a role on a shared base cannot be it."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise RecipeError(
            f"{folder} holds an adapter of type {kind}, and only LoRA adapters can be roles on a "
            "shared base. Train one with LoRA (`use_peft: true`)."
        )
    check_lora(settings, f"The adapter in {folder}")
    fields = {name: value for name, value in settings.items() if name in DEFAULTS}
    try:
        config = LoraConfig(**fields)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"The adapter in {folder} cannot be read: {CONFIG} is not a LoRA configuration of "
            f"PEFT ({error}). Give a folder that a finished training stage wrote."
        ) from error
    config.task_type = None
    config.modules_to_save = None
    config.inference_mode = False
    return config


def _split_weights(
    folder: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split tensors into LoRA weights, copies of base weights, and the head, each by name."""
    weights, copies, head = {}, {}, {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise RecipeError(
                f"The adapter in {folder} has a weight that is not of finite numbers: {name} "
                f"({tensor.dtype}). Its training diverged or the file is damaged: train it again."
            )
        module, _, leaf = name.rpartition(".")
        if "lora_" in name:
            weights[name] = tensor
        elif module.rpartition(".")[2] in HEAD_NAMES:
            head[leaf] = tensor.float()
        else:
            copies[name] = tensor
    if not weights:
        raise RecipeError(f"The adapter in {folder} has no LoRA weights in {WEIGHTS}.")
    return weights, copies, head


def _precision(folder: Path) -> Precision | None:
    """Read the base's precision from the run's recipe; a checkpoint is inside its run's folder."""
    path = folder.absolute()
    while path.name == "value" or path.name.startswith("checkpoint-"):
        path = path.parent
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        return None
    return Precision.read(read_yaml(recipe))
