"""Folders that commands share: one writer at a time, and whole contents at any time."""

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
"""Where in a folder its new contents are made while the finished ones stay."""

REPLACED = ".replaced"
"""What a replacement is called once it is in place, while its second links are deleted."""

NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_held: dict[Path, TextIO] = {}


def hold(folder: Path) -> None:
    """Keep every other process from writing this folder, until this one ends.

    The lock is the operating system's, so that a killed process holds none. Its forked children do
    not inherit it (a POSIX record lock, unlike `flock`), and closing any descriptor of the lock's
    file gives it up, so nothing here opens it twice. A file system without locks gets a warning.
    NFS has them where its lock service runs.
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
            "%s is on a file system without locks (%s): see to it that nothing else writes there.",
            folder,
            error.strerror,
        )
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%X')}\n")
    file.flush()
    _held[path] = file


def put_in_place(folder: Path, belongs: Sequence[str], last: str) -> None:
    """Replace a folder's own files by those of its replacement; all other files stay.

    Whatever moment this is cut off at, the folder or its replacement is complete, and the same call
    ends what was begun. Files are linked, so that even checkpoints cost no second copy.

    Args:
        belongs: Glob patterns of the folder's own files and folders.
        last: The file that says a folder is complete. It goes first and comes last.
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
    """Delete the second links that a replacement leaves when it is cut off at its very end."""
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
