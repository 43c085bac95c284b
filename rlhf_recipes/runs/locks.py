"""Check for a plan whether another process writes a folder, without taking its lock."""

import fcntl
from pathlib import Path

from rlhf_recipes.folders import LOCK, hold


def check_free(folder: Path) -> None:
    """Raise the RecipeError of `hold` if another process is writing this folder.

    A process that holds the folder itself must not call this: closing the lock file releases it.
    """
    if not (folder / LOCK).is_file():
        return
    with (folder / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            hold(folder)
        except OSError:
            return  # a file system without locks; the run will warn
