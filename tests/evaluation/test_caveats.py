import copy
import json

import pytest

from rlhf_recipes.evaluation.caveats import caveats
from rlhf_recipes.evaluation.samples import read_samples


@pytest.fixture
def results(evaluated):
    return json.loads((evaluated / "results" / "evaluation_results.json").read_text())


@pytest.fixture(scope="module")
def collection(evaluated):
    return read_samples(evaluated / "samples")


def said(results, collection):
    return " ".join(caveats(results, collection))


def test_nothing_is_said_that_does_not_hold(results, collection):
    assert caveats(results, collection) == results["warnings"]
    seed, cut_off = results["warnings"]
    assert "One training seed" in seed and "cut off at the length limit (base 34%," in cut_off


def test_each_caveat_is_said_where_it_holds(results, collection):
    ppo = results["models"]["ppo"]
    lc = {"extreme": True, "value": 0.52, "raw": 0.71}
    for change, sentence in (
        (lambda: results["config"].update(n_prompts=20), "20 prompts are few"),
        (lambda: ppo["kl"].update(k1_agrees=False), "ppo: the exact KL and its sampled estimate"),
        (lambda: ppo["win_rate"]["lc"].update(lc), "win rate is 52%, and 71% as it is"),
        (lambda: ppo["win_rate"]["lc"].update(overlaps=False, longer=0.97), "on 97% of the"),
        (lambda: ppo["failures"]["truncated"].update(rate=0.45), "ppo 45%"),
        (lambda: results["controls"]["control"].update(passed=False), "A/A control failed"),
        (
            lambda: results["controls"].update(best_of_n={"passed": False}),
            "positive control failed",
        ),
        (lambda: results["controls"].pop("control"), "No control"),
    ):
        assert sentence not in said(results, collection)
        change()
        assert sentence in said(results, collection)


def test_prompts_that_were_trained_on_are_counted(results, collection):
    facts = copy.deepcopy(collection.facts)
    collection.facts["prompts_in_training"] = 7
    assert "7 of the prompts are training prompts" in said(results, collection)
    collection.facts.clear()
    collection.facts.update(facts)
