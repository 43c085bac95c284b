import json
import math

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.metrics.samples import ordered, read_samples


@pytest.fixture
def models(records_of):
    return {name: records_of(name, (0, 0, 1), 4, 1) for name in ("base", "dpo")}


def read(folder, models, collection_in):
    return read_samples(collection_in(folder / "out", models) / "samples")


def test_models_are_in_the_order_used_everywhere():
    names = ["zephyr", "dpo", "control", "base", "grpo", "ppo"]
    assert ordered(names, {}, {}) == ["base", "ppo", "grpo", "dpo", "control", "zephyr"]


def test_values_are_by_prompt_and_sample_whatever_the_order_in_the_file(
    tmp_path, records_of, collection_in
):
    records = records_of("dpo", (0, 0, 1), 3, 2)
    models = {"base": records_of("base", (0, 0, 0), 3, 2), "dpo": records[::-1]}
    found = read(tmp_path, models, collection_in).models["dpo"].values("reward")
    assert found.shape == (3, 2)
    assert found.ravel().tolist() == [record["reward"] for record in records]


def test_the_control_is_no_contestant(tmp_path, models, records_of, collection_in):
    models["control"] = records_of("control", (0, 0, 0), 4, 1)
    collection = read(tmp_path, models, collection_in)
    assert list(collection.models) == ["base", "dpo"]
    assert collection.control is not None and collection.primary == "gold"


def test_no_samples_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"collection.json does not exist.*make evaluate"):
        read_samples(tmp_path / "samples")


def test_broken_json(tmp_path, models, collection_in):
    folder = collection_in(tmp_path / "out", models) / "samples"
    (folder / "dpo_samples.json").write_text('[{"id": ')
    with pytest.raises(RecipeError, match=r"dpo_samples\.json is not JSON"):
        read_samples(folder)


def test_different_prompt_sets(tmp_path, models, collection_in):
    models["dpo"][2]["prompt"] = "Something else?"
    with pytest.raises(RecipeError, match="`dpo` and `base` differ in 1 prompts"):
        read(tmp_path, models, collection_in)


def test_a_model_with_other_prompts_on_top(tmp_path, models, records_of, collection_in):
    models["dpo"] = records_of("dpo", (0, 0, 1), 6, 1)
    with pytest.raises(RecipeError, match=r"differ in 2 prompts \(6 and 4 in all\)"):
        read(tmp_path, models, collection_in)


def test_a_model_without_samples(tmp_path, models, collection_in):
    with pytest.raises(RecipeError, match="`dpo` has no samples"):
        read(tmp_path, models | {"dpo": []}, collection_in)


def test_one_prompt_only(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 1, 4) for name in ("base", "dpo")}
    with pytest.raises(RecipeError, match="one prompt only"):
        read(tmp_path, models, collection_in)


def test_no_base(tmp_path, models, collection_in):
    with pytest.raises(RecipeError, match="no `base`"):
        read(tmp_path, {"dpo": models["dpo"]}, collection_in)


def test_nothing_to_compare(tmp_path, models, collection_in):
    with pytest.raises(RecipeError, match="nothing to compare"):
        read(tmp_path, {"base": models["base"]}, collection_in)


def test_an_uneven_number_of_samples(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 4, 2) for name in ("base", "dpo")}
    with pytest.raises(RecipeError, match="`dpo` has between 1 and 2 samples"):
        read(tmp_path, models | {"dpo": models["dpo"][:-1]}, collection_in)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_reward_that_is_no_number(tmp_path, models, collection_in, value):
    models["dpo"][1]["reward"] = value
    with pytest.raises(RecipeError, match="dpo-0001-0 of `dpo` has reward ="):
        read(tmp_path, models, collection_in)


def test_gold_for_some_samples_only(tmp_path, models, collection_in):
    models["dpo"][0]["gold"] = None
    with pytest.raises(RecipeError, match="1 of 8 samples have no gold"):
        read(tmp_path, models, collection_in)


def test_gold_that_is_never_a_number(tmp_path, models, collection_in):
    """It was taken for no gold, and claims were made on the proxy."""
    for record in models["base"] + models["dpo"]:
        record["gold"] = math.nan
    with pytest.raises(RecipeError, match="8 of 8 samples have no gold"):
        read(tmp_path, models, collection_in)


def test_no_gold_at_all_leaves_the_proxy(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 4, 1, gold=False) for name in ("base", "dpo")}
    assert read(tmp_path, models, collection_in).metrics == ("proxy",)


def test_one_collection_of_two_generation_settings(tmp_path, models, collection_in):
    folder = collection_in(tmp_path / "out", models) / "samples"
    facts = json.loads((folder / "collection.json").read_text())
    facts["models"]["dpo"]["generation"] = facts["generation"] | {"temperature": 0.7}
    (folder / "collection.json").write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match=r"`dpo`.*`generation.temperature`: 1.0 there, 0.7 now"):
        read_samples(folder)


def test_one_collection_of_two_bases(tmp_path, models, collection_in):
    folder = collection_in(tmp_path / "out", models) / "samples"
    facts = json.loads((folder / "collection.json").read_text())
    facts["models"]["dpo"]["base"] = "another/model"
    (folder / "collection.json").write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match=r"`dpo` was .*`base`: demo there, another/model now"):
        read_samples(folder)


def test_a_curve_that_is_not_that_of_the_kl(tmp_path, models, collection_in):
    models["dpo"][2]["kl_curve"][0] += 0.5
    with pytest.raises(RecipeError, match=r"dpo-0002-0 of `dpo` has a `kl_curve` that sums to"):
        read(tmp_path, models, collection_in)


def test_a_judge_that_scored_some_samples_only(tmp_path, models, collection_in):
    models["dpo"][0]["scores"] = {"second": 1.0}
    with pytest.raises(RecipeError, match="7 of 8 samples have no second score"):
        read(tmp_path, models, collection_in)


def test_extra_judges_stand_between_proxy_and_gold(tmp_path, models, collection_in):
    for record in models["base"] + models["dpo"]:
        record["scores"] = {"second": float(record["prompt_id"])}
    collection = read(tmp_path, models, collection_in)
    assert collection.metrics == ("proxy", "second", "gold")
    assert collection.base.scores("second").ravel().tolist() == [0, 1, 2, 3]


def test_without_gold_claims_rest_on_the_extra_judge(tmp_path, models, collection_in):
    for record in models["base"] + models["dpo"]:
        record |= {"gold": None, "scores": {"second": 1.0}}
    assert read(tmp_path, models, collection_in).primary == "second"


def test_a_family_is_ordered_by_its_steps_and_its_last_is_what_counts(
    tmp_path, models, records_of, collection_in
):
    steps = {"a-20": 20, "a-5": 5, "a-100": 100}
    runs = [*steps, "dpo-b", "dpo-a"]
    models |= {name: records_of(name, (0, 0, 1), 4, 1) for name in runs}
    families = dict.fromkeys(steps, "a") | {"dpo-a": "dpo", "dpo-b": "dpo"}
    output = collection_in(tmp_path / "out", models, families=families, checkpoints=steps)
    collection = read_samples(output / "samples")
    assert list(collection.models) == ["base", "dpo", "dpo-a", "dpo-b", "a-5", "a-20", "a-100"]
    assert [model.name for model in collection.finals] == ["dpo", "dpo-a", "dpo-b", "a-100"]


def test_a_finished_run_counts_before_its_checkpoints(tmp_path, models, records_of, collection_in):
    models["dpo-90"] = records_of("dpo-90", (0, 0, 1), 4, 1)
    facts = {"families": {"dpo-90": "dpo"}, "checkpoints": {"dpo-90": 90}}
    collection = read_samples(collection_in(tmp_path / "out", models, **facts) / "samples")
    assert list(collection.models) == ["base", "dpo-90", "dpo"]
    assert [model.name for model in collection.finals] == ["dpo"]


def test_checkpoints_belong_to_the_run_of_their_name(tmp_path, models, records_of, collection_in):
    # Two seeds of one family, whose runs are of different lengths.
    steps = {"ppo-a-10": 10, "ppo-a": 20, "ppo-b-10": 10, "ppo-b": 30}
    models |= {name: records_of(name, (0, 0, 1), 4, 1) for name in steps}
    facts = {"families": dict.fromkeys(steps, "ppo"), "checkpoints": steps}
    collection = read_samples(collection_in(tmp_path / "out", models, **facts) / "samples")
    runs = {run: [model.name for model in path] for run, path in collection.runs.items()}
    assert runs["ppo-a"] == ["ppo-a-10", "ppo-a"] and runs["ppo-b"] == ["ppo-b-10", "ppo-b"]
    assert [model.name for model in collection.finals] == ["ppo-a", "ppo-b", "dpo"]


def test_samples_left_over_from_another_run_are_not_read(tmp_path, models, collection_in):
    folder = collection_in(tmp_path / "out", models) / "samples"
    (folder / "old_samples.json").write_text(json.dumps([{"prompt_id": 99}]))
    assert list(read_samples(folder).models) == ["base", "dpo"]
