import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from rlhf_recipes.evaluation.collect import measuring
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.generation.sampling import Completion, sample
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.prompts import prompt_ids
from rlhf_recipes.roles import Roles

PROMPTS = ["a", "what is it?", "tell me all of it"]


@pytest.fixture(scope="module")
def sampler():
    """A base with a policy that differs from it, another, and one that has learned nothing."""
    roles = Roles(open_base("tiny"))
    generator = torch.Generator().manual_seed(0)
    for role in ("policy", "other", "unchanged"):
        roles.attach(role, LoraConfig(r=4, target_modules=["q_proj"]), trainable=False)
        if role == "unchanged":
            continue
        with torch.no_grad():
            for name, parameter in roles.base.named_parameters():
                if f".{role}." in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return KLSampler(roles, open_tokenizer("tiny"), None, 12, 0.8, 8)


def responses(sampler, role, seed=0):
    return sampler.sample(role, PROMPTS, 2, seed)


def with_reference(sampler, reference):
    return KLSampler(sampler.roles, sampler.tokenizer, reference, 12, 0.8, 8)


@pytest.mark.parametrize("reference", [None, "policy"])
def test_the_reference_does_not_diverge_from_itself_at_all(sampler, reference):
    for row in responses(with_reference(sampler, reference), reference):
        assert row["kl"] == row["kl_k1"] == row["kl_per_token"] == 0.0
        assert row["kl_curve"] == [0.0] * row["n_tokens"]
        assert row["logp_policy"] == row["logp_ref"] < 0


def test_nothing_is_computed_for_the_divergence_of_the_reference(sampler, monkeypatch):
    passes = []
    last_hidden_states = Roles.last_hidden_states

    def counted(self, role, *inputs):
        passes.append(role)
        return last_hidden_states(self, role, *inputs)

    monkeypatch.setattr(Roles, "last_hidden_states", counted)
    samples = [("a", Completion([70, 71], "", False, [-1.0, -3.0], [0.5, 1.0]))]
    (found,) = sampler.divergences(None, samples)
    assert passes == []
    assert (found["logp_policy"], found["logp_ref"], found["entropy"]) == (-4.0, -4.0, 0.75)
    sampler.divergences("policy", samples)
    assert passes == ["policy", None]


def test_what_the_reference_says_of_its_responses_is_what_a_pass_finds(sampler):
    """Nothing is computed for the reference: these numbers are its sampler's."""
    with sampler.roles.merged("policy") as model:
        sampled = sample(
            model, sampler.tokenizer, PROMPTS, max_completion_length=12, temperature=0.8, seed=0
        )
    samples = [(prompt, row[0]) for prompt, row in zip(PROMPTS, sampled, strict=True)]
    known = with_reference(sampler, "policy").divergences("policy", samples)
    for one, other in zip(known, sampler.divergences("policy", samples), strict=True):
        assert one["logp_policy"] == pytest.approx(other["logp_policy"], rel=1e-4)
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-4)


def test_an_adapter_that_has_learned_nothing_does_not_diverge(sampler):
    """Of given tokens both passes are made: the same code path gives the same bits."""
    (row,) = sampler.divergences("unchanged", [("a", Completion([70, 71], "", False))])
    assert row["kl"] == row["kl_k1"] == 0.0
    assert set(row["kl_curve"]) == {0.0}
    for row in responses(sampler, "unchanged"):  # its sampler's states: rounding apart
        assert row["kl"] == pytest.approx(0, abs=1e-5)
        assert row["kl_k1"] == pytest.approx(0, abs=1e-4)


def test_where_the_sampler_kept_its_states_the_reference_alone_is_computed(sampler, monkeypatch):
    roles, given = sampler.roles, []
    completion_hidden_states = Roles.completion_hidden_states

    def counted(self, role, *inputs):
        given.append(role)
        return completion_hidden_states(self, role, *inputs)

    monkeypatch.setattr(Roles, "completion_hidden_states", counted)
    with roles.merged("policy") as model:
        settings = {"max_completion_length": 12, "num_completions": 2, "temperature": 0.8}
        sampled = sample(model, sampler.tokenizer, PROMPTS, keep_hidden_states=True, **settings)
    kept = [(prompt, c) for prompt, row in zip(PROMPTS, sampled, strict=True) for c in row]
    assert {tuple(c.hidden_states.shape) for _, c in kept} == {
        (len(c.ids), roles.base.config.hidden_size) for _, c in kept
    }
    found = sampler.divergences("policy", kept)
    assert given == [None]
    without = [(prompt, replace(c, hidden_states=None)) for prompt, c in kept]
    for one, other in zip(found, sampler.divergences("policy", without), strict=True):
        assert one.pop("kl_curve") == pytest.approx(other.pop("kl_curve"), rel=1e-3, abs=1e-6)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert given == [None, "policy", None]


def test_states_are_kept_where_they_are_read_and_as_good_as_a_pass(sampler, monkeypatch):
    """Not of the reference, and not in lower precision."""
    kept = []

    def watched(*arguments, keep_hidden_states, **settings):
        kept.append(keep_hidden_states)
        return sample(*arguments, **settings)

    monkeypatch.setattr(measuring, "sample", watched)
    lower = Roles(open_base("tiny", dtype="bfloat16"))
    lower.attach("policy", LoraConfig(r=4, target_modules=["q_proj"]), trainable=False)
    for roles in (sampler.roles, lower):
        for role in ("policy", None):
            KLSampler(roles, sampler.tokenizer, None, 2, 1.0, 8).sample(role, ["a"], 1, seed=0)
    assert kept == [True, False, False, False]


@pytest.mark.parametrize("reference", [None, "other"])
def test_the_divergence_of_a_response_is_the_sum_over_its_tokens_one_by_one(sampler, reference):
    roles, tokenizer = sampler.roles, sampler.tokenizer
    row = responses(with_reference(sampler, reference), "policy")[3]
    ids = prompt_ids(tokenizer, PROMPTS[1])
    curve, k1, tokens = [], 0.0, sampled_tokens(sampler, 3)
    for token in tokens:
        inputs = torch.tensor([ids])
        logps = []
        for role in ("policy", reference):
            with torch.no_grad(), roles.use(role):
                logps.append((roles.base(input_ids=inputs).logits[0, -1] / 0.8).log_softmax(-1))
        curve.append(float((logps[0].exp() * (logps[0] - logps[1])).sum()))
        k1 += float(logps[0][token] - logps[1][token])
        ids.append(token)
    assert row["kl_curve"] == pytest.approx(curve, rel=1e-3)
    assert row["kl"] == pytest.approx(sum(curve), rel=1e-4)
    assert sum(row["kl_curve"]) == pytest.approx(row["kl"], rel=1e-5)
    assert row["kl_k1"] == pytest.approx(k1, rel=1e-3, abs=1e-4)
    assert row["kl_per_token"] == pytest.approx(sum(curve) / len(tokens), rel=1e-4)
    assert row["n_tokens"] == len(row["kl_curve"]) == len(tokens)
    assert row["kl"] > 0.01


def sampled_tokens(sampler, index) -> list[int]:
    """The sampled ids of a response of the policy: sampled again with its seed."""
    with sampler.roles.merged("policy") as model:
        rows = sample(
            model,
            sampler.tokenizer,
            PROMPTS,
            max_completion_length=12,
            num_completions=2,
            temperature=0.8,
            batch_size=8,
            seed=0,
        )
    return [completion for row in rows for completion in row][index].ids


def test_the_direction_is_from_the_policy(sampler):
    samples = [("what is it?", Completion([70, 71, 72], "", False))]
    forward = sampler.divergences("policy", samples)[0]
    backward = with_reference(sampler, "policy").divergences(None, samples)[0]
    assert forward["logp_policy"] == pytest.approx(backward["logp_ref"], rel=1e-5)
    assert forward["kl_k1"] == pytest.approx(-backward["kl_k1"], rel=1e-3)
    assert forward["kl"] != pytest.approx(backward["kl"], rel=1e-3)


def test_neither_padding_nor_the_batch_changes_a_divergence(sampler):
    samples = [
        ("a", Completion([70, 71], "", False)),
        ("a much longer prompt", Completion([80, 81, 82, 83, 84], "", False)),
    ]
    together = sampler.divergences("policy", samples)
    for one, found in zip(samples, together, strict=True):
        alone = sampler.divergences("policy", [one])[0]
        assert found.pop("kl_curve") == pytest.approx(alone.pop("kl_curve"), rel=1e-3)
        assert alone == pytest.approx(found, rel=1e-4, abs=1e-5)  # kl_k1 is a difference


def test_the_exact_divergence_and_the_sampled_one_have_one_mean(sampler):
    """k1 is unbiased for the distribution that was sampled, if that is the one measured."""
    rows = sampler.sample("policy", ["what is it?"], 400, seed=1)
    kl = torch.tensor([[row["kl"], row["kl_k1"]] for row in rows], dtype=torch.float64)
    difference = kl[:, 0] - kl[:, 1]
    error = float(difference.std() / math.sqrt(len(rows)))
    assert abs(float(difference.mean())) < 3 * error
    assert kl[:, 0].mean() > 10 * error
    assert kl[:, 0].std() < kl[:, 1].std()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_adapter_on_the_head_diverges_by_its_head():
    roles = Roles(open_base("tiny"))
    roles.attach("policy", LoraConfig(r=4, target_modules=["lm_head"]), trainable=False)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    sampler = KLSampler(roles, open_tokenizer("tiny"), None, 12, 1.0, 8)
    ids = [*prompt_ids(sampler.tokenizer, "a"), 70, 71]
    expected = []
    for role in ("policy", None):
        with torch.no_grad(), roles.use(role):
            logps = roles.base(input_ids=torch.tensor([ids])).logits[0, -3:-1].log_softmax(-1)
        expected.append(float(logps[[0, 1], [70, 71]].sum()))
    (found,) = sampler.divergences("policy", [("a", Completion([70, 71], "", False))])
    assert [found["logp_policy"], found["logp_ref"]] == pytest.approx(expected, rel=1e-4)
    assert found["kl"] > 0.01
    inputs = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), 2
    for role, logp in zip(("policy", None), expected, strict=True):
        assert float(roles(role, *inputs).logps.sum()) == pytest.approx(logp, rel=1e-4)
