"""End a command with one sentence for errors of the user or the machine, a traceback for ours."""

import errno
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.terminal import PrintableStream, printable

REMEDIES = {
    errno.ENOSPC: "Free disk space",
    errno.EDQUOT: "Free disk space, or raise your quota",
    errno.EFBIG: "Raise the limit on file sizes (`ulimit -f`)",
    errno.EROFS: "Mount it for writing",
    errno.EACCES: "Change its permissions",
    errno.EPERM: "Change its permissions",
    errno.ENOTDIR: "Name another path, or remove the file that stands where a folder is needed",
    errno.EEXIST: "Name another path, or remove the file that stands where a folder is needed",
    errno.EISDIR: "Name another path, or remove the folder that stands where a file is needed",
}
"""Remedies for errors of the operating system, by their number."""

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only occur in writing."""


LIBRARY_WARNINGS = (
    # transformers 5.23 renamed gradient checkpointing; peft 0.21 and trl 1.16 use the old name.
    ("`.*gradient_checkpointing.*` is deprecated", FutureWarning),
    # TRL may change `rollout_func`; TRL is pinned, and the tests use it.
    ("You are using 'rollout_func'", UserWarning),
    # Pinning memory is the Trainer's default, and torch warns on a machine without a GPU.
    ("'pin_memory' argument is set as true", UserWarning),
)
"""Beginnings of warnings about one library's use of another, which no user can act on."""


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which ends a command as Ctrl-C does."""


def run_script(main: Callable[[], None]) -> None:
    """Call a script's `main`, and end the process as `ended_by_a_sentence` says.

    Of the processes of a launch only the first one returns from here; see `end_process`.
    """
    with warnings.catch_warnings(), ended_by_a_sentence():
        for message, category in LIBRARY_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        main()
        if os.getenv("RANK", "0") != "0":
            end_process()


def end_process() -> NoReturn:
    """End this process at once with status 0, without the clean-up of Python and C++.

    For the processes that have nothing left to do while the first one writes the run folder. With
    two CPU processes the clean-up aborted one run in fifteen (a thread of torch was still alive),
    and the launcher then killed the first process too.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def ended_by_a_sentence() -> Iterator[None]:
    """Escape control characters in the output, and turn known errors into a sentence and a status.

    The status is 2 for mistakes of the user, full disks and missing permissions, 130 for Ctrl-C
    and 143 for SIGTERM. Notes on an exception, which say what is kept, are printed after it.
    """
    _raise_on_sigterm()
    stdout, sys.stdout = sys.stdout, PrintableStream(sys.stdout)
    try:
        yield
    except RecipeError as error:
        _exit(2, str(error))
    except Terminated as error:
        _exit(143, "Ended by SIGTERM.", error)
    except KeyboardInterrupt as error:
        _exit(130, "Interrupted.", error)
    except Exception as error:
        if (sentence := _system_error(error)) is None:
            raise
        _exit(2, sentence, error)
    finally:
        sys.stdout = stdout


def _exit(status: int, sentence: str, error: BaseException | None = None) -> None:
    notes = getattr(error, "__notes__", [])
    if error is not None and not notes:
        notes = ["Finished work is kept, and the same command goes on from there."]
    sys.stderr.write(printable(" ".join([sentence, *notes])) + "\n")
    raise SystemExit(status) from None


def _raise_on_sigterm() -> None:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def _system_error(error: BaseException | None) -> str | None:
    """Return a sentence on the error of the operating system behind an exception, if any.

    Libraries wrap such errors: safetensors and shutil quote the number, and torch says only that
    it could not write. Only torch raises another error on top without `from`, recognizable by the
    source file in its text. Any other error raised while one is handled is a bug.
    """
    while error is not None:
        quoted = re.search(r"(?:\(os error |\[Errno )(\d+)[\])]", str(error))
        number = error.errno if isinstance(error, OSError) else None
        number = int(quoted[1]) if number is None and quoted else number
        if number in REMEDIES:
            what = getattr(error, "filename", None) or "A file"
            refused = "written" if number in WRITING else "accessed"
            return f"{what} cannot be {refused} ({os.strerror(number)}). {REMEDIES[number]}."
        if re.search(r"PytorchStreamWriter failed writing|iostream error", str(error)):
            return "A checkpoint cannot be written. Free disk space, or look at its permissions."
        hidden = error.__context__ if "inline_container.cc" in str(error) else None
        error = error.__cause__ or hidden
    return None
