"""The fingerprint of a model folder: a hash of contents that does not depend on its path."""

import hashlib
from pathlib import Path

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


def model_fingerprint(folder: str | Path) -> str | None:
    """Return a SHA-256 over the files that a folder's model, adapter and tokenizer depend on.

    None for a folder without any. A run's inputs, its own record and an evaluation's adapters are
    all known by it, so that a replaced tokenizer is noticed as replaced weights are.
    """
    digest = hashlib.sha256()
    paths = sorted({path for pattern in MODEL_FILES for path in Path(folder).glob(pattern)})
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        digest.update(_sampled(path))
    return digest.hexdigest() if paths else None


def _sampled(path: Path) -> bytes:
    digest = hashlib.sha256()
    size = path.stat().st_size
    step = max(BLOCK, size // BLOCKS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.digest()
