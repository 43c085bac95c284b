"""A finished evaluation stays whole until the next one is."""

import json
import shutil
import sys

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.collect.journal import Journal
from rlhf_recipes.evaluation.output_files import FINISHED, collecting_folder, open_evaluation
from rlhf_recipes.folders import REPLACEMENT


@pytest.fixture
def finished(tmp_path, records_of, collection_in):
    """Analyzed samples of two models, and a file of somebody's."""
    models = {name: records_of(name, (0, 0, 1), 12, 1, gold=False) for name in ("base", "ppo")}
    output = collection_in(tmp_path / "out", models)
    analyze(output)
    (output / "results" / "mine.txt").write_text("mine")
    return output


def contents(output):
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


written: list[str] = []
seen = {"on": False}


def watch(event, arguments):
    if seen["on"] and event in ("os.rename", "os.link"):
        written.append(str(arguments[1]))


sys.addaudithook(watch)


def test_the_target_of_make_is_the_last_file_that_is_put_in_place(finished):
    written.clear()
    seen["on"] = True
    try:
        analyze(finished)
    finally:
        seen["on"] = False
    placed = [path for path in written if REPLACEMENT not in path and ".replaced" not in path]
    assert placed[-1] == str(finished / "results" / FINISHED)
    assert str(finished / "ANALYSIS.md") in placed
    assert str(finished / "results" / "report.html") in placed
    assert (finished / "results" / "mine.txt").read_text() == "mine"


def test_an_analysis_that_fails_leaves_the_finished_one_whole(finished):
    before = contents(finished)
    new = finished / "samples" / REPLACEMENT
    shutil.copytree(finished / "samples", new)
    (new / "ppo_samples.json").write_text("[]")
    with pytest.raises(RecipeError, match="has no samples"):
        analyze(finished)
    assert before.items() <= contents(finished).items()


def test_samples_and_results_are_replaced_together(finished):
    new = finished / "samples" / REPLACEMENT
    shutil.copytree(finished / "samples", new)
    text = (new / "ppo_samples.json").read_text().replace('"response": "', '"response": "so ')
    (new / "ppo_samples.json").write_text(text)
    (finished / "results" / "reward_model.png").write_bytes(b"of an older evaluation")
    analyze(finished)
    assert (finished / "samples" / "ppo_samples.json").read_text() == text
    assert not new.exists()
    assert not (finished / "results" / "reward_model.png").exists()
    assert not list(finished.rglob(REPLACEMENT))


def test_the_same_command_finishes_an_interrupted_replacement(finished):
    wanted = contents(finished)
    results = finished / "results"
    shutil.copytree(results, results / REPLACEMENT)
    (finished / "ANALYSIS.md").replace(results / REPLACEMENT / "ANALYSIS.md")
    (results / FINISHED).unlink()
    (results / "report.html").unlink()
    recipe = json.loads((finished / "samples" / "collection.json").read_text())["run"]["recipe"]
    assert open_evaluation(finished, recipe, overwrite=False)
    assert contents(finished) == wanted
    with pytest.raises(RecipeError, match="already contains a finished evaluation"):
        open_evaluation(finished, recipe, overwrite=False)
    assert not open_evaluation(finished, recipe, overwrite=True)


def test_another_recipe_does_not_reuse_an_interrupted_replacement(finished):
    results = finished / "results"
    for overwrite in (False, True):
        shutil.copytree(results, results / REPLACEMENT)
        if overwrite:
            assert not open_evaluation(finished, {"seed": 7}, overwrite)
        else:
            with pytest.raises(RecipeError, match="already contains a finished evaluation"):
                open_evaluation(finished, {"seed": 7}, overwrite)
        assert not (results / REPLACEMENT).exists()
        assert (results / FINISHED).is_file()


def test_samples_are_collected_beside_those_of_a_finished_evaluation(finished):
    samples = finished / "samples"
    old = samples / "journal" / "base.jsonl"
    Journal(old, {"seed": 1}).append({"number": 1})
    before = old.read_bytes()
    folder = collecting_folder(finished)
    assert folder == samples / REPLACEMENT
    same = Journal(folder / "same.jsonl", {"seed": 1}, overwrite=True, finished=old)
    assert same.entries == [{"number": 1}]
    other = Journal(folder / "other.jsonl", {"seed": 2}, overwrite=True, finished=old)
    other.append({"number": 2})
    assert other.entries == [{"number": 2}]
    assert old.read_bytes() == before
    (finished / "results" / FINISHED).unlink()
    assert collecting_folder(finished) == samples
