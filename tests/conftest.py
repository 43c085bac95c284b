"""What all tests share: no Hub, no screen, the repository's root."""

import os
from pathlib import Path

# Set before any Hugging Face library is imported: they read it then, and never again.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are so small that threads cost more than they save.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: recipes/, accelerate_configs/ and the package lie in it."""
    return Path(__file__).resolve().parents[1]
