"""Every recipe and every launch configuration is read by what will read it when it runs."""

import importlib.util
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import TrainingArguments

from rlhf_recipes.arguments import parse_recipe
from rlhf_recipes.errors import RecipeError

# Whatever the exceptions elsewhere: no recipe uses a deprecated key.
pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
HEADERS = ["# model and data", "# method", "# run"]
PATHS = {"model_name_or_path", "dataset_name", "output_dir", "reward_model_path"}
STAGES = {"prepare_data", "sft", "reward", "ppo", "grpo", "dpo", "evaluate"}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    """Recipes name files of the repository from its root."""
    monkeypatch.chdir(ROOT)


def short(path):
    return str(path.relative_to(ROOT))


def arguments(recipe):
    """Return the dataclasses that the script of this recipe's stage parses."""
    script = ROOT / "recipes" / f"{recipe.stem}.py"
    spec = importlib.util.spec_from_file_location(f"script_{recipe.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ARGUMENTS


def parse(recipe, file):
    """Parse a file as the script of this recipe's stage does."""
    classes = arguments(recipe)
    trains = any(issubclass(cls, TrainingArguments) for cls in classes)
    # A recipe for GPUs asks for bf16, which a machine without one refuses unless this is given.
    flags = ["--use_cpu"] if trains else []
    return parse_recipe(*classes, argv=["--config", str(file), *flags]).arguments


def test_every_recipe_is_of_a_stage_and_the_demo_has_them_all():
    assert RECIPES
    assert {path.stem for path in RECIPES} == STAGES
    assert {path.stem for path in (ROOT / "recipes" / "demo").glob("*.yaml")} == STAGES


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_a_recipe_parses(recipe):
    given = yaml.safe_load(recipe.read_text())
    fields = {name for instance in parse(recipe, recipe) for name in vars(instance)}
    assert given.keys() <= fields


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_a_recipe_has_a_title_and_three_headers(recipe):
    blocks = [block.splitlines() for block in recipe.read_text().split("\n\n")]
    title, *headers = [block[0] for block in blocks]
    assert len(blocks[0]) == 1
    assert title.startswith("# ")
    assert headers == HEADERS


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_a_value_that_is_not_the_default_says_why(recipe):
    """Beside the value, or in a comment above it that is no header; paths speak for themselves."""
    defaults = {field.name: field.default for cls in arguments(recipe) for field in fields(cls)}
    values = yaml.safe_load(recipe.read_text())
    lines = recipe.read_text().splitlines()
    for above, line in pairwise(lines):
        key = line.partition(":")[0]
        if key not in values or key in PATHS or values[key] == defaults[key]:
            continue
        explained = " # " in line or (above.startswith("# ") and above not in HEADERS)
        assert explained, f"`{key}` departs from {defaults[key]!r} and does not say why"


@pytest.mark.parametrize("recipe", RECIPES, ids=short)
def test_a_misspelled_key_is_named_with_the_right_one(recipe, tmp_path):
    text = recipe.read_text()
    key = next(iter(yaml.safe_load(text)))
    misspelled = tmp_path / recipe.name
    misspelled.write_text(text.replace(f"\n{key}:", f"\n{key}x:"))
    with pytest.raises(RecipeError, match=rf"`{key}x: (?s:.)*Did you mean `{key}`"):
        parse(recipe, misspelled)


def test_there_are_the_seven_launch_configurations():
    assert {path.stem for path in CONFIGS} == {
        "single",
        "cpu_ddp",
        "multi_gpu",
        "fsdp2",
        "zero2",
        "zero3",
        "multi_node",
    }


@pytest.mark.parametrize("config", CONFIGS, ids=short)
def test_a_launch_configuration_is_read_whole(config):
    """Accelerate refuses unknown keys, but overlooks unknown ones inside a group."""
    assert load_config_from_file(str(config)).num_processes >= 1
    flags = vars(launch_command_parser().parse_args(["script.py"])).keys()
    for group, keys in yaml.safe_load(config.read_text()).items():
        if isinstance(keys, dict):
            assert keys.keys() <= flags, f"`accelerate launch` has no such keys of {group}"


@pytest.mark.parametrize("config", CONFIGS, ids=short)
def test_a_launch_configuration_is_short_and_says_what_it_is_for(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 15


def test_a_misspelled_launch_key_is_refused(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text('distributed_type: "NO"\nnum_proceses: 1\n')
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(config))
