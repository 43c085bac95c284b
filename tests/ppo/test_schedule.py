import pytest

from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.schedule import Position, Schedule


def schedule(tmp_path, prompts=16, **changes) -> Schedule:
    settings = {"per_device_train_batch_size": 2, "num_mini_batches": 2, "num_ppo_epochs": 3}
    return Schedule(PPOConfig(output_dir=str(tmp_path), **{**settings, **changes}), prompts)


def test_a_rollout_is_visited_whole_in_every_epoch_and_in_another_order(tmp_path):
    plan = schedule(tmp_path, gradient_accumulation_steps=2)
    places = [plan.position(step) for step in range(24)]
    assert places[0] == Position(0, 0, 0, 0)
    assert places[1] == Position(0, 0, 0, 1)
    assert places[2] == Position(0, 0, 1, 0)
    assert places[4] == Position(0, 1, 0, 0)
    assert places[12] == Position(1, 0, 0, 0)
    assert [p.starts_rollout for p in places].count(True) == 2
    orders = []
    for epoch in range(3):
        rows = [plan.minibatch_rows(Position(0, epoch, m, 0)).tolist() for m in range(2)]
        assert sorted(rows[0] + rows[1]) == list(range(8))
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != [plan.minibatch_rows(Position(1, 0, m, 0)).tolist() for m in range(2)]


def test_an_epoch_visits_each_prompt_at_most_once_and_another_epoch_in_another_order(tmp_path):
    plan = schedule(tmp_path, per_device_train_batch_size=5, num_mini_batches=1)
    first, second, third, fourth = (plan.prompt_rows(number) for number in range(4))
    assert len({*first, *second, *third}) == 15  # of 16 prompts, one is left over
    assert fourth != first
    assert first == plan.prompt_rows(0)


def test_several_completions_a_prompt_take_fewer_prompts(tmp_path):
    plan = schedule(tmp_path, num_generations=2)
    assert len(plan.prompt_rows(0)) == 2  # for 4 episodes
    assert plan.micro_steps_per_epoch == 8 * 6


@pytest.mark.parametrize(("episodes", "rollouts"), [(1, 1), (4, 1), (5, 2), (20, 5)])
def test_episodes_are_counted_in_whole_rollouts(tmp_path, episodes, rollouts):
    plan = schedule(tmp_path)
    assert plan.num_steps(episodes) == rollouts * 6
    assert plan.num_rollouts(plan.num_steps(episodes)) == rollouts
    assert plan.num_rollouts(plan.num_steps(episodes) - 5) == rollouts


def test_a_prompts_completions_are_in_one_minibatch(tmp_path):
    plan = schedule(tmp_path, per_device_train_batch_size=4, num_generations=2)
    for epoch in range(3):
        rows = [plan.minibatch_rows(Position(0, epoch, m, 0)).tolist() for m in range(2)]
        assert sorted(rows[0] + rows[1]) == list(range(8))
        for minibatch in rows:
            assert [row // 2 for row in minibatch[::2]] == [row // 2 for row in minibatch[1::2]]
