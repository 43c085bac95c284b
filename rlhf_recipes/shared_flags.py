"""Flags that `make` gives to every stage at once: a stage takes those that it has a key for."""

import os
import runpy
import shlex
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.parsing import flag_name, group_flags, recipe_keys, unknown_key

IF_KNOWN = "--if_known="


def take_known(argv: Sequence[str], keys: Container[str], scripts: Path) -> list[str]:
    """Replace each `--if_known=FLAGS` by those of FLAGS that this stage has a key for.

    The first process prints a line per flag that is left out. Raises RecipeError for a flag that
    no stage has a key for.

    Args:
        keys: Names of this stage's keys, and of its flags without a key.
        scripts: Folder of the stages' scripts, each of which names its dataclasses in `ARGUMENTS`.
            They are read only if a flag is not this stage's.
    """
    taken: list[str] = []
    for argument in argv:
        if not argument.startswith(IF_KNOWN):
            taken.append(argument)
            continue
        for flag in group_flags(shlex.split(argument.removeprefix(IF_KNOWN))):
            if not flag[0].startswith("--") or _is_among(keys, flag):
                taken += flag
            else:
                _leave_out(flag, scripts)
    return taken


def _leave_out(flag: list[str], scripts: Path) -> None:
    """Print that a flag is left out; raise RecipeError if no stage has a key for it."""
    keys_by_stage = {
        script.stem: recipe_keys(runpy.run_path(str(script))["ARGUMENTS"])
        for script in sorted(scripts.glob("*.py"))
    }
    stages = [stage for stage, keys in keys_by_stage.items() if _is_among(keys, flag)]
    if not stages:
        all_keys = {name: key for keys in keys_by_stage.values() for name, key in keys.items()}
        raise RecipeError(
            f"`{' '.join(flag)}` is for no stage: {unknown_key(flag_name(flag[0]), all_keys)}"
        )
    if os.getenv("RANK", "0") == "0":
        sys.stdout.write(f"`{' '.join(flag)}` is left out: it is for {', '.join(stages)}.\n")


def _is_among(keys: Container[str], flag: list[str]) -> bool:
    name = flag_name(flag[0])
    return name in keys or name.removeprefix("no_") in keys
