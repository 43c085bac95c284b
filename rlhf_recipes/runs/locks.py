"""Ask whether a folder is being written, for a plan: it takes no lock and writes nothing."""

import fcntl
from pathlib import Path

from rlhf_recipes.folders import LOCK, hold


def check_free(folder: Path) -> None:
    """Raise `hold`'s RecipeError where another process is writing this folder.

    Not for a process that holds the folder itself: closing the lock's file would give it up.
    """
    if not (folder / LOCK).is_file():
        return
    with (folder / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            hold(folder)
        except OSError:
            return  # a file system without locks, of which the run will warn
