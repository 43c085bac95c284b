import pytest
from matplotlib.image import imread

from rlhf_recipes.training_curves import curves, training_curves_figure
from tests.evaluation.conftest import log_histories


@pytest.fixture(scope="module")
def logs():
    return log_histories()


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
