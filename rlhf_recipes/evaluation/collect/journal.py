"""What a long job has done so far, kept so that it goes on where it was cut off."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.records import write_text

Piece = dict[str, Any]


class Journal:
    """Finished pieces of a job, one JSON line each, below the settings they were made with.

    A piece is on disk when `append` returns. Of a line that was cut off while it was written
    nothing is kept. Settings other than those in the file raise RecipeError, which names them;
    with `overwrite` the file is begun again instead. Where there is no file yet, what `finished`
    holds of the same settings is copied, so that the file of a finished job stays as it is.

    Attributes:
        pieces: What has been done, in the order it was.
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
        self.pieces: list[Piece] = []
        if finished is not None and not path.exists():
            _copy_if_same(finished, path, self.settings)
        whole, length = _whole_lines(path)
        if whole:
            changed = list(differences(whole[0]["settings"], self.settings))
            if changed and not overwrite:
                raise RecipeError(
                    "\n- ".join([f"{path} was made with other settings:", *changed])
                    + "\nWhat was made with different settings cannot be compared. Give the same "
                    "settings, another `output_dir`, or `--overwrite` to make it again."
                )
            if not changed:
                os.truncate(path, length)
                self.pieces = whole[1:]
                return
        path.unlink(missing_ok=True)

    def append(self, piece: Piece) -> None:
        """Add a finished piece; NaN and infinity are refused with ValueError."""
        lines = [piece] if self.pieces else [{"settings": self.settings}, piece]
        text = "".join(
            json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self.pieces else "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.pieces.append(piece)


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """The settings that differ, one line each: `generation.temperature`: 0.7 there, 1.0 now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"`{name}`: {before} there, {now} now"


def _copy_if_same(finished: Path, path: Path, settings: Mapping[str, Any]) -> None:
    whole, length = _whole_lines(finished)
    if whole and whole[0]["settings"] == settings:
        write_text(path, finished.read_bytes()[:length].decode())


def _whole_lines(path: Path) -> tuple[list[Any], int]:
    """The lines that were written to their end, and how many bytes they are."""
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
                f"{path}, line {number}, is damaged ({error}). Remove the file to collect what it "
                "held again, or bring back a copy of it."
            ) from error
    return lines, length
