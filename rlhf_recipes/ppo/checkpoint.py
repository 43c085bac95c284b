"""What a PPO checkpoint holds beside the Trainer's own state: a file for each process."""

from dataclasses import asdict
from pathlib import Path

import torch

from rlhf_recipes.arguments import RecipeError
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.ppo.rollout import RolloutWorker
from rlhf_recipes.ppo.scoring import RewardScale

STATE_FILE = "ppo_state_{process}.pt"


def save_state(
    folder: Path, process: int, worker: RolloutWorker, episodes: Episodes | None, stopped: bool
) -> None:
    """Write the rollout in use, None where it has served, and what its worker has measured.

    The trunk is left out: it is the largest part, and follows from the rest.
    """
    scale = worker.scorer.scale
    kept = None if episodes is None else {**vars(episodes), "trunk": None}
    state = {
        "episodes": kept,
        "scale": None if scale is None else asdict(scale),
        "kl_coef": worker.kl_coef,
        "stopped_early": stopped,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / STATE_FILE.format(process=process))


def load_state(
    folder: Path, process: int, processes: int, worker: RolloutWorker
) -> tuple[Episodes | None, bool]:
    """The rollout to go on with and whether its updates were stopped; the worker gets the rest."""
    found = len(list(folder.glob(STATE_FILE.format(process="*"))))
    if found != processes:
        raise RecipeError(
            f"{folder} was written by {found} processes, and there are {processes} now: each goes "
            "on with the rollout it had. Start as many as before."
        )
    file = folder / STATE_FILE.format(process=process)
    device = worker.roles.base.device
    state = torch.load(file, map_location=device, weights_only=True)
    if state["scale"] is not None:
        worker.scorer.scale = RewardScale(**state["scale"])
    worker.kl_coef = state["kl_coef"]
    if state["episodes"] is None:
        return None, False
    episodes = Episodes(**state["episodes"])
    episodes.trunk = worker.trunk(episodes.input_ids, episodes.mask, episodes.completion_mask)
    return episodes, state["stopped_early"]
