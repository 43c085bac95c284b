"""Check that the files of a base's weights are whole, from their headers alone."""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models import base_path

INDEX = "model.safetensors.index.json"


def check_weight_files(name: str, revision: str | None) -> None:
    """Raise RecipeError where a base's safetensors files are cut off or missing.

    A base that is still to be downloaded has nothing to check.
    """
    folder = _folder(name, revision)
    if folder is None:
        return
    index = folder / INDEX
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / shard for shard in sorted(shards)]
    for file in files:
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise RecipeError(
                f"The weights of `{name}` cannot be read: {file} is not whole "
                f"({' '.join(str(error).split())}). Download or copy it again."
            ) from error


def _folder(name: str, revision: str | None) -> Path | None:
    path = Path(base_path(name))
    if path.is_dir():
        return path
    for file in (INDEX, "model.safetensors"):
        cached = try_to_load_from_cache(name, file, revision=revision or "main")
        if isinstance(cached, str):
            return Path(cached).parent
    return None
