"""What an adapter folder says of itself, and what is in it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, load_peft_weights
from torch import Tensor

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models import base_path

HEAD_NAMES = ("score", "classifier")
"""What transformers calls the linear head of a sequence classifier."""


def adapter_base(folder: str | Path) -> str:
    """The base model that an adapter folder says it was trained on."""
    config = Path(folder) / "adapter_config.json"
    if not config.is_file():
        raise RecipeError(
            f"{folder} holds no adapter (there is no adapter_config.json in it). "
            "Give the run folder of a finished training stage, for example one made by "
            "`make reward`."
        )
    return str(json.loads(config.read_text())["base_model_name_or_path"])


def assert_same_base(adapter: str | Path, base: str) -> None:
    """Raise RecipeError unless the adapter in that folder was trained on this base."""
    trained_on, wanted = adapter_base(adapter), base_path(base)
    if not same_base(trained_on, wanted):
        raise RecipeError(
            f"{adapter} was trained on `{trained_on}`, but the recipe's base is `{wanted}`. "
            "An adapter fits its own base only: set `model_name_or_path` to that base, or train "
            "the adapter again on this one."
        )


def same_base(first: str, second: str) -> bool:
    """Whether two names are one base: local folders by their real path, others as they stand."""
    names = {str(Path(b).resolve()) if Path(b).is_dir() else b for b in (first, second)}
    return len(names) == 1


def adapter_fingerprint(folder: str | Path) -> str:
    """SHA-256 of an adapter's weights and configuration: changes when its outputs may."""
    digest = hashlib.sha256()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        digest.update((Path(folder) / name).read_bytes())
    return digest.hexdigest()


def read_adapter(
    folder: str | Path,
) -> tuple[LoraConfig, Mapping[str, Tensor], Mapping[str, Tensor]]:
    """A LoRA folder's configuration, its weights, and its scalar head's weights (may be empty).

    A sequence classifier and a causal model of one architecture share their trunk, so a reward
    adapter's LoRA weights fit the causal base as they are once its head is taken apart.
    """
    adapter_base(folder)  # raises a clear error where there is no adapter
    try:
        config = LoraConfig.from_pretrained(str(folder))
        saved = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"The adapter in {folder} cannot be read: {str(error).splitlines()[0]} "
            "Give a folder that a finished training stage wrote."
        ) from error
    head, weights = {}, {}
    for name, tensor in saved.items():
        module, _, leaf = name.rpartition(".")
        if module.rpartition(".")[2] in HEAD_NAMES:
            head[leaf] = tensor.float()
        else:
            weights[name] = tensor
    config.task_type = None
    config.modules_to_save = None
    config.inference_mode = False
    return config, weights, head


def require_head(folder: str | Path) -> None:
    """Raise RecipeError unless the folder holds a reward model: an adapter with a scalar head."""
    _, _, head = read_adapter(folder)
    if "weight" not in head or head["weight"].shape[0] != 1:
        raise RecipeError(
            f"{folder} holds an adapter without a scalar head, so it cannot score completions. "
            "Give the folder of a reward model, as `make reward` writes it "
            "(`lora_task_type: SEQ_CLS`)."
        )
