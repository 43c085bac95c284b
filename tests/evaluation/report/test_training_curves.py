import json

import pytest
from matplotlib.image import imread

from rlhf_recipes.evaluation import training_curves_figure
from rlhf_recipes.evaluation.report.training_curves import Run, curves, read_runs, summarise


def test_trainers_names_become_one_schema(logs):
    assert {"accuracy", "margin", "loss", "gradient norm"} <= set(curves(logs["reward"]))
    assert {"accuracy", "margin", "loss"} <= set(curves(logs["dpo"]))
    assert {"reward", "KL per token", "entropy", "length (tokens)"} <= set(curves(logs["grpo"]))
    assert {"reward", "KL per response", "entropy"} <= set(curves(logs["ppo"]))


def test_validation_is_kept_apart(logs):
    found = curves(logs["reward"])
    assert found["loss (validation)"][0] == [20, 40, 60, 80]
    assert len(found["loss"][0]) == 80


def test_what_is_no_finite_number_is_left_out():
    values = (float("nan"), "x", 0.5)
    log = [{"step": step, "kl": value} for step, value in enumerate(values, 1)]
    assert curves(log)["KL per token"] == ([3], [0.5])


@pytest.mark.parametrize("methods", [["reward"], ["ppo", "grpo"], ["reward", "ppo", "grpo", "dpo"]])
def test_figure_is_written(logs, tmp_path, methods):
    path = tmp_path / "deep" / "curves.png"
    assert training_curves_figure({m: logs[m] for m in methods}, path)
    assert imread(path).shape[1] > 600


def test_one_logged_step_is_enough(tmp_path):
    assert training_curves_figure({"dpo": [{"step": 1, "loss": 0.7}]}, tmp_path / "c.png")


@pytest.mark.parametrize("logs", [{}, {"dpo": []}, {"dpo": [{"step": 1, "train_runtime": 2.0}]}])
def test_nothing_logged_writes_nothing(tmp_path, logs):
    assert not training_curves_figure(logs, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_runs_are_read_by_stage_in_order(evaluated):
    assert list(read_runs(evaluated / "models")) == ["reward", "ppo", "grpo", "dpo"]


def test_samples_seen_are_steps_times_what_a_step_takes(tmp_path):
    folder = tmp_path / "dpo_model"
    folder.mkdir()
    log = [{"step": step, "loss": 1.0} for step in (5, 10)]
    state = {"log_history": log, "train_batch_size": 4}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    run = {"processes": 2, "recipe": {"gradient_accumulation_steps": 3}}
    (folder / "run.json").write_text(json.dumps(run))
    loss = summarise(read_runs(tmp_path))["dpo"]["quantities"]["loss"]
    assert loss["samples"] == [5 * 24, 10 * 24]


def test_logged_episodes_are_the_samples_seen():
    log = [{"step": step, "loss": 1.0, "episode": 16 * step} for step in (1, 2)]
    assert Run(log, samples_per_step=3).samples([1, 2]) == [16, 32]


def test_long_curves_are_thinned_to_their_ends_and_200_points():
    log = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    loss = summarise({"dpo": Run(log)})["dpo"]["quantities"]["loss"]
    assert len(loss["values"]) == 200 and (loss["values"][0], loss["values"][-1]) == (1, 1000)
    assert loss["samples"] is None
