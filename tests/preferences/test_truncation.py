"""Rows counted before training against the rows and batches that TRL's trainers make of them."""

import json
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from torch import equal
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.loading import base_path, open_tokenizer
from rlhf_recipes.preferences import chosen_completions
from rlhf_recipes.preferences.truncation import (
    Rows,
    completion_rows,
    pair_rows,
    plain_text_notes,
    prompt_rows,
    rows_text,
    special_token_notes,
)

pytestmark = [
    # TRL 1.16 sets `gradient_checkpointing` itself, whose name transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    pytest.mark.filterwarnings("ignore:.*keep_end.*deprecated"),
]
LIMIT = 60
COLUMNS = ("prompt", "chosen", "rejected")


def chat(prompt: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "p" * prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


# The tiny tokenizer has a token per letter; the template adds about 20 around a pair's texts.
ROWS = Dataset.from_list(
    [
        chat(4, "good", "bad"),
        chat(4, "y" * 90, "no"),  # cut
        chat(4, "w" * 90 + "good", "w" * 90 + "bad"),  # the same once cut
        chat(90, "good", "bad"),  # the prompt fills it
        chat(4, "good" + "w" * 90, "bad" + "w" * 90),  # the same if the end is kept
        chat(4, "no", "yes"),
    ]
)


def trainer_of(stage: str, split: Dataset, folder: Any, **settings: Any) -> Any:
    config, trainer = {
        "sft": (SFTConfig, SFTTrainer),
        "dpo": (DPOConfig, DPOTrainer),
        "reward": (RewardConfig, RewardTrainer),
    }[stage]
    training = config(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **settings
    )
    task = "SEQ_CLS" if stage == "reward" else "CAUSAL_LM"
    lora = LoraConfig(task_type=task, r=2, target_modules="all-linear")
    return trainer(
        model=base_path("tiny"),
        args=training,
        train_dataset=split,
        processing_class=open_tokenizer("tiny"),
        peft_config=lora,
    )


@pytest.mark.parametrize(
    ("stage", "settings", "expected"),
    [
        ("reward", {"max_length": LIMIT}, (0, 4, 0)),
        ("reward", {"max_length": None}, (0, 0, 0)),
        ("dpo", {"max_length": LIMIT}, (2, 1, 1)),
        ("dpo", {"max_length": LIMIT, "truncation_mode": "keep_end"}, (3, 0, 1)),
        ("dpo", {"max_length": None}, (0, 0, 0)),
    ],
)
def test_counts_are_those_of_the_batches_of_trl(tmp_path, stage, settings, expected):
    stock = trainer_of(stage, ROWS, tmp_path, **settings)
    rows = pair_rows(stage, "train", ROWS, open_tokenizer("tiny"), stock.args)
    assert (rows.cut, rows.too_long, rows.identical) == expected
    assert rows.used == len(ROWS) - rows.too_long - rows.identical == len(rows.indices)
    assert len(stock.train_dataset) == rows.used + rows.identical

    # What the stock trainer is fed: each pair as the two rows of a batch, without the padding.
    same = longest = 0
    for example in stock.train_dataset:
        batch = stock.data_collator([example])
        longest = max(longest, batch["input_ids"].shape[1])
        same += equal(batch["input_ids"][0], batch["input_ids"][1])
    assert (same, longest) == (rows.identical, rows.longest)

    ours = trainer_of(stage, ROWS.select(rows.indices), tmp_path, **settings)
    assert len(ours.train_dataset) == rows.used


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_length": LIMIT}, (3, 1)),
        ({"max_length": LIMIT, "truncation_mode": "keep_end"}, (4, 0)),
        ({"max_length": None}, (0, 0)),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_counts_of_completions_are_those_of_sft_s_batches(tmp_path, plain, settings, expected):
    pairs = ROWS.map(lambda row: {c: row[c][0]["content"] for c in COLUMNS}) if plain else ROWS
    split = chosen_completions(pairs, range(len(pairs)))
    stock = trainer_of("sft", split, tmp_path, **settings)
    rows = completion_rows("train", pairs, open_tokenizer("tiny"), stock.args)
    if not plain:  # without a template's tokens one row more fits
        assert (rows.cut, rows.too_long) == expected
    assert rows.used == len(rows.indices) == len(stock.train_dataset)
    batches = [stock.data_collator([example]) for example in stock.train_dataset]
    assert rows.longest == max(batch["input_ids"].shape[1] for batch in batches)
    # The loss is on the completion, and on its end where that was not cut off.
    whole = [batch for batch in batches if batch["input_ids"].shape[1] < rows.longest]
    for batch in whole:
        labels = [label for label in batch["labels"][0].tolist() if label != -100]
        text = open_tokenizer("tiny").decode(labels)
        assert text.startswith(("y", "no", "good", "w")), text
        assert "<|im_end|>" in text
    ours = trainer_of("sft", chosen_completions(pairs, rows.indices), tmp_path, **settings)
    assert len(ours.train_dataset) == rows.used


def test_prompts_that_fill_the_length_leave_nothing_to_fine_tune_on(tmp_path):
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=5)
    with pytest.raises(RecipeError, match=r"each of 6 train prompts fills it .* half of the rows"):
        completion_rows("train", ROWS, open_tokenizer("tiny"), training)


def test_plain_text_gets_the_eos_token_as_in_trl(tmp_path):
    split = Dataset.from_list(
        [
            {"prompt": "p" * 10, "chosen": "y" * 20, "rejected": "n<|im_end|>"},
            {"prompt": "p" * 10, "chosen": "same", "rejected": "same<|im_end|>"},
        ]
    )
    stock = trainer_of("dpo", split, tmp_path, max_length=25)
    rows = pair_rows("dpo", "train", split, open_tokenizer("tiny"), stock.args)
    assert (rows.used, rows.cut, rows.identical) == (1, 1, 1)
    batch = stock.data_collator([stock.train_dataset[1]])
    assert equal(batch["input_ids"][0], batch["input_ids"][1])
    (note,) = plain_text_notes(split, open_tokenizer("tiny"))
    assert "plain text and the tokenizer has a chat template" in note
    assert plain_text_notes(ROWS, open_tokenizer("tiny")) == ()
    tokenizer = open_tokenizer("tiny")
    tokenizer.chat_template = None
    assert plain_text_notes(split, tokenizer) == ()


def test_the_message_without_a_usable_pair_gives_the_length_that_is_needed(tmp_path):
    tokenizer = open_tokenizer("tiny")
    training = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=LIMIT)
    with pytest.raises(RecipeError, match="1 are too long for it and 1 have two") as error:
        pair_rows("dpo", "train", ROWS.select([2, 3]), tokenizer, training)
    assert "Raise `max_length`: half of the pairs fit in" in str(error.value)
    twins = Dataset.from_list([chat(4, "yes", "yes")])
    with pytest.raises(RecipeError, match="the same tokens to this model"):
        pair_rows("dpo", "train", twins, tokenizer, training)


def test_a_run_prints_and_records_its_rows():
    rows = Rows(used=5, longest=60, cut=2, too_long=1, identical=3, indices=(0, 1, 2, 3, 4))
    text = rows_text({"train": rows, "validation": Rows(4, 9)}, ["A note."])
    assert text.splitlines() == [
        "train rows        5, up to 60 tokens",
        "                  - 2 truncated at max_length",
        "                  - 1 dropped: too long for max_length",
        "                  - 3 dropped: both completions are the same tokens",
        "validation rows   4, up to 9 tokens",
        "A note.",
    ]
    assert json.loads(json.dumps(rows.counts())) == {
        "used": 5,
        "cut": 2,
        "too_long": 1,
        "identical": 3,
        "longest": 60,
        "special_tokens": 0,
    }


def test_rows_whose_texts_hold_a_special_token_are_counted_and_shown(tmp_path):
    tokenizer = open_tokenizer("tiny")
    end = tokenizer.eos_token
    split = Dataset.from_list([chat(4, "good", "bad"), chat(4, f"good{end} and more", "bad")] * 2)
    training = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    rows = pair_rows("dpo", "train", split, tokenizer, training)
    assert rows.counts()["special_tokens"] == 2
    (note,) = special_token_notes({"train": rows})
    assert "2 train rows contain a special token" in note
    assert f"{end} in row 2: 'good{end} and more'" in note
    clean = pair_rows("dpo", "train", ROWS, tokenizer, training)
    assert special_token_notes({"train": clean}) == ()
    prompts = [[{"role": "user", "content": text}] for text in ("a", f"{end}b")]
    assert prompt_rows(prompts, tokenizer, 4).example == f"{end} in row 2: '{end}b'"


def test_the_eos_token_that_ends_plain_text_is_not_reported(tmp_path):
    tokenizer = open_tokenizer("tiny")
    end = tokenizer.eos_token
    split = Dataset.from_list([{"prompt": "p", "chosen": f"yes{end}", "rejected": f"no{end}{end}"}])
    training = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    rows = pair_rows("dpo", "train", split, tokenizer, training)
    assert rows.example == f"{end} in row 1: 'no{end}'"


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_only_the_first_process_shows_a_progress_bar(tmp_path, monkeypatch, capsys, rank, shown):
    training = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    monkeypatch.setattr("rlhf_recipes.preferences.truncation.PROGRESS_DELAY", 0)
    monkeypatch.setenv("RANK", rank)
    pair_rows("dpo", "train", ROWS, open_tokenizer("tiny"), training)
    prompt_rows(ROWS["prompt"], open_tokenizer("tiny"), 4)
    output = capsys.readouterr().err
    assert ("Tokenizing train rows" in output) == ("Tokenizing prompts" in output) == shown
