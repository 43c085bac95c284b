"""Two transcripts are split as each would be alone, and share the messages of a common prompt."""

import random
from pathlib import Path

import pytest

from rlhf_recipes.preferences.containers import read_json_lines
from rlhf_recipes.preferences.shapes import UnusableRow
from rlhf_recipes.preferences.transcripts import Style, split_pair, split_turns, style_of_pair
from rlhf_recipes.prompts import Messages

HH = Path(__file__).parents[2] / "../shared/data/hh-rlhf/train.jsonl.gz"
HEADERS = {
    "names": ("\n\nHuman:", "\n\nAssistant:"),
    "lines": ("\nUser:", "\nAssistant:"),
    "headings": ("\n\n### Instruction:", "\n\n###Response:"),
    "spaces": (" USER:", " ASSISTANT:"),
    "questions": ("\n\nQ:", "\n\nA:"),
    "ChatML": ("\n<|im_start|>user\n", "<|im_start|>assistant\n"),
    "Gemma": ("<start_of_turn>user\n", "<start_of_turn>model\n"),
    "Zephyr": ("<|user|>\n", " <|assistant|>"),
    "Llama 2": ("<s>[INST]", "[/INST]"),
}
WORDS = ("so", " ", "\n", "\n\n", "Human:", "[INST", "###", "<|im_", "user", "</s>", "<|im_end|>")


def each_alone(chosen: str, rejected: str, style: Style) -> tuple[Messages, Messages] | None:
    try:
        return split_turns(chosen, style), split_turns(rejected, style)
    except UnusableRow:
        return None


def together(chosen: str, rejected: str, style: Style) -> tuple[Messages, Messages] | None:
    try:
        return split_pair(chosen, rejected, style)
    except UnusableRow:
        return None


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_a_pair_is_split_as_each_transcript_alone(headers: tuple[str, str]) -> None:
    generator = random.Random(0)

    def transcript(turns: int) -> str:
        texts = ("".join(generator.choices(WORDS, k=3)) for _ in range(turns))
        return "".join(headers[turn % 2] + text for turn, text in enumerate(texts))

    styles = 0
    for _ in range(2000):
        chosen = transcript(generator.randint(1, 6))
        start = chosen[: generator.randint(0, len(chosen))]  # may end inside a header
        rejected = start + generator.choice(["", headers[1], "no"]) + transcript(3)
        for pair in ((chosen, rejected), (rejected, chosen)):
            style = style_of_pair(*pair)
            if style:
                styles += 1
                assert together(*pair, style) == each_alone(*pair, style)
    assert styles > 2000


def test_the_messages_of_a_common_prompt_are_made_once() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    style = style_of_pair(f"{prompt} a", f"{prompt} b")
    assert style is not None
    chosen, rejected = split_pair(f"{prompt} a", f"{prompt} b", style)
    same = [one is other for one, other in zip(chosen, rejected, strict=True)]
    assert same == [True, True, True, False]


@pytest.mark.skipif(not HH.is_file(), reason=f"needs {HH}, which is not part of the project")
def test_real_pairs_are_split_as_each_transcript_alone() -> None:
    styles = 0
    for _, row in read_json_lines(HH):
        pair = str(row["chosen"]), str(row["rejected"])
        style = style_of_pair(*pair)
        if style:
            styles += 1
            assert together(*pair, style) == each_alone(*pair, style)
    assert styles > 1000
