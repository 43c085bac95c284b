import math

import pytest
import torch
from peft import LoraConfig

from rlhf_recipes.arguments import RecipeError
from rlhf_recipes.evaluation.collect import Collector, EvaluationArguments
from rlhf_recipes.models import open_base
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import Completion, prompt_ids, sample

PROMPTS = ["a", "what is it?", "tell me all of it"]


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """A base with a policy that differs from it, one that does not, and a reward adapter."""
    roles = Roles(open_base("tiny"))
    generator = torch.Generator().manual_seed(0)
    for role in ("policy", "unchanged", "reward"):
        roles.attach(role, LoraConfig(r=4, target_modules=["q_proj"]), trainable=False)
        if role == "unchanged":
            continue
        with torch.no_grad():
            for name, parameter in roles.base.named_parameters():
                if f".{role}." in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    roles.attach_head("reward", torch.randn(1, 32, generator=generator), None, trainable=False)
    arguments = EvaluationArguments(
        reward_model_path="tiny",  # its tokenizer is all that is read of it
        max_completion_length=12,
        samples_per_prompt=2,
        batch_size=8,
    )
    return Collector(roles, arguments, gold=lambda prompts, texts: [float(len(t)) for t in texts])


def records(collector, role, seed=0):
    return collector.records(role or "base", role, PROMPTS, seed)


def test_the_base_does_not_diverge_from_itself_at_all(collector):
    for record in records(collector, None):
        assert record["kl"] == record["kl_k1"] == record["kl_per_token"] == 0.0
        assert record["logp_policy"] == record["logp_ref"]


def test_an_adapter_that_has_learned_nothing_does_not_diverge(collector):
    assert all(record["kl"] == 0.0 for record in records(collector, "unchanged"))


def test_the_divergence_of_a_response_is_the_sum_over_its_tokens_one_by_one(collector):
    roles, tokenizer = collector.roles, collector.tokenizer
    record = records(collector, "policy")[3]
    ids = prompt_ids(tokenizer, PROMPTS[record["prompt_id"]])
    tokens = collector_tokens(collector, record)
    total, k1 = 0.0, 0.0
    for token in tokens:
        row = torch.tensor([ids])
        logps = []
        for role in ("policy", None):
            with torch.no_grad(), roles.use(role):
                logps.append(roles.base(input_ids=row).logits[0, -1].log_softmax(-1))
        total += float((logps[0].exp() * (logps[0] - logps[1])).sum())
        k1 += float(logps[0][token] - logps[1][token])
        ids.append(token)
    assert record["kl"] == pytest.approx(total, rel=1e-4)
    assert record["kl_k1"] == pytest.approx(k1, rel=1e-3, abs=1e-4)
    assert record["kl_per_token"] == pytest.approx(total / len(tokens), rel=1e-4)
    assert record["kl"] > 0.01


def collector_tokens(collector, record) -> list[int]:
    """The sampled ids of a record: sampled again with its seed."""
    with collector.roles.merged("policy") as model:
        rows = sample(
            model,
            collector.tokenizer,
            PROMPTS,
            max_completion_length=12,
            num_completions=2,
            batch_size=8,
            seed=record["seed"],
        )
    completion = rows[record["prompt_id"]][record["sample_index"]]
    assert completion.text == record["response"]
    return completion.ids


def test_neither_padding_nor_the_batch_changes_a_divergence(collector):
    samples = [
        ("a", Completion([70, 71], "", False)),
        ("a much longer prompt", Completion([80, 81, 82, 83, 84], "", False)),
    ]
    together = collector.divergences("policy", samples, "")
    for one, found in zip(samples, together, strict=True):
        assert collector.divergences("policy", [one], "")[0] == pytest.approx(found, rel=1e-4)


def test_a_record_has_what_the_analysis_reads(collector):
    found = records(collector, "policy", seed=5)
    assert [record["id"] for record in found[:3]] == [
        "policy-0000-0",
        "policy-0000-1",
        "policy-0001-0",
    ]
    for record in found:
        assert record["gold"] == len(record["response"])
        assert record["finish"] in ("eos", "length")
        assert record["seed"] == 5
        assert 0 < record["entropy"] < math.log(259)
        assert all(math.isfinite(v) for v in record.values() if isinstance(v, float))


def test_the_reward_is_that_of_the_response_alone(collector):
    record = records(collector, "policy")[0]
    again = collector.reward_model([PROMPTS[0]], [record["response"]])
    assert record["reward"] == pytest.approx(again[0], abs=1e-5)


def test_greedy_sampling_is_refused():
    with pytest.raises(ValueError, match="`temperature` is 0"):
        EvaluationArguments(temperature=0)


def test_nothing_to_evaluate_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="no policy to evaluate"):
        EvaluationArguments(output_dir=str(tmp_path)).policies()


@pytest.mark.parametrize("entry", ["base=a/folder", "reward=a/folder", "mine", "mine=", "=folder"])
def test_a_policy_needs_a_folder_and_a_name_of_its_own(entry):
    with pytest.raises(ValueError, match=f"has the entry `{entry}`"):
        EvaluationArguments(models=[entry])


def test_policies_can_be_named(tmp_path):
    named = EvaluationArguments(models=["mine=some/folder"]).policies()
    assert {name: str(path) for name, path in named.items()} == {"mine": "some/folder"}
