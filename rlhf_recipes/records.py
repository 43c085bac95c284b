"""Read and write the JSON files of runs, atomically; the record of what produced a run."""

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
    """Write data to path atomically: a reader sees the old file or the new one.

    Raises ValueError for NaN and infinity, which are not JSON.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON list atomically, with one object per line."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def write_text(path: Path, text: str) -> None:
    """Write text to path atomically."""
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
    """Flush the files of a folder to disk, before another file marks it as complete.

    Otherwise a machine that loses power may keep the mark and lose the files. Hidden files are
    skipped, as opening and closing a lock file releases the lock.
    """
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                os.fsync(file.fileno())


def run_record(stage: str, recipe: Mapping[str, object], **facts: object) -> dict[str, object]:
    """Return the record of a run: stage, recipe, versions, git commit, time, and the facts."""
    return {
        "stage": stage,
        "recipe": dict(recipe),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        **facts,
    }


def workspace(output_dir: Path) -> Path:
    """Return the folder that a run shares with other stages: OUT for OUT/models/x, else itself."""
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
