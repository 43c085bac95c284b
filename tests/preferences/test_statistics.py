import json

import pytest

from rlhf_recipes.preferences.shapes import Lengths, Pair
from rlhf_recipes.preferences.statistics import pair_statistics


def pair(prompt: str, chosen: str, lengths: tuple[int, int, int], turns: int = 1) -> Pair:
    return Pair(prompt, chosen, "no", turns, "chat", "", Lengths(*lengths))


TRAIN = [
    pair("Where is it?", "I do not know", (3, 4, 1)),
    pair("Where is it? ", "I do not care", (3, 4, 1)),
    pair("Why not now?", "Because it rains", (5, 3, 3), turns=2),
    pair("Who?", "You", (1, 1, 9)),
]
STATISTICS = pair_statistics({"train": TRAIN, "validation": TRAIN[2:]})


def test_gap_is_chosen_minus_rejected() -> None:
    """Gaps 3, 3, 0, -8: mean -0.5, median 1.5."""
    gap = STATISTICS["train"]["length_gap"]
    assert (gap["mean"], gap["median"], gap["min"], gap["max"]) == (-0.5, 1.5, -8, 3)
    assert (gap["chosen_longer"], gap["equal"], gap["rejected_longer"]) == (0.5, 0.25, 0.25)


def test_longest_is_the_prompt_with_the_longer_answer() -> None:
    """7, 7, 8, 10."""
    longest = STATISTICS["train"]["lengths"]["longest"]
    assert (longest["min"], longest["median"], longest["max"]) == (7, 7.5, 10)


def test_turns_sources_repeats_and_openings_are_counted() -> None:
    train = STATISTICS["train"]
    assert train["pairs"] == 4
    assert train["turns"] == {"1": 3, "2": 1}
    assert train["sources"] == {"chat": 4}
    assert train["repeated_prompts"] == {
        "different_prompts": 3,
        "repeated": 1,
        "pairs_of_repeated": 2,
        "most": 2,
    }
    assert train["openings"]["chosen"][0] == {"words": "I do not", "count": 2}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_value_is_in_a_bin_or_beyond_the_bins(split: str) -> None:
    part = STATISTICS[split]
    for summary in [*part["lengths"].values(), part["length_gap"]]:
        histogram = summary["histogram"]
        total = sum(histogram["counts"]) + histogram["below"] + histogram["above"]
        assert total == part["pairs"]
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1


def test_outliers_do_not_stretch_the_bins() -> None:
    members = [pair(str(i), "yes", (0, i % 100, 1)) for i in range(1000)]
    members[0].lengths = Lengths(0, 10**6, 1)
    members[1].lengths = Lengths(0, 100, 1)  # the upper edge of the last bin
    chosen = pair_statistics({"train": members})["train"]["lengths"]["chosen"]
    assert chosen["max"] == 10**6
    assert chosen["histogram"]["edges"][-1] == 100
    assert chosen["histogram"]["above"] == 2
    assert sum(chosen["histogram"]["counts"]) == 998


def test_statistics_of_a_single_pair_are_json_without_nan() -> None:
    assert json.dumps(pair_statistics({"train": TRAIN[:1]}), allow_nan=False)
