"""Fingerprints of the inputs of a run: hashes of contents that do not depend on paths."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from rlhf_recipes.models.loading import base_path
from rlhf_recipes.preferences import current_fingerprint

MODEL_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "*.model",
    "*.py",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)
"""Patterns of the files of a model folder that its outputs depend on."""

BLOCK = 2**20
BLOCKS = 64
"""Number of evenly spaced blocks hashed of a larger file: training changes nearly every value."""


def run_inputs(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprint of each input that a recipe names, by the recipe's key.

    Missing inputs are left out; the stage itself refuses them. A base of the Hub is identified by
    its commit, and left out while it is not in the cache yet.
    """
    readers: dict[str, Callable[[Any], str | None]] = {
        "dataset_name": current_fingerprint,
        "model_name_or_path": lambda name: base_fingerprint(name, settings.get("model_revision")),
        "reward_model_path": model_fingerprint,
        "sft_model_path": model_fingerprint,
        "chat_template": _file_fingerprint,
        "reward_funcs": _functions_fingerprint,
    }
    read = {key: reader(settings[key]) for key, reader in readers.items() if settings.get(key)}
    return {key: fingerprint for key, fingerprint in read.items() if fingerprint is not None}


def model_fingerprint(folder: str | Path) -> str | None:
    """Return a SHA-256 over what a folder's model, adapter or tokenizer depends on."""
    digest = hashlib.sha256()
    paths = sorted({path for pattern in MODEL_FILES for path in Path(folder).glob(pattern)})
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        digest.update(_sampled(path))
    return digest.hexdigest() if paths else None


def base_fingerprint(name: str, revision: str | None) -> str | None:
    """Return the fingerprint of a base model's folder, or the commit of one from the Hub."""
    opened = base_path(name)
    if Path(opened).is_dir():
        return model_fingerprint(opened)
    config = try_to_load_from_cache(opened, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _sampled(path: Path) -> bytes:
    digest = hashlib.sha256()
    size = path.stat().st_size
    step = max(BLOCK, size // BLOCKS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.digest()


def _file_fingerprint(path: str | Path) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None


def _functions_fingerprint(functions: list[str]) -> str:
    parts = [function.rpartition(":") for function in functions]
    named = [f"{name} {_file_fingerprint(path)}" for path, _, name in parts]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
