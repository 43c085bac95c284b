import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from rlhf_recipes import share_prefixes
from rlhf_recipes.evaluation.collect.reward_review import review_reward_model, score_pairs
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.prompts import prompt_ids
from rlhf_recipes.rewards import RewardModel, scored_ids
from rlhf_recipes.roles import Roles
from tests.test_rewards import pairs, trained


def test_each_answer_of_a_pair_has_the_score_and_the_length_of_its_own_text():
    torch.manual_seed(0)
    roles = Roles(open_base("tiny"))
    roles.attach("reward", LoraConfig(r=4, target_modules=["q_proj"]), trainable=False)
    width = roles.base.config.hidden_size
    roles.attach_head("reward", torch.randn(1, width), None, trainable=False)
    reward_model = RewardModel(roles.eval(), open_tokenizer("tiny"))
    texts = [("a", "yes", "no, never"), ("what is it?", "a thing", "b"), ("and?", "x y z", "none")]
    pairs = Dataset.from_list(
        [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, "turns": 1, "source": "s"}
            for prompt, chosen, rejected in texts
        ]
    )
    records = score_pairs(reward_model, pairs)
    tokenizer = reward_model.tokenizer
    for record, (prompt, *answers) in zip(records, texts, strict=True):
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            (alone,) = reward_model([prompt], [answer])
            assert record[side] == answer
            assert record[f"{side}_reward"] == pytest.approx(alone, abs=1e-5)
            tokens = len(scored_ids(tokenizer, prompt, answer)) - len(prompt_ids(tokenizer, prompt))
            assert record[f"{side}_tokens"] == tokens
    rewards = [record[f"{side}_reward"] for record in records for side in ("chosen", "rejected")]
    assert len({round(reward, 3) for reward in rewards}) == 6


def test_the_review_uses_the_trained_model_and_opens_no_base(tmp_path, monkeypatch):
    """The scores of the saved adapter on a base of its own, within 1e-5."""
    trainer = trained(tmp_path / "models" / "reward_model", conversational=False)
    assert share_prefixes(trainer.model)
    rows = pairs(conversational=False).map(lambda row: {"turns": 1, "source": "s"})
    folder = tmp_path / "models" / "reward_model"
    alone = review_reward_model(folder, rows)
    expected = json.loads((folder / "scores.json").read_text())
    monkeypatch.setattr("rlhf_recipes.rewards.open_base", None)
    reviewed = review_reward_model(folder, rows, trainer.model)
    records = json.loads((folder / "scores.json").read_text())
    for side in ("chosen_reward", "rejected_reward"):
        values, others = ([r[side] for r in rs] for rs in (records, expected))
        assert values == pytest.approx(others, abs=1e-5)
        assert len(set(values)) == len(values)
    assert reviewed == pytest.approx(alone, abs=1e-5)
