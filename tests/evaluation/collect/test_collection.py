"""A whole collection with a tiny model: real adapters, real data, one process."""

import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import constants

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.collect import collection as collecting
from rlhf_recipes.evaluation.collect.journal import Journal
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.planning.plan import evaluation_plan
from rlhf_recipes.preferences import current_fingerprint
from rlhf_recipes.rewards import RewardModel
from tests.evaluation.chat_server import ChatServer
from tests.evaluation.collect.conftest import PROMPTS, write_adapter


def collect(arguments):
    collecting.collect(arguments, read_adapters(arguments))


def read(folder, name):
    return json.loads((folder / "samples" / f"{name}.json").read_text())


def responses(folder, name):
    return [(r["response"], r["kl"]) for r in read(folder, f"{name}_samples")]


@pytest.fixture
def work(monkeypatch):
    """The batches of responses that are sampled, as (role, number of prompts)."""
    done = []
    respond = KLSampler.sample

    def counted(self, role, prompts, count, seed):
        done.append((role, len(prompts)))
        return respond(self, role, prompts, count, seed)

    monkeypatch.setattr(KLSampler, "sample", counted)
    return done


def test_a_record_has_what_was_sampled_and_how(arguments, saved, tmp_path):
    collect(arguments(judges=[f"length={saved / 'rules.py'}:length"]))
    for name, seed in (("base", 42), ("ppo", 42), ("control", 43)):
        records = read(tmp_path, f"{name}_samples")
        assert [(r["prompt_id"], r["sample_index"]) for r in records] == [
            (i, k) for i in range(8) for k in range(2)
        ]
        for r in records:
            assert r["id"] == f"{name}-{r['prompt_id']:04d}-{r['sample_index']}"
            assert r["prompt"] == PROMPTS[r["prompt_id"]]
            assert (r["model"], r["reference"], r["seed"]) == (name, "base", seed)
            assert r["gold"] == r["scores"]["length"] == len(r["response"])
            assert r["finish"] == ("eos" if r["n_tokens"] < 6 else r["finish"])
            assert len(r["kl_curve"]) == r["n_tokens"]
            assert (r["kl"] == 0.0) == (name != "ppo")
            assert r["entropy"] > 0
    facts = read(tmp_path, "collection")
    assert facts["models"]["control"]["seed"] == 43
    assert (facts["n_prompts"], facts["samples_per_prompt"]) == (8, 2)
    assert facts["generation"]["top_k"] == 0
    assert facts["dataset_fingerprint"] == current_fingerprint(saved / "data")
    assert facts["prompts_in_training"] == 2  # the same but for case and spaces
    assert list(facts["judges"]) == ["length"]
    assert facts["families"] == {"ppo": "ppo"}


def test_the_reward_is_the_score_of_the_response_by_the_adapter_alone(arguments, saved, tmp_path):
    collect(arguments(gold_func=None, gold_model_path=str(saved / "gold")))
    records = read(tmp_path, "ppo_samples")
    for field, folder in (("reward", "proxy"), ("gold", "gold")):
        model = RewardModel.load(saved / folder)
        scores = model([r["prompt"] for r in records], [r["response"] for r in records])
        assert [r[field] for r in records] == pytest.approx(scores, rel=1e-4)


def test_a_gold_model_beside_a_gold_rule_is_one_more_judge(arguments, saved, tmp_path):
    collect(arguments(gold_model_path=str(saved / "gold")))
    record = read(tmp_path, "ppo_samples")[0]
    assert record["gold"] == len(record["response"])
    assert set(record["scores"]) == {"gold_model"}
    assert str(saved / "gold") in read(tmp_path, "collection")["judges"]["gold_model"]


def test_a_gold_model_may_stand_on_another_base(arguments, saved, tmp_path):
    open_base("tiny").save_pretrained(tmp_path / "base")
    open_tokenizer("tiny").save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "judge", seed=9, head=True, base=str(tmp_path / "base"))
    assert read_adapter(tmp_path / "judge").base != read_adapter(saved / "proxy").base
    collect(arguments(gold_func=None, gold_model_path=str(tmp_path / "judge")))
    record = read(tmp_path, "ppo_samples")[0]
    alone = RewardModel.load(tmp_path / "judge")([record["prompt"]], [record["response"]])
    assert record["gold"] == pytest.approx(alone[0], rel=1e-4)


def test_the_proxy_is_not_its_own_gold(arguments, saved):
    with pytest.raises(RecipeError, match="A proxy that judges itself"):
        collect(arguments(gold_func=None, gold_model_path=str(saved / "proxy")))


def test_a_judge_may_have_the_name_of_a_field(arguments, saved, tmp_path):
    collect(arguments(judges=[f"kl={saved / 'rules.py'}:length"]))
    record = read(tmp_path, "ppo_samples")[0]
    assert record["scores"] == {"kl": len(record["response"])}
    assert record["kl"] == pytest.approx(sum(record["kl_curve"]), rel=1e-4)


def test_base_alone_is_sampled_more_often_for_best_of_n(arguments, tmp_path):
    collect(arguments(best_of_n=5))
    assert len(read(tmp_path, "base_samples")) == 8 * 5
    assert len(read(tmp_path, "ppo_samples")) == len(read(tmp_path, "control_samples")) == 8 * 2


def test_a_collection_that_was_cut_off_ends_as_if_it_had_not_been(
    arguments, tmp_path, monkeypatch, work
):
    """It stops in the third batch of the policy; what it goes on with is that batch."""
    collect(arguments(output_dir=str(tmp_path / "straight")))
    assert work == [*[(None, 2)] * 4, *[("ppo", 2)] * 4, *[(None, 2)] * 4]
    work.clear()
    append = Journal.append

    def stops(self, piece):
        if self.path.name == "ppo.jsonl" and len(self.entries) == 2:
            raise KeyboardInterrupt
        append(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            collect(arguments())
    assert not (tmp_path / "samples" / "collection.json").exists()
    work.clear()
    collect(arguments())
    assert work == [*[("ppo", 2)] * 2, *[(None, 2)] * 4]
    for name in ("base", "ppo", "control"):
        straight = (tmp_path / "straight" / "samples" / f"{name}_samples.json").read_bytes()
        assert (tmp_path / "samples" / f"{name}_samples.json").read_bytes() == straight


def test_a_finished_collection_is_not_sampled_again(arguments, saved, tmp_path, work):
    collect(arguments())
    before = responses(tmp_path, "ppo")
    work.clear()
    collect(arguments(judges=[f"more={saved / 'rules.py'}:length"]))
    assert not work
    assert responses(tmp_path, "ppo") == before
    assert "more" in read(tmp_path, "ppo_samples")[0]["scores"]


def test_another_policy_is_sampled_beside_what_is_there(arguments, saved, tmp_path, work):
    collect(arguments())
    work.clear()
    collect(arguments(models=[f"ppo={saved / 'ppo'}", f"dpo={saved / 'dpo'}"]))
    assert set(work) == {("dpo", 2)}
    # The same weights and the same seed, but draws of its own.
    assert responses(tmp_path, "dpo") != responses(tmp_path, "ppo")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.5}, "`generation.temperature`: 1.0 there, 0.5 now"),
        ({"max_completion_length": 5}, "`generation.max_completion_length`: 6 there, 5 now"),
        ({"seed": 1}, "`seed`: 42 there, 1 now"),
        ({"eval_prompts": 5}, "`prompts.number`: 8 there, 5 now"),
        ({"samples_per_prompt": 1}, "`samples_per_prompt`: 2 there, 1 now"),
        ({"dtype": "bfloat16"}, "`base.dtype`: float32 there, bfloat16 now"),
    ],
)
def test_samples_of_other_settings_are_refused_by_name(arguments, tmp_path, work, changes, named):
    collect(arguments())
    work.clear()
    before = (tmp_path / "samples" / "ppo_samples.json").read_bytes()
    with pytest.raises(RecipeError) as refused:
        collect(arguments(**changes))
    assert named in str(refused.value)
    assert not work
    assert (tmp_path / "samples" / "ppo_samples.json").read_bytes() == before


def test_a_policy_that_was_trained_again_is_refused_and_overwritten_alone(
    arguments, saved, tmp_path, work
):
    shutil.copytree(saved / "ppo", tmp_path / "ppo")
    changes = {"models": [f"ppo={tmp_path / 'ppo'}"]}
    collect(arguments(**changes))
    before = responses(tmp_path, "ppo")
    shutil.copy(saved / "ppo/checkpoint-2/adapter_model.safetensors", tmp_path / "ppo")
    with pytest.raises(RecipeError, match="- `adapter`: "):
        collect(arguments(**changes))
    work.clear()
    collect(arguments(**changes, overwrite=True))
    assert set(work) == {("ppo", 2)}
    assert responses(tmp_path, "ppo") != before


def test_checkpoints_are_a_family_and_each_is_sampled_with_its_own_weights(
    arguments, saved, tmp_path
):
    collect(arguments(checkpoints=True))
    facts = read(tmp_path, "collection")
    assert facts["checkpoints"] == {"ppo-2": 2, "ppo-4": 4, "ppo": 6}
    assert facts["families"] == dict.fromkeys(("ppo-2", "ppo-4", "ppo"), "ppo")
    # A model's draws are its name's.
    alone = [f"ppo-{step}={saved / 'ppo' / f'checkpoint-{step}'}" for step in (2, 4)]
    collect(arguments(output_dir=str(tmp_path / "alone"), models=[*alone, f"ppo={saved / 'ppo'}"]))
    for name in ("ppo-2", "ppo-4", "ppo"):
        assert responses(tmp_path, name) == responses(tmp_path / "alone", name)
    assert len({str(responses(tmp_path, name)) for name in ("ppo-2", "ppo-4", "ppo")}) == 3


def test_a_chat_judge_compares_the_finished_models_with_base(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def first(prompt, a, b):
        return "A"

    server = ChatServer(first)
    try:
        collect(arguments(checkpoints=True, judges=[f"chat={server.url}#m"]))
        verdicts = read(tmp_path, "verdicts_chat")
        assert [(v["model"], v["prompt_id"], v["sample_index"]) for v in verdicts] == [
            (name, i, k) for name in ("ppo", "control") for i in range(8) for k in range(2)
        ]
        assert {v["against"] for v in verdicts} == {"base"}
        assert {v["outcome"] for v in verdicts} == {0.5}
        question = json.loads(server.requests[0][2]["messages"][1]["content"])
        texts = {r["response"] for n in ("base", "ppo") for r in read(tmp_path, f"{n}_samples")}
        assert {question["answer_A"], question["answer_B"]} <= texts
        asked = len(server.requests)
        collect(arguments(checkpoints=True, judges=[f"chat={server.url}#m"]))
        assert asked == len(server.requests) == 2 * 32
    finally:
        server.close()
    collect(arguments(checkpoints=True))
    assert not (tmp_path / "samples" / "verdicts_chat.json").exists()


def test_a_judge_that_fails_costs_no_samples(arguments, saved, tmp_path, work):
    for function, message in (("too_few", "1 values for 4"), ("undefined", "returned nan for")):
        with pytest.raises(RecipeError, match=rf"The judge `j` .*{message}"):
            collect(arguments(judges=[f"j={saved / 'rules.py'}:{function}"], overwrite=True))
    assert len(work) == 12
    work.clear()
    collect(arguments())
    assert not work


def test_one_prompt_cannot_be_evaluated_on(arguments, saved, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(saved / "data", data)
    (data / "run.json").write_text("{}")
    row = (data / "validation.jsonl").read_text().splitlines()[0]
    for rows, number in ((f"{row}\n{row}\n", 1), ("", 0)):
        (data / "validation.jsonl").write_text(rows)
        with pytest.raises(RecipeError, match=f"has {number} different prompts"):
            collect(arguments(dataset_name=str(data)))


def test_a_policy_of_another_base_is_refused(arguments, tmp_path):
    folder = tmp_path / "other"
    open_base("tiny").save_pretrained(folder)
    write_adapter(tmp_path / "stray", seed=3, base=str(folder))
    with pytest.raises(RecipeError, match="one reference on one base") as refused:
        collect(arguments(models=[f"stray={tmp_path / 'stray'}"]))
    assert str(folder) in str(refused.value) and base_path("tiny") in str(refused.value)


def test_a_folder_without_an_adapter_is_refused(arguments, tmp_path):
    with pytest.raises(RecipeError, match="holds no adapter"):
        collect(arguments(models=[f"mine={tmp_path}"]))


def trained_from(saved, folder, start):
    shutil.copytree(saved / "ppo", folder)
    (folder / "run.json").write_text(json.dumps({"recipe": {"sft_model_path": start}}))
    return [f"ppo={folder}"]


def test_the_reference_is_what_training_started_from(arguments, saved, tmp_path):
    start = str(saved / "dpo")
    models = trained_from(saved, tmp_path / "ppo", start)
    with pytest.raises(RecipeError, match=f"set `sft_model_path: {start}`"):
        collect(arguments(models=models))
    unstarted = trained_from(saved, tmp_path / "plain", None)
    with pytest.raises(RecipeError, match="leave `sft_model_path` out"):
        collect(arguments(models=unstarted, sft_model_path=start))
    started = arguments(models=models, sft_model_path=start)
    collect(started)
    facts = read(tmp_path, "collection")
    assert list(facts["models"]) == ["base", "ppo", "bare_base", "control"]
    sampled = sum(len(responses(tmp_path, name)) for name in facts["models"])
    assert (
        evaluation_plan(
            replace(started, output_dir=str(tmp_path / "2")), read_adapters(started)
        ).completions
        == sampled
    )
    assert min(kl for _, kl in responses(tmp_path, "bare_base")) > 0.01
    # Its weights are those of its reference here: what differs is the rounding of two passes.
    assert max(kl for _, kl in responses(tmp_path, "ppo")) < 1e-5
    collect(arguments(output_dir=str(tmp_path / "from_base")))
    assert responses(tmp_path / "from_base", "base") != responses(tmp_path, "base")
    said = analyze(tmp_path).warnings
    assert any(f"`base` is the adapter in {start}" in sentence for sentence in said)


def test_adapters_are_read_once_for_plan_and_collection(arguments, saved, tmp_path):
    """Plan and collection share what was read: the folders may be gone before it begins."""
    folders = tmp_path / "adapters"
    for name in ("proxy", "gold", "ppo"):
        shutil.copytree(saved / name, folders / name)
    given = arguments(
        reward_model_path=str(folders / "proxy"),
        models=[f"ppo={folders / 'ppo'}"],
        gold_func=None,
        gold_model_path=str(folders / "gold"),
        judges=[f"other={folders / 'gold'}"],
    )
    adapters = read_adapters(given)
    evaluation_plan(given, adapters)
    shutil.rmtree(folders)
    collecting.collect(given, adapters)
    assert all(r["gold"] == r["scores"]["other"] for r in read(tmp_path, "ppo_samples"))


def test_a_judge_whose_tokenizer_is_broken_is_refused_by_the_plan(arguments, saved, tmp_path):
    broken = shutil.copytree(saved / "gold", tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    given = arguments(judges=[f"other={broken}"])
    with pytest.raises(RecipeError, match=r"The tokenizer in .*broken cannot be opened"):
        evaluation_plan(given, read_adapters(given))


def test_a_judge_that_is_nothing_is_refused_before_anything_is_sampled(arguments, tmp_path, work):
    for judge, message in (
        ("a=no/such.py:f", "names no function"),
        ("a=no/such/folder", "holds no adapter"),
        ("a=http://localhost/v1", "names no model"),
    ):
        with pytest.raises(RecipeError, match=message):
            collect(arguments(judges=[judge]))
    assert not work
