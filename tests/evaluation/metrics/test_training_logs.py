import json

import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.training_logs import (
    TrainingLog,
    curve_checks,
    read_training_logs,
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
    assert read_training_logs(tmp_path)["dpo"].samples == 10 * 24


def test_logged_episodes_are_the_samples_seen():
    log = [{"step": step, "loss": 1.0, "episode": 16 * step} for step in (1, 2)]
    assert TrainingLog([*log, {"step": 2}], samples_per_step=3).samples == 32
    assert TrainingLog([{"step": 2}]).samples is None


def checks(**curves):
    named = {name.replace("_", " "): (list(range(len(y))), list(y)) for name, y in curves.items()}
    return {check.check: check for check in curve_checks(named)}


LINE, CONSTANT = np.arange(40.0), np.full(40, 3.0)


@pytest.mark.parametrize("name", ["KL_per_response", "KL_per_token"])
def test_kl_that_doubles_runs_away_and_a_line_does_not(name):
    assert checks(**{name: 2 ** (np.arange(40) / 5)})["KL runaway"].raised
    # Quarter means of a line from 0 are 4.5, 14.5, 24.5, 34.5: the last ratio is 1.41.
    found = checks(**{name: LINE})["KL runaway"]
    assert found.value == pytest.approx(34.5 / 24.5) and not found.raised


def test_entropy_collapse_is_a_fifth_of_the_start():
    assert checks(entropy=np.linspace(2, 0.1, 40))["entropy collapse"].raised
    assert not checks(entropy=np.linspace(2, 1, 40))["entropy collapse"].raised


def test_the_other_thresholds():
    raised = {
        "length growth": ({"length (tokens)": np.linspace(20, 60, 40)}, CONSTANT),
        "no signal": ({"groups without signal": np.full(8, 0.6)}, np.full(8, 0.4)),
        "cut off": ({"cut off at the limit": np.linspace(0, 0.5, 40)}, np.full(8, 0.2)),
    }
    for check, (curve, fine) in raised.items():
        assert checks(**curve)[check].raised
        assert not checks(**dict.fromkeys(curve, fine))[check].raised


def test_what_was_not_logged_is_not_checked():
    assert list(checks(entropy=LINE)) == ["entropy collapse"]
    assert checks(reward=LINE) == {}


def test_too_few_values_raise_nothing():
    found = checks(entropy=np.linspace(2, 0.1, 7))["entropy collapse"]
    assert found.value is None and found.raised is None
