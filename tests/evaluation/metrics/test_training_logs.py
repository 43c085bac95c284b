import json

from rlhf_recipes.evaluation.metrics.training_logs import (
    TrainingLog,
    read_training_logs,
    summarize,
)


def test_runs_are_read_by_stage_in_order(evaluated):
    assert list(read_training_logs(evaluated / "models")) == ["reward", "ppo", "grpo", "dpo"]


def test_samples_seen_are_steps_times_what_a_step_takes(tmp_path):
    folder = tmp_path / "dpo_model"
    folder.mkdir()
    log = [{"step": step, "loss": 1.0} for step in (5, 10)]
    state = {"log_history": log, "train_batch_size": 4}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    run = {"processes": 2, "recipe": {"gradient_accumulation_steps": 3}}
    (folder / "run.json").write_text(json.dumps(run))
    loss = summarize(read_training_logs(tmp_path))["dpo"].quantities["loss"]
    assert loss.samples == [5 * 24, 10 * 24]


def test_logged_episodes_are_the_samples_seen():
    log = [{"step": step, "loss": 1.0, "episode": 16 * step} for step in (1, 2)]
    assert TrainingLog(log, samples_per_step=3).samples([1, 2]) == [16, 32]


def test_long_curves_are_thinned_to_their_ends_and_200_points():
    log = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    loss = summarize({"dpo": TrainingLog(log)})["dpo"].quantities["loss"]
    assert len(loss.values) == 200 and (loss.values[0], loss.values[-1]) == (1, 1000)
    assert loss.samples is None
