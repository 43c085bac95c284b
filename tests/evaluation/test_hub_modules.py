"""The modules of hub_modules/, loaded by path and offline, as evaluate's users load them."""

import math

import datasets
import evaluate
import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.samples import ModelSamples
from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.evaluation.metrics.win_rate import win_rate

NAMES = ("win_rate", "policy_kl", "reward_model_calibration")


@pytest.fixture(scope="module")
def load(root, tmp_path_factory):
    """evaluate.load of a module's folder, with a cache of its own: evaluate knows one a process."""
    cache = tmp_path_factory.mktemp("evaluate")
    assert datasets.config.HF_HUB_OFFLINE

    def loaded(name):
        kind = "measurement" if name == "policy_kl" else "metric"
        folder = str(root / "hub_modules" / name)
        return evaluate.load(folder, module_type=kind, cache_dir=str(cache / "data"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache))
        patch.syspath_prepend(str(cache))
        yield loaded


def test_the_win_rate_is_that_of_the_function(load):
    metric = load("win_rate")
    own, base = [3.0, 1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 2.0, 1.0, 4.0]
    found = metric.compute(predictions=own, references=base)
    assert found["value"] == pytest.approx((3 + 0.5) / 5)
    assert (found["wins"], found["ties"], found["losses"]) == (3, 1, 1)
    assert found == as_json(win_rate(np.array(own)[:, None], np.array(base)[:, None]))
    assert metric.compute(predictions=own, references=base, epsilon=5.0)["ties"] == 5


def test_several_samples_a_prompt_are_all_compared(load):
    """Scores [1, 3] against [0, 2]: three of four pairs are won."""
    found = load("win_rate").compute(
        predictions=[[1.0, 3.0], [1.0, 3.0]], references=[[0.0, 2.0], [0.0, 2.0]]
    )
    assert found["value"] == 0.75


def test_the_divergence_is_that_of_the_function(load):
    columns = {"kl": [1.0, 3.0, 2.0], "kl_k1": [0.5, 3.5, 1.5], "n_tokens": [4, 4, 8]}
    found = load("policy_kl").compute(**columns)
    assert found["seq"] == pytest.approx(2.0)
    assert found["token"] == pytest.approx(6 / 16)
    assert found["sqrt"] == pytest.approx(math.sqrt(2))
    records = [
        [dict(zip(columns, row, strict=True))] for row in zip(*columns.values(), strict=True)
    ]
    whole = as_json(kl_summary(ModelSamples("policy", records)))
    assert found == {name: whole[name] for name in found}


def test_a_metric_can_be_fed_in_batches(load):
    metric = load("policy_kl")
    for kl in (1.0, 3.0):
        metric.add_batch(kl=[kl, kl], kl_k1=[kl, kl], n_tokens=[2, 2])
    assert metric.compute()["seq"] == 2.0


def test_margins_that_mean_what_they_say_are_calibrated(load):
    """Three of four pairs right, each claimed with probability 3/4: no error, NLL the entropy."""
    calibration = pytest.importorskip("rlhf_recipes.evaluation.metrics.calibration")
    margin = math.log(3)
    chosen, rejected = [margin, margin, margin, 0.0], [0.0, 0.0, 0.0, margin]
    found = load("reward_model_calibration").compute(chosen=chosen, rejected=rejected)
    assert found["accuracy"]["value"] == 0.75
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["nll"]["value"] == pytest.approx(entropy, rel=1e-9)
    whole = calibration.calibration(np.array(chosen) - np.array(rejected))
    assert found["reliability"] == as_json(whole.reliability)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_has_what_a_space_needs(root, name):
    folder = root / "hub_modules" / name
    assert {"README.md", "app.py", "requirements.txt", f"{name}.py"} <= {
        path.name for path in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "sdk: gradio" in card and "app_file: app.py" in card
    compile((folder / "app.py").read_text(), "app.py", "exec")
