import os
import subprocess
import sys

import pytest
import torch

from tests.ppo.conftest import make_trainer, weights
from tests.ppo.one_step import one_step


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(root, tmp_path, reward_folder):
    """Losses are means over the tokens of all processes, whose shares differ: 16 and 18 of 34."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", "accelerate_configs/cpu_ddp.yaml"),
        *("-m", "tests.ppo.one_step", str(tmp_path / "two"), reward_folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    start = weights(make_trainer(tmp_path / "start", reward_folder).roles)
    alone = weights(one_step(tmp_path / "one", reward_folder, processes=1).roles)
    moved = 0
    for name, weight in alone.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(weight, start[name])
    assert moved > 10
