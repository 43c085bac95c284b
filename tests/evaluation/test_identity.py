import pytest
import torch
from torch import nn

from rlhf_recipes.evaluation.identity import base_fingerprint


class Weights(nn.Module):
    """One weight of that many values; all are one place in memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1).expand(size))


# The largest is the embedding of a model of 135M parameters: beyond what float32 counts exactly.
@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 28_311_552])
def test_weights_of_any_size_have_a_fingerprint(size):
    assert base_fingerprint(Weights(size)) == base_fingerprint(Weights(size))
    assert base_fingerprint(Weights(size)) != base_fingerprint(Weights(size + 1))


def test_other_values_have_another_fingerprint():
    model = nn.Linear(64, 64)
    before = base_fingerprint(model)
    model.weight.data += 1e-3
    assert base_fingerprint(model) != before
