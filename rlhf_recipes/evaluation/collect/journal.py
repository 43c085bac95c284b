"""The finished work of a long job, kept so that it goes on where it was cut off."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.collect.processes import is_main
from rlhf_recipes.records import differences, write_text


class Journal:
    """Entries of finished work, one JSON line each, below the settings they were made with.

    An entry is on disk when `append` returns. A line that was cut off while it was written is
    dropped. Settings other than those in the file raise RecipeError, which names them; with
    `overwrite` the file is begun again instead. Where there is no file yet, the journal `finished`
    is copied if its settings are the same, so that the file of a finished job stays as it is.

    Attributes:
        entries: The entries in the order in which they were appended.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        finished: Path | None = None,
    ) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.entries: list[dict[str, Any]] = []
        if finished is not None and not path.exists():
            _copy_if_same(finished, path, self.settings)
        lines, length = _whole_lines(path)
        if lines:
            changed = list(differences(lines[0]["settings"], self.settings))
            if changed and not overwrite:
                raise RecipeError(
                    "\n- ".join([f"{path} was made with other settings:", *changed])
                    + "\nWhat was made with different settings cannot be compared. Give the same "
                    "settings, another `output_dir`, or `--overwrite` to make it again."
                )
            if not changed:
                os.truncate(path, length)
                self.entries = lines[1:]
                return
        path.unlink(missing_ok=True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry; NaN and infinity are refused with ValueError.

        Of the processes of a launch the main one writes the file; the others keep the entry.
        """
        lines = [entry] if self.entries else [{"settings": self.settings}, entry]
        text = "".join(
            json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
        )
        if is_main():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.entries else "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        self.entries.append(entry)


def _copy_if_same(finished: Path, path: Path, settings: Mapping[str, Any]) -> None:
    lines, length = _whole_lines(finished)
    if lines and lines[0]["settings"] == settings:
        write_text(path, finished.read_bytes()[:length].decode())


def _whole_lines(path: Path) -> tuple[list[Any], int]:
    """Parse the lines that were written to their end, and count their bytes."""
    if not path.is_file():
        return [], 0
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(content[:length].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise RecipeError(
                f"{path}, line {number}, is damaged ({error}). Remove the file to collect its "
                "content again, or bring back a copy of it."
            ) from error
    return lines, length
