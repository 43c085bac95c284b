"""Check that a base's weights are whole, from the headers of their files alone."""

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
    """Raise RecipeError where a base's weights are cut off, missing, or of other shapes.

    transformers draws a weight that it does not find at random, and says so in a warning. A base
    that is still to be downloaded has nothing to check.

    Args:
        model: The base without weights.
    """
    folder = _folder(base)
    if folder is None:
        return
    files = _files(folder, base)
    found = {name: tensor for file in files for name, tensor in _tensors(file, base)}
    if not files or hasattr(model.config, "quantization_config"):
        return  # other formats, whose tensors are packed
    with unsharded(), _quiet():
        opened: Any = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=found,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _, loaded = opened
    lost = sorted(loaded["missing_keys"])
    odd = sorted(f"{name} {tuple(has)}" for name, has, _ in loaded["mismatched_keys"])
    if lost or odd:
        raise RecipeError(
            f"The weights of {base} do not fit its config.json: {len(lost)} tensors are missing, "
            f"{len(odd)} of another shape, such as `{(lost + odd)[0]}`, which would be drawn at "
            "random. Download or copy the model again."
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
    """The safetensors files of a base, none where it has weights of another format."""
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
    """Every tensor of a file, by its shape alone."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                yield name, torch.empty(opened.get_slice(name).get_shape(), device="meta")
    except (SafetensorError, OSError) as error:
        raise RecipeError(
            f"The weights of {base} cannot be read: {file} is not whole "
            f"({' '.join(str(error).split())}). Download or copy it again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar and the table of a load, which this is not."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
