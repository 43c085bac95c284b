from typing import Any

import pytest

from rlhf_recipes.preferences.reader import Reader
from rlhf_recipes.preferences.shapes import Pair, UnusableRow
from rlhf_recipes.preferences.turns import parse_pair
from rlhf_recipes.prompts import completion_text

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}


def parse(row: dict[str, Any]) -> Pair:
    return parse_pair(Reader()(row, "train:1"), source="chat", location="train:1", ignored=set())


def reason(row: dict[str, Any]) -> str:
    with pytest.raises(UnusableRow) as unusable:
        parse(row)
    return unusable.value.reason


def hh_row(chosen: str, rejected: str) -> dict[str, Any]:
    """Rows in HH's own format from a short notation: `H:Hi A:Hello`."""
    names = {"H:": "\n\nHuman: ", "A:": "\n\nAssistant: "}
    for short, name in names.items():
        chosen, rejected = chosen.replace(short, name), rejected.replace(short, name)
    return {"chosen": chosen, "rejected": rejected}


def test_hh_is_split_at_the_last_assistant_turn_and_not_at_the_common_characters() -> None:
    """The answers begin alike ("I would"), which belongs to them and not to the prompt."""
    pair = parse(hh_row("H:Hi A:Yes? H:Why A:I would say so", "H:Hi A:Yes? H:Why A:I wouldn't"))
    assert pair.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why"},
    ]
    assert pair.chosen == [{"role": "assistant", "content": "I would say so"}]
    assert pair.rejected == [{"role": "assistant", "content": "I wouldn't"}]
    assert pair.turns == 2
    assert (pair.source, pair.location) == ("chat", "train:1")


def test_a_name_with_colon_inside_a_paragraph_is_not_a_turn() -> None:
    pair = parse(hh_row("H:Hi A:Write\nHuman: yes", "H:Hi A:No"))
    assert completion_text(pair.chosen) == "Write\nHuman: yes"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("H:Hi A:One", "H:Ho A:Two", "no_common_prompt"),
        ("H:Hi A:One H:Why A:Two", "H:Hi A:One", "no_common_prompt"),  # one begins the other
        ("H:Hi A:", "H:Hi A:One", "empty"),
        ("H:Hi A: H:Why A:One", "H:Hi A: H:Why A:Two", "empty"),
        ("H:Hi A:One", "H:Hi A:One ", "identical"),
        ("H:Hi A:One A:Two", "H:Hi A:One A:Three", "broken_roles"),
        ("H:Hi A:One H:Bye", "H:Hi A:One H:No", "broken_roles"),
        ("A:Hi H:What A:One", "A:Hi H:What A:Two", "broken_roles"),
        ("no turns", "none either", "no_common_prompt"),
        ("", "H:Hi A:One", "empty"),
    ],
)
def test_unusable_hh_rows_are_told_apart(chosen: str, rejected: str, expected: str) -> None:
    assert reason(hh_row(chosen, rejected)) == expected


def test_hh_with_the_prompt_apart_is_the_same_as_in_one_text() -> None:
    whole = parse(hh_row("H:Hi A:One", "H:Hi A:Two"))
    apart = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " One", "rejected": " Two"}
    assert parse(apart) == whole


def test_each_row_tells_by_itself_whether_it_is_a_transcript() -> None:
    plain = {"prompt": "Hi", "chosen": "Human: quoted words", "rejected": "x"}
    assert parse(plain).prompt == "Hi"
    assert parse(hh_row("H:Hi A:One", "H:Hi A:Two")).prompt == [USER]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": None, "chosen": [USER, {**GOOD, "name": "x"}], "rejected": [USER, BAD]},
    ],
)
def test_all_conversational_shapes_give_the_same_pair(row: dict[str, Any]) -> None:
    assert parse(row) == Pair([USER], [GOOD], [BAD], turns=1, source="chat", location="train:1")


def test_a_system_message_stays_in_the_prompt_and_is_no_turn() -> None:
    system = {"role": "system", "content": "Be brief."}
    pair = parse({"chosen": [system, USER, GOOD], "rejected": [system, USER, BAD]})
    assert pair.prompt == [system, USER]
    assert pair.turns == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": [GOOD], "rejected": [BAD]}, "broken_roles"),
        ({"chosen": [USER, USER], "rejected": [USER, BAD]}, "broken_roles"),
        ({"chosen": ["Hi", "Ho"], "rejected": [USER, BAD]}, "not_text"),
        ({"chosen": 3, "rejected": 4}, "not_text"),
        ({"chosen": None, "rejected": [USER, BAD]}, "empty"),
        ({"chosen": [USER, {"role": "assistant", "content": None}], "rejected": [USER]}, "empty"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "identical"),
        (
            {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Ho"}, BAD]},
            "no_common_prompt",
        ),
    ],
)
def test_unusable_conversations_are_told_apart(row: dict[str, Any], expected: str) -> None:
    assert reason(row) == expected


def test_plain_text_with_a_prompt_is_kept_to_the_space() -> None:
    pair = parse({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " green.")
    assert pair.turns == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("It is blue", "It is blueish", "It is"),  # never inside a word
        ("It is", "It is blue", "It"),  # both answers keep text
    ],
)
def test_plain_text_without_a_prompt_is_split_before_the_first_different_word(
    chosen: str, rejected: str, prompt: str
) -> None:
    pair = parse({"chosen": chosen, "rejected": rejected})
    assert pair.prompt == prompt
    assert (f"{prompt}{pair.chosen}", f"{prompt}{pair.rejected}") == (chosen, rejected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": "Blue", "rejected": "Green"}, "no_common_prompt"),
        ({"chosen": "Same text", "rejected": "Same text"}, "identical"),
        ({"prompt": "Hi", "chosen": "One", "rejected": "One\n"}, "identical"),
        ({"prompt": "Hi", "chosen": "  ", "rejected": "One"}, "empty"),
        ({"prompt": " ", "chosen": "One", "rejected": "Two"}, "no_prompt"),
    ],
)
def test_unusable_plain_rows_are_told_apart(row: dict[str, Any], expected: str) -> None:
    assert reason(row) == expected
