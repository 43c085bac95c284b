import pytest
import torch

from rlhf_recipes.ppo.metrics import RunningMeans
from tests.pretend_device import ACCELERATOR, PretendDevice


def test_the_pretend_accelerator_refuses_what_cuda_refuses():
    with PretendDevice():
        there, here = torch.ones(2, device=ACCELERATOR), torch.ones(2)
        for mixed in (lambda: there + here, lambda: torch.stack([there[0], here[0]])):
            with pytest.raises(RuntimeError, match="of the CPU and of the accelerator"):
                mixed()
        assert (there * here[0]).device == ACCELERATOR
        assert (there + here.to(ACCELERATOR)).tolist() == [2, 2]


def test_averages_take_losses_of_an_accelerator_and_numbers():
    with PretendDevice():
        means = RunningMeans(lambda value: value, ACCELERATOR)
        loss = torch.tensor(2.0, device=ACCELERATOR)
        means.add({"loss": loss, "length": 6.0}, weight=torch.tensor(3, device=ACCELERATOR))
        means.add({"loss": 4.0, "length": loss}, weight=1)
        assert means.pop() == {"loss": 2.5, "length": 5.0}
