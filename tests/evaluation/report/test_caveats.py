import copy
import json
import re

import numpy as np
import pytest

from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.metrics.comparisons import PositiveControl
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.statistics import Estimate, Interval, outliers
from rlhf_recipes.evaluation.metrics.win_rate import WinRates
from rlhf_recipes.evaluation.report.caveats import caveats
from rlhf_recipes.evaluation.results import evaluation_results
from tests.evaluation.changing import changed


@pytest.fixture(scope="module")
def collection(evaluated):
    return read_samples(evaluated / "samples")


@pytest.fixture(scope="module")
def results(collection):
    return evaluation_results(collection)[0]


def said(results, collection):
    return " ".join(caveats(results, collection))


def test_a_caveat_needs_its_condition(results, collection):
    seed, cut_off = caveats(results, collection)
    assert "One training seed" in seed and "cut off at the length limit (base 34%," in cut_off


def test_each_caveat_follows_from_its_condition(results, collection):
    lc = {"value": 0.52, "ci": (0.4, 0.6), "shift": Estimate(-0.19, Interval(-0.3, -0.1))}
    lost = PositiveControl(4, 0.8, WinRates({}), 0.6, passed=False)
    for path, changes, sentence in (
        ("config", {"n_prompts": 20}, "20 prompts are few"),
        ("models.ppo.kl", {"k1_agrees": False}, "ppo: the exact KL and its sampled estimate"),
        ("models.ppo.win_rate.lc", lc, "52% [40, 60] at equal length, a shift of -19 points"),
        ("models.ppo.win_rate.lc", {"overlaps": False, "longer": 0.97}, "on 97% of the"),
        ("models.ppo.failures.truncated", {"rate": 0.45}, "ppo 45%"),
        ("controls.control", {"passed": False}, "A/A control failed"),
        ("controls", {"best_of_n": lost}, "positive control failed"),
        ("controls", {"control": None}, "No control"),
    ):
        assert sentence not in said(results, collection)
        assert sentence in said(changed(results, path, **changes), collection)


def test_prompts_that_were_trained_on_are_counted(results, collection):
    facts = copy.deepcopy(collection.facts)
    collection.facts["prompts_in_training"] = 7
    assert "7 of the prompts are training prompts" in said(results, collection)
    collection.facts.clear()
    collection.facts.update(facts)


def test_an_sft_reference_is_named(results, collection):
    assert "bare_base" not in said(results, collection)
    collection.facts["reference"] = "models/sft_model"
    assert "`base` is the adapter in models/sft_model" in said(results, collection)
    del collection.facts["reference"]


def altered(records, **changes):
    """Records with fields set by functions of the record."""
    return [record | {key: of(record) for key, of in changes.items()} for record in records]


def one_judged(readable):
    """Verdicts on every prompt of ppo and the control, of which some cannot be read."""
    return [
        {
            "prompt_id": i,
            "sample_index": 0,
            "model": model,
            "against": "base",
            "readable": i >= 24 - readable,
            "outcome": 1.0 if i >= 24 - readable else None,
            "first": 1.0,
            "second": 1.0 if i >= 24 - readable else None,
        }
        for model in ("ppo", "control")
        for i in range(24)
    ]


@pytest.fixture(scope="module")
def warned(tmp_path_factory, records_of, collection_in):
    """Analyze a changed collection of base, control and ppo; returns results and report."""
    numbers = iter(range(100))

    def analyzed(prompts=24, change=None, verdicts=None, **facts):
        effects = {"base": (0, 0, 0), "control": (0, 0, 0), "ppo": (0.5, 5, 2)}
        models = {name: records_of(name, effect, prompts, 1) for name, effect in effects.items()}
        for record in models["base"] + models["control"]:
            record |= {"kl": 0.0, "kl_k1": 0.0, "kl_curve": [0.0] * record["n_tokens"]}
        models = change(models) if change else models
        folder = tmp_path_factory.mktemp("warned") / str(next(numbers))
        output = collection_in(folder, models, **facts)
        if verdicts is not None:
            (output / "samples" / "verdicts_chat.json").write_text(json.dumps(verdicts))
        return analyze(output), (output / "ANALYSIS.md").read_text()

    return analyzed


def with_outlier(models):
    models["ppo"][3]["reward"] = 1e6
    return models


def with_repeats(models):
    for records in models.values():
        for i in (5, 6):
            records[i]["prompt"] = "  " + records[0]["prompt"].upper().replace(" ", "  ")
    return models


def with_copies(models):
    copied = [record["response"] for record in models["base"]]
    models["ppo"] = [r | {"response": t} for r, t in zip(models["ppo"], copied, strict=True)]
    return models


def without_variation(models):
    return {name: altered(records, gold=lambda r: 7.0) for name, records in models.items()}


SILENT = {
    "outliers": (with_outlier, "ppo: `ppo-0003-0` scores 1000000 by proxy, over 10 robust"),
    "repeated prompts": (with_repeats, "2 prompts are another one but for case and spaces"),
    "equal completions": (with_copies, "base and ppo give the same completion to 100%"),
    "constant": (without_variation, "base: every completion scores 7.00 by gold. Gains by it are"),
    "all tied": (without_variation, "ppo: all 24 prompts tie with base by gold"),
}


@pytest.mark.parametrize("name", SILENT)
def test_silent_distortions_give_a_caveat(warned, name):
    change, sentence = SILENT[name]
    assert not any(sentence in warning for warning in warned()[0].warnings)
    results, text = warned(change=change)
    assert any(sentence in warning for warning in results.warnings)
    assert sentence in text


def test_a_repeated_prompt_counts_once(warned):
    results, _ = warned(change=with_repeats)
    assert results.config.n_prompts == 22 and results.models["ppo"].n_prompts == 22

    # Doubling every prompt adds nothing: all intervals are as before.
    def doubled(models):
        return {
            name: [
                r
                | {"prompt_id": 2 * r["prompt_id"] + k, "id": f"{name}-{2 * r['prompt_id'] + k}-0"}
                for r in records
                for k in (0, 1)
            ]
            for name, records in models.items()
        }

    once, twice = warned()[0], warned(change=doubled)[0]
    assert twice.models["ppo"].win_rate == once.models["ppo"].win_rate
    assert twice.models["ppo"].gold == once.models["ppo"].gold


@pytest.mark.parametrize("prompts", [2, 5, 9])
def test_fewer_than_ten_prompts_name_no_direction(warned, prompts):
    def far_apart(models):
        models["ppo"] = altered(
            models["ppo"], reward=lambda r: r["reward"] + 50, gold=lambda r: r["gold"] + 500
        )
        return models

    results, text = warned(prompts, far_apart)
    assert results.models["ppo"].verdict == "too few prompts"
    assert results.controls.control.passed is None
    assert not results.models["base"].frontier["gold"].dominated
    prose = re.sub(r"(`{3,})text\n.*?\n\1", "", text, flags=re.DOTALL)
    prose = prose[: prose.index("## Glossary")]
    for word in ("better", "worse", "rose", "fell", "is dominated", "passed", "more `", "less `"):
        assert word not in prose, word
    assert f"{prompts} prompts are too few: below 10 no direction is named" in text


@pytest.mark.parametrize(("readable", "passed"), [(0, None), (12, None), (19, None), (24, False)])
def test_a_control_never_passes_on_verdicts_that_are_missing(warned, readable, passed):
    results, text = warned(verdicts=one_judged(readable))
    control = results.controls.control
    assert control.passed is passed
    assert control.undecided_on == ([] if readable == 24 else ["chat"])
    judged = results.models["ppo"].win_rate.get("chat")
    if readable == 0:
        assert judged is None
    else:
        assert judged.value == 1 and judged.n == readable
    missing = f"chat: {48 - 2 * readable} of 48 verdicts cannot be read"
    assert (missing in text) == (readable < 24)
    refused = "Nothing is said of ppo, where fewer than 80% can be read" in text
    assert refused == (readable < 20)


def test_outliers_are_those_that_decide_a_mean():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(500, 4))
    assert not outliers(normal).any()
    assert not outliers((rng.random((200, 1)) < 0.1).astype(float)).any()
    assert not outliers(np.zeros((20, 1))).any()
    normal[7, 2] = 1e6
    assert np.argwhere(outliers(normal)).tolist() == [[7, 2]]
    rare = np.zeros((50, 1))
    rare[3] = 1e6
    assert np.argwhere(outliers(rare)).tolist() == [[3, 0]]
