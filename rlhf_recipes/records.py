"""The JSON a run leaves behind: written whole or not at all, and saying what produced it."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def write_json(path: Path, data: object) -> None:
    """Write data to path in one step: a reader sees the old file or the new one, never half of it.

    NaN and infinity are refused with ValueError: they are not JSON, and other readers stop at them.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON list as `write_json` does, with each of its objects on one line."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def write_text(path: Path, text: str) -> None:
    """Write a text to path in one step, as `write_json` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file; one that is not JSON raises a RecipeError that names it."""
    return _read(path, json.loads)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; one that is not YAML raises a RecipeError that names it."""
    return _read(path, yaml.safe_load)


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        found = str(error).partition("\n")[0]
        raise RecipeError(
            f"{path} is damaged ({found}). Delete its folder, or bring back a copy of the file."
        ) from error


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield one line per setting that differs: `generation.temperature`: 0.7 there, 1.0 now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"`{name}`: {before} there, {now} now"


def flush_to_disk(folder: Path) -> None:
    """Have the files of a folder on disk, not in memory, before another file says it is complete.

    Without it a machine that loses power may keep that file and lose what it speaks of. Hidden
    files are left alone: a lock would be lost.
    """
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                os.fsync(file.fileno())


def run_record(stage: str, recipe: Mapping[str, object], **facts: object) -> dict[str, object]:
    """What a run was: stage, recipe, versions, git commit and time of creation, plus the facts."""
    return {
        "stage": stage,
        "recipe": dict(recipe),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        **facts,
    }


def workspace(output_dir: Path) -> Path:
    """The folder a run shares with the other stages: OUT for OUT/models/x, else output_dir."""
    if output_dir.name == REPLACEMENT:
        output_dir = output_dir.parent
    if output_dir.parent.name == "models":
        return output_dir.parent.parent
    return output_dir


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie inside someone else's repository, whose commit says nothing.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        described = subprocess.run(
            [*command, "--exclude", "*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
