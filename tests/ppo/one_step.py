"""One optimizer step on a given rollout: `python -m tests.ppo.one_step OUT REWARD`.

Under `accelerate launch` each process has its share of the episodes. What all of them together
learn must be what one process learns from all episodes.
"""

import sys
from pathlib import Path

import torch

from rlhf_recipes.ending import end_process
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.ppo.trainer import PPOTrainer
from tests.ppo.conftest import make_trainer, weights

EPISODES = 8


def episodes() -> Episodes:
    """Eight episodes of four prompt tokens and two to six completion tokens, and any numbers."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([2, 6, 3, 5, 4, 6, 2, 6])
    completion_mask = torch.arange(6) < lengths[:, None]
    numbers = torch.randn(4, EPISODES, 6, generator=generator)
    return Episodes(
        input_ids=torch.randint(3, 90, (EPISODES, 10), generator=generator),
        attention_mask=torch.cat([torch.ones(EPISODES, 4, dtype=torch.bool), completion_mask], 1),
        completion_mask=completion_mask,
        old_logps=numbers[0] / 10 - 4.5,
        old_values=numbers[1] / 10,
        advantages=numbers[2],
        returns=numbers[3],
    )


def one_step(folder: Path, reward_folder: str, processes: int) -> PPOTrainer:
    """A trainer that has taken one step on its process's share of the episodes."""
    trainer = make_trainer(
        folder,
        reward_folder,
        per_device_train_batch_size=EPISODES // processes // 2,
        gradient_accumulation_steps=2,
        num_mini_batches=1,
        num_ppo_epochs=1,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        entropy_coef=0.01,
        log_completions=False,
        use_cpu=True,
    )
    mine = torch.arange(EPISODES).chunk(processes)[trainer.args.process_index]
    table = dict.fromkeys(["score", "effective_score", "kl", "entropy"], [0.0] * len(mine))
    table |= {"length": [1] * len(mine), "finished": [True] * len(mine)}
    trainer.worker.collect = lambda *_: Rollout(episodes().select(mine), table)
    trainer.train()
    return trainer


if __name__ == "__main__":
    ran = one_step(Path(sys.argv[1]), sys.argv[2], processes=2)
    if ran.is_world_process_zero():
        torch.save(weights(ran.roles), Path(sys.argv[1], "weights.pt"))
    end_process()
