"""Flags for several stages: each stage takes its own, and one that no stage has is refused."""

import re
import subprocess
import sys

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.parsing import recipe_keys
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.shared_flags import take_known

KEYS = recipe_keys((DataArguments,))


def taken(flags, root):
    return take_known(["--seed", "1", f"--if_known={flags}", "--plan"], KEYS, root / "recipes")


def test_a_stage_takes_the_flags_that_it_has_a_key_for_in_their_place(root, capsys):
    flags = '--max_length 64 --no-overwrite --columns=\'{"a": "my b"}\''
    kept = ["--max_length", "64", "--no-overwrite", '--columns={"a": "my b"}']
    assert taken(flags, root) == ["--seed", "1", *kept, "--plan"]
    assert capsys.readouterr().out == ""


def test_a_flag_of_other_stages_is_left_out_with_a_line(root, capsys):
    assert taken("--kl_coef 0.1 --max_length 64 --no_bf16", root) == [
        *("--seed", "1", "--max_length", "64", "--plan"),
    ]
    assert "`--kl_coef 0.1` is left out: it is for ppo." in capsys.readouterr().out


def test_only_the_first_process_says_so(root, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    taken("--kl_coef 0.1", root)
    assert capsys.readouterr().out == ""


def test_a_flag_of_no_stage_is_refused_with_the_nearest_key_of_any(root):
    with pytest.raises(RecipeError, match=r"--kl_koef 0\.1` is for no stage.*mean `kl_coef`\?"):
        taken("--kl_koef 0.1", root)


def test_a_value_without_a_flag_is_left_to_the_parser(root):
    assert taken("0.1", root) == ["--seed", "1", "0.1", "--plan"]


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ("--kl_coef 0.1 --max_eval_samples 9", 0, "`--kl_coef 0.1` is left out: it is for ppo."),
        ("--kl_koef 0.1", 2, "Did you mean `kl_coef`?"),
    ],
)
def test_a_script_takes_them(root, tmp_path, flags, status, said):
    command = ["recipes/prepare_data.py", "--config", "recipes/tiny/prepare_data.yaml", "--plan"]
    ended = subprocess.run(
        [sys.executable, *command, "--output_dir", str(tmp_path), f"--if_known={flags}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status
    assert said in ended.stdout + ended.stderr
    assert bool(re.search(r" 9$", ended.stdout, re.MULTILINE)) == (status == 0)
