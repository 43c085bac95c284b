"""The losses and gradients of TRL 1.12's PPOTrainer, on the same models and the same rollout.

`trl_1_12.json` is what benchmarks/ppo_trl112_rollout.py found in an environment of its own. To
record it again: `python -m tests.ppo.test_against_trl .venv-trl112/bin/python`, once `make bench`
has made that environment.

Where no completion ends before the cap, the two agree. Where one does, TRL differs by two known
faults, and agrees once they are copied: it puts the score on the padding token after the last real
one (huggingface/trl#3750), and trains the value there too. Gradient clipping is off on both sides:
TRL never clipped (huggingface/trl#3961).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from benchmarks.gradients import summary
from rlhf_recipes.logprobs import kl_estimate
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.ppo.objective import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    token_rewards,
    whiten,
)
from rlhf_recipes.roles import Roles
from tests.ppo.conftest import lora

RECORD = Path(__file__).with_name("trl_1_12.json")
SETTINGS = {
    "temperature": 0.7,
    "kl_coef": 0.05,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "learning_rate": 1e-3,
    "whiten_rewards": False,
    "num_mini_batches": 1,
}
LENGTHS = {"full": [6, 6, 6, 6], "ended": [6, 2, 4, 3]}
PROMPT = 5


def roles_with_weights() -> Roles:
    """Policy, value and reward with random weights; value and reward are the same."""
    roles = Roles(open_base("tiny"))
    for role in ("policy", "reward", "value"):
        roles.attach(role, lora(), trainable=role != "reward")
        generator = torch.Generator().manual_seed(1 if role == "policy" else 2)
        with torch.no_grad():
            for name, parameter in roles.base.named_parameters():
                if f".{role}." in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    roles.attach_head("reward", weight, None, trainable=False)
    roles.attach_head("value", weight, torch.zeros(1), trainable=True)
    return roles


def rollout(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of prompt and completion, and the completion mask."""
    tokenizer = open_tokenizer("tiny")
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(10, 90, (4, PROMPT + 6), generator=generator)
    lengths = torch.tensor(LENGTHS[case])
    mask = torch.arange(6) < lengths[:, None]
    completions = ids[:, PROMPT:]  # a view
    completions[~mask] = tokenizer.pad_token_id
    for row, length in enumerate(LENGTHS[case]):
        if length < 6:
            completions[row, length - 1] = tokenizer.eos_token_id
    return ids, mask


class Ours:
    """The same update by this project's functions, with TRL's faults if they are asked for."""

    def __init__(self, case: str, with_faults: bool) -> None:
        self.roles = roles_with_weights()
        self.ids, self.completion_mask = rollout(case)
        self.mask = torch.cat([torch.ones(4, PROMPT, dtype=torch.bool), self.completion_mask], 1)
        lengths = self.completion_mask.sum(-1, keepdim=True)
        # One token more where there is room: what TRL calls `padding_mask_p1`.
        more = torch.arange(6) < lengths + with_faults
        with torch.no_grad():
            self.old_logps = self.logps()
            reference = self.roles(None, self.ids, self.mask, 6, SETTINGS["temperature"]).logps
            # TRL runs over padding with a mask, which gives padding values of its own.
            self.old_values = torch.where(more, self.values(more), 0.0)
            last = PROMPT - 1 + lengths
            scores = self.roles.scores("reward", self.ids, self.mask).gather(1, last).squeeze(1)
        kl = kl_estimate(self.old_logps, reference)
        rewards = token_rewards(scores, kl, self.completion_mask, SETTINGS["kl_coef"])
        if with_faults:
            # TRL fills log-probabilities of padding with one number, so their KL is 0.
            rewards = torch.where(self.completion_mask, -SETTINGS["kl_coef"] * kl, 0.0)
            rewards.scatter_add_(1, lengths.clamp(max=5), scores[:, None])
        self.value_mask = more
        advantages, self.returns = generalized_advantages(
            rewards, self.old_values, more, SETTINGS["gamma"], SETTINGS["lam"]
        )
        self.advantages = whiten(advantages, self.completion_mask)

    def logps(self) -> torch.Tensor:
        return self.roles("policy", self.ids, self.mask, 6, SETTINGS["temperature"]).logps

    def values(self, more: torch.Tensor) -> torch.Tensor:
        return self.roles("value", self.ids, self.mask, 6).values

    def losses(self, vf_coef: float) -> torch.Tensor:
        policy = clipped_policy_loss(
            self.logps(),
            self.old_logps,
            self.advantages,
            self.completion_mask,
            SETTINGS["cliprange"],
        ).loss
        policy.backward()
        if vf_coef == 0.0:
            return policy.detach()
        value = clipped_value_loss(
            self.values(self.value_mask),
            self.old_values,
            self.returns,
            self.value_mask,
            SETTINGS["cliprange_value"],
        ).loss
        (vf_coef * value).backward()
        return (policy + vf_coef * value).detach()


def recorded(case: str, what: str) -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text())[case][what]


def assert_gradients_agree(roles: Roles, gradients: dict[str, list[float]]) -> None:
    ours = {
        f"policy.base_model.model.{name.replace('.policy.', '.default.')}": p.grad
        for name, p in roles.base.named_parameters()
        if ".policy." in name
    }
    compared = 0
    for name, (norm, projection) in gradients.items():
        gradient = roles.head("value").weight.grad if "score" in name else ours[name]
        found_norm, found_projection = summary(gradient)
        assert found_norm == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        assert found_projection == pytest.approx(projection, rel=5e-3, abs=1e-5), name
        compared += 1
    assert compared >= 28


@pytest.mark.parametrize(("case", "with_faults"), [("full", False), ("ended", True)])
def test_losses_and_gradients_equal_those_of_trl(case, with_faults):
    ours = Ours(case, with_faults)
    (step,) = recorded(case, "both")
    assert float(ours.losses(vf_coef=0.1)) == pytest.approx(step["loss"], rel=1e-4)
    assert_gradients_agree(ours.roles, step["gradients"])


@pytest.mark.parametrize(("case", "with_faults"), [("full", False), ("ended", True)])
def test_the_second_epoch_off_policy_agrees_too(case, with_faults):
    ours = Ours(case, with_faults)
    first, second = recorded(case, "policy")
    policy = [p for name, p in ours.roles.base.named_parameters() if ".policy." in name]
    optimizer = torch.optim.AdamW(policy, lr=SETTINGS["learning_rate"], weight_decay=0.0)
    assert float(ours.losses(vf_coef=0.0)) == pytest.approx(first["loss"], rel=1e-4, abs=1e-6)
    optimizer.step()
    optimizer.zero_grad()
    assert float(ours.losses(vf_coef=0.0)) == pytest.approx(second["loss"], rel=1e-3)


def test_where_a_completion_ends_early_the_faults_matter():
    ours = Ours("ended", with_faults=False)
    (step,) = recorded("ended", "both")
    assert abs(float(ours.losses(vf_coef=0.1)) - step["loss"]) > 0.01 * abs(step["loss"])


def record(peer_python: str) -> None:
    """Write the models and cases, run the peer on them, and keep what it found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_base("tiny").save_pretrained(folder / "base")
        open_tokenizer("tiny").save_pretrained(folder / "base")
        roles = roles_with_weights()
        for role in ("policy", "reward"):
            roles.save_role(role, folder / role)
        classifier = AutoModelForSequenceClassification.from_pretrained(
            base_path("tiny"), num_labels=1, dtype="float32"
        )
        merged = PeftModel.from_pretrained(classifier, folder / "reward").merge_and_unload()
        merged.config.pad_token_id = open_tokenizer("tiny").pad_token_id
        merged.save_pretrained(folder / "classifier")
        cases = {}
        for case in LENGTHS:
            ids, _ = rollout(case)
            queries, responses = ids[:, :PROMPT].tolist(), ids[:, PROMPT:].tolist()
            cases[case] = {"queries": queries, "responses": responses, "settings": SETTINGS}
        (folder / "case.json").write_text(json.dumps(cases))
        environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
        command = [peer_python, "-m", "benchmarks.ppo_trl112_rollout", str(folder)]
        subprocess.run(command, check=True, env=environment)
        RECORD.write_text((folder / "found.json").read_text() + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
