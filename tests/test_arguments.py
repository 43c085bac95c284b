import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig

from rlhf_recipes.arguments import (
    RecipeArguments,
    RewardArguments,
    parse_recipe,
    resolved_recipe,
)
from rlhf_recipes.ending import run_script
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.usage import MOST_USED

# TRL 1.16 sets `gradient_checkpointing` itself, whose name transformers 5.23 has deprecated:
# https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/training_args.py
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")


@dataclass
class Small:
    steps: int = field(default=1, metadata={"help": "Steps."})
    rate: float = 0.5
    shuffle: bool = True
    half: bool | None = None
    limit: int | None = None
    label: str | None = None
    names: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    options: dict[str, float] | str | None = None
    schedule: str = field(default="linear", metadata={"choices": ["linear", "cosine"]})

    def __post_init__(self):
        if self.steps == 13:
            raise ValueError("`steps` is 13, which is unlucky. Take 12.")


def write(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return str(file)


def problems(*types, argv):
    with pytest.raises(RecipeError) as error:
        parse_recipe(*types, argv=argv)
    header, *found = str(error.value).split("\n- ")
    assert header in ("The recipe has a problem:", f"The recipe has {len(found)} problems:")
    return found


def same_in_file_and_flags(tmp_path, text, flags):
    (from_file,), _ = parse_recipe(Small, argv=["--config", write(tmp_path, text)])
    (from_flags,), _ = parse_recipe(Small, argv=flags)
    assert from_file == from_flags
    return from_file


def test_nothing_given_means_the_defaults():
    arguments, settings = parse_recipe(Small, RecipeArguments, argv=[])
    assert (arguments, settings) == ((Small(), RecipeArguments()), {})


@pytest.mark.parametrize(
    ("text", "flags", "name", "value"),
    [
        ("steps: 7", ["--steps", "7"], "steps", 7),
        ("rate: 1e-5", ["--rate", "1e-5"], "rate", 1e-5),
        ("rate: 2", ["--rate=2"], "rate", 2.0),
        ("rate: -1e-5", ["--rate", "-1e-5"], "rate", -1e-5),
        ("shuffle: false", ["--no_shuffle"], "shuffle", False),
        ("shuffle: no", ["--no-shuffle"], "shuffle", False),
        ("shuffle: true", ["--shuffle"], "shuffle", True),
        ("half: true", ["--half"], "half", True),
        ("half: null", ["--half", "null"], "half", None),
        ("limit:", ["--limit", "none"], "limit", None),
        ("label: no", ["--label", "no"], "label", "no"),
        ("label: 1e5", ["--label", "1e5"], "label", "1e5"),
        ("label: --x", ["--label=--x"], "label", "--x"),
        ("label: 'none'", ["--label", "none"], "label", "none"),
        ("label: null", [], "label", None),
        ("names: [a, no, 1e5]", ["--names", "a", "no", "1e5"], "names", ["a", "no", "1e5"]),
        ("names: a", ["--names", "a"], "names", ["a"]),
        ("names: []", [], "names", []),
        ("weights: [1, 1e-5]", ["--weights", "1", "1e-5"], "weights", [1.0, 1e-5]),
        ("options: {a: 1e-5}", ["--options", '{"a": 1e-5}'], "options", {"a": 1e-5}),
        ("options: '{\"a\": 2}'", ["--options", '{"a": 2}'], "options", {"a": 2}),
        ("options: null", ["--options", "null"], "options", None),
        ("schedule: cosine", ["--schedule", "cosine"], "schedule", "cosine"),
    ],
)
def test_a_yaml_value_means_what_the_flag_means(tmp_path, text, flags, name, value):
    result = getattr(same_in_file_and_flags(tmp_path, text, flags), name)
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "expects"),
    [
        ("steps: 2.5", "a whole number"),
        ("steps: abc", "a whole number"),
        ("steps: null", "a whole number"),
        ("steps: [1, 2]", "a whole number"),
        ("steps: {a: 1}", "a whole number"),
        ("rate: true", "a number"),
        ("rate: ''", "a number"),
        ("shuffle: maybe", "true or false"),
        ("half: [true]", "true or false or null"),
        ("limit: few", "a whole number or null"),
        ("label: [a, b]", "text or null"),
        ("names: {a: 1}", "a list of str"),
        ("names: [a, --b]", "a list of str"),
        ("weights: [a]", "a list of float or null"),
        ("weights: [[1]]", "a list of float or null"),
        ("options: [1]", "a mapping (JSON, if in a flag) or the name of a JSON file or null"),
        ("options: text", "a mapping (JSON, if in a flag) or the name of a JSON file or null"),
        ("options: '{'", "a mapping (JSON, if in a flag) or the name of a JSON file or null"),
        ("schedule: linea", "one of linear, cosine. Did you mean `linear`?"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_the_key_takes(tmp_path, text, expects):
    file = write(tmp_path, f"\n{text}\n")
    (problem,) = problems(Small, argv=["--config", file])
    assert problem.startswith(f"{file} line 2, `{text.split(':')[0]}: ")
    assert problem.rstrip(".").endswith(f"takes {expects}")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--steps", "x"], "`--steps x`: takes a whole number."),
        (["--steps"], "`--steps`: takes a whole number."),
        (["--steps", "1", "2"], "`--steps 1 2`: takes a whole number."),
        (["--options", "[1]"], "`--options [1]`: takes a mapping"),
        (["--no_steps"], "`--no_steps`: takes a whole number."),
        (["--no_shuffle", "yes"], "`--no_shuffle yes`: there is no such key."),
        (["recipe.yaml"], "`recipe.yaml`: no flag comes before it."),
        (["-s", "1"], "`-s 1`: no flag comes before it."),
        (["--"], "`--`: there is no such key."),
        (["--config"], "`--config`: takes one recipe file."),
    ],
)
def test_a_wrong_flag_is_one_problem(flags, problem):
    (found,) = problems(Small, argv=flags)
    assert found.startswith(problem)


def test_the_name_of_a_file_can_stand_for_a_mapping(tmp_path):
    file = write(tmp_path, "{}")
    (small,), _ = parse_recipe(Small, argv=["--options", file])
    assert small.options == file


def test_flags_win_over_the_file(tmp_path):
    file = write(tmp_path, "steps: 2\nrate: 0.25")
    for argv in (["--steps", "3", "--config", file], ["--config", file, "--steps=3"]):
        arguments, settings = parse_recipe(Small, argv=argv)
        assert (arguments, settings) == ((Small(3, 0.25),), {"steps": 3, "rate": 0.25})


def test_prefixes_of_flags_are_refused():
    """argparse alone reads `--bet 0.9 --see 7` as beta and seed."""
    found = problems(DPOConfig, argv=["--use_cpu", "--bet", "0.9", "--see", "7"])
    assert found == [
        "`--bet 0.9`: there is no such key. Did you mean `beta`?",
        "`--see 7`: there is no such key. Did you mean `seed`?",
    ]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("lerning_rate", "learning_rate"),
        ("torch_dtype", "dtype"),
        ("data_subset_size", "max_train_samples"),
        ("dpo_beta", "beta"),
        ("num_epochs", "num_train_epochs"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_one(tmp_path, name, nearest):
    file = write(tmp_path, f"{name}: 1")
    types = (RecipeArguments, DPOConfig, ModelConfig)
    (problem,) = problems(*types, argv=["--use_cpu", "--config", file])
    assert problem == f"{file} line 1, `{name}: 1`: there is no such key. Did you mean `{nearest}`?"


def test_all_problems_are_told_at_once(tmp_path):
    file = write(tmp_path, "stps: 3\nrate: x\nlimit: 3\nlimit: 4\nmax_eval_samples: -2")
    argv = ["--config", file, "--nmes", "a"]
    found = problems(Small, RecipeArguments, RewardArguments, argv=argv)
    assert found == [
        f"{file} line 1, `stps: 3`: there is no such key. Did you mean `steps`?",
        f"{file} line 2, `rate: x`: takes a number.",
        f"{file} line 4, `limit: 4`: `limit` is already given in line 3.",
        "`--nmes a`: there is no such key. Did you mean `names`?",
        "`max_eval_samples` is -2, which leaves no data. "
        "Give at least 1, or leave it out to use every row.",
        "No reward is given. Give `reward_model_path`, the folder that reward.py writes, "
        "or `reward_funcs`, functions `path/to/file.py:name`.",
    ]


def test_a_required_key_with_a_wrong_value_is_not_also_missing():
    @dataclass
    class Required:
        steps: int

    assert problems(Required, argv=["--steps", "x"]) == ["`--steps x`: takes a whole number."]
    assert problems(Required, argv=[]) == ["`steps` is missing."]


def test_a_dataclass_refusing_its_values_is_a_problem():
    found = problems(Small, argv=["--steps", "13"])
    assert found == ["`steps` is 13, which is unlucky. Take 12."]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--bf16", "--fp16"], "At most one of fp16 and bf16 can be True, but not both"),
        (["--accelerator_config", '{"x": 1}'], "GRPOConfig cannot be built from these values"),
        (["--num_generations", "1"], "GRPO requires at least 2 generations"),
        (["--learning_rate", "-1"], "`--learning_rate -1`: takes a number, at least 0."),
        (["--temperature", "nan"], "`--temperature nan`: takes a number, at least 0."),
        (
            ["--per_device_train_batch_size", "0"],
            "`--per_device_train_batch_size 0`: takes a whole number, at least 1.",
        ),
        (["--deepspeed", "no.json"], "`--deepspeed no.json`: takes a mapping"),
        (["--eval_strategy", "stepps"], "`--eval_strategy stepps`: takes one of no, steps, epoch."),
        (
            ["--optim", "adamw"],
            "`--optim adamw`: takes one of adamw_torch, adamw_torch_fused, adamw_torch_xla, "
            "adamw_torch_npu_fused, adafactor, adamw_anyprecision, ... (--help-all lists them). "
            "Did you mean `adamw_torch`?",
        ),
    ],
)
def test_values_that_trl_would_refuse_late_or_never(argv, problem):
    (found,) = problems(GRPOConfig, argv=["--use_cpu", *argv])
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2", "is not YAML (while parsing a flow sequence"),
        ("- steps", "is not a recipe, which has lines of the form `name: value`."),
        ("just text", "is not a recipe, which has lines of the form `name: value`."),
        ("trainer: {steps: 3}", "there is no such key."),
        ("a: &a [x]\nb: [*a, *a]", "line 2: `*a` is an alias"),
        ("steps: &a [*a]", "line 1: `*a` is an alias"),
        ("steps: " + "[" * 5000, "more than 20 nested levels"),
        ("label: " + "x" * 1_000_001, "is longer than 1,000,000 characters"),
        (
            "label: !!python/name:os.system",
            "`tag:yaml.org,2002:python/name:os.system` is not a type",
        ),
        ("options: {a: !!python/object/apply:os.system [x]}", "is not a type of recipe values"),
        ("options: {a: !mine x}", "`!mine` is not a type"),
        ("options: {a: 2026-99-99}", "`options`: month must be in 1..12."),
        ("options: {[a]: 1}", "`options`: "),
        ("steps: 1\n---\nsteps: 2", "is not YAML (expected a single document"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_one_line(tmp_path, text, problem):
    (found,) = problems(Small, argv=["--config", write(tmp_path, text)])
    assert problem in found
    assert "\n" not in found


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    missing, folder, binary = tmp_path / "no.yaml", tmp_path, tmp_path / "model.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    assert problems(Small, argv=["--config", str(missing)]) == [
        f"`--config {missing}`: cannot be read (No such file or directory)."
    ]
    assert problems(Small, argv=["--config", str(folder)]) == [
        f"`--config {folder}`: cannot be read (Is a directory)."
    ]
    (found,) = problems(Small, argv=["--config", str(binary)])
    assert "is not YAML" in found


def test_an_empty_recipe_is_a_recipe(tmp_path):
    file = write(tmp_path, "# nothing\n")
    assert parse_recipe(Small, argv=["--config", file]) == ((Small(),), {})


def test_two_dataclasses_with_one_field_name_are_our_bug():
    with pytest.raises(AssertionError, match="output_dir"):
        parse_recipe(RewardConfig, DPOConfig, argv=[])


@pytest.mark.parametrize("config", [RewardConfig, DPOConfig, GRPOConfig])
def test_a_resolved_recipe_parses_to_equal_instances(tmp_path, config):
    types = (RecipeArguments, config, ModelConfig)
    task = "SEQ_CLS" if config is RewardConfig else "CAUSAL_LM"
    recipe = f"""
        lora_task_type: {task}
        model_name_or_path: demo
        use_peft: true
        lora_target_modules: [q_proj, v_proj]
        dtype: float32
        learning_rate: 1e-5
        eval_strategy: "no"
        eval_steps: 0.5
        use_cpu: true
        activation_checkpointing: false
        lr_scheduler_type: cosine
        lr_scheduler_kwargs: {{num_cycles: 0.25}}
        report_to: none
        bf16: no
        per_device_train_batch_size: 4
        gradient_accumulation_steps: 6
        warmup_steps: 0.1
        activation_checkpointing_kwargs: {{a: [1, null]}}
        debug: underflow_overflow
        max_train_samples: 7
        max_steps: -1
        run_name: none
        output_dir: out
    """
    argv = ["--plan", "--overwrite", "--hub_token", "secret"]
    flags = ["--seed", "7", "--max_eval_samples", "3"]
    parsed = parse_recipe(*types, argv=["--config", write(tmp_path, recipe), *flags, *argv])
    resolved = resolved_recipe(parsed.settings)
    assert not {"plan", "overwrite", "hub_token"} & set(resolved)
    assert resolved["lr_scheduler_kwargs"] == {"num_cycles": 0.25}
    again = parse_recipe(
        *types, argv=["--config", write(tmp_path, yaml.safe_dump(resolved)), *argv]
    )
    assert again == parsed


def test_a_resolved_recipe_does_not_follow_what_trainers_change():
    (config,), settings = parse_recipe(
        DPOConfig, argv=["--use_cpu", "--lr_scheduler_kwargs", '{"a": 1}', "--loss_type", "ipo"]
    )
    config.lr_scheduler_kwargs["a"] = 2
    config.loss_type.append("sigmoid")
    config.learning_rate = 3.0
    assert resolved_recipe(settings) == {
        "use_cpu": True,
        "lr_scheduler_kwargs": {"a": 1},
        "loss_type": ["ipo"],
    }


def test_arguments_of_the_chat_template_go_to_the_recipe_and_not_to_trl(tmp_path):
    kwargs = {"enable_thinking": False}
    file = write(tmp_path, "chat_template_kwargs: {enable_thinking: false}")
    for argv in (["--config", file], ["--chat_template_kwargs", json.dumps(kwargs)]):
        (recipe, _, training, _), settings = parse_recipe(
            *STAGE, argv=[*argv, "--reward_funcs", "a.py:b", "--use_cpu", "--bf16", "false"]
        )
        assert (recipe.chat_template_kwargs, training.chat_template_kwargs) == (kwargs, None)
        assert resolved_recipe(settings)["chat_template_kwargs"] == kwargs
    (problem,) = problems(RecipeArguments, argv=["--chat_template_kwargs", "enable_thinking"])
    assert "takes a mapping (JSON, if in a flag)" in problem


def test_a_script_ends_with_status_2_and_the_text_of_a_recipe_error(capsys):
    def main():
        raise RecipeError("`x` is 1. It cannot be. Give 2.")

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "`x` is 1. It cannot be. Give 2.\n")


def test_our_own_bugs_keep_their_traceback():
    def main():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_script(main)


def shown(capsys, flag, *types):
    """What a flag for help prints, and its keys in order."""
    with pytest.raises(SystemExit) as end:
        parse_recipe(*types, argv=[flag])
    assert end.value.code == 0
    text = capsys.readouterr().out
    return text, re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)


STAGE = (RecipeArguments, RewardArguments, GRPOConfig, ModelConfig)


def test_help_shows_the_keys_of_this_package_and_of_the_method_and_the_most_used_others(capsys):
    text, keys = shown(capsys, "--help", *STAGE)
    assert keys[0] == "dataset_name"
    assert keys.index("num_generations") < keys.index("lora_r") < keys.index("output_dir")
    assert set(MOST_USED) <= set(keys)
    assert not {"torch_compile", "neftune_noise_alpha"} & set(keys)
    assert "--num_generations  a whole number or null, at least 1; default 8" in text
    assert "GRPOConfig (trl)\n" in text
    assert "--help-all" in text


def test_help_all_shows_every_key_once_and_every_choice(capsys):
    text, keys = shown(capsys, "--help-all", *STAGE)
    fields = {f.name for cls in STAGE for f in dataclasses.fields(cls) if f.init}
    assert sorted(keys) == sorted(fields)
    assert "schedule_free_radam" in text and "--help-all" not in text


def test_help_of_a_script_that_trains_nothing_is_whole(capsys):
    text, keys = shown(capsys, "--help", Small)
    assert keys == [f.name for f in dataclasses.fields(Small)]
    assert "  --steps  a whole number; default 1\n      Steps.\n" in text
    assert "--shuffle  true or false; default true" in text and "--help-all" not in text


def test_a_mistake_in_a_script_shows_no_usage_and_no_traceback(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(
        "from rlhf_recipes.arguments import RecipeArguments, parse_recipe\n"
        "from rlhf_recipes.ending import run_script\n"
        "run_script(lambda: parse_recipe(RecipeArguments))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script), "--dataset", "x"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "The recipe has a problem:\n"
        "- `--dataset x`: there is no such key. Did you mean `dataset_name`?\n"
    )
