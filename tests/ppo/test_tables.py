import pandas as pd
import pytest

from rlhf_recipes.ppo.tables import format_samples, rollout_metrics, write_table

TABLE = {
    "prompt": ["say", [{"role": "user", "content": "why\nnot"}]],
    "completion": [" a b", "because"],
    "score": [1.0, 3.0],
    "effective_score": [-1.0, 1.5],
    "kl": [0.5, 1.5],
    "entropy": [6.0, 2.0],
    "length": [3, 1],
    "finished": [True, False],
    "rewards/reward_model": [1.0, 3.0],
}


def test_metrics_are_means_over_episodes():
    metrics = rollout_metrics(TABLE, kl_coef=0.1)
    assert metrics == {
        "objective/kl": 1.0,
        "objective/entropy": 4.0,
        "objective/non_score_reward": -0.1,
        "objective/rlhf_reward": pytest.approx(0.15),  # 0.25 - 0.1
        "objective/scores": 2.0,
        "objective/kl_coef": 0.1,
        "policy/entropy_avg": 2.0,  # 8 nats over 4 tokens
        "val/num_eos_tokens": 1.0,
        "completions/mean_length": 2.0,
    }


def test_several_reward_functions_are_logged_one_by_one():
    metrics = rollout_metrics(TABLE | {"rewards/length": [2.0, 4.0]}, kl_coef=0.1)
    assert metrics["rewards/reward_model"] == 2.0
    assert metrics["rewards/length"] == 3.0


def test_a_few_samples_are_shown_on_lines_of_their_own():
    shown = format_samples(TABLE)
    assert "why not" in shown
    assert "-> a b\n       score 1.00, KL 0.50" in shown
    assert format_samples(TABLE, rows=1).count("\n") == 2


def test_a_table_is_written_with_a_row_an_episode(tmp_path):
    texts = TABLE | {"prompt": ["say", "why"]}  # a dataset's prompts are all of one kind
    write_table(texts, tmp_path / "deeper" / "table.parquet")
    assert len(pd.read_parquet(tmp_path / "deeper" / "table.parquet")) == 2
