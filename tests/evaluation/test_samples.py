import json
import math

import pytest

from rlhf_recipes.arguments import RecipeError
from rlhf_recipes.evaluation.samples import ordered, read_samples


@pytest.fixture
def models(records_of):
    return {name: records_of(name, (0, 0, 1), 4, 1) for name in ("base", "dpo")}


def read(folder, models, collection_in):
    return read_samples(collection_in(folder / "out", models) / "samples")


def test_models_are_in_the_order_used_everywhere():
    names = ["zephyr", "dpo", "control", "base", "grpo", "ppo"]
    assert ordered(names) == ["base", "ppo", "grpo", "dpo", "control", "zephyr"]


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


def test_no_gold_at_all_leaves_the_proxy(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 4, 1, gold=False) for name in ("base", "dpo")}
    assert read(tmp_path, models, collection_in).metrics == ("proxy",)


def test_samples_left_over_from_another_run_are_not_read(tmp_path, models, collection_in):
    folder = collection_in(tmp_path / "out", models) / "samples"
    (folder / "old_samples.json").write_text(json.dumps([{"prompt_id": 99}]))
    assert list(read_samples(folder).models) == ["base", "dpo"]
