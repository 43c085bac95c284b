"""Check that a base's weights are complete, from the headers of their files alone."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.loading import Base, base_path
from rlhf_recipes.sharding import unsharded

INDEX = "model.safetensors.index.json"


def check_weight_files(model: PreTrainedModel, base: Base) -> None:
    """Raise RecipeError if a base's weights are truncated, missing, or of other shapes.

    transformers initializes a missing weight at random, with only a warning. A base that is still
    to be downloaded is not checked.

    Args:
        model: The base without weights.
    """
    folder = _folder(base)
    if folder is None:
        return
    files = _files(folder, base)
    tensors = {name: tensor for file in files for name, tensor in _tensors(file, base)}
    if not files or hasattr(model.config, "quantization_config"):
        return  # other formats, whose tensors are packed
    with unsharded(), _quiet():
        opened: Any = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=tensors,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _, loaded = opened
    missing = sorted(loaded["missing_keys"])
    mismatched = sorted(f"{name} {tuple(has)}" for name, has, _ in loaded["mismatched_keys"])
    if missing or mismatched:
        raise RecipeError(
            f"The weights of {base} do not fit its config.json: {len(missing)} tensors are "
            f"missing and {len(mismatched)} have another shape, such as "
            f"`{(missing + mismatched)[0]}`, which would be initialized at random. Download or "
            "copy the model again."
        )


def _folder(base: Base) -> Path | None:
    path = Path(base_path(base.name))
    if path.is_dir():
        return path
    for file in (INDEX, "model.safetensors"):
        cached = try_to_load_from_cache(base.name, file, revision=base.revision or "main")
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _files(folder: Path, base: Base) -> list[Path]:
    """List the safetensors files of a base; none if its weights have another format."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise RecipeError(
                f"The weights of {base} cannot be read: {index} does not name their files "
                f"({error}). Download or copy it again."
            ) from error
        return [folder / shard for shard in sorted(shards)]
    if not any(folder.glob("*.bin")):
        raise RecipeError(
            f"{base} has no weights: there is neither model.safetensors nor {INDEX} in {folder}. "
            "Give a folder that a model's `save_pretrained` wrote, or a Hub id."
        )
    return []


def _tensors(file: Path, base: Base) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a file, as a meta tensor of its shape."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                yield name, torch.empty(opened.get_slice(name).get_shape(), device="meta")
    except (SafetensorError, OSError) as error:
        raise RecipeError(
            f"The weights of {base} cannot be read: {file} is damaged "
            f"({' '.join(str(error).split())}). Download or copy it again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bar and the report that transformers prints when it loads a model."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
