import json

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.collect.journal import Journal

SETTINGS = {"seed": 42, "generation": {"temperature": 1.0, "top_k": 0}}


def written(path, count=3):
    journal = Journal(path, SETTINGS)
    for number in range(count):
        journal.append({"number": number})
    return journal


def test_what_was_appended_is_there_when_the_journal_is_opened_again(tmp_path):
    written(tmp_path / "a" / "journal.jsonl")
    again = Journal(tmp_path / "a" / "journal.jsonl", SETTINGS)
    assert again.entries == [{"number": 0}, {"number": 1}, {"number": 2}]


@pytest.mark.parametrize("lost", [1, 5])
def test_of_a_line_that_was_cut_off_nothing_is_kept(tmp_path, lost):
    path = tmp_path / "journal.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-lost])
    again = Journal(path, SETTINGS)
    assert again.entries == [{"number": 0}, {"number": 1}]
    again.append({"number": "other"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"settings": SETTINGS}, {"number": 0}, {"number": 1}, {"number": "other"}]


def test_a_journal_cut_off_in_its_first_line_is_a_new_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"settings": {"se')
    Journal(path, SETTINGS).append({"number": 7})
    assert Journal(path, SETTINGS).entries == [{"number": 7}]


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path)
    before = path.read_bytes()
    other = {"seed": 42, "generation": {"temperature": 0.7, "top_k": 0}}
    with pytest.raises(RecipeError) as refused:
        Journal(path, other)
    assert "`generation.temperature`: 1.0 there, 0.7 now" in str(refused.value)
    assert "top_k" not in str(refused.value) and "seed" not in str(refused.value)
    assert path.read_bytes() == before


def test_overwriting_begins_anew_only_where_settings_differ(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path)
    assert len(Journal(path, SETTINGS, overwrite=True).entries) == 3
    assert Journal(path, SETTINGS | {"seed": 1}, overwrite=True).entries == []
    assert not path.exists()


def test_a_number_that_is_no_number_is_not_written(tmp_path):
    journal = written(tmp_path / "journal.jsonl", 1)
    with pytest.raises(ValueError, match="Out of range float"):
        journal.append({"number": float("nan")})
    assert len(Journal(tmp_path / "journal.jsonl", SETTINGS).entries) == 1


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "base.jsonl"
    path.write_text('{"settings": {}}\nnot json\n')
    with pytest.raises(RecipeError, match=r"base\.jsonl, line 2, is damaged"):
        Journal(path, {})
