"""The first sentence of the report against an independent reading of the claims it rests on."""

import re
from dataclasses import replace
from itertools import combinations, product

import pytest

from rlhf_recipes.evaluation.metrics.comparisons import OverBase, Pair
from rlhf_recipes.evaluation.report.headline import (
    JUDGED_BY,
    headline,
    judged_by_sentence,
)
from tests.evaluation.changing import changed, rate_like, small_results

NAMES = ("ppo", "grpo", "dpo")
VALUES = {"ppo": 0.8, "grpo": 0.7, "dpo": 0.6}
SIGNS = (1, 0, -1)


def win_with(sign, value, prompts=64):
    """A win rate whose interval and test name a direction, or do not."""
    ci = {1: [0.55, 0.9], 0: [0.4, 0.7], -1: [0.1, 0.4]}[sign]
    p = 0.3 if sign == 0 else 0.01
    return rate_like(value=value, ci=ci, n=prompts, p_holm=p)


def results_with(over_base, direct, prompts=64, families=None):
    names = list(over_base)
    families = families or {name: [name] for name in names}
    real = small_results()
    return replace(
        real,
        config=replace(real.config, n_prompts=prompts),
        families={
            family: replace(real.families["ppo"], finals=members)
            for family, members in families.items()
        },
        models={
            name: replace(
                real.models[name],
                win_rate=OverBase({"gold": win_with(sign, VALUES[name], prompts)}, None),
            )
            for name, sign in over_base.items()
        },
        pairwise={
            f"{first} vs {second}": Pair({"gold": win_with(sign, 0.5, prompts)}, {})
            for (first, second), sign in direct.items()
        },
    )


def named(text):
    return set(re.findall(r"\*\*(\w+)\*\*", text))


@pytest.mark.parametrize("over_base", list(product(SIGNS, repeat=3)))
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_the_first_sentence_says_what_intervals_and_tests_say(over_base, order):
    over_base = {name: over_base[NAMES.index(name)] for name in order}
    pairs = list(combinations(order, 2))
    for signs in product(SIGNS, repeat=3):
        direct = dict(zip(pairs, signs, strict=True))
        sentence = headline(results_with(over_base, direct))
        better = [name for name in NAMES if over_base[name] == 1]
        if not better:
            assert sentence.startswith("No model is better than base by gold")
            worse = sentence.partition(" worse")[0] if " worse" in sentence else ""
            assert named(worse) == {name for name in NAMES if over_base[name] == -1}
            assert named(sentence) == set(NAMES)
            continue
        best = max(better, key=VALUES.__getitem__)
        beats = {}
        for (first, second), sign in direct.items():
            if best in (first, second):
                beats[second if first == best else first] = sign if first == best else -sign
        alone = all(sign == 1 for sign in beats.values())
        assert ("is the best model" in sentence) == alone
        assert ("No single model is best" in sentence) == (not alone)
        assert named(sentence) >= {best} and f"{100 * VALUES[best]:.0f}% [55, 90]" in sentence
        outdone = {name for name, sign in beats.items() if sign == -1}
        if outdone:
            assert named(sentence.rpartition("],")[2]) == outdone
            continue
        level = sentence.rpartition("does not detectably differ from")
        assert (named(level[2]) if level[1] else set()) == {n for n, s in beats.items() if s == 0}
        behind = re.search(r"is better than (.*?)(, but|\.$)", sentence)
        assert (named(behind[1]) if behind else set()) == {n for n, s in beats.items() if s == 1}


def test_of_few_prompts_no_model_is_called_best():
    over_base, direct = dict.fromkeys(NAMES, 1), dict.fromkeys(combinations(NAMES, 2), 1)
    sentence = headline(results_with(over_base, direct, prompts=9))
    assert sentence.startswith("9 prompts are too few") and not named(sentence)


def test_one_policy_is_only_compared_with_base():
    assert headline(results_with({"ppo": 1}, {})).startswith("**ppo** is better than base by gold")


def test_seeds_of_one_method_are_not_ranked():
    families = {"grpo": ["ppo", "grpo"], "dpo": ["dpo"]}
    direct = {("ppo", "dpo"): 1, ("grpo", "dpo"): 1}
    sentence = headline(results_with(dict.fromkeys(NAMES, 1), direct, families=families))
    assert "is the best model" in sentence and "better than **dpo**." in sentence
    assert "Other seeds of its method (grpo) are not compared with it." in sentence


@pytest.mark.parametrize(
    ("run", "primary", "said"),
    [
        ({"gold": "recipes/demo/plain_english.py:reading_ease"}, "gold", "`reading_ease` in `rec"),
        ({"gold": "judge/models/reward_model"}, "gold", "second reward model"),
        ({"gold": None}, "gold", "came with the samples"),
        ({"judges": {"brevity": "function rules.py:brevity"}}, "brevity", "function rules.py:brev"),
        ({"gold": None}, "proxy", "There is no gold"),
    ],
)
def test_what_judged_is_said_in_words(run, primary, said):
    results = changed(small_results(), "config", primary=primary)
    assert said in judged_by_sentence(replace(results, run=run))
    assert len(JUDGED_BY) == 5
