"""The gold rule against scores derived by hand and syllables counted by ear."""

import pytest
from plain_english import HIGHEST, LOWEST, count_syllables, flesch, reading_ease, sentences

BY_EAR = {
    1: "the eye years cat make likes baked called clothes through friend league smiled you're",
    2: "water table people little being trying wanted hundred boxes centre something safely didn't"
    " movement rhythm quiet science player every maybe social nation business patient",
    3: "idea radio beautiful area family animal museum video tourism exercise well-being"
    " anyone easier various important employee creative",
    4: "experience actually usually society information continuous material reality",
    5: "electricity individual university communication",
}


@pytest.mark.parametrize(("count", "words"), BY_EAR.items())
def test_syllables_of_common_words_are_those_one_hears(count: int, words: str) -> None:
    assert {word: count_syllables(word) for word in words.split()} == dict.fromkeys(
        words.split(), count
    )


def test_reading_ease_of_two_plain_sentences() -> None:
    # The cat sat on the mat (6 words, 6 syllables). It was a ve-ry hap-py cat (6 words, 8).
    # 12 words / 2 sentences = 6; 14 syllables / 12 words = 7/6:
    # 206.835 - 1.015 * 6 - 84.6 * 7/6 = 206.835 - 6.09 - 98.7 = 102.045
    text = "The cat sat on the mat. It was a very happy cat."
    assert flesch(text) == pytest.approx(102.045, abs=1e-9)


def test_reading_ease_of_a_stilted_sentence() -> None:
    # Re-frig-er-a-tors (5) main-tain (2) the (1) pre-ser-va-tion (4) of (1) food (1): 6 words,
    # 14 syllables, 1 sentence: 206.835 - 1.015 * 6 - 84.6 * 14/6 = 200.745 - 197.4 = 3.345
    text = "Refrigerators maintain the preservation of food."
    assert flesch(text) == pytest.approx(3.345, abs=1e-9)


def test_one_syllable_sentences_score_highest_and_no_words_lowest() -> None:
    assert flesch("Go. Run! Why?") == pytest.approx(HIGHEST, abs=1e-9)
    for text in ["", "  \n ", "1. 2. 3.", "!!!", "42", "你好。"]:
        assert flesch(text) == LOWEST


def test_a_sentence_that_never_ends_scores_lowest() -> None:
    # 206.835 - 1.015 * 300 - 84.6 = -182.265 without the bound.
    assert flesch("the " * 300) == LOWEST


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 3.5 euros, e.g. at example.org for Mr. Lee.", 1),
        ("Wait... What?! Yes.", 3),
        ('He said "No." (Then he left.) **Why?** Ask him', 4),
        ("Tips:\n\n1. Eat well.\n2. Sleep\n- Walk a lot", 4),  # "1." and "2." are none
        ("He left etc.! Then he came back", 2),
        ("It ends here. And then it was c", 2),  # a cut-off sentence counts as it stands
    ],
)
def test_sentences_end_at_marks_and_line_ends_only(text: str, expected: int) -> None:
    assert len(sentences(text)) == expected


def test_words_are_runs_of_letters_with_hyphens_and_apostrophes() -> None:
    assert sentences("Don\u2019t eat a well-known CAFÉ's 20 *cakes*—or B12 and/or 3rd.") == [
        ["don't", "eat", "a", "well-known", "cafe's", "cakes", "or", "and", "or"]
    ]


def test_completions_are_scored_one_by_one_whatever_the_prompt() -> None:
    answers = ["Food stays cold.", "", "Refrigeration preserves comestibles."]
    scores = reading_ease(["a", "b", "c"], answers)
    assert scores == reading_ease(["x", "", "x"], answers) == [flesch(a) for a in answers]
    assert scores[0] > scores[2]
