"""Saving and resuming a PPO run: roles in place of a whole model, and a rollout's state."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.ppo.metrics import Averages
from rlhf_recipes.ppo.roles import POLICY, VALUE
from rlhf_recipes.ppo.rollout import RolloutWorker
from rlhf_recipes.ppo.scoring import RewardScale
from rlhf_recipes.roles import Roles

STATE_FILE = "ppo_state_{process}.pt"


class RolesTrainer(Trainer):
    """A Trainer whose model is `Roles` and which learns from rollouts.

    Attributes:
        episodes: The rollout in use.
        stopped_early: Whether the rollout in use serves no further update.
        micro_step: Number of the next micro-step; None before the first of a run.
        averages: What has been noted since the last log.
    """

    args: PPOConfig
    roles: Roles
    worker: RolloutWorker
    episodes: Episodes | None
    stopped_early: bool
    micro_step: int | None
    averages: Averages

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy adapter, the value adapter beneath it, and the tokenizer.

        A checkpoint also holds the rollout in use, so that a resumed run goes on where it was.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            self.roles.save_role(POLICY, folder)
            self.roles.save_role(VALUE, folder / VALUE)
            assert isinstance(self.processing_class, PreTrainedTokenizerBase)
            self.processing_class.save_pretrained(folder)
        if _internal_call:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._state(), folder / STATE_FILE.format(process=self.args.process_index))

    def _state(self) -> dict[str, Any]:
        served = (self.micro_step or 0) % self.args.micro_steps_per_rollout == 0
        scale = self.worker.scorer.scale
        # The trunk is left out: it is the largest part, and follows from the rest.
        done = served or self.episodes is None
        return {
            "episodes": None if done else {**vars(self.episodes), "trunk": None},
            "scale": None if scale is None else asdict(scale),
            "kl_coef": self.worker.kl_coef,
            "stopped_early": self.stopped_early,
            "noted": {name: pair.tolist() for name, pair in self.averages.noted.items()},
            "processes": self.args.world_size,
        }

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        # Private, yet the one place where the Trainer loads weights: its own version knows whole
        # models and PEFT models, not roles.
        folder = Path(resume_from_checkpoint)
        self._load_weights(folder)
        # The first process's says how many there were, to a process that had none.
        files = [folder / STATE_FILE.format(process=i) for i in (self.args.process_index, 0)]
        state = torch.load(
            next(file for file in files if file.exists()),
            map_location=self.roles.base.device,
            weights_only=True,
        )
        if state["processes"] != self.args.world_size:
            raise RecipeError(
                f"{folder} was written by {state['processes']} processes, and there are "
                f"{self.args.world_size} now: each goes on with the rollout it had. Start as many "
                "as before."
            )
        if state["scale"] is not None:
            self.worker.scorer.scale = RewardScale(**state["scale"])
        self.worker.kl_coef = state["kl_coef"]
        self.stopped_early = state["stopped_early"]
        self.averages.restore(state["noted"])
        if state["episodes"] is not None:
            self.episodes = Episodes(**state["episodes"])
            self.episodes.trunk = self.worker.trunk(
                self.episodes.input_ids, self.episodes.mask, self.episodes.completion_mask
            )

    def _load_best_model(self) -> None:
        self._load_weights(Path(str(self.state.best_model_checkpoint)))

    def _load_weights(self, folder: Path) -> None:
        self.roles.load_role(POLICY, folder)
        self.roles.load_role(VALUE, folder / VALUE)
