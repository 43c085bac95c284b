import random
from collections import Counter

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Pair, Text, first_turn_key, prompt_key
from rlhf_recipes.preferences.splits import (
    hold_out,
    in_stratified_order,
    stratified_order,
    whole_groups,
)


def pairs_of(sizes: dict[tuple[str, int], int]) -> list[Pair]:
    return [
        Pair(f"{source} {turns} {i}", "yes", "no", turns, source, "")
        for (source, turns), size in sizes.items()
        for i in range(size)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_of_a_stratified_order_has_each_stratum_in_proportion(seed: int) -> None:
    """Below any position t there are n t items of a stratum of n, to within one.

    A prefix of k items out of N reaches some t with k = N t + d, |d| <= the number of strata
    S, so a stratum's count differs from n k / N by at most 1 + n S / N.
    """
    sizes = {"a": 60, "b": 30, "c": 9, "d": 1}
    strata = [name for name, size in sizes.items() for _ in range(size)]
    random.Random(seed).shuffle(strata)
    order = stratified_order(strata, seed)
    assert sorted(order) == list(range(100))
    counts: Counter[str] = Counter()
    for k, item in enumerate(order, start=1):
        counts[strata[item]] += 1
        for name, size in sizes.items():
            assert abs(counts[name] - size * k / 100) <= 1 + size * len(sizes) / 100


def test_the_only_item_of_a_stratum_may_be_anywhere() -> None:
    """Its index is uniform on 0..100: the mean of 400 draws has the standard error 1.5."""
    indices = [stratified_order(["many"] * 100 + ["one"], seed).index(100) for seed in range(400)]
    assert abs(sum(indices) / 400 - 50) < 6


def test_an_order_depends_on_the_seed_alone() -> None:
    strata = ["a", "b"] * 20
    assert stratified_order(strata, 1) == stratified_order(strata, 1)
    assert stratified_order(strata, 1) != stratified_order(strata, 2)


def test_hold_out_keeps_all_pairs_and_no_prompt_on_both_sides() -> None:
    pairs = pairs_of({("help", 1): 30, ("harm", 1): 20, ("harm", 2): 10})
    repeated = [Pair(p.prompt, "other", "no", p.turns, p.source, "") for p in pairs[::3]]
    train, validation = hold_out([*pairs, *repeated], 0.2, seed=0)
    assert len(train) + len(validation) == 80
    train_prompts = {prompt_key(p.prompt) for p in train}
    validation_prompts = {prompt_key(p.prompt) for p in validation}
    assert not train_prompts & validation_prompts
    assert len(validation) == 16  # a fifth of 80 pairs


def test_hold_out_is_stratified_by_source_and_turns() -> None:
    _, validation = hold_out(pairs_of({("a", 1): 600, ("a", 2): 300, ("b", 1): 100}), 0.1, seed=3)
    counts = Counter((pair.source, pair.turns) for pair in validation)
    assert abs(counts["a", 1] - 60) <= 2
    assert abs(counts["a", 2] - 30) <= 2
    assert abs(counts["b", 1] - 10) <= 2


def test_hold_out_takes_at_least_one_prompt() -> None:
    train, validation = hold_out(pairs_of({("a", 1): 3}), 0.01, seed=0)
    assert (len(train), len(validation)) == (2, 1)


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    ordered = in_stratified_order(pairs_of({("a", 1): 50, ("b", 4): 10}), seed=0)
    assert Counter(p.source for p in ordered[:30]) == pytest.approx({"a": 25, "b": 5}, abs=2)


def test_outer_spaces_do_not_make_another_prompt() -> None:
    assert prompt_key(" Hi\n") == prompt_key("Hi")
    assert prompt_key([{"role": "user", "content": "Hi "}]) == prompt_key(
        [{"role": "user", "content": "Hi"}]
    )
    assert prompt_key([{"role": "user", "content": "Hi"}]) != prompt_key("Hi")


def conversation(*turns: str) -> Text:
    """Turns of a user and an assistant in alternation."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_conversations_with_one_first_turn_stay_on_one_side(fraction: float) -> None:
    """Each of ten openings, written in different ways, begins five different conversations."""
    openings = [f"How do I bake bread number {i}?" for i in range(10)]
    variants = [str.upper, str.title, lambda s: f"  {s.replace(' ', chr(160) * 2)}\n", str]
    pairs = [
        Pair(conversation(vary(opening), "Like so.", f"And then {j}?"), "a", "b", 2, "s", "")
        for opening in openings
        for j, vary in enumerate(variants)
    ] + [
        Pair([{"role": "system", "content": "Be brief."}, *conversation(o)], "a", "b", 1, "s", "")
        for o in openings
    ]
    train, validation = hold_out(pairs, fraction, seed=0)
    assert len(validation) == round(fraction * 50)
    sides = [{first_turn_key(pair.prompt) for pair in side} for side in (train, validation)]
    assert [len(side) for side in sides] == [10 - round(fraction * 10), round(fraction * 10)]
    assert not sides[0] & sides[1]


def test_first_turns_are_the_same_whatever_their_case_spaces_and_unicode_form() -> None:
    assert first_turn_key("Caf\u00e9 \t STRASSE\u3000\uff21") == first_turn_key(
        "cafe\u0301 straße a"
    )
    assert first_turn_key(conversation("Hi", "Yes?", "Why")) == first_turn_key("hi")
    assert first_turn_key("Hi") != first_turn_key("Hi there")


def test_a_turn_in_too_many_pairs_is_never_held_out() -> None:
    """Half of the pairs begin alike; a tenth is held out, from the other half."""
    alike = [Pair(conversation("Hello", "Hi", str(i)), "a", "b", 2, "s", "") for i in range(50)]
    for seed in range(20):
        train, validation = hold_out([*alike, *pairs_of({("s", 1): 50})], 0.1, seed)
        assert (len(train), len(validation)) == (90, 10)


def test_one_first_turn_in_every_pair_cannot_be_split() -> None:
    alike = [Pair(conversation("You are a poet.", "Yes", "x"), "a", "b", 2, "s", "")] * 7
    with pytest.raises(RecipeError, match=r"All 7 .* 'You are a poet\.'.* a system message"):
        hold_out(alike, 0.1, seed=0)


@pytest.mark.parametrize(
    ("sizes", "count", "chosen"),
    [
        ({"a": 1, "b": 1, "c": 1}, 2, {"a", "b"}),
        ({"a": 3, "b": 1, "c": 1, "d": 5}, 2, {"b", "c"}),
        ({"a": 4, "b": 3}, 1, {"b"}),  # every group is too large: the smallest one
        ({"a": 2, "b": 2}, 4, {"a"}),  # at least one item is not chosen
        ({"a": 9}, 3, set()),
        ({}, 3, set()),
    ],
)
def test_whole_groups_are_chosen(sizes: dict[str, int], count: int, chosen: set[str]) -> None:
    assert whole_groups(sizes, count) == chosen
