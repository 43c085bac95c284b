import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.curve_checks import curve_checks, slope_interval


def checks(**curves):
    named = {name.replace("_", " "): (list(range(len(y))), list(y)) for name, y in curves.items()}
    return {check["check"]: check for check in curve_checks(named)}


LINE, CONSTANT = np.arange(40.0), np.full(40, 3.0)
STEP = np.repeat([0.0, 1.0], 20)


def test_a_line_is_still_rising_by_its_slope():
    found = checks(reward=LINE)["trend"]
    assert found["outcome"] == "rising" and found["raised"]
    assert found["value"] == pytest.approx(1) and found["ci"] == pytest.approx([1, 1])


@pytest.mark.parametrize("curve", [CONSTANT, STEP], ids=["constant", "step"])
def test_a_constant_and_a_step_end_on_a_plateau(curve):
    found = checks(reward=curve)["trend"]
    assert found["outcome"] == "none detectable" and not found["raised"]


def test_a_loss_learns_by_falling():
    assert checks(loss=-LINE)["trend"]["raised"]
    assert not checks(loss=LINE)["trend"]["raised"]
    assert checks(reward=-LINE)["trend"]["outcome"] == "falling"
    assert not checks(reward=-LINE)["trend"]["raised"]


def test_the_trend_is_of_the_reward_before_margin_and_loss():
    assert checks(loss=LINE, margin=LINE, reward=CONSTANT)["trend"]["quantity"] == "reward"


def test_too_few_values_have_no_trend():
    found = checks(reward=np.arange(7.0))["trend"]
    assert found["value"] is None and found["raised"] is None


def test_the_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x, y = np.arange(30.0), 0.2 * np.arange(30) + rng.normal(size=30)
    slope, (low, high) = slope_interval(x, y)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert low < slope < high


def test_noise_around_a_plateau_is_rarely_called_a_trend():
    # 200 curves of white noise; the interval is approximate, and ten values are few.
    rng = np.random.default_rng(1)
    called = [checks(reward=rng.normal(size=120))["trend"]["outcome"] for _ in range(200)]
    assert np.mean([outcome != "none detectable" for outcome in called]) < 0.15


@pytest.mark.parametrize("name", ["KL_per_response", "KL_per_token"])
def test_kl_that_doubles_runs_away_and_a_line_does_not(name):
    assert checks(**{name: 2 ** (np.arange(40) / 5)})["KL runaway"]["raised"]
    # Quarter means of a line from 0 are 4.5, 14.5, 24.5, 34.5: the last ratio is 1.41.
    found = checks(**{name: LINE})["KL runaway"]
    assert found["value"] == pytest.approx(34.5 / 24.5) and not found["raised"]


def test_entropy_collapse_is_a_fifth_of_the_start():
    assert checks(entropy=np.linspace(2, 0.1, 40))["entropy collapse"]["raised"]
    assert not checks(entropy=np.linspace(2, 1, 40))["entropy collapse"]["raised"]


def test_the_other_thresholds():
    raised = {
        "length growth": ({"length (tokens)": np.linspace(20, 60, 40)}, CONSTANT),
        "no signal": ({"groups without signal": np.full(8, 0.6)}, np.full(8, 0.4)),
        "cut off": ({"cut off at the limit": np.linspace(0, 0.5, 40)}, np.full(8, 0.2)),
    }
    for check, (curve, fine) in raised.items():
        assert checks(**curve)[check]["raised"]
        assert not checks(**dict.fromkeys(curve, fine))[check]["raised"]


def test_what_was_not_logged_is_not_checked():
    assert list(checks(reward=LINE)) == ["trend"]
