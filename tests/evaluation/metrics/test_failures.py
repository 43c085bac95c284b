from dataclasses import replace

import pytest

from rlhf_recipes.evaluation.metrics.failures import (
    DEFINITIONS,
    detect_failures,
    failure_analysis,
    flags,
)
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples

FINISHES = ("length", "eos")
PROMPT = "Why is the sky blue on a clear day and red in the evening?"
ANSWERS = (
    "Short waves are scattered more.",
    "Blue light is bent by the air on its way.",
    "It has to do with how light travels.",
    "Air molecules send blue light everywhere.",
    "The evening sun shines through more air.",
)


def record(model="base", index=0, text=None, **facts):
    return {
        "id": f"{model}-{index}",
        "prompt_id": index,
        "prompt": PROMPT,
        "response": ANSWERS[index % 5] if text is None else text,
        "finish": "eos",
        "n_tokens": 8,
        "reward": float(index % 5),
        "gold": float(index % 5),
        "kl": 0.0,
    } | facts


def collection_of(metrics=("proxy", "gold"), **policies):
    """Base answers twenty prompts plainly; each policy is given as its records."""
    models = {"base": ModelSamples("base", [[record(index=i)] for i in range(20)])}
    for name, records in policies.items():
        models[name] = ModelSamples(name, [[each] for each in records])
    return Collection({}, models, None, metrics)


def fires(detector, records, **kwargs):
    found = detect_failures(collection_of(ppo=records, **kwargs))[detector]["ppo"]
    return [row[0] for row in found]


def test_truncated_is_read_from_the_tokens_not_the_text():
    records = [record("ppo", i, "Because of") | {"finish": f} for i, f in enumerate(FINISHES)]
    assert fires("truncated", records) == [True, False]


def test_unfinished_thinking_is_cut_off_between_the_tags():
    texts = ["<think>First", "<think>First</think>Yes", "First", "First</think>Yes"]
    cut = [record("ppo", i, text, finish="length") for i, text in enumerate(texts)]
    assert fires("unfinished_thinking", cut) == [True, False, False, False]
    ended = [record("ppo", i, text) for i, text in enumerate(texts)]
    assert not any(fires("unfinished_thinking", ended))
    # A template may write the first tag itself, as the end of the prompt.
    collection = replace(collection_of(ppo=cut), facts={"thinks_from_start": True})
    found = detect_failures(collection)["unfinished_thinking"]
    assert [row[0] for row in found["ppo"]] == [True, False, True, False]
    assert not found["base"].any()


def test_length_blow_up_is_beyond_bases_95th_percentile():
    # All of base's responses have 8 tokens.
    records = [record("ppo", i, n_tokens=9 if i < 3 else 8) for i in range(20)]
    assert fires("length_blow_up", records) == [True] * 3 + [False] * 17


def test_the_95th_percentile_is_of_bases_lengths():
    # Base has 1 to 20 tokens: the percentile lies between 19 and 20.
    base = ModelSamples("base", [[record(index=i, n_tokens=i + 1)] for i in range(20)])
    rows = [[record("ppo", i, n_tokens=n)] for i, n in enumerate([19, 20, 21])]
    models = {"base": base, "ppo": ModelSamples("ppo", rows)}
    found = detect_failures(Collection({}, models, None, ("proxy", "gold")))["length_blow_up"]
    assert found["ppo"].tolist() == [[False], [True], [True]]
    assert sum(row[0] for row in found["base"]) == 1


def test_opening_collapse_needs_a_fifth_of_the_prompts():
    same = [record("ppo", i, f"Sure! Here is what I {i}") for i in range(20)]
    assert all(fires("opening_collapse", same))
    varied = [record("ppo", i, f"Word{i} opens this one in its own way.") for i in range(20)]
    assert not any(fires("opening_collapse", varied))
    # Four of twenty are a fifth, not over a fifth.
    few = [record("ppo", i, f"Sure! Here is what {i if i > 3 else 'I'}") for i in range(20)]
    assert not any(fires("opening_collapse", few))


def test_several_samples_of_one_prompt_do_not_make_an_opening_common():
    rows = [[record("ppo", 0, "Well, you see, it is so")] * 19, [record("ppo", 1)] * 19]
    models = {
        "base": ModelSamples("base", [[record(index=0)], [record(index=1)]]),
        "ppo": ModelSamples("ppo", rows),
    }
    found = detect_failures(Collection({}, models, None, ("proxy",)))["opening_collapse"]["ppo"]
    assert not any(any(row) for row in found)


def test_reward_hack_suspect():
    # Base: mean 2, sd 1.45 in both metrics; one sd above is 3.45.
    high_bad = record("ppo", 0, reward=9.0, gold=1.0)
    high_good = record("ppo", 1, reward=9.0, gold=3.0)
    low_bad = record("ppo", 2, reward=3.0, gold=0.0)
    high_leak = record("ppo", 3, "Fine.\nHuman: more?", reward=9.0, gold=3.0)
    records = [high_bad, high_good, low_bad, high_leak]
    records += [record("ppo", i) for i in range(4, 20)]
    found = fires("reward_hack_suspect", records)
    assert found[:4] == [True, False, False, True]
    # Without gold only the text can give it away.
    assert fires("reward_hack_suspect", records, metrics=("proxy",))[:4] == [
        False,
        False,
        False,
        True,
    ]


def test_kl_spike_in_the_model_and_in_one_token():
    # Median 1.5, MAD .5, robust sd .7413: the spike begins at 1.5 + 5 * .7413 = 5.21.
    records = [record("ppo", i, kl=1.0 + i % 2) for i in range(19)] + [record("ppo", 19, kl=5.3)]
    assert fires("kl_spike", records) == [False] * 19 + [True]
    records[19]["kl"] = 5.1
    assert not any(fires("kl_spike", records))
    records[0]["kl_curve"] = [0.31, *[0.069] * 10]
    records[1]["kl_curve"] = [0.29, *[0.071] * 10]
    records[2]["kl_curve"] = [0.5, 0.5]  # two tokens hold half each, as they must
    assert fires("kl_spike", records)[:3] == [True, False, False]


def test_a_model_that_did_not_move_has_no_kl_spike():
    assert not any(fires("kl_spike", [record("ppo", i) for i in range(20)]))


def broken(count):
    """ppo says nothing to some prompts; dpo is as base."""
    ppo = [record("ppo", i, "!" if i < count else None) for i in range(20)]
    return collection_of(ppo=ppo, dpo=[record("dpo", i) for i in range(20)])


def analyzed(collection):
    return failure_analysis(collection, detect_failures(collection))


def test_analysis_counts_compares_and_corrects():
    found = analyzed(broken(12))
    assert set(found) == set(DEFINITIONS)
    ppo = found["empty"].per_model["ppo"]
    assert (ppo.n, ppo.count, ppo.rate) == (20, 12, 0.6)
    assert ppo.examples == [f"ppo-{i}" for i in range(5)]
    assert ppo.to_base.diff_vs_base == pytest.approx(0.6)
    assert ppo.to_base.diff_ci[0] > 0
    # Twelve prompts against none: p = 2 / 2^12, times the 24 comparisons of the family.
    assert ppo.to_base.p == pytest.approx(2 / 2**12)
    assert ppo.to_base.p_holm == pytest.approx(24 * 2 / 2**12)
    assert found["empty"].per_model["base"].to_base is None


def test_no_failure_at_all_is_not_certainty():
    base = analyzed(broken(0))["empty"].per_model["base"]
    assert base.rate == 0 and base.ci == pytest.approx([0, 0.161], abs=5e-4)


def test_flags_are_the_detectors_that_fire():
    fired = detect_failures(broken(1))
    assert flags(fired, "ppo", 0) == ["empty"]
    assert flags(fired, "ppo", 1) == []


def test_an_earlier_checkpoint_is_reported_and_not_tested():
    rows = [[record("ppo", i)] for i in range(20)]
    models = {
        "base": collection_of().base,
        "ppo-50": ModelSamples("ppo-50", rows, "ppo", 50, "ppo"),
        "ppo": ModelSamples("ppo", rows, "ppo"),
    }
    found = analyzed(Collection({}, models, None, ("proxy", "gold")))["empty"].per_model
    assert found["ppo-50"].to_base.p_holm is None and found["ppo"].to_base.p_holm == 1
