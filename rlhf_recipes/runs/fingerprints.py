"""Fingerprints of the inputs of a run: hashes of contents that do not depend on paths."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.classifiers import HUB_ID
from rlhf_recipes.models.fingerprints import model_fingerprint
from rlhf_recipes.models.loading import base_path
from rlhf_recipes.preferences import dataset_fingerprint


def run_inputs(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprint of each input that a recipe names, by the recipe's key.

    Missing inputs are left out; the stage itself refuses them. A base of the Hub is identified by
    its commit, and left out while it is not in the cache yet.
    """
    readers: dict[str, Callable[[Any], str | None]] = {
        "dataset_name": _data_fingerprint,
        "model_name_or_path": lambda name: base_fingerprint(name, settings.get("model_revision")),
        "reward_model_path": _reward_model_fingerprint,
        "sft_model_path": model_fingerprint,
        "chat_template": _file_fingerprint,
        "reward_funcs": _functions_fingerprint,
    }
    read = {key: reader(settings[key]) for key, reader in readers.items() if settings.get(key)}
    return {key: fingerprint for key, fingerprint in read.items() if fingerprint is not None}


def base_fingerprint(name: str, revision: str | None) -> str | None:
    """Return the fingerprint of a base model's folder, or the commit of one from the Hub."""
    opened = base_path(name)
    if Path(opened).is_dir():
        return model_fingerprint(opened)
    config = try_to_load_from_cache(opened, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _reward_model_fingerprint(source: str) -> str | None:
    """Return the fingerprint of a folder, or the commit of a whole model of the Hub."""
    matched = HUB_ID.fullmatch(str(source))
    if matched is None or Path(source).is_dir():
        return model_fingerprint(source)
    return base_fingerprint(matched["name"], matched["revision"])


def _data_fingerprint(name: str) -> str | None:
    try:
        return dataset_fingerprint(name)
    except RecipeError:
        return None


def _file_fingerprint(path: str | Path) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None


def _functions_fingerprint(functions: list[str]) -> str:
    parts = [function.rpartition(":") for function in functions]
    named = [f"{name} {_file_fingerprint(path)}" for path, _, name in parts]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
