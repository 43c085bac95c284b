"""Lock a folder against other writers, and replace its contents so that it is always whole."""

import errno
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rlhf_recipes.errors import RecipeError

LOCK = ".lock"
REPLACEMENT = ".replacement"
"""Subfolder in which new contents are written while the finished ones stay."""

REPLACED = ".replaced"
"""Name of that subfolder once its files are linked in place, until it is deleted."""

NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_held: dict[Path, TextIO] = {}


def hold(folder: Path) -> None:
    """Lock a folder against writing by other processes until this process ends.

    Raises RecipeError if another process holds the lock. It is a POSIX record lock: the operating
    system releases it when the process is killed, forked children do not inherit it, and closing
    any descriptor of the lock file releases it, so the file is opened only once. On a file system
    without locks there is only a warning. NFS has locks if its lock service runs.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise RecipeError(
                f"{folder} is being written by {holder or 'another process'}, and two would mix "
                "their files. Wait until it has finished, stop it, or give another `output_dir`."
            ) from None
        if error.errno not in NO_LOCKS_HERE:
            raise
        logging.getLogger(__name__).warning(
            "%s is on a file system without locks (%s): make sure that nothing else writes there.",
            folder,
            error.strerror,
        )
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%X')}\n")
    file.flush()
    _held[path] = file


def put_in_place(folder: Path, belongs: Sequence[str], last: str) -> None:
    """Replace the files of a folder that match `belongs` by its replacement's; other files stay.

    If the process is killed at any moment, the folder or its replacement is complete, and the same
    call finishes the replacement. Files are hard-linked, so checkpoints are not copied.

    Args:
        belongs: Glob patterns of the files and folders that are replaced.
        last: The file that marks a folder as complete. It is removed first and linked last.
    """
    replacement = folder / REPLACEMENT
    assert (replacement / last).is_file()
    (folder / last).unlink(missing_ok=True)
    for path in {path for pattern in belongs for path in folder.glob(pattern)}:
        _remove(path)
    shutil.copytree(
        replacement,
        folder,
        copy_function=_link,
        dirs_exist_ok=True,
        ignore=lambda where, _: [last] if Path(where) == replacement else [],
    )
    _link(str(replacement / last), str(folder / last))
    replacement.rename(folder / REPLACED)
    discard_replaced(folder)


def discard_replaced(folder: Path) -> None:
    """Delete the links that a replacement leaves if the process is killed at its very end."""
    if (folder / REPLACED).is_dir():
        shutil.rmtree(folder / REPLACED)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _link(source: str, destination: str) -> str:
    Path(destination).unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)
    return destination
